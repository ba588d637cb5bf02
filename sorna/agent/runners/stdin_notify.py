"""Knows the moment a program starts to wait for standard input, by seccomp user notification, without polling.

Standard library only. Knows descriptors, notifications and one pipe; may not know runs or frames.

Note [Waiting for input]
~~~~~~~~~~~~~~~~~~~~~~~~
Before it becomes the user's program, a child installs a filter that stops reads of descriptor 0 and hands the filter's
listener to init, which looks at each read before it happens:

* descriptor 0 of the reader is not the run's pipe (``echo x | cat``), the pipe has bytes, or it is closed: let it go on;
* the reader would not wait anyway (``O_NONBLOCK``): let it go on;
* else the program waits: init says so, and lets it go on once there is a line in the pipe.

Programs with an event loop (node) do not read before there is something: they add descriptor 0 to an epoll set and wait.
The filter therefore also stops the adding, which init only remembers, and waiting on an epoll set, which means waiting
for input when the set was seen to contain our pipe and the pipe is empty.

Reads through a copy of descriptor 0, and ``select`` or ``poll`` on it, are not seen: the filter cannot look into memory.
The program then simply gets the lines that are typed ahead. The same holds where the filter cannot be installed.

Two programs that read at once are a race that no filter can see: both may be let go on for the same bytes, and the one
that gets none waits unnoticed. So everybody who was let go on is looked at a moment later, and again while it cannot be
told yet: who is inside a read of an empty pipe waits.

When the listener is closed, Linux answers the filtered calls with ENOSYS. So the listener of a finished run stays open,
letting everything pass, until the last process that lives under the filter is gone (EPOLLHUP).
"""

import array
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sorna.agent.runners.linux import bytes_waiting, install_listening_filter
from sorna.agent.runners.poller import Poller

_RECEIVE = 0xC0502100
_ANSWER = 0xC0182101
_IS_VALID = 0x40082102
_NOTICE = struct.Struct("=QIIiIQ6Q")
_REPLY = struct.Struct("=QqiI")
_CONTINUE = 1

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_EPOLL_CTL_ADD = 1
# How long after readers went on to look whether one of them got nothing; longer each time that it cannot be told yet.
_MOMENT = 0.02
_LONGEST_PAUSE = 1.0


class _Calls(NamedTuple):
    """Numbers of the calls that the filter stops, on one architecture."""

    architecture: int
    reads: tuple[int, ...]
    epoll_ctl: int
    epoll_waits: tuple[int, ...]


# read, readv, pread64, preadv, preadv2; epoll_wait, epoll_pwait, epoll_pwait2.
_CALLS = {
    "x86_64": _Calls(0xC000003E, (0, 19, 17, 295, 327), 233, (232, 281, 441)),
    "aarch64": _Calls(0xC00000B7, (63, 65, 67, 69, 286), 21, (22, 441)),
}


def filter_program(machine: str) -> bytes:
    """Write the filter for one architecture in classic BPF, 8 bytes per instruction. :raises KeyError: unknown."""
    calls = _CALLS[machine]
    allow = [(_RETURN, 0, 0, _ALLOW)]
    notify = [(_RETURN, 0, 0, _NOTIFY)]

    def argument(index: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)

    on_read = [argument(0), (_EQUAL, 0, 1, 0), *notify, *allow]
    on_control = [argument(1), (_EQUAL, 0, 3, _EPOLL_CTL_ADD), argument(2), (_EQUAL, 0, 1, 0), *notify, *allow]
    # A timeout of 0 does not wait; epoll_pwait2 has a pointer there, and null means without limit.
    on_wait = [argument(3), (_EQUAL, 1, 0, 0), *notify, *allow]
    on_wait_pointer = notify
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, calls.architecture),
        *allow,
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    blocks = [(number, on_read) for number in calls.reads]
    blocks.append((calls.epoll_ctl, on_control))
    blocks += [(number, on_wait_pointer if number == 441 else on_wait) for number in calls.epoll_waits]
    for number, block in blocks:
        program += [(_EQUAL, 0, len(block), number), *block]
    program += allow
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install_and_hand_over(sender: socket.socket) -> None:
    """In the child: install the filter and send its listener; send nothing where that is not possible."""
    try:
        listener = install_listening_filter(filter_program(platform.machine()))
    except (OSError, KeyError):
        sender.sendall(b"-")
        return
    socket.send_fds(sender, [b"+"], [listener])
    os.close(listener)


def take_over(receiver: socket.socket) -> int | None:
    """In init: give the listener that the child sent; None when it had none to send."""
    try:
        message, ancillary, _flags, _address = receiver.recvmsg(1, socket.CMSG_SPACE(4))
    except OSError:
        return None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(content[:4])
            if message == b"+":
                os.set_inheritable(received[0], False)
                return received[0]
            os.close(received[0])
    return None


