"""Notes of when calls between rooms began and ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from sorna.stages import MOST_MARKS, Stages, WatchedResource, watched
from sorna.testing.unit import UnitTestCase


@frozen
class Room:
    """Something that is called."""

    clock: Clock
    waiting: Deferred[str]
    size: int = 3

    async def work(self, what: str, *, more: str) -> str:
        """Wait, and join."""
        return what + more + await self.waiting

    def later(self) -> Deferred[str]:
        """Give the Deferred itself."""
        return self.waiting

    def at_once(self) -> int:
        """Give a value."""
        return self.size


class WatchedTests(UnitTestCase):
    """What is between caller and called."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.stages = Stages(self.clock, self.folder)
        self.waiting: Deferred[str] = Deferred()
        self.room = Room(self.clock, self.waiting)
        self.seen = watched(self.stages, "room", self.room)

    def marks(self) -> list[list[object]]:
        """Give what is written."""
        self.successResultOf(Deferred.fromCoroutine(self.stages.write()))
        [file] = self.folder.iterdir()
        return list(json.loads(file.read_text("ascii")))

    def test_nothing_when_nobody_asked(self) -> None:
        """Without stages the object itself is called."""
        self.assertIs(watched(None, "room", self.room), self.room)

    def test_coroutine(self) -> None:
        """A call that is awaited is noted from its beginning to its end, and gives what it gives."""
        self.clock.advance(1)
        result = Deferred.fromCoroutine(self.seen.work("a", more="b"))
        self.clock.advance(2)
        self.waiting.callback("c")
        self.assertEqual(self.successResultOf(result), "abc")
        self.assertEqual(self.marks(), [["room.work", 1.0, 3.0]])

    def test_failure(self) -> None:
        """A call that fails is noted too, and fails."""
        result = Deferred.fromCoroutine(self.seen.work("a", more="b"))
        self.waiting.errback(KeyError("x"))
        self.failureResultOf(result, KeyError)
        self.assertEqual(self.marks(), [["room.work", 0.0, 0.0]])

    def test_deferred(self) -> None:
        """A call that gives a Deferred is noted until that fires."""
        result = self.seen.later()
        self.clock.advance(2)
        self.waiting.callback("c")
        self.assertEqual(self.successResultOf(result), "c")
        self.assertEqual(self.marks(), [["room.later", 0.0, 2.0]])

    def test_what_takes_no_time(self) -> None:
        """Values and calls that give one at once pass through and are not noted."""
        self.assertEqual((self.seen.size, self.seen.at_once()), (3, 3))
        self.assertEqual(self.marks(), [])
        with self.assertRaises(AttributeError):
            _ = self.seen.nothing  # type: ignore[attr-defined]

    def test_bounded(self) -> None:
        """Of very many marks the last are kept."""
        for number in range(MOST_MARKS + 5):
            self.stages.note(f"{number}", 0.0)
        marks = self.marks()
        self.assertEqual((len(marks), marks[0][0]), (MOST_MARKS, "5"))

    def test_request(self) -> None:
        """A request is noted from its rendering until it is finished."""

        class Later(Resource):
            def render(self, request: DummyRequest) -> int:
                return NOT_DONE_YET

        request: Any = DummyRequest([b""])
        WatchedResource(self.stages, Later()).render(request)
        self.clock.advance(3)
        request.finish()
        self.assertEqual(self.marks(), [["request", 0.0, 3.0]])
