"""Tests of what comes off the wire: bounds of size and time, pipelining, and answers to what is no HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from sorna.gateway.request import LimitedSite, ReadingLimits
from sorna.model.limits import MIB
from sorna.testing.unit import UnitTestCase

LIMITS = ReadingLimits(form=1000, other=100, small=10, together=150, slowest=10)
ADDRESS = IPv4Address("TCP", "127.0.0.1", 1)


class Echo(Resource):
    """Answers with the body, at once or when it is told to."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.seen: list[bytes] = []
        self.waiting: list[Request] = []

    def render(self, request: Request) -> Any:
        assert request.content is not None
        body = request.content.read()
        self.seen.append(body)
        if self.hold:
            self.waiting.append(request)
            return NOT_DONE_YET
        request.setHeader(b"Content-Length", b"%d" % len(body))
        return body


class Connection:
    """One connection to a site, in memory."""

    def __init__(self, site: LimitedSite) -> None:
        channel = site.buildProtocol(ADDRESS)
        assert channel is not None
        self.channel: IProtocol = channel
        self.transport = StringTransport(peerAddress=ADDRESS)
        self.channel.makeConnection(self.transport)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.channel.dataReceived(piece)

    def answers(self) -> list[bytes]:
        """Give the status lines so far."""
        return re.findall(rb"HTTP/1\.1 \d+ [\w -]+", self.transport.value())

    def problem(self) -> tuple[int, str, str]:
        """Give the status, title and headers of the only answer, a problem."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        headers = head.decode().lower().split("\r\n")
        assert f"content-length: {len(body)}" in headers, head
        assert "content-type: application/problem+json; charset=utf-8" in headers, head
        assert "connection: close" in headers, head
        return int(head.split()[1]), json.loads(body)["title"], "\n".join(headers)


class ChannelTestCase(UnitTestCase):
    """Connections to a site whose time is the test's."""

    limits = LIMITS

    def setUp(self) -> None:
        self.clock = Clock()
        self.resource = Echo()
        self.site = LimitedSite(self.resource, self.clock, self.limits, lambda: None)
        self.site.doStart()
        self.addCleanup(self.site.doStop)
        self.connection = Connection(self.site)
        self.transport = self.connection.transport

    def hang_up(self, connection: Connection | None = None) -> None:
        (connection or self.connection).channel.connectionLost(Failure(ConnectionDone()))


