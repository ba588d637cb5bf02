"""The terminals that one manager looks at over one connection; knows messages and viewers, no socket and no kernel.

What a terminal prints waits here for room on the connection, in one piece for each viewer, and goes out after everything
else. It cannot grow: a viewer is given no more than the window of ``sorna/model/terminal.py`` without having read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sorna.agent.interfaces import AgentOperations
from sorna.agent.link_turns import Turns
from sorna.cluster.messages import Ended, MalformedMessage, Output, Steer, unpack_kernel_id
from sorna.errors import InvalidRequest, Unavailable
from sorna.model.terminal import Terminal, within_bounds
from sorna.zeromq import Sent

MAX_TERMINALS = 2000
PIECE = 32 * 1024


class PeerTerminals:
    """Every terminal that is looked at over one connection.

    :param send: hands one message to the connection if that has room now.
    """

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._turns = Turns(send)
        self._viewers: dict[int, _RemoteViewer] = {}
        self._over = False

    def __len__(self) -> int:
        return len(self._viewers)

    async def open(self, operations: AgentOperations, id_: int, parameters: Mapping[str, Any]) -> None:
        """Look at a terminal, as the call with this id asks.

        :raises InvalidRequest: a parameter is wrong.
        :raises KernelNotFound, Unavailable: nothing was opened.
        """
        if len(self._viewers) >= MAX_TERMINALS:
            raise Unavailable("too many terminals are looked at")
        try:
            match parameters:
                case {"kernel_id": kernel, "rows": int(rows), "columns": int(columns), **rest} if not rest:
                    kernel_id = unpack_kernel_id(kernel)
                case _:
                    raise MalformedMessage("kernel_id, rows and columns are wanted")
        except MalformedMessage as error:
            raise InvalidRequest(f"open_terminal: {error}") from error
        viewer = _RemoteViewer(self, id_)
        viewer.terminal = await operations.open_terminal(kernel_id, viewer, *within_bounds(rows, columns))
        if self._over:
            viewer.terminal.close()
        else:
            self._viewers[id_] = viewer

    def has(self, id_: int) -> bool:
        """Whether the call with this id opened a terminal that is still looked at."""
        return id_ in self._viewers

    def steer(self, message: Steer) -> None:
        """Do what a viewer does; about a terminal that has just ended a manager may still say something."""
        viewer = self._viewers.get(message.id)
        if viewer is None or viewer.terminal is None:
            return
        match message.action:
            case "write":
                viewer.terminal.write(message.value)
            case "resize":
                viewer.terminal.resize(*message.value)
            case "restart":
                viewer.terminal.restart()
            case "consumed":
                viewer.terminal.consumed(message.value)
            case "close":
                self.close(message.id)

    def close(self, id_: int) -> None:
        """Look at one terminal no more; harmless when nobody does."""
        viewer = self._viewers.pop(id_, None)
        if viewer is not None and viewer.terminal is not None:
            viewer.forget()
            viewer.terminal.close()

    def close_all(self) -> None:
        """Let the manager be gone."""
        self._over = True
        self._turns.stop()
        for id_ in list(self._viewers):
            self.close(id_)

    def ended(self, viewer: _RemoteViewer) -> None:
        """Note that a terminal has ended; its viewer may still have something to send."""
        self._viewers.pop(viewer.id, None)

    def post(self, viewer: _RemoteViewer) -> None:
        """Send what a viewer has, now or when there is room."""
        self._turns.post(viewer)

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        self._turns.writable()


class _RemoteViewer:
    """One viewer at the manager; implements ``TerminalViewer``."""

    def __init__(self, terminals: PeerTerminals, id_: int) -> None:
        self._terminals = terminals
        self._unsent = bytearray()
        self._reason: str | None = None
        self.id = id_
        self.terminal: Terminal | None = None

    def terminal_output(self, data: bytes) -> None:
        """Send output on."""
        self._unsent += data
        self._terminals.post(self)

    def terminal_ended(self, reason: str) -> None:
        """Send the last word, after the output."""
        self._reason = reason[:1000]
        self._terminals.ended(self)
        self._terminals.post(self)

    def first_message(self) -> Output | Ended | None:
        """Give what is to be sent next."""
        if self._unsent:
            return Output(self.id, bytes(self._unsent[:PIECE]))
        return None if self._reason is None else Ended(self.id, self._reason)

    def forget_message(self) -> None:
        """Note that the next message was sent."""
        if self._unsent:
            del self._unsent[:PIECE]
        else:
            self._reason = None

    def forget(self) -> None:
        """Want to send nothing more."""
        self._unsent.clear()
        self._reason = None
