"""The process that kernels are clones of: it waits and clones and does nothing else, so that its memory stays as it was.

Standard library only: it is loaded in zygotes. Knows how an order comes and how a clone is told of; what a clone does, it is
given. The zygote's side of it is :class:`Template`.

Note [Template]: what a process writes to after a clone is copied, by whoever writes first, and from then on the clone's version is
its own memory, although it only has what everybody had. Python writes to whatever it looks at. So if the zygote, which reads
messages, builds file systems and reaps, cloned itself, each of its turns would copy some hundred pages, and leave as many behind
in every kernel. A template of it hardly does: between two clones it takes an order, without looking into it, and writes a number.
What is done for it once is done before it is forked: after that, each huge page that either of the two writes to is small pages to it,
and all that lies in them would be copied entry by entry for each kernel, and the zygote would keep what was there before.
It takes the order before it clones, because two clones that took theirs themselves might take each other's. The clones are the zygote's
children and not the template's (``CLONE_PARENT``), so nobody else reaps them or tells of their death.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from sorna.agent.sandbox import heap, wire
from sorna.agent.sandbox import namespaces as ns

_END_PATIENCE_MS = 2000
_ANSWER = 4  # bytes


class Template:
    """A fork of the calling process, from which clones are ordered.

    :param prepare: done once before, in the calling process, with SIGTERM held back, of which it may change the action for a while; when
        it fails, its error is written to the standard error, and the clones only cost more.
    :param kinds: for each kind of clone, the namespaces it gets and what it does with the packet and the descriptors of its
        order; it may not return.
    :raises OSError: there can be no process.
    """

    def __init__(
        self, prepare: Callable[[], None], kinds: Sequence[tuple[int, Callable[[bytes, list[int]], NoReturn]]]
    ) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setblocking(False)
        bell, self._bell = os.pipe2(os.O_CLOEXEC)
        self.answers, answers = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.answers, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            _prepare(prepare)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ns.prctl(ns.PR_SET_PDEATHSIG, int(signal.SIGKILL))
                for descriptor in (self._orders.detach(), self._bell, self.answers):
                    os.close(descriptor)
                _serve(kinds, theirs, bell, answers)
            finally:
                os._exit(1)
        theirs.close()
        os.close(bell)
        os.close(answers)
        self.pidfd = os.pidfd_open(self._pid)

    def order(self, kind: int, packet: bytes, descriptors: Sequence[int]) -> None:
        """Ask for a clone; it has its own copies of the descriptors.

        :raises OSError: it was not asked for.
        """
        wire.send(self._orders, packet, descriptors)
        os.write(self._bell, bytes([kind]))

    def outcomes(self) -> list[int]:
        """Give what became of orders since the last time, in their order: a process id, or the negative number of an error."""
        try:
            content = os.read(self.answers, 1024 * _ANSWER)
        except BlockingIOError:
            return []
        pieces = (content[at : at + _ANSWER] for at in range(0, len(content), _ANSWER))
        return [int.from_bytes(piece, "little", signed=True) for piece in pieces]

    def stop(self, *, idle: bool = False) -> None:
        """End the process when it has done what was ordered, or after a while; ``outcomes`` still tells of that.

        :param idle: everything that was ordered is done, so that it may end at once.
        """
        os.close(self._bell)
        waiting = select.poll()
        waiting.register(self.pidfd, select.POLLIN)
        if idle or not waiting.poll(_END_PATIENCE_MS):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _prepare(prepare: Callable[[], None]) -> None:
    try:
        prepare()
    except Exception:  # noqa: BLE001  # kernels do without
        traceback.print_exc()
    # Whoever finds an attribute remembers its name, in the place of one that was remembered before: another page.
    sys._clear_type_cache()  # noqa: SLF001 - documented, for CPython only
    heap.settle()


def _serve(
    kinds: Sequence[tuple[int, Callable[[bytes, list[int]], NoReturn]]],
    orders: socket.socket,
    bell: int,
    answers: int,
) -> None:
    """Be the template until the zygote closes its end; what is done here is done to the memory of all kernels."""
    while order := os.read(bell, 1):
        flags, body = kinds[order[0]]
        packet, descriptors = wire.receive(orders)
        try:
            pid, pidfd = ns.clone(flags | ns.CLONE_PARENT)
        except OSError as error:
            pid = -(error.errno or 1)
        else:
            if pid == 0:
                body(packet, descriptors)
            os.close(pidfd)
        for descriptor in descriptors:
            os.close(descriptor)
        os.write(answers, pid.to_bytes(_ANSWER, "little", signed=True))