class SizeTests(ChannelTestCase):
    def test_announced(self) -> None:
        """A body that says it is too large is refused before a byte of it is read."""
        self.connection.send(b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n")
        self.assertEqual(self.connection.problem()[:2], (413, "The request body is too large. (at most 100 bytes)"))
        self.connection.send(b"x" * 101)
        self.assertEqual(self.resource.seen, [])

    def test_exact(self) -> None:
        """A body of exactly the limit is read."""
        self.connection.send(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)
        self.assertEqual(self.resource.seen, [b"x" * 100])

    def test_forms_have_their_own_limit(self) -> None:
        """A multipart body may be larger than any other."""
        head = b"POST / HTTP/1.1\r\nContent-Type: Multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
        self.connection.send(head % 120 + b"x" * 120)
        self.assertEqual(self.resource.seen, [b"x" * 120])
        self.connection.send(head % 1001)
        self.assertEqual(self.connection.answers()[-1], b"HTTP/1.1 413 Request Entity Too Large")

    def test_chunked(self) -> None:
        """A body that does not say how large it is, is refused when it has grown too large."""
        self.connection.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.connection.send(b"32\r\n" + b"x" * 50 + b"\r\n", b"32\r\n" + b"x" * 50 + b"\r\n")
        self.assertEqual(self.connection.answers(), [])
        self.connection.send(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        self.assertEqual(self.connection.problem()[0], 413)
        self.assertEqual(self.resource.seen, [])

    def test_chunked_within_the_limit(self) -> None:
        """A chunked body within the limit is put together."""
        self.connection.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        self.assertEqual(self.resource.seen, [b"abcde"])

    def test_no_invitation_to_send(self) -> None:
        """A client that asks before it sends is invited only when its body will be read."""
        self.connection.send(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 101\r\n\r\n")
        self.assertEqual(self.connection.answers(), [b"HTTP/1.1 413 Request Entity Too Large"])
        other = Connection(self.site)
        other.send(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        self.assertEqual(other.answers(), [b"HTTP/1.1 100 Continue"])
        self.hang_up(other)

    def test_all_bodies_together(self) -> None:
        """Large bodies at once have a bound, small ones always pass, and what is done makes room."""
        self.resource.hold = True
        first, second, third, small = (Connection(self.site) for _ in range(4))
        first.send(b"POST / HTTP/1.1\r\nContent-Length: 90\r\n\r\n" + b"x" * 90)
        second.send(b"POST / HTTP/1.1\r\nContent-Length: 90\r\n\r\n" + b"x" * 60)
        self.assertEqual(self.site.budget.left, 0)
        small.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n" + b"x" * 10)
        self.assertEqual(len(self.resource.seen), 2)
        second.send(b"x" * 30)
        status, title, headers = second.problem()
        self.assertEqual((status, title), (503, "Serivce unavailable. (Too many large requests at once.)"))
        self.assertIn("retry-after", headers)
        self.hang_up(second)
        self.assertEqual(self.site.budget.left, 60)
        self.resource.waiting[0].finish()
        self.assertEqual(self.site.budget.left, 150)
        third.send(b"POST / HTTP/1.1\r\nContent-Length: 90\r\n\r\n" + b"x" * 90)
        self.assertEqual(len(self.resource.seen), 3)
        for connection in (first, third, small):
            self.hang_up(connection)
        self.assertEqual(self.site.budget.left, 150)

    def test_headers(self) -> None:
        """Headers without end are refused with a body that says so."""
        self.connection.send(b"GET / HTTP/1.1\r\n", *(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(20)))
        self.assertEqual(self.connection.problem()[:2], (400, "Bad request. (Malformed HTTP request.)"))


class AfterRefusalTests(ChannelTestCase):
    limits = evolve(LIMITS, linger=1000)

    def setUp(self) -> None:
        super().setUp()
        self.connection.send(b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")

    def test_what_still_comes_is_thrown_away(self) -> None:
        """The client may go on sending for a moment, so that it reads the answer; then the connection is closed."""
        self.connection.send(b"x" * 500, b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(self.resource.seen, [])
        self.assertEqual(len(self.connection.answers()), 1)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(LIMITS.linger_time)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting)

    def test_not_without_end(self) -> None:
        """More than a bounded number of bytes closes the connection at once."""
        self.connection.send(b"x" * 1001)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting)

    def test_a_client_that_closes(self) -> None:
        """A client that has read the answer and closes leaves no timer behind."""
        self.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class MalformedTests(ChannelTestCase):
    def test_no_http(self) -> None:
        """What is no HTTP gets one problem, and nothing that follows it is handled."""
        valid = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for sent in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\nA: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            for pieces in ((sent + valid,), tuple(bytes((one,)) for one in sent + valid)):
                connection = Connection(self.site)
                connection.send(*pieces)
                self.assertEqual(connection.problem()[:2], (400, "Bad request. (Malformed HTTP request.)"), sent)
                self.assertEqual(self.resource.seen, [], sent)
                self.hang_up(connection)


class TimeTests(ChannelTestCase):
    def test_slow_headers(self) -> None:
        """Headers that trickle in are given up, however steadily they come."""
        for _ in range(int(LIMITS.head_time) + 1):
            self.connection.send(b"G")
            self.clock.advance(1)
        self.connection.send(b"G")
        self.assertEqual(
            self.connection.problem()[:2],
            (400, "Missing or invalid API parameters. (The request did not arrive in time)"),
        )

    def test_slow_body(self) -> None:
        """A body has a time that grows with its length."""
        self.connection.send(b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\n")
        for _ in range(25):
            self.connection.send(b"x")
            self.clock.advance(1)
        self.assertEqual(self.connection.answers(), [])
        self.connection.send(b"x")
        self.clock.advance(1)
        self.connection.send(b"x")
        self.assertEqual(self.connection.problem()[0], 400)
        self.assertEqual(self.resource.seen, [])

    def test_body_that_stops(self) -> None:
        """A body of which nothing comes any more is answered after the idle time."""
        self.connection.send(b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\nx")
        self.clock.advance(LIMITS.idle_time + 1)
        self.assertEqual(self.connection.problem()[0], 400)
        self.clock.advance(LIMITS.linger_time)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting)

    def test_idle_connections(self) -> None:
        """A connection that sends nothing, at first or between two requests, is closed without a word."""
        self.clock.advance(LIMITS.idle_time + 1)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.transport.value(), b"")
        other = Connection(self.site)
        other.send(b"GET / HTTP/1.1\r\n\r\n")
        self.clock.advance(LIMITS.idle_time + 1)
        self.assertTrue(other.transport.disconnecting)
        self.assertEqual(len(other.answers()), 1)
        self.hang_up(other)
        self.hang_up()

    def test_a_slow_answer_has_time(self) -> None:
        """No time limit applies while a request is being answered, whatever the client sends meanwhile."""
        self.resource.hold = True
        self.connection.send(b"GET / HTTP/1.1\r\n\r\n")
        self.clock.advance(10 * LIMITS.idle_time)
        self.connection.send(b"GET ")
        self.clock.advance(10 * LIMITS.idle_time)
        self.resource.waiting[0].finish()
        self.connection.send(b"/ HTTP/1.1\r\n\r\n")
        self.assertEqual(len(self.resource.waiting), 2)
        self.assertFalse(self.transport.disconnecting)
        self.hang_up()

    def test_each_request_has_its_own_time(self) -> None:
        """A connection may be used for long, request after request."""
        for _ in range(5):
            self.connection.send(b"GET / HT")
            self.clock.advance(LIMITS.head_time - 1)
            self.connection.send(b"TP/1.1\r\n\r\n")
        self.assertEqual(len(self.resource.seen), 5)
        self.hang_up()


class PipelineTests(ChannelTestCase):
    def test_requests_at_once(self) -> None:
        """Requests that come together are answered one after another, in order."""
        self.connection.send(
            b"".join(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(5))
        )
        self.assertEqual(self.resource.seen, [b"0", b"1", b"2", b"3", b"4"])
        self.assertEqual(self.connection.answers(), [b"HTTP/1.1 200 OK"] * 5)
        self.hang_up()

    def test_a_refusal_comes_in_its_turn(self) -> None:
        """A request that is refused waits for those before it."""
        self.resource.hold = True
        self.connection.send(b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n")
        self.assertEqual(self.connection.answers(), [])
        self.resource.waiting[0].setHeader(b"Content-Length", b"0")
        self.resource.waiting[0].finish()
        self.assertEqual(self.connection.answers(), [b"HTTP/1.1 200 OK", b"HTTP/1.1 413 Request Entity Too Large"])
        self.hang_up()


class DefaultTests(UnitTestCase):
    def test_limits_hold_a_full_upload(self) -> None:
        """Twenty files of a mebibyte with their headers fit."""
        self.assertGreater(ReadingLimits().form, 20 * MIB + 20 * 10_000)

    def test_no_clock_runs_for_a_log_that_is_not_written(self) -> None:
        """A site that serves nobody has no timer."""
        clock = Clock()
        site = LimitedSite(Resource(), clock, ReadingLimits(), lambda: None)
        site.doStart()
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual(site.acceptableProtocols(), [b"http/1.1"])
        site.doStop()
