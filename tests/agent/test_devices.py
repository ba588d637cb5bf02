"""Handing out devices: which numbers, which nodes, which variables; and that a kernel gives them back."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from sorna.agent.devices import Allotment, Devices
from sorna.agent.runners import frames
from sorna.errors import AgentFailed, NoAgentAvailable
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import FakeKernel, KernelTestCase, spec


def make_nodes(case: SynchronousTestCase, *names: str) -> Path:
    """Make a directory of device nodes, all of which are /dev/null by another name."""
    directory = tempfile.TemporaryDirectory(prefix="sorna-devices-")
    case.addCleanup(directory.cleanup)
    for name in names:
        try:
            os.mknod(f"{directory.name}/{name}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError as error:
            raise SkipTest("device nodes cannot be made here") from error
        Path(directory.name, name).chmod(0o666)
    return Path(directory.name)


class DevicesTests(UnitTestCase):
    def test_what_is_a_device(self) -> None:
        """Only device nodes of the right names count; a directory that is not there has none."""
        directory = make_nodes(self, "nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null")
        (directory / "nvidia3").write_text("")
        (directory / "nvidia4").symlink_to("nvidia0")
        (directory / "nvidia-modeset").mkdir()
        devices = Devices(directory, hidden=True)
        self.assertEqual(len(devices), 2)
        allotment = devices.take(2)
        self.assertEqual(allotment.numbers, (0, 12))
        names = [Path(node).name for node in allotment.nodes]
        self.assertEqual(names, ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm"])
        self.assertEqual(len(Devices(Path("/nonexistent"), hidden=True)), 0)

    def test_taking_and_giving_back(self) -> None:
        """Nobody gets what another has, or fewer than were asked for; what is given back is free."""
        devices = Devices(make_nodes(self, "nvidia0", "nvidia1", "nvidia2"), hidden=True)
        first, second = devices.take(1), devices.take(2)
        self.assertEqual((first.numbers, second.numbers), ((0,), (1, 2)))
        error = self.assertRaises(NoAgentAvailable, devices.take, 1)
        self.assertIn("0 of 3", error.detail)
        devices.give_back(first)
        self.assertRaises(NoAgentAvailable, devices.take, 2)
        self.assertEqual(devices.take(1).numbers, (0,))
        self.assertEqual(devices.take(0), Allotment())

    def test_keeping(self) -> None:
        """What a kernel of the program before this one has is nobody else's until it is given back."""
        devices = Devices(make_nodes(self, "nvidia0", "nvidia1", "nvidiactl"), hidden=True)
        kept = devices.keep([0, 7])
        self.assertEqual((kept.numbers, [Path(node).name for node in kept.nodes]), ((0,), ["nvidia0", "nvidiactl"]))
        self.assertEqual(devices.take(1).numbers, (1,))
        self.assertRaises(NoAgentAvailable, devices.take, 1)
        devices.give_back(kept)
        self.assertEqual(devices.take(1).numbers, (0,))

    def test_variables(self) -> None:
        """A kernel that sees its own devices alone counts them from 0, one that sees all has the host's numbers."""
        directory = make_nodes(self, "nvidia0", "nvidia1", "nvidia2")
        for hidden, seen in ((True, "0,1"), (False, "1,2")):
            devices = Devices(directory, hidden=hidden)
            devices.take(1)
            environ = devices.environ(devices.take(2))
            self.assertEqual((environ["CUDA_VISIBLE_DEVICES"], environ["NVIDIA_VISIBLE_DEVICES"]), (seen, "1,2"))
        self.assertEqual(Devices(directory, hidden=True).environ(Allotment()), {})
        self.assertEqual(Devices(directory, hidden=False).environ(Allotment())["CUDA_VISIBLE_DEVICES"], "")
        self.assertEqual(Devices(Path("/nonexistent"), hidden=False).environ(Allotment()), {})


class KernelDevicesTests(KernelTestCase):
    most_ready = 2

    def device_directory(self) -> Path:
        return make_nodes(self, "nvidia0", "nvidia1", "nvidiactl")

    def environ(self, init: FakeKernel) -> dict[str, str]:
        # Which it is told with the first of what it has to do.
        self.start(self.kernels.interrupt(self.kernel_id))
        found: dict[str, str] = init.sent(frames.ASSIGN)[-1]["environ"]
        return found

    def test_a_kernels_devices(self) -> None:
        """A kernel gets as many as it asks for, and gives them back when nothing of it is left."""
        first, second = self.create(gpus=1), self.create(gpus=1)
        self.assertEqual([Path(one).name for one in first.spec.devices], ["nvidia0", "nvidiactl"])
        self.assertEqual([Path(one).name for one in second.spec.devices], ["nvidia1", "nvidiactl"])
        self.assertEqual(self.environ(second)["NVIDIA_VISIBLE_DEVICES"], "1")
        self.assertEqual(self.environ(second)["CUDA_VISIBLE_DEVICES"], "0")
        self.assertEqual(self.kernels.taken.gpus, 2)
        plain = self.create()
        self.assertEqual(plain.spec.devices, ())
        self.assertNotIn("CUDA_VISIBLE_DEVICES", self.environ(plain))
        self.failureResultOf(self.another(1), NoAgentAvailable)
        first.obedient = False
        destroyed = self.start(self.kernels.destroy_kernel(uuid.UUID(int=2), "x"))
        self.failureResultOf(self.another(1), NoAgentAvailable)
        first.exit(-9)
        self.flow()
        self.successResultOf(destroyed)
        self.successResultOf(self.another(1))
        self.assertEqual(self.sandbox.kernels[-1].spec.devices, first.spec.devices)

    def another(self, gpus: int) -> Deferred[Any]:
        return self.start(self.kernels.create_kernel(uuid.UUID(int=99), spec(gpus=gpus)))

    def test_a_kernel_that_cannot_be_made(self) -> None:
        """Devices of a kernel that never was are free again."""
        self.sandbox.broken = AgentFailed("no memory")
        self.agent_failed(self.another(2))
        self.sandbox.broken = None
        self.sandbox.unadjustable = True
        self.agent_failed(self.start(self.kernels.create_kernel(uuid.UUID(int=98), spec(gpus=2, memory=1 << 26))))
        self.sandbox.unadjustable = False
        self.flow()
        self.successResultOf(self.another(2))

    def test_never_from_the_pool(self) -> None:
        """A kernel that was made ready has no devices, and none that has some is kept ready."""
        self.pool.start("python3", 2)
        self.advance(1.0)
        ready = len(self.pool)
        self.assertGreater(ready, 0)
        init = self.create(gpus=1)
        self.assertTrue(init.spec.devices)
        self.assertEqual(len(self.pool), ready)
