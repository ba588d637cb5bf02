"""One child process of an embedded server: its launch, its bounded log, its end; knows nothing of databases."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import field, frozen
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.embedded.launcher import EXIT_UNREACHABLE
from sorna.embedded.state import EmbeddedError, ServerDirectory

LAUNCHER = Path(__file__).with_name("launcher.py")
LOG_SIZE = 1024 * 1024
# How long to read on after a process is gone: its children may hold its pipes, and they may be slower to go.
DRAIN = 2.0


class BoundedLog:
    """What the servers print, in ``server.log`` and one older ``server.log.1``, each of at most :data:`LOG_SIZE` bytes."""

    _log = Logger()

    def __init__(self, directory: ServerDirectory, size: int = LOG_SIZE) -> None:
        self._directory = directory
        self._size = size
        self._tail: deque[bytes] = deque(maxlen=12)
        self._file = directory.append("server.log")
        self._written = os.fstat(self._file).st_size

    def write(self, printed: bytes) -> None:
        """Append; a full disk must not stop the server, so it is reported and passed over."""
        self._tail.extend(line[:400] for line in printed.splitlines()[-12:] if line.strip())
        with self._log.failuresHandled("cannot write the log of an embedded server"):
            if self._written + len(printed) > self._size:
                self._rotate()
            self._written += os.write(self._file, printed[-self._size :])

    def _rotate(self) -> None:
        path = self._directory.path / "server.log"
        path.replace(path.with_name("server.log.1"))
        fresh = self._directory.append("server.log")
        os.close(self._file)
        self._file, self._written = fresh, 0

    def tail(self) -> str:
        """Give the last lines, for an error message."""
        return b"\n".join(self._tail).decode("utf-8", "replace")

    def close(self) -> None:
        """Close the file; nothing may be written afterwards."""
        os.close(self._file)


@frozen
class Command:
    """What to launch.

    :ivar argv: words may begin with ``{name}``, where name is one of ``reach``.
    :ivar death_signal: sent when Sorna itself dies.
    :ivar stdin: written to the process, whose standard input is then closed.
    """

    argv: Sequence[str]
    cwd: str
    reach: Mapping[str, str]
    death_signal: signal.Signals
    stdin: bytes = field(default=b"", repr=False)


def _words(command: Command, directory: ServerDirectory) -> list[str]:
    words = [sys.executable, "-I", "-S", str(LAUNCHER)]
    words += ["--parent", str(os.getpid()), "--death-signal", str(int(command.death_signal)), "--cwd", command.cwd]
    if os.geteuid() == 0:
        words += ["--become", f"{directory.owner.uid}:{directory.owner.gid}"]
    for name, path in command.reach.items():
        words += ["--reach", f"{name}={path}"]
    return [*words, "--", *command.argv]


class ServerProcess(ProcessProtocol):
    """A running child.

    :ivar exit_status: None while it runs; then its exit code, or minus the signal that ended it.
    """

    transport: IProcessTransport | None

    def __init__(self, reactor: IReactorTime, log: BoundedLog) -> None:
        self._reactor = reactor
        self._log = log
        self._waiting: list[Deferred[int]] = []
        self.exit_status: int | None = None
        self._closed = False

    @classmethod
    def launch(
        cls, reactor: IReactorTime, command: Command, directory: ServerDirectory, log: BoundedLog
    ) -> ServerProcess:
        """Start the process."""
        process = cls(reactor, log)
        words = _words(command, directory)
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
        # An interpreter with a shared library in an unusual place starts no launcher without it.
        if (libraries := os.environ.get("LD_LIBRARY_PATH")) is not None:
            environment["LD_LIBRARY_PATH"] = libraries
        transport = IReactorProcess(reactor).spawnProcess(process, words[0], words, environment, str(directory.path))
        if command.stdin:
            transport.writeToChild(0, command.stdin)
        transport.closeChildFD(0)
        return process

    def childDataReceived(self, _childFD: int, data: bytes) -> None:
        """Keep what the process prints."""
        if not self._closed:
            self._log.write(data)

    def processExited(self, _reason: Failure) -> None:
        """Read on for a moment, then tell."""
        self._drain = self._reactor.callLater(DRAIN, self._abandon)

    def _abandon(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        """Tell everybody who waits."""
        if self._drain.active():
            self._drain.cancel()
        self._closed = True
        match reason.value:
            case ProcessDone():
                self.exit_status = 0
            case ProcessTerminated(exitCode=int(code)):
                self.exit_status = code
            case ProcessTerminated(signal=int(number)):
                self.exit_status = -number
            case _:
                self.exit_status = -1
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(self.exit_status)

    def when_ended(self) -> Deferred[int]:
        """Give a new Deferred of the exit status; cancelling it is harmless."""
        if self.exit_status is not None:
            ended: Deferred[int] = Deferred()
            ended.callback(self.exit_status)
            return ended

        def forget(cancelled: Deferred[int]) -> None:
            self._waiting.remove(cancelled)

        ended = Deferred(forget)
        self._waiting.append(ended)
        return ended

    def send(self, number: signal.Signals) -> None:
        """Send a signal; harmless when the process is gone."""
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(number.name.removeprefix("SIG"))

    async def ended_within(self, seconds: float) -> bool:
        """Wait for the end, at most so long."""
        try:
            await self.when_ended().addTimeout(seconds, self._reactor)
        except defer.TimeoutError:
            return False
        return True

    async def stop(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """Send each signal in turn, until one has ended the process within its seconds, and SIGKILL in the end."""
        for number, seconds in steps:
            self.send(number)
            if await self.ended_within(seconds):
                return
        self.send(signal.SIGKILL)
        await self.when_ended()

    def explain(self, what: str) -> EmbeddedError:
        """Say why the process ended, as an error for the operator."""
        printed = self._log.tail()
        if self.exit_status == EXIT_UNREACHABLE:
            return EmbeddedError(
                f"{what} cannot run here: {printed}; choose a --state-dir that this user can reach, "
                "for instance below /var/lib, or start as an ordinary user"
            )
        return EmbeddedError(f"{what} ended with status {self.exit_status}; the last it printed was:\n{printed}")
