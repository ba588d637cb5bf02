"""What operators see: the log observer that prints JSON lines, the level filter, and the request's id in every event.

Knows no part of Sorna; the parts log through ``twisted.logger`` and know nothing of this module.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TextIO

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
    jsonFileLogObserver,
    textFileLogObserver,
)
from zope.interface import provider

request_id: ContextVar[str] = ContextVar("sorna_request_id", default="")


def add_request_id(observer: ILogObserver) -> ILogObserver:
    """Wrap an observer so that events of a request carry its id in the field ``request_id``."""

    @provider(ILogObserver)
    def with_request_id(event: LogEvent) -> None:
        current = request_id.get()
        observer({**event, "request_id": current} if current else event)

    wrapped: ILogObserver = with_request_id
    return wrapped


# The level of the whole process; ``--debug`` lowers it.
_levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
# Twisted's own factories announce every port and connection at info; from them only warnings are wanted.
for _noisy in (
    "twisted.web.server.Site",
    "twisted.internet.protocol.Factory",
    "twisted.scripts",
    "twisted.internet.base",
    "twisted.internet.tcp",
    "txredisapi",
    "log_legacy",
):
    _levels.setLogLevelForNamespace(_noisy, LogLevel.warn)


def show_debug() -> None:
    """Let events of level debug through from now on."""
    _levels.setLogLevelForNamespace("sorna", LogLevel.debug)


def json_log_observer(stream: TextIO | None = None) -> ILogObserver:
    """Give the observer for ``twistd --logger=sorna.observability.json_log_observer``: a JSON object per line."""
    return _quiet(jsonFileLogObserver(stream or sys.stdout, recordSeparator=""))


def text_log_observer(stream: TextIO | None = None) -> ILogObserver:
    """Give the observer for ``twistd --logger=sorna.observability.text_log_observer``: a line of text per event."""
    return _quiet(textFileLogObserver(stream or sys.stdout))


def child_log_observer(stream: TextIO | None = None) -> ILogObserver:
    """Give the observer of a supervised child: the same without the time, which its parent adds."""
    return _quiet(FileLogObserver(stream or sys.stdout, _without_time))


def _without_time(event: LogEvent) -> str:
    text = formatEventAsClassicLogText(event, formatTime=lambda _when: "")
    return text.lstrip() if text is not None else ""


def _quiet(observer: ILogObserver) -> ILogObserver:
    return FilteringLogObserver(add_request_id(observer), [_levels])
