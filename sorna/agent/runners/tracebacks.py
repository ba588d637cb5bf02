"""Shows exceptions of user code as Python does, without any frame of ours, and records them for the client.

Standard library only. Knows exceptions; may not know streams or sockets.
"""

import json
import linecache
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_OURS = str(Path(__file__).parent) + "/"
_MOST_SOURCES = 8 * 1024 * 1024
_MOST_TEXT = 64 * 1024
_MOST_TRACEBACK = 256 * 1024
INPUT = "<input"


class Sources:
    """Keeps the source of recent runs where tracebacks look for it."""

    def __init__(self) -> None:
        self._names: deque[tuple[str, int]] = deque()
        self._size = 0

    def add(self, name: str, source: str) -> None:
        """Remember one source; the oldest go when all together are large."""
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        self._names.append((name, len(source)))
        self._size += len(source)
        while self._size > _MOST_SOURCES and len(self._names) > 1:
            oldest, size = self._names.popleft()
            linecache.cache.pop(oldest, None)
            self._size -= size


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Give the traceback from the first frame of user code on; None when there is none."""
    first = trace
    while first is not None and not first.tb_frame.f_code.co_filename.startswith(INPUT):
        first = first.tb_next
    if first is not None:
        return first
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace


def text_of(error: BaseException) -> str:
    """Format an exception with its causes as Python would."""
    report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _clean(report, set())
    return "".join(report.format())


def last_resort(error: BaseException) -> str:
    """Name an exception that cannot be formatted."""
    return f"{type(error).__name__}: <the exception cannot be shown>\n"


def record_of(error: BaseException, before_exec: bool, text: str) -> dict[str, Any]:
    """Give what the client is told of an uncaught exception."""
    arguments: list[Any] = []
    with suppress(Exception):
        arguments = [_plain(value) for value in error.args]
        if before_exec and isinstance(error, SyntaxError):
            shown = None if error.filename is None else INPUT + ">"
            arguments = [error.msg, [shown, error.lineno, error.offset, error.text]]
    return {
        "name": type(error).__name__,
        "args": arguments,
        "before_exec": before_exec,
        "traceback": None if before_exec else text[-_MOST_TRACEBACK:],
    }


def bare_record(error: BaseException, text: str) -> dict[str, Any]:
    """Give the record of an exception whose arguments cannot be shown."""
    return {"name": type(error).__name__, "args": [], "before_exec": False, "traceback": text[-_MOST_TRACEBACK:]}


def _plain(value: Any) -> Any:
    """Give a value that JSON can carry: itself, or its repr."""
    try:
        if len(json.dumps(value, allow_nan=False)) <= _MOST_TEXT:
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return repr(value)[:_MOST_TEXT]
    except Exception:  # noqa: BLE001 - the repr is user code
        return f"<{type(value).__name__}>"


def _clean(report: traceback.TracebackException, seen: set[int]) -> None:
    """Remove our frames from a report and all that are chained to it."""
    todo: list[traceback.TracebackException | None] = [report]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if one.stack is not None:
            kept = [frame for frame in one.stack if not frame.filename.startswith(_OURS)]
            first = next((place for place, frame in enumerate(kept) if frame.filename.startswith(INPUT)), 0)
            # Before the first frame of user code there is only what ran it, an event loop for example.
            one.stack[:] = kept[first:]
            if not one.stack:
                one.stack = None  # type: ignore[assignment]  # what it is for an exception that was never raised
        todo += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
