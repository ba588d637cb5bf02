"""The agent's end of a lane: runs go to the REPL and their ends come back past init, which is woken for none of them.

Knows sockets and frames, and one run at a time by the id that it has on the wire; may not know limits, output or what a run is. What
passes over a lane, and when, is described in ``runners/frames.py``.

Note [At most a short cut]
~~~~~~~~~~~~~~~~~~~~~~~~~~
Everything works without a lane, and one may be gone at any moment: the REPL dies, is restarted, or its user closes every
descriptor; the agent is replaced by another program. Whoever finds it closed goes the long way, by init, in the middle of a run
too. So nothing is ever waited for here, and a lane is used only once the REPL has said that it listens.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sorna.agent.channel import FrameReceiver, FrameSender, WriteBufferFull
from sorna.agent.kernel_files import to_json
from sorna.agent.run import read_ending, read_object
from sorna.agent.runners import frames, repl_link
from sorna.agent.runners.frames import FrameError
from sorna.model.run import RunRequest

# What init can only be told about a run that it knows of.
ABOUT_RUNS = frozenset({frames.INPUT, frames.INTERRUPT, frames.COMPLETE, frames.RESTART, frames.KILL_RUN})

OpenChannel = Callable[[socket.socket, FrameReceiver], FrameSender]


class DescriptorSender(Protocol):
    """The channel to init, as far as a lane is concerned."""

    def hand(self, kind: int, payload: bytes, descriptor: int) -> bool:
        """See :meth:`sorna.agent.channel.FrameSender.hand`."""
        ...


class LaneOwner(Protocol):
    """Whose runs they are; implemented by :class:`sorna.agent.kernel.Kernel`."""

    def lane_ended_run(self, frame: Mapping[str, Any], words: bytes) -> None:
        """Take note that the current run is over, of which init never knew.

        :param frame: like a FINISHED frame.
        :param words: the last of its stdout.
        :raises FrameError: it makes no sense.
        """
        ...

    def channel_lost(self, error: Exception | None) -> None:
        """Learn that the REPL speaks nonsense."""
        ...


class Lane:
    """One after the other, at most one lane of a kernel.

    :param send: sends a frame to init.
    :ivar wanted: whether the kernel has a REPL, so that there can be one.
    """

    def __init__(self, open_channel: OpenChannel, owner: LaneOwner, send: Callable[[int, bytes], None]) -> None:
        self._open_channel = open_channel
        self._owner = owner
        self._send = send
        self._channel: FrameSender | None = None
        self._number = 0
        self._warm = False
        self._run = ""
        self._since = 0.0
        self._unattended = False
        self._init_knows = False
        self._for_init: Mapping[str, str] | None = None
        self._for_repl: Mapping[str, str] | None = None
        self._told_over = 0
        self.wanted = False

    def open(self, init: DescriptorSender) -> None:
        """Give the REPL that runs now, or is being started, its end of a new lane, unless it has one."""
        if self._channel is not None or not self.wanted:
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return  # too many descriptors: the long way needs none
        with theirs:
            self._number += 1
            if init.hand(frames.LANE, to_json({"lane": self._number}), theirs.fileno()):
                self._channel = self._open_channel(ours, self)
            else:
                ours.close()

    def assign(self, environ: Mapping[str, str]) -> None:
        """Add variables to those of init and the REPL, before the first of what each has to do; nobody is woken for them alone."""
        self._for_init = self._for_repl = dict(environ)

    def before(self, kind: int) -> None:
        """Tell init what it has to know before it is sent a frame of this kind."""
        if self._for_init is not None:
            self._tell()
            environ, self._for_init, self._for_repl = self._for_init, None, None
            # Who has another lane by then, or none, has not heard of it, and init tells it.
            self._send(frames.ASSIGN, to_json({"environ": environ, "lane": self._told_over}))
        if kind in ABOUT_RUNS:
            self._tell_of_run()

    def start(self, run: str, request: RunRequest, now: float) -> bool:
        """Have a piece of code executed; False when it cannot be done here.

        :param now: in seconds of the epoch.
        """
        kind = repl_link.EXECUTE_UNATTENDED if request.unattended else repl_link.EXECUTE
        if not self._tell((kind, b"\0".join((run.encode(), request.code.encode("utf-8", "replace"))))):
            return False
        self._run, self._since, self._unattended, self._init_knows = run, now, request.unattended, False
        return True

    def _tell(self, *frame: tuple[int, bytes]) -> bool:
        if self._channel is None or not self._warm:
            return False
        try:
            if self._for_repl is not None:
                self._channel.send(repl_link.ENVIRON, to_json(self._for_repl))
                self._for_repl, self._told_over = None, self._number
            for kind, payload in frame:
                self._channel.send(kind, payload)
        except WriteBufferFull:
            return False
        return self._channel is not None

    def _tell_of_run(self) -> None:
        """Let init know of the run that goes on, because it is going to be told something about it."""
        if self._run and not self._init_knows:
            self._init_knows = True
            message = {"run": self._run, "lane": self._number, "unattended": self._unattended, "since": self._since}
            self._send(frames.UNDER_WAY, to_json(message))

    def lost(self, frame: Mapping[str, Any]) -> bool:
        """Learn that the REPL has ended while init knew of no run; tell whether one has ended with it.

        All that it had printed has come, and init says its last word about it as about every other.

        :param frame: what RESTARTED says.
        """
        self.leave()
        if not self._run:
            return False
        self._init_knows = True
        end = {"exit_code": frame.get("exit_code", 1), "signal": frame.get("signal"), "reset": True}
        self._hand_to_init({"run": self._run, "exceptions": [], "files": None, **end}, b"")
        return True

    def forget(self) -> None:
        """Take note that the run is over, whoever said so."""
        self._run = ""

    def _hand_to_init(self, frame: Mapping[str, Any], words: bytes) -> None:
        self._send(frames.OVER, b"\0".join((to_json({**frame, "since": self._since}), words)))

    def drain(self) -> None:
        """Read what has arrived."""
        if self._channel is not None:
            self._channel.drain()

    def leave(self) -> None:
        """Close it, after what has arrived: there is another REPL, and who holds the old one's end need not be one."""
        if self._channel is not None:
            self._channel.end()

    def close(self) -> None:
        """Leave it, with nothing left unsaid. A run that goes on ends by init, though its end may have arrived just now."""
        self.before(frames.RESTART)  # which stands for all that init has to be told before
        self.leave()

    # -- from the REPL

    def frame_received(self, kind: int, payload: bytes) -> None:
        """Take one frame. :raises FrameError: it makes no sense."""
        if kind == repl_link.WARM:
            self._warm = True
            return
        header, nul, words = payload.partition(b"\0")
        if kind != repl_link.ENDED or not nul or len(words) > repl_link.MOST_LAST_WORDS:
            raise FrameError(f"a frame of kind {kind} and {len(payload)} bytes on a lane")
        frame = read_object(header)
        read_ending(frame)
        if not self._run or frame.get("run") != self._run:
            return  # a user's thread may say anything
        if self._init_knows:
            self._hand_to_init(frame, words)
        else:
            self._run = ""
            self._owner.lane_ended_run(frame, words)

    def channel_lost(self, error: Exception | None) -> None:
        """Learn that the REPL is gone or has closed its end."""
        self._channel = None
        self._warm = False
        if error is not None:
            self._owner.channel_lost(error)
