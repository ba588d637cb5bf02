"""Questions to a kernel's init that it answers with REPLY, and what becomes of those it never answers.

Knows request numbers and errors on the wire, and nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from sorna.agent.deadlines import cancel
from sorna.agent.runners.frames import FrameError
from sorna.errors import AgentFailed, AgentRefused, AgentTimeout

MAX_OPEN = 64


@define(eq=False)
class _Question:
    deferred: Deferred[Any]
    timer: IDelayedCall


class Replies:
    """The open questions of one channel."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._open: dict[int, _Question] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, timeout: float) -> tuple[int, Deferred[Any]]:
        """Open a question: its number, and the Deferred of its result.

        The Deferred fails with AgentRefused or AgentFailed as init says, and with AgentTimeout after ``timeout`` seconds.

        :raises AgentFailed: too many are open.
        """
        if len(self._open) >= MAX_OPEN:
            raise AgentFailed("Too many requests to this kernel are open.")
        self._count += 1
        number = self._count
        deferred: Deferred[Any] = Deferred(lambda _deferred: self._forget(number))
        timer = self._clock.callLater(timeout, self._expire, number)
        self._open[number] = _Question(deferred, timer)
        return number, deferred

    def received(self, frame: Mapping[str, Any]) -> None:
        """Take a REPLY; one that nobody waits for any more is dropped.

        :raises FrameError: it has not the shape of one.
        """
        result: Any = None
        error: AgentRefused | AgentFailed | None = None
        match frame:
            case {"request": int(number), "error": None}:
                result = frame.get("result")
            case {"request": int(number), "error": {"kind": "refused", "detail": str(detail)}}:
                error = AgentRefused(detail)
            case {"request": int(number), "error": {"kind": "failed", "detail": str(detail)}}:
                error = AgentFailed(detail)
            case _:
                raise FrameError("a REPLY of an unknown shape")
        question = self._close(number)
        if question is not None:
            if error is None:
                question.deferred.callback(result)
            else:
                question.deferred.errback(Failure(error))

    def fail_all(self, detail: str) -> None:
        """Fail every open question: there will be no answer."""
        for number in list(self._open):
            question = self._close(number)
            if question is not None:
                question.deferred.errback(Failure(AgentFailed(detail)))

    def _close(self, number: int) -> _Question | None:
        question = self._open.pop(number, None)
        if question is not None:
            cancel(question.timer)
        return question

    def _forget(self, number: int) -> None:
        self._close(number)

    def _expire(self, number: int) -> None:
        question = self._close(number)
        if question is not None:
            question.deferred.errback(Failure(AgentTimeout("The kernel did not answer in time.")))