class StdinWatch:
    """Listens to the programs of one run. See Note [Waiting for input].

    :param pipe: init's write end of the pipe that the run was given as descriptor 0; None when it is closed already, and
        everything may pass.
    :param on_wait: called when a program begins to wait.
    """

    def __init__(self, poller: Poller, listener: int, pipe: int | None, on_wait: Callable[[], None]) -> None:
        self._poller = poller
        self._listener = listener
        self._pipe = pipe
        self._identity: tuple[int, int] | None = None
        if pipe is not None:
            status = os.fstat(pipe)
            self._identity = (status.st_dev, status.st_ino)
        self._on_wait = on_wait
        # Readers that wait: notification id by thread id, oldest first.
        self._readers: dict[int, int] = {}
        self._epolls: set[tuple[int, int]] = set()
        # Who was let go on because there were bytes in the pipe, and may have got none of them: another was quicker.
        self._suspects: set[int] = set()
        self._looking = False
        self._pause = _MOMENT
        poller.add(listener, self._ready)

    def line_arrived(self) -> bool:
        """Let the one who waits longest go on, now that there is something in the pipe.

        :returns: whether somebody else still waits.
        """
        while self._readers:
            thread = next(iter(self._readers))
            if self._go_on(self._readers.pop(thread)):
                self._note_reader(thread)
                break
        if self._suspects:
            self._look_soon()
        return bool(self._readers)

    def run_over(self) -> None:
        """Let everything pass from now on; the pipe is closed by the caller."""
        self._pipe = None
        self._epolls.clear()
        self._suspects.clear()
        readers, self._readers = self._readers, {}
        for notice in readers.values():
            self._go_on(notice)

    def _ready(self, events: int) -> None:
        if not events & select.EPOLLIN:
            self._poller.remove(self._listener)
            os.close(self._listener)
            return
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notice, True)
        except OSError:
            # The process died, or a signal took it out of the call, between the event and now.
            return
        identity, thread, _flags, number, architecture, _pointer, *arguments = _NOTICE.unpack(notice)
        self._readers.pop(thread, None)
        if not self._must_wait(thread, number, architecture, arguments):
            self._go_on(identity)
            return
        if not self._is_valid(identity):
            return
        self._readers[thread] = identity
        self._on_wait()

    def _must_wait(self, thread: int, number: int, architecture: int, arguments: list[int]) -> bool:
        """Decide about one call; tells ``on_wait`` itself for those that are let go on to wait by themselves."""
        calls = next((calls for calls in _CALLS.values() if calls.architecture == architecture), None)
        if self._pipe is None or calls is None:
            return False
        if number in calls.reads:
            if bytes_waiting(self._pipe):
                self._note_reader(thread)
                return False
            return self._is_ours(thread) and not _would_not_block(thread)
        if number == calls.epoll_ctl:
            if self._is_ours(thread):
                self._epolls.add((_process_of(thread), arguments[0]))
        elif self._epolls and bytes_waiting(self._pipe) == 0 and (_process_of(thread), arguments[0]) in self._epolls:
            self._on_wait()
        return False

    def _note_reader(self, thread: int) -> None:
        self._suspects.add(thread)
        self._look_soon()

    def _look_soon(self) -> None:
        self._pause = _MOMENT
        self._look_later()

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._poller.later(self._pause, self._look)

    def _look(self) -> None:
        self._looking = False
        if self._pipe is None:
            return
        reading = {thread: _is_reading(thread) for thread in self._suspects - self._readers.keys()}
        # Those inside a read stay suspects: somebody else may take the next line, too.
        self._suspects = {thread for thread, is_it in reading.items() if is_it is not False and self._is_ours(thread)}
        if bytes_waiting(self._pipe) == 0 and any(reading[thread] for thread in self._suspects):
            self._on_wait()
        elif self._suspects:
            # On a busy machine they have not come to the read yet, or not to what they were typed.
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._look_later()

    def _is_ours(self, thread: int) -> bool:
        try:
            status = os.stat(f"/proc/{thread}/fd/0")  # noqa: PTH116 - a magic link, not a path
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _is_valid(self, notice: int) -> bool:
        try:
            fcntl.ioctl(self._listener, _IS_VALID, struct.pack("=Q", notice))
        except OSError:
            return False
        return True

    def _go_on(self, notice: int) -> bool:
        """Let a stopped call happen; False when its process is gone or left the call."""
        try:
            fcntl.ioctl(self._listener, _ANSWER, bytearray(_REPLY.pack(notice, 0, 0, _CONTINUE)), True)
        except OSError:
            return False
        return True


def _would_not_block(thread: int) -> bool:
    try:
        text = Path(f"/proc/{thread}/fdinfo/0").read_text(encoding="ascii")
    except OSError:
        return False
    flags = next((line.split()[1] for line in text.splitlines() if line.startswith("flags:")), "0")
    return bool(int(flags, 8) & os.O_NONBLOCK)


def _is_reading(thread: int) -> bool | None:
    """Whether a thread is inside a read of descriptor 0 now; None when it runs, or wants to, and may be before or after it."""
    try:
        text = Path(f"/proc/{thread}/syscall").read_text(encoding="ascii")
        if text.startswith("running"):
            return None
        number, descriptor, *_rest = text.split()
    except (OSError, ValueError):
        return False
    calls = _CALLS.get(platform.machine())
    return calls is not None and int(number) in calls.reads and int(descriptor, 16) == 0


def _process_of(thread: int) -> int:
    try:
        text = Path(f"/proc/{thread}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return thread
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Tgid:")), thread)
