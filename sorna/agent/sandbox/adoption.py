"""A child process that an earlier program of this very process has started: watched, heard and ended like one of our own.

After an ``exec`` the process has the same number and the same children, and Twisted knows nothing of them. Knows pids and
descriptors; may not know what the child does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

_PIECE = 64 * 1024


@implementer(IReadDescriptor)
class _Readable:
    """Calls something whenever a descriptor is readable."""

    def __init__(self, reactor: Any, descriptor: int, readable: Callable[[], None]) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._readable = readable
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "adopted process"

    def doRead(self) -> None:
        self._readable()

    def connectionLost(self, _reason: Failure) -> None:
        self.stop()

    def stop(self) -> None:
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1


class Adopted:
    """The transport of such a child, as far as a :class:`ProcessProtocol` that only listens and signals wants one.

    :param errors: where its standard error is read, -1 for nowhere.
    :ivar pid: None once it has ended.
    """

    def __init__(self, reactor: Any, pid: int, errors: int, protocol: ProcessProtocol) -> None:
        self.pid: int | None = pid
        self._protocol = protocol
        self._ended = _Readable(reactor, os.pidfd_open(pid), self._reap)
        self._errors: _Readable | None = None
        if errors >= 0:
            os.set_blocking(errors, False)
            self._errors = _Readable(reactor, errors, self._hear)

    @property
    def errors(self) -> int:
        """A copy of the descriptor of its standard error, -1 when that is closed."""
        return -1 if self._errors is None or self._errors.fileno() < 0 else os.dup(self._errors.fileno())

    def signalProcess(self, name: str) -> None:
        """Send a signal by its name. :raises ProcessExitedAlready: it has ended."""
        if self.pid is None:
            raise ProcessExitedAlready
        os.kill(self.pid, signal.Signals[f"SIG{name}"])

    def _hear(self) -> None:
        if self._errors is None:
            return
        try:
            said = os.read(self._errors.fileno(), _PIECE)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self._protocol.errReceived(said)
        else:
            self._errors.stop()

    def _reap(self) -> None:
        if self.pid is None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        self.pid = None
        self._ended.stop()
        if self._errors is not None:
            self._errors.stop()
        code = os.waitstatus_to_exitcode(status)
        how = (None, -code) if code < 0 else (code, None)
        end = ProcessDone(status) if code == 0 else ProcessTerminated(how[0], how[1], status)
        self._protocol.processEnded(Failure(end))
