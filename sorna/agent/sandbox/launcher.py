"""One life of one zygote, seen from the agent: its process, its socket, and the kernels it was asked for.

Knows processes and the wire; may not know tiers or why kernels are wanted. Restarting is ``stacks.py``'s.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

import sorna
from sorna.agent.sandbox import cgroups, wire
from sorna.agent.sandbox.adoption import Adopted
from sorna.agent.sandbox.confined import ConfinedProcess, SetupFailure
from sorna.agent.sandbox.confinement import THREAD_VARIABLES
from sorna.agent.sandbox.control import ControlChannel
from sorna.errors import AgentFailed, IsolationUnavailable

_CONTROL = 3
_BOOT = (
    "import sys; sys.path.append(sys.argv[-1]); from sorna.agent.sandbox.zygote import main; main(int(sys.argv[-2]))"
)
_END_PATIENCE = 6.0
_MAX_LOG_LINE = 500


def _environ(home: str) -> dict[str, str]:
    """Give a zygote's environment: almost nothing of the agent's, which may hold secrets that a fork would inherit."""
    environ = dict.fromkeys(THREAD_VARIABLES, "1")
    environ.update(
        HOME=home,
        PATH="/usr/local/bin:/usr/bin:/bin",
        LANG="C.UTF-8",
        MPLBACKEND="Agg",
        TMPDIR=tempfile.gettempdir(),
    )
    # An interpreter with a shared library in an unusual place starts no zygote without it, and no script in a kernel.
    if (libraries := os.environ.get("LD_LIBRARY_PATH")) is not None:
        environ["LD_LIBRARY_PATH"] = libraries
    return environ


def _errors_of(transport: Any) -> int:
    """Give a copy of the descriptor from which a process's standard error is read, -1 when it is closed."""
    if isinstance(transport, Adopted):
        return transport.errors
    pipe = transport.pipes.get(2)
    return -1 if pipe is None else os.dup(pipe.fileno())


class _Ending:
    """Watches a pidfd until its process has ended."""

    def __init__(self, reactor: Any, pidfd: int) -> None:
        self._reactor = reactor
        self._pidfd = pidfd
        self.ended: Deferred[None] = Deferred()
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._pidfd

    def logPrefix(self) -> str:
        return "kernel's end"

    def doRead(self) -> None:
        self._reactor.removeReader(self)
        self.ended.callback(None)

    def connectionLost(self, _reason: Failure) -> None:
        if not self.ended.called:
            self.ended.callback(None)


