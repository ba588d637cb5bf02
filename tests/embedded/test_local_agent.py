"""The agent as a supervised child."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any, cast

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from sorna.embedded.child import EX_CONFIG
from sorna.embedded.local_agent import LocalAgent
from sorna.testing.unit import UnitTestCase


class FakeProcess:
    """A process that notes its signals."""

    def __init__(self, protocol: object) -> None:
        self.protocol = protocol
        self.signals: list[str] = []
        self.gone = False

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)


class ProcessReactor(Clock):
    """Starts fake processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.arguments: list[list[str]] = []

    def spawnProcess(self, protocol: object, executable: str, args: list[str], env: object) -> FakeProcess:
        self.processes.append(FakeProcess(protocol))
        self.arguments.append(args)
        return self.processes[-1]


def end_process(process: FakeProcess, status: int | None, *, text: bytes = b"") -> None:
    """Let a process print and end."""
    process.gone = True
    process.protocol.childDataReceived(2, text)  # type: ignore[attr-defined]
    reason = ProcessTerminated(exitCode=status) if status else ProcessDone(status)
    process.protocol.processEnded(Failure(reason))  # type: ignore[attr-defined]


class LocalAgentTests(UnitTestCase):
    """Starting, restarting, refusing, stopping."""

    def setUp(self) -> None:
        self.reactor = ProcessReactor()
        self.state_dir = Path(self.mktemp())
        self.state_dir.mkdir()
        self.refusals: list[str] = []
        options: dict[str, str | int | bool] = {
            "redis-addr": "unix:///x",
            "redis-password": 'se"cret',
            "max-kernels": 3,
            "debug": True,
        }
        self.agent = LocalAgent(cast("Any", self.reactor), self.reactor, self.state_dir, options, self.refusals.append)

    def test_options_go_through_a_private_file(self) -> None:
        """The file has the options and is readable by its owner only; no secret is an argument."""
        self.agent.startService()
        path = self.state_dir / "agent.toml"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        options = tomllib.loads(path.read_text(encoding="utf-8"))
        self.assertEqual(options["redis-password"], 'se"cret')
        self.assertNotIn("cret", " ".join(self.reactor.arguments[0]))
        self.assertIn("--exit-with-parent", self.reactor.arguments[0])

    def test_a_dead_agent_is_started_again_with_growing_delays(self) -> None:
        """Each early death doubles the delay; a long life resets it."""
        self.agent.startService()
        for delay in (0.5, 1.0, 2.0):
            end_process(self.reactor.processes[-1], 1)
            count = len(self.reactor.processes)
            self.reactor.advance(delay - 0.01)
            self.assertEqual(len(self.reactor.processes), count)
            self.reactor.advance(0.01)
            self.assertEqual(len(self.reactor.processes), count + 1)
        self.assertEqual(self.agent.early_ends, 3)
        self.reactor.advance(61)
        end_process(self.reactor.processes[-1], 1, text=b"sorna: no more\n")
        self.assertEqual((self.agent.early_ends, self.agent.last_words), (0, "no more"))
        self.reactor.advance(0.5)
        self.assertEqual(len(self.reactor.processes), 5)

    def test_a_refusal_is_final(self) -> None:
        """An agent that can never start is not tried again, and its words are passed on."""
        self.agent.startService()
        end_process(self.reactor.processes[0], EX_CONFIG, text=b"this host has no user namespaces\n")
        self.reactor.advance(60)
        self.assertEqual(len(self.reactor.processes), 1)
        self.assertEqual(self.refusals, ["this host has no user namespaces"])

    def test_one_that_has_done_its_work_waits(self) -> None:
        """An agent that ends by itself is started again when somebody says so, and by nothing else."""
        self.agent.startService()
        self.agent.resume()
        end_process(self.reactor.processes[0], 0)
        self.reactor.advance(60)
        self.assertEqual(len(self.reactor.processes), 1)
        for _ in range(2):
            self.agent.resume()
        self.assertEqual((len(self.reactor.processes), self.agent.early_ends), (2, 0))
        end_process(self.reactor.processes[1], 1)
        self.reactor.advance(0.5)
        self.assertEqual(len(self.reactor.processes), 3)

    def test_waiting_from_the_beginning(self) -> None:
        """An agent may wait for its first start, too, and stops while it waits."""
        agent = LocalAgent(cast("Any", self.reactor), self.reactor, self.state_dir, {}, print, waiting=True)
        agent.startService()
        self.assertEqual(self.reactor.processes, [])
        self.successResultOf(agent.stopService())
        agent.resume()
        self.assertEqual(self.reactor.processes, [])

    def test_stop_waits_for_the_end_and_kills_the_stubborn(self) -> None:
        """Stopping asks, then kills, and is done when the process is gone."""
        self.agent.startService()
        process = self.reactor.processes[0]
        stopped = self.agent.stopService()
        self.assertEqual(process.signals, ["TERM"])
        self.reactor.advance(15)
        self.assertEqual(process.signals, ["TERM", "KILL"])
        self.assertNoResult(stopped)
        end_process(process, 9)
        self.successResultOf(stopped)
        self.reactor.advance(60)
        self.assertEqual(len(self.reactor.processes), 1)

    def test_stop_between_two_lives(self) -> None:
        """Stopping while no process runs ends at once and starts none."""
        self.agent.startService()
        end_process(self.reactor.processes[0], 1)
        self.successResultOf(self.agent.stopService())
        self.reactor.advance(60)
        self.assertEqual(len(self.reactor.processes), 1)
