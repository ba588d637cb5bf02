"""Drives an init whose REPL has a lane, as an agent would: with the agent's own :class:`~sorna.agent.lane.Lane`."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sorna.agent.channel import FrameReceiver
from sorna.agent.lane import Lane
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameReader, pack_frame
from sorna.agent.runners.language import Language
from sorna.model.run import RunMode, RunRequest
from tests.agent.runners.driver import Kernel


class BlockingChannel:
    """A :class:`~sorna.agent.channel.FrameSender` without a reactor."""

    def __init__(self, sock: socket.socket, receiver: FrameReceiver) -> None:
        self.socket = sock
        self.closed = False
        self._receiver = receiver
        self._reader = FrameReader()

    def send(self, kind: int, *parts: bytes) -> None:
        with suppress(OSError):
            self.socket.sendall(pack_frame(kind, b"".join(parts)))

    def hand(self, _kind: int, _payload: bytes, _descriptor: int) -> bool:
        raise NotImplementedError

    def drain(self) -> None:
        while not self.closed and select.select([self.socket], [], [], 0)[0]:
            self.read()

    def read(self) -> None:
        """Take what is there."""
        try:
            chunk = self.socket.recv(1 << 20)
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
        for kind, payload in self._reader.feed(chunk):
            self._receiver.frame_received(kind, payload)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_RD)
        self.drain()
        self.close()

    def carry(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def take_over(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.socket.close()
            self._receiver.channel_lost(None)


class LaneKernel(Kernel):
    """As :class:`Kernel`; what can goes over the lane.

    :ivar short: how many runs ended over it.
    :ivar sent: how many frames of each kind init was sent.
    """

    def __init__(self, language: Language, *arguments: Any, **options: Any) -> None:
        self.lane = Lane(self._open, self, self._send_frame)
        self.lane.wanted = language.repl
        self.channel: BlockingChannel | None = None
        self.short = 0
        self.sent: dict[int, int] = {}
        self.restarting = False
        super().__init__(language, *arguments, **options)

    def _open(self, sock: socket.socket, receiver: FrameReceiver) -> BlockingChannel:
        self.channel = BlockingChannel(sock, receiver)
        return self.channel

    def hand(self, kind: int, payload: bytes, descriptor: int) -> bool:
        return socket.send_fds(self.socket, [pack_frame(kind, payload)], [descriptor]) > 0

    def _send_frame(self, kind: int, payload: bytes) -> None:
        self.send_raw(kind, payload)

    def send(self, kind: int, message: dict[str, Any]) -> None:
        self.lane.before(kind)
        self.restarting = self.restarting or kind == frames.RESTART
        if kind == frames.RUN and message["mode"] == "query" and message["code"].strip():
            request = RunRequest(RunMode.QUERY, message["code"], unattended=bool(message.get("unattended")))
            if self.lane.start(message["run"], request, time.time()):  # noqa: TID251 - there is no clock to inject
                return
        if kind == frames.RUN:
            self.lane.open(self)
        super().send(kind, message)
        if kind == frames.CONFIGURE:
            self.lane.open(self)

    def send_raw(self, kind: int, payload: bytes) -> None:
        self.sent[kind] = self.sent.get(kind, 0) + 1
        super().send_raw(kind, payload)

    def receive(self, timeout: float = 20.0) -> bool:
        lane = self.channel
        if lane is None or lane.closed:
            return super().receive(timeout)
        ready = select.select([self.socket, lane.socket], [], [], timeout)[0]
        if lane.socket in ready:
            lane.read()
        if self.socket in ready:
            super().receive(0)
        return bool(ready)

    def _take(self, kind: int, payload: bytes) -> None:
        # As an agent does; whether the old lane's end has been read by now is a matter of luck.
        if kind == frames.FINISHED:
            self.lane.forget()
        if (kind == frames.FINISHED and json.loads(payload)["reset"]) or (kind == frames.REPLY and self.restarting):
            self.restarting = False
            self.lane.leave()
        if kind == frames.RESTARTED and self.lane.lost(message := json.loads(payload)):
            super()._take(frames.STDERR, f"{message['reason']}; its state is lost.\n".encode())
            return
        super()._take(kind, payload)

    def lane_ended_run(self, frame: Mapping[str, Any], words: bytes) -> None:
        self.short += 1
        if words:
            super()._take(frames.STDOUT, words)
            self._owed -= len(words)
            self.taken -= len(words)
        super()._take(frames.FINISHED, json.dumps(frame).encode())

    def channel_lost(self, error: Exception | None) -> None:
        raise AssertionError(error)

    def close(self) -> None:
        if self.channel is not None and not self.channel.closed:
            self.channel.close()
        super().close()
