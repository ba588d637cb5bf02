"""The load client against small servers whose faults are known."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from bench.client import Connection, Script, Stuck, drive, pace
from bench.wire import Answer
from sorna.testing.unit import UnitTestCase

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def answered(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@contextlib.contextmanager
def serving(answer: Callable[[int], bytes | None]) -> Iterator[str]:
    """Answer each connection's requests in turn; ``answer`` is given their number, and None hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(opened: socket.socket) -> None:
        number, received = 0, b""
        with opened, contextlib.suppress(OSError):
            while chunk := opened.recv(65536):
                received += chunk
                while REQUEST in received:
                    received = received.replace(REQUEST, b"", 1)
                    reply = answer(number)
                    number += 1
                    if reply is None:
                        return
                    opened.sendall(reply)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                opened, _address = listener.accept()
                threads.append(threading.Thread(target=serve, args=(opened,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


class DriveTests(UnitTestCase):
    """Scripts side by side."""

    def test_every_script_gets_its_answers(self) -> None:
        """Each script has a connection of its own, and is given its answers in order."""
        seen: list[list[bytes]] = [[], [], []]

        def script(mine: list[bytes]) -> Script:
            for _ in range(4):
                answer = yield REQUEST
                mine.append(answer.body)

        with serving(lambda number: answered(b"%d" % number)) as endpoint:
            drive(endpoint, [script(mine) for mine in seen])
        self.assertEqual(seen, [[b"0", b"1", b"2", b"3"]] * 3)

    def test_hanging_up_is_told(self) -> None:
        """A server that closes the connection is an error, not an end."""

        def script() -> Script:
            yield REQUEST

        with serving(lambda _number: None) as endpoint, self.assertRaises(Stuck):
            drive(endpoint, [script()])

    def test_connection(self) -> None:
        """One connection asks one thing after another."""
        with (
            serving(lambda number: answered(b"%d" % number)) as endpoint,
            contextlib.closing(Connection(endpoint)) as connection,
        ):
            self.assertEqual([connection.ask(REQUEST).body for _ in range(3)], [b"0", b"1", b"2"])


class PaceTests(UnitTestCase):
    """A load that does not wait."""

    def paced(self, answer: Callable[[int], bytes | None], *, right: bytes = b"x") -> dict[str, int]:
        def fine(_lane: int, _which: int, reply: Answer) -> bool:
            return reply.body == right

        with serving(answer) as endpoint:
            result = pace(endpoint, [[REQUEST]] * 2, 100, 0.3, fine, depth=4, drain=1.0)
        return {
            "due": result.due,
            "unsent": result.due - result.sent,
            "answered": len(result.times),
            "wrong": result.wrong,
            "lost": result.lost,
        }

    def test_all_is_well(self) -> None:
        """What is due is sent and answered."""
        found = self.paced(lambda _number: answered(b"x"))
        self.assertEqual((found["wrong"], found["lost"]), (0, 0))
        self.assertGreater(found["answered"], 30)
        self.assertEqual(found["due"], found["unsent"] + found["answered"])

    def test_wrong_answers(self) -> None:
        """Answers that are not what was to come are counted."""
        self.assertEqual(self.paced(lambda number: answered(b"y" if number == 3 else b"x"))["wrong"], 2)

    def test_lost_with_the_connection(self) -> None:
        """What a lost connection leaves unanswered is lost, and nothing is sent on it any more."""
        found = self.paced(lambda number: None if number == 5 else answered(b"x"))
        self.assertEqual(found["answered"], 10)
        self.assertGreaterEqual(found["lost"], 2)
        self.assertEqual(found["due"], found["unsent"] + found["answered"] + found["lost"])

    def test_no_answers(self) -> None:
        """A server that answers nothing is sent no more than the depth, and all of that is lost."""
        found = self.paced(lambda _number: b"")
        self.assertEqual((found["answered"], found["wrong"], found["lost"]), (0, 0, 8))
        self.assertEqual(found["due"], found["unsent"] + found["lost"])
