"""The channel: frames in both directions over a real socket pair, its bounds and its end."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure

from sorna.agent.channel import WRITE_BOUND, Channel, WriteBufferFull
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError, FrameReader, pack_frame
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import SocketClock


class Receiver:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.ends: list[Exception | None] = []
        self.on_frame: Callable[[int, bytes], None] = lambda kind, payload: self.frames.append((kind, payload))

    def frame_received(self, kind: int, payload: bytes) -> None:
        if payload == b"bad":
            raise FrameError("bad")
        self.on_frame(kind, payload)

    def channel_lost(self, error: Exception | None) -> None:
        self.ends.append(error)


class ChannelTests(UnitTestCase):
    def setUp(self) -> None:
        self.reactor = SocketClock()
        ours, self.peer = socket.socketpair()
        self.addCleanup(self.peer.close)
        self.peer.setblocking(False)
        self.receiver = Receiver()
        self.channel = Channel(self.reactor, ours, self.receiver)
        self.addCleanup(self.channel.close)

    def read(self) -> bytes:
        chunks = []
        while True:
            self.reactor.serve()
            try:
                chunks.append(self.peer.recv(1 << 20))
            except BlockingIOError:
                return b"".join(chunks)

    def test_writes_at_once(self) -> None:
        """A small frame is in the socket before the reactor turns."""
        self.channel.send(frames.RUN, b"{}")
        self.assertEqual(self.peer.recv(100), pack_frame(frames.RUN, b"{}"))
        self.assertEqual(self.reactor.writers, set())

    def test_large_frames_in_order(self) -> None:
        """What the socket does not take is written as it can be, in order, and the writer goes away after."""
        sent = [(frames.UPLOAD, bytes([number]) * 3_000_000) for number in range(4)]
        for kind, payload in sent:
            self.channel.send(kind, payload)
        self.assertGreater(self.channel.buffered, 0)
        self.assertEqual(FrameReader().feed(self.read()), sent)
        self.assertEqual((self.channel.buffered, self.reactor.writers), (0, set()))

    def test_frames_cut_anywhere_in_chunks_that_do_not_last(self) -> None:
        """Frames are put together from chunks that end anywhere, though what the chunks were in is used again."""
        sent = [(number % 200, bytes([number]) * size) for number, size in enumerate((0, 1, 4, 5, 6, 30, 0, 0, 11))]
        stream = b"".join(pack_frame(kind, payload) for kind, payload in sent)
        for size in range(1, 20):
            reader, received = FrameReader(), []
            for start in range(0, len(stream), size):
                chunk = bytearray(stream[start : start + size])
                received += reader.feed(memoryview(chunk))
                chunk[:] = b"?" * len(chunk)
            self.assertEqual(received, sent)
            self.assertEqual(reader.incomplete, b"")

    def test_too_large_whose_header_is_cut(self) -> None:
        """A frame that announces too much is found out as soon as its header is complete."""
        header = frames.HEADER.pack(frames.MAX_PAYLOAD + 1, 1)
        for cut in range(len(header)):
            reader = FrameReader()
            self.assertEqual(reader.feed(header[:cut]), [])
            self.assertEqual(reader.incomplete, header[:cut])
            with self.assertRaises(FrameError):
                reader.feed(header[cut:])

    def test_write_buffer_is_bounded(self) -> None:
        """A peer that does not read is found out; what was taken stays whole."""
        taken = 0
        with self.assertRaises(WriteBufferFull):
            for _ in range(100):
                self.channel.send(frames.UPLOAD, b"x" * 1_000_000)
                taken += 1
        self.assertLessEqual(self.channel.buffered, WRITE_BOUND)
        self.assertEqual(len(FrameReader().feed(self.read())), taken)

    def test_payload_too_large(self) -> None:
        """A payload beyond the protocol's bound is the caller's mistake."""
        with self.assertRaises(ValueError):
            self.channel.send(frames.UPLOAD, b"x" * (frames.MAX_PAYLOAD + 1))

    def test_frames_arrive_cut_anywhere(self) -> None:
        """Frames are found however the bytes are cut."""
        raw = pack_frame(frames.STDOUT, b"abc") + pack_frame(frames.STDERR, b"")
        for position in range(len(raw)):
            self.peer.send(raw[position : position + 1])
            self.reactor.serve()
        self.assertEqual(self.receiver.frames, [(frames.STDOUT, b"abc"), (frames.STDERR, b"")])

    def test_end_of_the_peer(self) -> None:
        """The peer's end is told once, and everything before it."""
        self.peer.send(pack_frame(frames.STDOUT, b"last"))
        self.peer.close()
        while self.reactor.serve():
            pass
        self.channel.close()
        self.channel.send(frames.RUN, b"{}")
        self.channel.connectionLost(Failure(CONNECTION_LOST))
        self.assertEqual((self.receiver.frames, self.receiver.ends), ([(frames.STDOUT, b"last")], [None]))
        self.assertEqual((self.reactor.readers, self.channel.fileno()), (set(), -1))

    def test_last_frames_after_a_failed_write(self) -> None:
        """What the peer said before it went is read although writing to it fails."""
        self.peer.send(pack_frame(frames.FINISHED, b"{}"))
        self.peer.close()
        self.channel.send(frames.CREDIT, b"\0\0\0\1")
        while self.reactor.serve():
            pass
        self.assertEqual(self.receiver.frames, [(frames.FINISHED, b"{}")])
        self.assertEqual(self.receiver.ends, [None])

    def test_nonsense(self) -> None:
        """A receiver that refuses a frame ends the channel; later frames are not given to it."""
        self.peer.send(pack_frame(frames.STDOUT, b"bad") + pack_frame(frames.STDOUT, b"good"))
        self.reactor.serve()
        self.assertEqual(self.receiver.frames, [])
        self.assertIsInstance(self.receiver.ends[0], FrameError)

    def test_closing_within_a_frame(self) -> None:
        """A receiver may close the channel while it takes a frame."""
        received: list[bytes] = []

        def close(_kind: int, payload: bytes) -> None:
            received.append(payload)
            self.channel.close()

        self.receiver.on_frame = close
        self.peer.send(pack_frame(frames.STDOUT, b"a") + pack_frame(frames.STDOUT, b"b"))
        self.reactor.serve()
        self.assertEqual((received, self.receiver.ends), ([b"a"], [None]))

    def test_drain(self) -> None:
        """Everything that is in the socket can be read at once, up to the end."""
        for _ in range(3):
            self.peer.send(pack_frame(frames.STDOUT, b"x" * 50_000))
        self.peer.close()
        self.channel.drain()
        self.assertEqual((len(self.receiver.frames), self.receiver.ends), (3, [None]))
