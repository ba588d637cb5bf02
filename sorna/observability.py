"""What operators see: the log observer that prints JSON lines, the level filter, and the request's id in every event.

Knows no part of Sorna; the parts log through ``twisted.logger`` and know nothing of this module.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogPublisher,
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


def quieten(level: LogLevel) -> LogLevelFilterPredicate:
    """Give the predicate that lets events of ``level`` and above through.

    Twisted's own factories announce every port and connection at info; from them only warnings are wanted.
    """
    predicate = LogLevelFilterPredicate(defaultLogLevel=level)
    for noisy in ("twisted.web.server.Site", "twisted.web.client", "twisted.internet.protocol.Factory", "txredisapi"):
        predicate.setLogLevelForNamespace(noisy, LogLevel.warn)
    return predicate


def json_log_observer(stream: TextIO | None = None) -> ILogObserver:
    """Give the observer for ``twistd --logger=sorna.observability.json_log_observer``: a JSON object per line."""
    return FilteringLogObserver(
        add_request_id(jsonFileLogObserver(stream or sys.stdout, recordSeparator="")), [quieten(LogLevel.info)]
    )


def text_log_observer(stream: TextIO | None = None) -> ILogObserver:
    """Give the observer for ``twistd --logger=sorna.observability.text_log_observer``: a line of text per event."""
    return FilteringLogObserver(add_request_id(textFileLogObserver(stream or sys.stdout)), [quieten(LogLevel.info)])


def publish_debug_to(stream: TextIO) -> None:
    """Send every event, of level debug too, to ``stream`` besides wherever the log goes."""
    globalLogPublisher.addObserver(add_request_id(textFileLogObserver(stream)))
