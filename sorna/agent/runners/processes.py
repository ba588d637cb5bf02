"""Starts, finds and ends the processes of a kernel.

Standard library only. Knows processes; may not know frames, runs or languages. It works as the first process of a PID
namespace, and as an ordinary process too, which makes itself the reaper of all its descendants.
"""

import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sorna.agent.runners.linux import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, prctl

# Every signal whose action is ours to set.
_SIGNALS = tuple(sorted(int(one) for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}))
# Those of which an interpreter does not leave the action as Linux has it.
_PYTHONS_OWN = (int(signal.SIGINT), int(signal.SIGPIPE), int(signal.SIGXFSZ))
# How often to look again for processes that were born while their parents were being stopped.
_ROUNDS = 60
# Longest time that dying processes may hold up the loop; who is stuck in a device is reaped later.
_PATIENCE = 2.0


def reserve(fd: int, ceiling: int = 1024) -> int:
    """Move a descriptor to a high number, where programs do not expect to find a free one."""
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], ceiling)
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(most - 16, 3))
    os.close(fd)
    return moved


class Processes:
    """The children of the kernel's first process and everything they started."""

    def __init__(self) -> None:
        self.is_first = os.getpid() == 1
        self._pid = os.getpid()
        self._exits: dict[int, Callable[[int], None]] = {}
        self._finished: list[tuple[int, int]] = []
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        # Nobody but the agent ends this process: what user code sends is ignored. From the first process of a namespace Linux
        # keeps all that would have its default action.
        self._ignored = _PYTHONS_OWN if self.is_first else _SIGNALS
        for number in self._ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for option, value in ((PR_SET_DUMPABLE, 0), (PR_SET_CHILD_SUBREAPER, 1)):
            try:
                prctl(option, value)
            except OSError:
                # Both only make it harder to disturb this process; a PID namespace does the second by itself.
                continue

    @property
    def wakeup(self) -> int:
        """A descriptor that is readable when a child may have ended; then call :meth:`reap`."""
        return self._woken.fileno()

    def start(
        self,
        body: Callable[[], None],
        stdio: tuple[int, int, int],
        keep: Collection[int],
        environ: Mapping[str, str],
        on_exit: Callable[[int], None],
    ) -> int:
        """Fork a child that leads its own session and runs ``body``, which never returns to the caller's loop.

        :param keep: descriptors besides ``stdio`` that stay open in the child.
        :param on_exit: is given the status, as ``waitpid`` gives it.
        :raises OSError: no process could be made.
        """
        pid = os.fork()
        if pid == 0:
            self._become_child(body, stdio, keep, environ)
        # A dead child that nobody waits for any more may have had the same number.
        self._finished = [(dead, status) for dead, status in self._finished if dead != pid]
        self._exits[pid] = on_exit
        return pid

    def reap(self) -> None:
        """Collect every child that ended and tell who waits for it."""
        self._collect()
        while self._finished:
            pid, status = self._finished.pop(0)
            on_exit = self._exits.pop(pid, None)
            if on_exit is not None:
                on_exit(status)

    def forget(self, pid: int) -> None:
        """Do not tell anybody when this child ends."""
        self._exits.pop(pid, None)

    def kill(self, spare: Collection[int] = ()) -> bool:
        """Kill every process of the kernel but this one, and wait until they are gone.

        :param spare: children that stay alive, with their own descendants.
        :returns: False when processes multiplied faster than they could be told apart, and the spared died with them.
        """
        if not spare and self.is_first:
            self._kill_namespace()
            return True
        for attempt in range(_ROUNDS):
            victims = self._victims(spare)
            if not victims:
                return True
            # Who is stopped cannot fork, so after the first rounds there is nobody left to stop.
            if attempt < _ROUNDS // 2:
                _signal_each(victims, signal.SIGSTOP)
                grown = self._victims(spare) - victims
                if grown and attempt < _ROUNDS // 2 - 1:
                    _signal_each(grown, signal.SIGSTOP)
                    continue
            _signal_each(victims, signal.SIGKILL)
            self._await_deaths(victims)
        if self.is_first:
            self._kill_namespace()
        return False

    def _kill_namespace(self) -> None:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._await_deaths(None)

    def _victims(self, spare: Collection[int]) -> set[int]:
        self._collect()
        parents = dict(_parents())
        mine = set(parents) - {self._pid} if self.is_first else _below(self._pid, parents)
        for one in spare:
            mine -= {one} | _below(one, parents)
        return mine

    def _collect(self) -> bool:
        """Reap whoever is dead; False when there is no child at all."""
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                self._finished.append((pid, status))
        except ChildProcessError:
            return False

    def _await_deaths(self, victims: set[int] | None) -> None:
        """Wait until these, or all, are reaped; grandchildren become ours as their parents die."""
        deadline = time.monotonic() + _PATIENCE
        while self._collect():
            if victims is not None and not (victims & {pid for pid, _parent in _parents()}):
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            # A grandchild dies without a word to us until it is ours: then look again soon.
            select.select([self._woken], [], [], min(remaining, 0.05))

    def _become_child(
        self, body: Callable[[], None], stdio: tuple[int, int, int], keep: Collection[int], environ: Mapping[str, str]
    ) -> None:
        status = 126
        try:
            signal.set_wakeup_fd(-1)
            for number in self._ignored:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            with suppress(OSError):
                prctl(PR_SET_DUMPABLE, 1)
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _arrange_descriptors(stdio, keep)
            os.environ.clear()
            os.environ.update(environ)
            body()
            status = 0
        except BaseException as error:  # noqa: BLE001 - nothing may reach the loop below, whose process this is not
            message = f"cannot start: {error}\n"
            os.write(2, message.encode("utf-8", "replace"))
        finally:
            os._exit(status)


def _arrange_descriptors(stdio: tuple[int, int, int], keep: Collection[int]) -> None:
    """Make ``stdio`` the descriptors 0, 1 and 2 and close all others but ``keep``, which are above 2."""
    high = [os.dup(fd) if fd > 2 else _above_standard(fd) for fd in stdio]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=True)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def _above_standard(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD, 3)


def _signal_each(pids: Collection[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _parents() -> Iterator[tuple[int, int]]:
    """Give every living process that can be seen, with its parent."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_bytes()
            except OSError:
                continue
            fields = stat[stat.rindex(b")") + 2 :].split(b" ", 2)
            if fields[0] not in {b"Z", b"X"}:
                yield int(entry.name), int(fields[1])


def _below(root: int, parents: Mapping[int, int]) -> set[int]:
    """Give all descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:
                found.add(pid)
                todo.append(pid)
    return found
