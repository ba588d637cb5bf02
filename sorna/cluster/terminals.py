"""The terminals that this manager looks at over one connection to an agent; knows messages, no socket and no door.

Output comes with credit that each viewer gives back itself (see ``sorna/model/terminal.py``), so nothing of it is kept here.
What viewers type goes out at once; where the connection has no room it waits, within a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from sorna.cluster.messages import Ended, Output, Steer, encode
from sorna.cluster.outgoing import Outgoing
from sorna.model.terminal import MOST_TYPED, WINDOW, Terminal, TerminalViewer, within_bounds
from sorna.zeromq import Sent

MAX_TERMINALS = 2000
MAX_UNSENT = 4 * 1024 * 1024


class Terminals:
    """Every terminal that is looked at over one connection."""

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._outgoing = Outgoing(send)
        self._open: dict[int, _RemoteTerminal] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened_by(self, id_: int, answer: Deferred[Any], viewer: TerminalViewer) -> Deferred[Terminal]:
        """Give the terminal that a call with this id opens, once it is answered."""

        def opened(_result: Any) -> Terminal:
            terminal = self._open[id_] = _RemoteTerminal(self, id_, viewer)
            return terminal

        return answer.addCallback(opened)

    def is_open(self, id_: int) -> bool:
        """Whether a viewer still looks at this terminal."""
        return id_ in self._open

    def received(self, message: Output | Ended) -> None:
        """Pass on what an agent says; about a terminal that was just closed it may still say something."""
        if isinstance(message, Ended):
            self._end(message.id, message.reason)
        elif message.id in self._open:
            self._open[message.id].viewer.terminal_output(message.data)

    def end_all(self, reason: str) -> None:
        """Tell every viewer that the agent cannot be reached any more."""
        self._outgoing.clear()
        for id_ in list(self._open):
            self._end(id_, reason)

    def steer(self, id_: int, action: str, value: Any = None) -> None:
        """Tell the agent what a viewer does."""
        raw = encode(Steer(id_, action, value))
        if self._outgoing.try_to_send(raw):
            return
        if self._outgoing.size + len(raw) > MAX_UNSENT and action != "close":
            self.steer(id_, "close")
            self._end(id_, "the agent does not take what is typed")
            return
        self._outgoing.keep(raw)

    def close(self, id_: int) -> None:
        """Look at one terminal no more."""
        del self._open[id_]
        self.steer(id_, "close")

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        self._outgoing.writable()

    def _end(self, id_: int, reason: str) -> None:
        terminal = self._open.pop(id_, None)
        if terminal is not None:
            terminal.viewer.terminal_ended(reason)


class _RemoteTerminal:
    """One viewer's hold on a terminal; implements ``Terminal``."""

    def __init__(self, terminals: Terminals, id_: int, viewer: TerminalViewer) -> None:
        self._terminals = terminals
        self._id = id_
        self._consumed = 0
        self.viewer = viewer

    def write(self, data: bytes) -> None:
        """Type."""
        self._steer("write", data[:MOST_TYPED])

    def resize(self, rows: int, columns: int) -> None:
        """Give the screen another size."""
        self._steer("resize", within_bounds(rows, columns))

    def restart(self) -> None:
        """Start a fresh shell."""
        self._steer("restart")

    def consumed(self, size: int) -> None:
        """Give credit back, a good piece at a time."""
        self._consumed += size
        if self._consumed >= WINDOW // 4:
            size, self._consumed = self._consumed, 0
            self._steer("consumed", size)

    def close(self) -> None:
        """Look no more."""
        if self._terminals.is_open(self._id):
            self._terminals.close(self._id)

    def _steer(self, action: str, value: Any = None) -> None:
        if self._terminals.is_open(self._id):
            self._terminals.steer(self._id, action, value)
