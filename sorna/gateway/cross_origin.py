"""What browsers want to be told before a page of another origin may use this door; pure.

Source: section 1.6 of the REST interface's specification. Any origin may ask and read everything, without cookies: a request
is trusted for its signature alone, which no page can make without the secret key. Only requests that name an origin get these
headers, as no other client looks at them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from twisted.web.http_headers import Headers

from sorna.gateway.call import Reply

_MAX_AGE = b"86400"
# A wildcard does not cover Authorization in the browsers of today, so the names that a page wants to send are given back.
_HEADER_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~-]+(\s*,\s*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
_LONGEST = 1024


def is_preflight(method: bytes, headers: Headers) -> bool:
    """Tell whether a browser asks for permission."""
    return method == b"OPTIONS" and headers.hasHeader(b"Origin") and headers.hasHeader(b"Access-Control-Request-Method")


def shared(headers: Headers) -> Mapping[bytes, bytes]:
    """Give the headers that every answer to a request has; none when the request comes from no page."""
    if not headers.hasHeader(b"Origin"):
        return {}
    return {b"Access-Control-Allow-Origin": b"*", b"Access-Control-Expose-Headers": b"*"}


def preflight_reply(methods: Collection[str], headers: Headers) -> Reply:
    """Answer a browser that asks what may be sent to a URL which has these methods."""
    wanted = (headers.getRawHeaders(b"Access-Control-Request-Headers") or [b""])[0].strip()
    readable = len(wanted) <= _LONGEST and _HEADER_NAMES.fullmatch(wanted)
    return Reply(
        200,
        headers={
            b"Access-Control-Allow-Methods": ", ".join(sorted(methods)).encode("ascii"),
            b"Access-Control-Allow-Headers": wanted if readable else b"*",
            b"Access-Control-Max-Age": _MAX_AGE,
        },
    )
