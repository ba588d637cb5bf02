"""The program of a zygote: imports what kernels will want, then clones itself into one confined process per request.

Standard library only, whatever the preload list adds: it runs under the kernels' interpreter, which may not be the
agent's. Knows the wire and the two ways to confine; may not know what a kernel is for. It is one loop over a few
descriptors and never waits for a kernel: each sets itself up.

Note [No threads]: a clone has only the thread that asked for it; whatever lock another thread held stays locked for ever in
the child. So libraries are told to use one thread while they are imported, and the zygote refuses to serve when one
lives on. Kernels get their own number of threads in their environment.

Note [Death]: the agent's end of the control socket closes when the agent ends, however it ends; SIGTERM comes by the
parent death signal besides. The zygote then kills its kernels, waits for them, removes their groups and ends; the last one
to do so removes the agent's own groups too. So nothing is left of a killed agent, whether or not it starts again; when it
does so at once, its kernels make again what its predecessor's zygotes remove. While a zygote still imports, SIGTERM ends it
without its home, the only thing that it has made by then. If the zygote itself is killed, Linux kills the kernels (their
parent death signal) and the agent removes what is left.
"""

import contextlib
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from sorna.agent.sandbox import cgroups, confinement, counting, credentials, heap, keeper, rootfs, seccomp, wire
from sorna.agent.sandbox import namespaces as ns
from sorna.agent.sandbox.template import Template

_THREAD_PATIENCE = 5.0
_END_PATIENCE = 4.0
_RETRY_MS = 5
_WHOLE, _PREPARED = 0, 1  # what is ordered of the template


class Refused(Exception):
    """This zygote can never serve; the message says why."""


class _Child(NamedTuple):
    id: int
    kernel_id: str
    pid: int


class _Ended(NamedTuple):
    child: _Child
    body: dict[str, Any]


def find_entry(name: str) -> Callable[[int], object]:
    """Import ``module:function``."""
    module, _, function = name.partition(":")
    entry: Callable[[int], object] = getattr(importlib.import_module(module), function)
    return entry


def preload(names: tuple[str, ...]) -> list[str]:
    """Import what can be imported; gives a sentence for each module that is there and broken."""
    notes = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # noqa: BLE001  # a broken library must not take the runtime with it
            notes.append(f"{name} cannot be imported: {type(error).__name__}: {error}"[:300])
    return notes


def wait_for_one_thread() -> None:
    """Wait until this process has one thread; see Note [No threads].

    :raises Refused: a library keeps others.
    """
    deadline = time.monotonic() + _THREAD_PATIENCE
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > deadline:
            raise Refused(f"the preloaded libraries keep {threads - 1} threads running, and a fork would break them")
        time.sleep(0.01)


def interpreter_prefixes() -> list[str]:
    """List where this interpreter and its libraries live, beyond ``/usr``."""
    paths = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix))
    return [path for path in paths if path != "/usr" and not path.startswith("/usr/")]


