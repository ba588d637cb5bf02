"""Where the time of requests goes: when each call between two rooms began and ended, for benches; off unless asked for.

Nothing here knows a room. The composition root hands an object that others call through :func:`watched`; when nobody asked,
that gives the object itself, so that nothing at all is between caller and called. Otherwise what comes back notes every call
whose result is awaited in a ring of bounded size, which is written to a file when the process stops. Times are the
reactor's, seconds since the epoch, so that those of several processes of one host can be laid side by side.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

T = TypeVar("T")

MOST_MARKS = 20_000


class Stages:
    """The ring of one process.

    :param folder: where the file is written, named after the process.
    """

    def __init__(self, clock: IReactorTime, folder: Path) -> None:
        self._clock = clock
        self._folder = folder
        self._marks: deque[tuple[str, float, float]] = deque(maxlen=MOST_MARKS)

    def now(self) -> float:
        """Give the time."""
        return float(self._clock.seconds())

    def note(self, name: str, began: float) -> None:
        """Note that something has ended now."""
        self._marks.append((name, began, self.now()))

    async def write(self) -> None:
        """Write what is in the ring, as a JSON list of name, beginning and end."""
        (self._folder / f"stages-{os.getpid()}.json").write_text(json.dumps([*self._marks]), encoding="ascii")


def watched(stages: Stages | None, name: str, target: T) -> T:
    """Give what is to be called in place of ``target``: itself, when there are no stages.

    :param name: the first part of what its calls are noted as; the second is the method.
    """
    return target if stages is None else cast("T", _Watched(stages, name, target))


class _Watched:
    """Passes everything on, and notes the calls that take time."""

    def __init__(self, stages: Stages, name: str, target: object) -> None:
        self._stages = stages
        self._name = name
        self._target = target

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        return self._noting(f"{self._name}.{name}", attribute) if callable(attribute) else attribute

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        stages = self._stages

        async def awaiting(coroutine: Coroutine[Any, Any, Any]) -> Any:
            began = stages.now()
            try:
                return await coroutine
            finally:
                stages.note(name, began)

        def call(*arguments: Any, **named: Any) -> Any:
            began = stages.now()
            result = method(*arguments, **named)
            if inspect.iscoroutine(result):
                return awaiting(result)
            if isinstance(result, Deferred):
                result.addBoth(_passed_on, stages, name, began)
            return result

        return call


def _passed_on(result: Any, stages: Stages, name: str, began: float) -> Any:
    stages.note(name, began)
    return result


class WatchedResource(Resource):
    """Notes how long each request is being answered: from when it was read until its answer was given to the socket."""

    isLeaf = True

    def __init__(self, stages: Stages, resource: Any) -> None:
        super().__init__()
        self._stages = stages
        self._resource = resource

    def render(self, request: Request) -> int:
        """Let the resource answer."""
        began = self._stages.now()
        request.notifyFinish().addBoth(lambda _over: self._stages.note("request", began))
        self._resource.render(request)
        return NOT_DONE_YET