class ZygoteProcess(ProcessProtocol):
    """A zygote from its start to its end.

    :ivar ready: fires with the zygote's notes for the log; fails with IsolationUnavailable when it can never work here, and
        with AgentFailed when it ended for another reason.
    :ivar ended: fires when it and all its kernels are gone.
    """

    _log = Logger()

    def __init__(self, reactor: Any, stack: str, python: str, configuration: wire.Configuration) -> None:
        self.stack = stack
        self.ready: Deferred[Sequence[str]] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._python = python
        self._configuration = configuration
        self._trees = configuration.hierarchies()
        self._kernels: dict[int, ConfinedProcess] = {}
        self._control: ControlChannel | None = None
        self._escalation: Any = None
        self._home = ""

    def launch(self) -> None:
        """Start the process; ``ready`` or ``ended`` tells how it went."""
        # Its name only: who makes it must be who removes it when this process is killed.
        self._home = f"{tempfile.gettempdir()}/sorna-zygote-{secrets.token_hex(8)}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._control = ControlChannel(self._reactor, ours, self._received, self._lost)
            self._control.send(wire.pack("configure", self._configuration._replace(home=self._home)._asdict()))
            package = str(Path(sorna.__file__).resolve().parent.parent)
            arguments = [self._python, "-I", "-B", "-X", "utf8", "-c", _BOOT, str(_CONTROL), package]
            self._reactor.spawnProcess(
                self,
                self._python,
                arguments,
                env=_environ(self._home),
                path="/",
                childFDs={0: null, 1: null, 2: "r", _CONTROL: theirs.fileno()},
            )
        finally:
            theirs.close()
            os.close(null)

    @property
    def settled(self) -> bool:
        """Whether it is warm and nothing is on its way to it."""
        return self.ready.called and self._control is not None and self._control.idle and self._escalation is None

    def carry(self) -> dict[str, Any]:
        """Give what another program of this process needs to go on with it; it must be settled. Nothing here goes on."""
        if self._control is None or self.transport is None or self.transport.pid is None:
            raise BrokenPipeError("the zygote is gone")
        return {
            "pid": self.transport.pid,
            "home": self._home,
            "control": self._control.give_away(),
            "errors": _errors_of(self.transport),
            "kernels": {str(number): kernel.kernel_id for number, kernel in self._kernels.items()},
        }

    def take_over(self, state: Mapping[str, Any], kernels: Mapping[str, ConfinedProcess]) -> None:
        """Go on with a zygote that another program of this process has started, instead of launching one."""
        self._home = state["home"]
        self._kernels = {int(number): kernels[name] for number, name in state["kernels"].items()}
        control = socket.socket(fileno=state["control"])
        self._control = ControlChannel(self._reactor, control, self._received, self._lost)
        self.makeConnection(Adopted(self._reactor, state["pid"], state["errors"], self))
        self.ready.callback(())

    def spawn(self, request: wire.Request, channel: int, kernel: ConfinedProcess) -> None:
        """Ask for a kernel; everything else is told to ``kernel``.

        :raises OSError, WireError, ControlBusy: it was not asked for.
        """
        if self._control is None:
            raise BrokenPipeError("the zygote is gone")
        self._control.send(wire.pack("spawn", request._asdict()), [channel])
        self._kernels[request.id] = kernel

    def end(self) -> None:
        """Tell the zygote to end its kernels and itself; after a while, make it."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._escalation is None and not self.ended.called:
            self._escalation = self._reactor.callLater(_END_PATIENCE, self.put_down)

    def put_down(self) -> None:
        """Kill the zygote; Linux then kills its kernels."""
        if self.transport is not None:
            try:
                self.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass
            except OSError as error:
                self._log.error("zygote {stack} cannot be killed: {error}", stack=self.stack, error=error)

    def errReceived(self, data: bytes) -> None:
        """Log what libraries print while they are imported."""
        for line in data.decode("utf-8", "replace").splitlines()[:20]:
            self._log.info("zygote {stack} says: {line}", stack=self.stack, line=line[:_MAX_LOG_LINE])

    def processEnded(self, reason: Failure) -> None:
        """See to it that nothing is left of this zygote's kernels."""
        if self._control is not None:
            # Its last words may still be in the socket, and after them its end, which clears the field.
            self._control.drain()
            self._control = None
        if not self.ready.called:
            self.ready.errback(Failure(AgentFailed("A zygote did not start.", reason.getErrorMessage())))
        Deferred.fromCoroutine(self._bury()).addErrback(
            lambda failure: self._log.failure("clearing up after zygote {stack}", failure, stack=self.stack)
        )

    async def _bury(self) -> None:
        await gatherResults([Deferred.fromCoroutine(self._bury_kernel(kernel)) for kernel in [*self._kernels.values()]])
        await self._in_thread(shutil.rmtree, self._home, True)
        if self._escalation is not None and self._escalation.active():
            self._escalation.cancel()
        self.ended.callback(None)

    async def _bury_kernel(self, kernel: ConfinedProcess) -> None:
        if kernel.pidfd >= 0:
            await _Ending(self._reactor, kernel.pidfd).ended
        if not await self._in_thread(cgroups.destroy, self._trees, kernel.kernel_id):
            self._log.error("control groups of kernel {kernel_id} cannot be removed", kernel_id=kernel.kernel_id)
        kernel.is_lost()

    def _in_thread(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def _lost(self, why: str) -> None:
        self._control = None
        if not self.ended.called and self.transport is not None and self.transport.pid is not None:
            self._log.debug("zygote {stack} is lost: {why}", stack=self.stack, why=why)
            # Without its socket it ends itself; when it cannot, it is made to.
            if self._escalation is None:
                self._escalation = self._reactor.callLater(_END_PATIENCE, self.put_down)

    def _received(self, packet: bytes, descriptors: list[int]) -> None:
        try:
            op, body = wire.unpack(packet)
            self._act(op, body, descriptors)
        except (wire.WireError, KeyError, TypeError, ValueError) as error:
            self._log.error("zygote {stack} sent no message: {error}", stack=self.stack, error=error)
            self.put_down()
        finally:
            wire.close_all(descriptors)

    def _act(self, op: str, body: dict[str, Any], descriptors: list[int]) -> None:
        """Act on a message. A descriptor that is taken over is removed from the list."""
        if op == "ready":
            self.ready.callback([str(note) for note in body["notes"]])
            return
        if op == "unavailable":
            self.ready.errback(Failure(IsolationUnavailable(str(body["detail"]))))
            return
        kernel = self._kernels.get(body["id"])
        if kernel is None:
            return
        if op == "cloned":
            kernel.cloned(int(body["pid"]), descriptors.pop())
        elif op == "started":
            kernel.has_started(int(body.get("pid", 0)), descriptors.pop() if descriptors else -1)
        elif op == "failed":
            kernel.has_failed(SetupFailure(str(body["step"]), int(body["errno"]), str(body["detail"])))
        elif op == "exited":
            del self._kernels[body["id"]]
            kernel.has_exited(body)
        else:
            raise wire.WireError(op)
