"""The agent that the embedded mode runs as a child: started, watched, started again when it dies, ended with its parent.

Knows how to run ``python -m sorna.agent`` with a configuration file, and nothing of what an agent does. The configuration
goes through a file of mode 0600, because arguments and environments of processes can be read by others.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

# sysexits.h: the agent says that trying again cannot help.
EX_CONFIG = 78
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
STOP_TIMEOUT = 15.0
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "HOME",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "JAVA_HOME",
    "COVERAGE_PROCESS_START",
)


def write_options(path: Path, options: Mapping[str, str | float | bool]) -> None:
    """Write options as a TOML file that only this user can read."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in options.items()]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.writelines(lines)


class _AgentProcess(ProcessProtocol):
    """Passes the agent's lines on and tells when it is gone."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._rest = {1: b"", 2: b""}
        self.ended: Deferred[None] = Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Cut what the agent prints into lines; one without an end is passed on when it grows long."""
        *lines, rest = (self._rest[childFD] + data).split(b"\n")
        if len(rest) > 65536:
            lines, rest = [*lines, rest], b""
        self._rest[childFD] = rest
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """Tell that the process is gone and its pipes are closed."""
        for rest in self._rest.values():
            if rest:
                self._line(rest.decode("utf-8", "replace"))
        self.ended.errback(reason)


class LocalAgent(Service):
    """Keeps one agent process running.

    :param options: the agent's options, written to ``<state_dir>/agent.toml``.
    :param refused: called once, with the agent's last words, when it says that it can never start.
    :param waiting: whether it waits for :meth:`resume` instead of starting with the service.
    :ivar early_ends: how often in a row it ended within a minute.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorProcess,
        clock: IReactorTime,
        state_dir: Path,
        options: Mapping[str, str | float | bool],
        refused: Callable[[str], None],
        *,
        waiting: bool = False,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._path = state_dir / "agent.toml"
        self._options = options
        self._refused = refused
        self._waiting = waiting
        self._delay = FIRST_DELAY
        self._again: IDelayedCall | None = None
        self._transport: IProcessTransport | None = None
        self._protocol: _AgentProcess | None = None
        self._last_lines: list[str] = []
        self.early_ends = 0

    @property
    def last_words(self) -> str:
        """What the agent said last, for an error message."""
        return self._last_lines[-1].removeprefix("sorna: ") if self._last_lines else "it does not say why"

    def startService(self) -> None:
        """Start the agent."""
        super().startService()
        write_options(self._path, self._options)
        if not self._waiting:
            self._spawn()

    def resume(self) -> None:
        """Start an agent that waits, or that has ended by itself because its work was done; harmless for any other."""
        if self.running and self._waiting:
            self._waiting = False
            self._spawn()

    def stopService(self) -> Deferred[None]:
        """Ask the agent to stop, kill it when it does not, and wait until it is gone."""
        super().stopService()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._transport is None or self._protocol is None:
            return succeed(None)
        transport = self._transport
        self._signal(transport, "TERM")
        kill = self._clock.callLater(STOP_TIMEOUT, self._signal, transport, "KILL")
        gone: Deferred[None] = Deferred()

        def ended(_reason: object) -> None:
            if kill.active():
                kill.cancel()
            gone.callback(None)

        self._protocol.ended.addBoth(ended)
        return gone

    def _signal(self, transport: IProcessTransport, name: str) -> None:
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            self._log.debug("the agent was gone before SIG{name}", name=name)

    def _spawn(self) -> None:
        self._again = None
        protocol = _AgentProcess(self._say)
        protocol.ended.addErrback(self._ended, self._clock.seconds())
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        arguments = [sys.executable, "-m", "sorna.agent", "--config", str(self._path), "--exit-with-parent"]
        self._protocol = protocol
        # Standard input stays open as long as this process lives: its end is how the agent learns of a kill -9.
        self._transport = self._reactor.spawnProcess(protocol, arguments[0], arguments, environment)

    def _say(self, line: str) -> None:
        self._last_lines = [*self._last_lines[-4:], line]
        self._log.info("agent| {line}", line=line)

    def _ended(self, reason: Failure, started_at: float) -> None:
        self._transport = self._protocol = None
        if not self.running:
            return
        if getattr(reason.value, "exitCode", None) == EX_CONFIG:
            self._refused(self.last_words)
            return
        if reason.check(ProcessDone) is not None:
            # It stops by itself when it has been drained, and for nothing else.
            self._waiting = True
            self._log.info("the local agent has stopped; it is started again when it is not drained any more")
            return
        self.early_ends += 1
        if self._clock.seconds() - started_at > 60:
            self._delay, self.early_ends = FIRST_DELAY, 0
        self._log.error("the local agent is gone: {reason}; again in {delay} s", reason=reason.value, delay=self._delay)
        self._again = self._clock.callLater(self._delay, self._spawn)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
