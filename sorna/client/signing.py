"""How a client proves that a request is its own: the signature over a request, and the headers that carry it.

Pure functions of their arguments; knows no HTTP library, no clock and no configuration.  The recipe is that of the published
interface since 2016: a key made from the secret, the day and the host signs seven lines that describe the request.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

from attrs import field, frozen

SCHEME = "BackendAI"
VERSION_HEADER = "X-BackendAI-Version"
HASH_NAME = "sha256"


@frozen
class Credentials:
    """A keypair as its owner has it."""

    access_key: str
    secret_key: str = field(repr=False)


@frozen
class SignedParts:
    """What of a request enters the signature.

    :ivar target: path and query exactly as they are sent.
    :ivar date: the text of the date header exactly as it is sent.
    :ivar day: ``YYYYMMDD`` in the time zone that the date is written in.
    :ivar host: the value of the Host header, with the port where that header has one.
    :ivar content_type: the media type, without parameters.
    :ivar version_header: its name; the signed text names the header that supplied the version.
    :ivar body: the body as sent.
    """

    method: str
    target: str
    date: str
    day: str
    host: str
    content_type: str
    version: str
    body: bytes = b""
    version_header: str = VERSION_HEADER


def body_hash(hash_name: str, content_type: str, body: bytes) -> str:
    """Give the hexadecimal digest of the body; multipart bodies are signed as if they were empty."""
    signed = b"" if content_type.lower().startswith("multipart/") else body
    return hashlib.new(hash_name, signed).hexdigest()


def string_to_sign(parts: SignedParts, hash_name: str = HASH_NAME) -> bytes:
    """Give the seven lines that are signed, joined by single line feeds and without one at the end."""
    media_type = parts.content_type.partition(";")[0].strip().lower()
    lines = (
        parts.method.upper(),
        parts.target,
        parts.date,
        f"host:{parts.host}",
        f"content-type:{media_type}",
        f"{parts.version_header.lower()}:{parts.version}",
        body_hash(hash_name, media_type, parts.body),
    )
    return "\n".join(lines).encode("utf-8")


def signature(secret_key: str, parts: SignedParts, hash_name: str = HASH_NAME) -> str:
    """Give the signature in lower-case hexadecimal digits.

    :raises ValueError: ``hash_name`` is none that :mod:`hashlib` knows.
    """
    day_key = hmac.digest(secret_key.encode("utf-8"), parts.day.encode("ascii"), hash_name)
    key = hmac.digest(day_key, parts.host.encode("utf-8"), hash_name)
    return hmac.digest(key, string_to_sign(parts, hash_name), hash_name).hex()


def authorization(
    credentials: Credentials, parts: SignedParts, hash_name: str = HASH_NAME, scheme: str = SCHEME
) -> str:
    """Give the value of the Authorization header."""
    signed = signature(credentials.secret_key, parts, hash_name)
    return f"{scheme} signMethod=HMAC-{hash_name.upper()}, credential={credentials.access_key}:{signed}"


def signed_headers(
    credentials: Credentials,
    *,
    method: str,
    target: str,
    host: str,
    content_type: str,
    body: bytes,
    version: str,
    now: float,
) -> dict[str, str]:
    """Give every header that a signed request needs.

    :param now: seconds since the epoch.
    """
    moment = datetime.fromtimestamp(now, UTC)
    date = moment.isoformat()
    parts = SignedParts(
        method=method,
        target=target,
        date=date,
        day=moment.strftime("%Y%m%d"),
        host=host,
        content_type=content_type,
        version=version,
        body=body,
    )
    return {
        "Host": host,
        "Date": date,
        "Content-Type": content_type,
        VERSION_HEADER: version,
        "Authorization": authorization(credentials, parts),
    }