def _reachable_after_drop() -> bool:
    """Tell whether a user without privileges could still import from this interpreter's prefixes."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            fine = all(os.access(path, os.R_OK | os.X_OK) for path in (sys.prefix, sys.base_prefix))
            os._exit(0 if fine and os.access(os.__file__, os.R_OK) else 1)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


class Zygote:
    """The loop: takes requests, clones, tells the agent who ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._leaving: list[_Ended] = []
        self._poll = select.poll()
        self._trees: tuple[cgroups.Hierarchy, ...] = ()
        self._own = os.pidfd_open(os.getpid())
        self._surroundings: confinement.Surroundings | None = None
        self._workshop: confinement.Workshop | None = None
        self._template: Template | None = None
        self._ordered: deque[wire.Request] = deque()
        self._keeper: keeper.Surroundings | None = None

    def configure(self, configuration: wire.Configuration) -> list[str]:
        """Import, look at the host and get ready; gives sentences for the log.

        :raises Refused: this zygote can never serve.
        """
        self._trees = configuration.hierarchies()
        os.mkdir(configuration.home, 0o700)
        try:
            entry = find_entry(configuration.entry)
        except (ImportError, AttributeError) as error:
            raise Refused(f"the runner cannot be loaded: {type(error).__name__}: {error}") from error
        sys.path.remove(sys.argv[-1])
        with heap.gathered():
            notes = preload(tuple(configuration.preload))
        shutil.rmtree(configuration.home, ignore_errors=True)
        wait_for_one_thread()
        if configuration.tier == wire.NAMESPACES:
            notes += self._plan(configuration, entry)
        else:
            notes += self._plan_nothing(configuration, entry)
        if configuration.identities:
            ns.drop_bounding_set()
        heap.compact()
        if self._surroundings is not None:
            self._template = self._fork_template(self._surroundings)
        return notes

    def _fork_template(self, around: confinement.Surroundings) -> Template:
        """Begin to clone; what this process does from now on is not in the kernels' memory."""

        def whole(packet: bytes, descriptors: list[int]) -> NoReturn:
            confinement.become_kernel(packet, around, descriptors[0])

        def prepared(packet: bytes, descriptors: list[int]) -> NoReturn:
            confinement.become_kernel(packet, around, descriptors[0], confinement.Prepared.of(descriptors[1:]))

        prepare = getattr(sys.modules[around.entry.__module__], "prepare", lambda: None)
        return Template(prepare, [(around.flags, whole), (ns.CLONE_NEWPID, prepared)])

    def _plan(self, configuration: wire.Configuration, entry: Callable[[int], object]) -> list[str]:
        try:
            plan = rootfs.plan(interpreter_prefixes(), configuration.read_only)
            program = seccomp.filter_program()
        except rootfs.PlanRefused as error:
            raise Refused(f"kernels may not see {error}: it holds more than tools") from error
        except OSError as error:
            raise Refused(f"no filter of system calls: {error.strerror}") from error
        ordinary = None if configuration.identities else (os.geteuid(), os.getegid())
        notes = [f"{path} does not exist and kernels will not see it" for path in plan.missing]
        if ordinary is None:
            # Away from home it could not clear up; see Note [Death].
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                self._workshop = confinement.Workshop(plan)
            except OSError as error:
                notes.append(f"kernels take longer to make than they could: {error}")
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._surroundings = confinement.Surroundings(
            self._control, self._own, self._trees, plan, program, ordinary, entry
        )
        return notes

    def _plan_nothing(self, configuration: wire.Configuration, entry: Callable[[int], object]) -> list[str]:
        # An orphan whose keeper was killed comes here and is ended with the next kernel.
        ns.checked(ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1), "subreaper")
        drop = configuration.identities and _reachable_after_drop()
        self._keeper = keeper.Surroundings(self._control, self._own, self._trees, drop, entry)
        if os.geteuid() == 0 and not drop:
            return [f"kernels run as root, because other users cannot reach {sys.base_prefix}"]
        return []

    def serve(self, wakeup: int) -> None:
        """Answer requests until the agent or the template is gone or SIGTERM comes (a byte on ``wakeup``)."""
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(wakeup, select.POLLIN)
        template = self._template
        if template is not None:
            self._poll.register(template.answers, select.POLLIN)
            self._poll.register(template.pidfd, select.POLLIN)
        while True:
            for descriptor, _events in self._poll.poll(_RETRY_MS if self._leaving else None):
                if descriptor == wakeup:
                    return
                if template is not None and descriptor == template.answers:
                    self._take_outcomes()
                elif template is not None and descriptor == template.pidfd:
                    return
                elif descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._take_request():
                    return
            self._leave()

    def _take_request(self) -> bool:
        try:
            packet, descriptors = wire.receive(self._control)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not packet:
            return False
        try:
            op, body = wire.unpack(packet)
            if op != "spawn" or len(descriptors) != 1:
                raise wire.WireError(op)
            self._spawn(wire.Request(**body), packet, descriptors[0])
        finally:
            wire.close_all(descriptors)
        return True

    def _spawn(self, request: wire.Request, packet: bytes, channel: int) -> None:
        step = confinement.Steps()
        try:
            if self._keeper is not None:
                pid = os.fork()
                if pid == 0:
                    keeper.become_keeper(request, self._keeper, channel)
                self._born(request, pid)
            else:
                self._order(request, packet, channel, step)
                self._ordered.append(request)
        except OSError as error:
            self._stillborn(request, step.current, error)

    def _order(self, request: wire.Request, packet: bytes, channel: int, step: confinement.Steps) -> None:
        """Order the clone for a kernel, prepared as far as may be; see Note [Prepared by the zygote]."""
        template = self._template
        assert template is not None, "configured"
        if self._workshop is None or not self._workshop.can_prepare(request):
            template.order(_WHOLE, packet, [channel])
            return
        prepared = self._workshop.prepare(request, self._trees, step)
        step("clone")
        try:
            template.order(_PREPARED, packet, [channel, *prepared.descriptors])
        finally:
            wire.close_all(prepared.descriptors)

    def _take_outcomes(self) -> None:
        """Learn what the template has cloned, and tell."""
        assert self._template is not None, "configured"
        for outcome in self._template.outcomes():
            request = self._ordered.popleft()
            if outcome > 0:
                self._born(request, outcome)
            else:
                self._stillborn(request, "clone", OSError(-outcome, os.strerror(-outcome)))

    def _born(self, request: wire.Request, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = _Child(request.id, request.kernel_id, pid)
        self._poll.register(pidfd, select.POLLIN)
        self._tell("cloned", {"id": request.id, "pid": pid}, [pidfd])

    def _stillborn(self, request: wire.Request, step: str, error: OSError) -> None:
        cgroups.remove(self._trees, request.kernel_id)
        confinement.report_failure(self._control, request.id, step, error)
        self._tell("exited", {"id": request.id, "status": -1, "cpu_ms": 0.0, "counters": counting.Counters()})

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _pid, status, used = os.wait4(child.pid, 0)
        os.close(pidfd)
        if self._keeper is not None:
            keeper.end_children({other.pid for other in self._children.values()})
        counters = counting.read(self._trees, child.kernel_id)
        cpu_ms = counters.cpu_ms if counters.cpu_ms >= 0 else (used.ru_utime + used.ru_stime) * 1000
        body = {
            "id": child.id,
            "status": os.waitstatus_to_exitcode(status),
            "cpu_ms": cpu_ms,
            "counters": counters,
        }
        self._leaving.append(_Ended(child, body))

    def _leave(self) -> None:
        """Remove the groups of those who ended; Linux may need a moment to see that a group is empty."""
        busy = []
        for ended in self._leaving:
            if cgroups.remove(self._trees, ended.child.kernel_id):
                self._tell("exited", ended.body)
            else:
                cgroups.kill_members(self._trees, ended.child.kernel_id)
                busy.append(ended)
        self._leaving = busy

    def _tell(self, op: str, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
        # When the agent is gone, the next turn of the loop sees it.
        with contextlib.suppress(OSError):
            wire.send(self._control, wire.pack(op, body), descriptors or [])

    def end(self) -> None:
        """Kill every kernel and wait until nothing of them is left; see Note [Death]."""
        ending = signal.SIGKILL if self._keeper is None else signal.SIGTERM
        if self._template is not None:
            self._template.stop(idle=not self._ordered)
            self._take_outcomes()
        for pidfd in self._children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, ending)
        deadline = time.monotonic() + _END_PATIENCE
        self._poll = select.poll()
        for pidfd in self._children:
            self._poll.register(pidfd, select.POLLIN)
        while (self._children or self._leaving) and time.monotonic() < deadline:
            for descriptor, _events in self._poll.poll(_RETRY_MS):
                self._reap(descriptor)
            self._leave()
        cgroups.leave(self._trees)


def _give_up(configuration: wire.Configuration) -> NoReturn:
    """End before there are kernels; see Note [Death]."""
    shutil.rmtree(configuration.home, ignore_errors=True)
    cgroups.leave(configuration.hierarchies())
    os._exit(1)


def _refuse(control: socket.socket, detail: str) -> NoReturn:
    with contextlib.suppress(OSError):
        wire.send(control, wire.pack("unavailable", {"detail": detail[:1000]}))
    sys.exit(1)


def _first_packet(control: socket.socket) -> wire.Configuration:
    select.select([control], [], [])
    packet, descriptors = wire.receive(control)
    wire.close_all(descriptors)
    op, body = wire.unpack(packet)
    if op != "configure":
        raise wire.WireError(op)
    return wire.Configuration(**body)


def main(descriptor: int) -> NoReturn:
    """Run a zygote whose control socket is ``descriptor``; the last of ``sys.argv`` is where Sorna is imported from."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    os.umask(0o022)  # whatever the agent's is: kernels' users read what is made here
    os.setsid()
    credentials.reset_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ns.prctl(ns.PR_SET_PDEATHSIG, int(signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        configuration = _first_packet(control)
    except (OSError, wire.WireError):
        sys.exit(1)
    signal.signal(signal.SIGTERM, lambda _number, _frame: _give_up(configuration))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    zygote = Zygote(control)
    try:
        notes = zygote.configure(configuration)
    except Refused as error:
        _refuse(control, str(error))
    except Exception as error:  # noqa: BLE001  # the agent shall read why, not only that
        _refuse(control, f"{type(error).__name__}: {error}")
    wakeup, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        # To an agent that has died since, which serving finds out: its SIGTERM may have come while it was ignored.
        with contextlib.suppress(OSError):
            wire.send(control, wire.pack("ready", {"notes": notes}))
        zygote.serve(wakeup)
    finally:
        zygote.end()
    sys.exit(0)
