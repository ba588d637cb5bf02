"""What the HTTP port says before the server can serve: a problem document with 503, and the switch to the real site.

The port is bound before anything else starts, so that a taken port is known at once and no client is ever refused a
connection; it knows no route.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from zope.interface import implementer

RETRY_AFTER = 1


class StartingResource(Resource):
    """Answers every request with 503 and the reason."""

    isLeaf = True

    def __init__(self, reason: Callable[[], str]) -> None:
        super().__init__()
        self._reason = reason

    def render(self, request: Request) -> bytes:
        """Give the problem document, and close: the next connection may reach the real site."""
        problem = {
            "type": "https://api.sorna.io/probs/service-unavailable",
            # The spelling is the published interface's.
            "title": f"Serivce unavailable. (Server not ready. {self._reason()})",
        }
        body = json.dumps(problem).encode("utf-8")
        request.setResponseCode(503)
        request.setHeader(b"content-type", b"application/problem+json; charset=utf-8")
        request.setHeader(b"content-length", str(len(body)).encode("ascii"))
        request.setHeader(b"retry-after", str(RETRY_AFTER).encode("ascii"))
        request.setHeader(b"connection", b"close")
        return body


@implementer(IProtocolNegotiationFactory)
class FrontDoor(Factory):
    """The factory behind the port: connections go to the starting site, after :meth:`open` to the real one."""

    noisy = False

    def __init__(self, reason: Callable[[], str]) -> None:
        self._site = Site(StartingResource(reason), parsePOSTFormSubmission=False, timeout=10)
        self._started = False

    def doStart(self) -> None:
        """Start the site that serves now."""
        super().doStart()
        self._started = True
        self._site.doStart()

    def doStop(self) -> None:
        """Stop the site that serves now."""
        super().doStop()
        self._started = False
        self._site.doStop()

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 alone over TLS; without an offer, whoever names protocols is refused in the handshake."""
        return [b"http/1.1"]

    def open(self, site: Site) -> None:
        """Serve new connections from ``site``."""
        if self._started:
            self._site.doStop()
            site.doStart()
        self._site = site

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Hand a connection to the site that serves now."""
        return self._site.buildProtocol(addr)
