"""A child process that does part of the server's work: started, watched, started again when it dies, ended with its parent.

Knows how to run ``python -m MODULE`` with a configuration file, and nothing of what the module does. The configuration goes
through a file of mode 0600, because arguments and environments of processes can be read by others.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

# sysexits.h: the child says that trying again cannot help.
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


class _ChildProcess(ProcessProtocol):
    """Passes the child's lines on and tells when it is gone."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._rest = {1: b"", 2: b""}
        self.ended: Deferred[None] = Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Cut what the child prints into lines; one without an end is passed on when it grows long."""
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


class Child(Service):
    """Keeps one child process running.

    :param name: what it is, for the log, without an article: ``local agent``.
    :param arguments: behind ``python -m``.
    :param refused: called with the child's last words when it says that it can never start; it is not started again.
    :ivar early_ends: how often in a row it ended within a minute.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorProcess,
        clock: IReactorTime,
        name: str,
        arguments: Sequence[str],
        refused: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._name = name
        self._arguments = arguments
        self._refused = refused
        self._delay = FIRST_DELAY
        self._again: IDelayedCall | None = None
        self._transport: IProcessTransport | None = None
        self._protocol: _ChildProcess | None = None
        self._last_lines: list[str] = []
        self.early_ends = 0

    @property
    def last_words(self) -> str:
        """What the child said last, for an error message."""
        return self._last_lines[-1].removeprefix("sorna: ") if self._last_lines else "it does not say why"

    def startService(self) -> None:
        """Start the child."""
        super().startService()
        self.spawn()

    def stopService(self) -> Deferred[None]:
        """Ask the child to stop, kill it when it does not, and wait until it is gone."""
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
            self._log.debug("the {child} was gone before SIG{name}", child=self._name, name=name)

    def spawn(self) -> None:
        """Start the process."""
        self._again = None
        protocol = _ChildProcess(self._say)
        protocol.ended.addErrback(self._ended, self._clock.seconds())
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        arguments = [sys.executable, "-m", *self._arguments]
        self._protocol = protocol
        # Standard input stays open as long as this process lives: its end is how the child learns of a kill -9.
        self._transport = self._reactor.spawnProcess(protocol, arguments[0], arguments, environment)

    def _say(self, line: str) -> None:
        self._last_lines = [*self._last_lines[-4:], line]
        self._log.info("{child}| {line}", child=self._name, line=line)

    def is_done(self, reason: Failure) -> bool:
        """Tell whether the process ended because its work was done, and is not to be started again by itself."""
        del reason
        return False

    def _ended(self, reason: Failure, started_at: float) -> None:
        self._transport = self._protocol = None
        if not self.running:
            return
        if getattr(reason.value, "exitCode", None) == EX_CONFIG:
            self._refused(self.last_words)
            return
        if self.is_done(reason):
            return
        self.early_ends += 1
        if self._clock.seconds() - started_at > 60:
            self._delay, self.early_ends = FIRST_DELAY, 0
        self._log.error(
            "the {child} is gone: {reason}; again in {delay} s",
            child=self._name,
            reason=reason.value,
            delay=self._delay,
        )
        self._again = self._clock.callLater(self._delay, self.spawn)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
