"""Device nodes inside a real sandbox: a kernel sees its own and no others."""

from __future__ import annotations

from sorna.errors import AgentFailed, NoAgentAvailable
from tests.agent.test_devices import make_nodes
from tests.integration.test_agent_kernels import RealKernelCase, console

LOOK = """
import os, stat
names = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
for name in names:
    node = os.stat(f"/dev/{name}")
    with open(f"/dev/{name}", "r+b", buffering=0) as file:
        print(name, stat.S_ISCHR(node.st_mode), os.major(node.st_rdev), os.minor(node.st_rdev), file.write(b"x"))
print(os.environ.get("NVIDIA_VISIBLE_DEVICES"), os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


class DeviceTests(RealKernelCase):
    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.device_root = make_nodes(self, "nvidia0", "nvidia1", "nvidia2", "nvidiactl")
        await super().setUp()

    async def test_own_devices_alone(self) -> None:
        """Nodes of a kernel's own devices can be opened in it, after a restart too; nothing else is there."""
        first = await self.create(gpus=1)
        second = await self.create(gpus=2)
        nodes = "nvidia{} True 1 3 1\n"
        shared = "nvidiactl True 1 3 1\n"
        self.assertEqual(console(await self.query(first, LOOK)), f"{nodes.format(0)}{shared}0 0\n")
        expected = f"{nodes.format(1)}{nodes.format(2)}{shared}1,2 0,1\n"
        self.assertEqual(console(await self.query(second, LOOK)), expected)
        await self.kernels.restart_kernel(second)
        self.assertEqual(console(await self.query(second, LOOK)), expected)
        with self.assertRaises(NoAgentAvailable):
            await self.create(gpus=1)
        self.assertEqual(console(await self.query(await self.create(), LOOK)), "None None\n")
        await self.kernels.destroy_kernel(first, "x")
        self.assertEqual(console(await self.query(await self.create(gpus=1), LOOK)), f"{nodes.format(0)}{shared}0 0\n")

    async def test_a_node_that_is_gone(self) -> None:
        """A kernel whose device has vanished is not made, and says which step failed."""
        (self.device_root / "nvidia0").unlink()
        (self.device_root / "nvidia0").write_text("no device")
        with self.assertRaises(AgentFailed) as caught:
            await self.create(gpus=1)
        self.assertIn("devices", caught.exception.exception or "")
