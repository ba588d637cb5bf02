"""Questions to Redis that come up in one turn of the reactor are asked together, in one command with one answer.

Knows batches and turns, and nothing of what is asked. A command costs the driver ten times what one more argument does, and
under load many requests are read in one turn; a lone question goes out as soon as it would by itself, because what the
driver is given leaves in the next turn anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.errors import Unavailable

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """Gathers questions until the next turn.

    :param ask_all: is given questions in the order in which they came, and gives as many answers in that order.
    :param most: how many questions are asked at once; more go out in several commands of the same turn.
    """

    def __init__(
        self, reactor: IReactorTime, ask_all: Callable[[Sequence[Q]], Coroutine[Any, Any, Sequence[A]]], most: int
    ) -> None:
        self._reactor = reactor
        self._ask_all = ask_all
        self._most = most
        self._gathered: list[tuple[Q, Deferred[A]]] = []

    def ask(self, question: Q) -> Deferred[A]:
        """Ask with the others of this turn; who cancels gets no answer, but the question is asked all the same.

        :raises Unavailable: as ``ask_all`` did, for each of its questions.
        """
        answer: Deferred[A] = Deferred()
        self._gathered.append((question, answer))
        if len(self._gathered) == 1:
            self._reactor.callLater(0, self._send)
        return answer

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        for start in range(0, len(gathered), self._most):
            Deferred.fromCoroutine(self._settle(gathered[start : start + self._most]))

    async def _settle(self, gathered: Sequence[tuple[Q, Deferred[A]]]) -> None:
        try:
            answers = await self._ask_all([question for question, _ in gathered])
            answered = list(zip(gathered, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            for _, waiting in gathered:
                if not waiting.called:
                    # An exception of its own for each where that happens: they are raised, and gather tracebacks.
                    waiting.errback(Unavailable(error.detail) if isinstance(error, Unavailable) else error)
            return
        for (_, waiting), answer in answered:
            if not waiting.called:
                waiting.callback(answer)
