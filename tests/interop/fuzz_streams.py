"""The parts of ``fuzz_document`` about answers that do not end: events as they are sent, and the handshakes of WebSockets.

Of a stream of events the head and the first words are looked at, and then the client hangs up, as clients do. A handshake is right
or wrong in one or several of its headers; nobody whose handshake or signature is wrong may be let in.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from attrs import frozen
from hypothesis import strategies as st
from requests.auth import AuthBase

FIRST_WORDS = b": watching\n\n"
_KEY = base64.b64encode(b"0123456789abcdef").decode("ascii")
#: What a client sends that wants a WebSocket, and what might stand there instead; None for nothing.
_HEADERS: Mapping[str, tuple[str | None, ...]] = {
    "Connection": ("Upgrade", "keep-alive, upgrade", "close", "", None),
    "Upgrade": ("websocket", "WebSocket", "h2c", "websocket/13", "", None),
    "Sec-WebSocket-Version": ("13", "12", "-1", "13, 12", "x" * 300, "", None),
    "Sec-WebSocket-Key": (_KEY, _KEY[:-4], "=" * 24, "\xe9" * 24, "x" * 300, "", None),
    "Sec-WebSocket-Protocol": (None, "chat", "a, b", "\xe9"),
    "Sec-WebSocket-Extensions": (None, "permessage-deflate", "x; y=\x7f"),
}
_ORIGINS = (None, "same", "null", "https://elsewhere.example", "http://[", "\xe9")
_WORDS = st.sampled_from(("", "_", "..", "%00", "%ff", "a" * 100, "nobody-has-this", "\N{SNAKE}"))


class NotAsDescribed(Exception):
    """An answer breaks a rule; the text says which."""


@frozen
class Handshake:
    """A wish for a WebSocket."""

    headers: Mapping[str, str]
    query: Mapping[str, str]

    @property
    def right(self) -> bool:
        """Whether it has everything that one must have, and no page of elsewhere asks."""
        given = {name.lower(): value for name, value in self.headers.items()}
        try:
            key = base64.b64decode(given.get("sec-websocket-key", ""), validate=True)
        except (binascii.Error, ValueError):
            return False
        return (
            "upgrade" in [word.strip().lower() for word in given.get("connection", "").split(",")]
            and given.get("upgrade", "").lower() == "websocket"
            and given.get("sec-websocket-version") == "13"
            and len(key) == 16
            and given.get("origin", "same") == "same"
        )


@st.composite
def handshakes(draw: st.DrawFn) -> Handshake:
    """Draw one that is right in most of its headers."""
    headers = {name: values[0] for name, values in _HEADERS.items()}
    for name in draw(st.sets(st.sampled_from(sorted(_HEADERS)), max_size=2)):
        headers[name] = draw(st.sampled_from(_HEADERS[name]))
    headers["Origin"] = draw(st.sampled_from(_ORIGINS))
    query = draw(st.dictionaries(st.sampled_from(("sessionId", "name", "x")), _WORDS, max_size=2))
    return Handshake({name: value for name, value in headers.items() if value is not None}, query)


def shake(
    endpoint: str, path: str, wanted: Handshake, auth: AuthBase | None, timeout: float, *, signed: bool
) -> requests.Response:
    """Ask for a WebSocket and hang up.

    :raises NotAsDescribed: who should not be was let in, or whoever was not got no problem.
    """
    headers = dict(wanted.headers)
    if headers.get("Origin") == "same":
        headers["Origin"] = f"http://{urlsplit(endpoint).netloc}"
    # Headers are bytes of Latin-1 on the wire; some of these are no text.
    raw: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    with requests.Session() as alone:
        answer = alone.get(
            endpoint + path,
            params=wanted.query,
            headers=raw,
            auth=auth,
            timeout=timeout,
            stream=True,
            allow_redirects=False,
        )
        if answer.status_code == 101:
            if not (wanted.right and signed):
                raise NotAsDescribed(f"{path} let in a handshake that is wrong: {wanted}, signed: {signed}")
            answer.close()
        elif answer.status_code >= 400:
            kind = answer.headers.get("Content-Type", "")
            if not kind.startswith("application/problem+json"):
                raise NotAsDescribed(f"{path} refused in {kind}")
            answer.json()
        return answer


def listen(
    session: requests.Session, case: Any, endpoint: str, auth: AuthBase | None, timeout: float
) -> requests.Response:
    """Ask for events; of those that are told, the head and the first words are read.

    :raises NotAsDescribed: they begin otherwise.
    """
    wanted = case.as_transport_kwargs(base_url=endpoint)
    answer = session.request(**wanted, auth=auth, timeout=timeout, stream=True)
    if answer.status_code == 200:
        kind = answer.headers.get("Content-Type", "")
        first = next(answer.iter_content(chunk_size=None), b"")
        answer.close()
        if not kind.startswith("text/event-stream") or not first.startswith(FIRST_WORDS):
            raise NotAsDescribed(f"events are told in {kind} and begin with {first[:80]!r}")
    return answer
