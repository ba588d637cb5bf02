"""Who sent a request: the canonical string, its verification, and the step that looks the keypair up.

Source of the recipe: section 1.3 of the REST interface's specification, whose test vectors are the tests of this module.
Everything but :class:`Authentication` is pure. Knows no Klein and no database. Works on the bytes of the wire, because
the client signed bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from functools import lru_cache

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from sorna.errors import AuthenticationFailed, InvalidAuthentication
from sorna.gateway.interfaces import Keypairs
from sorna.gateway.signed_date import check_date
from sorna.model.keypair import Keypair

SCHEMES = frozenset({"Sorna", "BackendAI"})
#: The SHAKE family has no size of its own, so no client can have signed with it.
HASHES = frozenset(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))

_ACCESS_KEY = re.compile(r"[\x21-\x7e]{1,64}")
_API_VERSION = re.compile(rb"v(\d{1,3})\.(\d{8})")
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PORT = re.compile(rb"(.*[^:]):(80|443)")
_VERSIONED = re.compile(rb"/v\d+(?:[/?]|$)", re.ASCII)
_ANY_PORT = re.compile(rb".*:\d+")
# A client signs with the same key all day.
_KEYS_REMEMBERED = 1024


@frozen
class Authorization:
    """What an ``Authorization`` header says."""

    sign_method: str
    access_key: str
    signature: str = field(repr=False)


def parse_authorization(header: str) -> Authorization:
    """Take the header apart.

    :raises InvalidAuthentication: it is malformed; the detail is the historic one.
    """
    scheme, space, rest = header.partition(" ")
    if not space:
        raise InvalidAuthentication("Malformed authorization header")
    if scheme not in SCHEMES:
        raise InvalidAuthentication("Invalid authorization type name")
    pieces = {}
    for piece in rest.split(","):
        name, equals, value = piece.partition("=")
        if not equals:
            break
        pieces[name.strip()] = value.strip()
    else:
        access_key, colon, signature = pieces.get("credential", "").partition(":")
        if colon and "signMethod" in pieces:
            return Authorization(pieces["signMethod"], access_key, signature)
    raise InvalidAuthentication("Missing or malformed authorization parameters")


def hash_name(sign_method: str) -> str:
    """Give hashlib's name for the hash of a ``signMethod`` such as ``HMAC-SHA256``.

    :raises AuthenticationFailed: not of the form ``x-y``.
    :raises InvalidAuthentication: not an HMAC, or of a hash nobody knows.
    """
    mac, _, name = sign_method.lower().partition("-")
    if sign_method.count("-") != 1:
        raise AuthenticationFailed("Invalid signature")
    if mac != "hmac":
        raise InvalidAuthentication("Unsupported request signing method (MAC type)")
    if name not in HASHES:
        raise InvalidAuthentication("Unsupported request signing method (hash type)")
    return name


@frozen
class SignedRequest:
    """What a signature covers, as it came over the wire.

    :ivar target: path and query, not decoded.
    :ivar content_type: the whole header; None when there is none.
    :ivar version_header: lower-case name of the header that gave ``version``.
    """

    method: bytes
    target: bytes
    date: bytes
    host: bytes
    content_type: bytes | None
    version_header: bytes
    version: bytes
    body: bytes = field(repr=False)


def media_type(content_type: bytes | None) -> bytes:
    """Give the media type as clients sign it: no parameters, lower case, a default when there is none."""
    if content_type is None:
        return b"application/octet-stream"
    return content_type.partition(b";")[0].strip().lower()


def signs_body(content_type: bytes, version: bytes) -> bool:
    """Tell whether a signature of this API version covers a body of this media type."""
    known = _API_VERSION.fullmatch(version)
    if known is not None and (int(known[1]), int(known[2])) >= (4, 20181215):
        return False
    return not content_type.startswith(b"multipart/")


def decode_unreserved(target: bytes) -> bytes:
    """Undo the escapes that RFC 3986 calls needless, as the URL library of the historic server did."""
    return _PERCENT.sub(lambda escape: _plain(escape[0]), target)


def _plain(escape: bytes) -> bytes:
    code = int(escape[1:], 16)
    return bytes((code,)) if code in _UNRESERVED else escape


def hosts(host: bytes) -> tuple[bytes, ...]:
    """List what the client may have signed as the host: as received, and with the default port the other way round.

    HTTP libraries drop a default port from ``Host`` that the endpoint's URL spells out, and clients sign the latter.
    """
    default = _PORT.fullmatch(host)
    if default is not None:
        return host, default[1]
    if _ANY_PORT.fullmatch(host):
        return (host,)
    return host, host + b":80", host + b":443"


def string_to_sign(
    request: SignedRequest, hash_algorithm: str, target: bytes, host: bytes, *, without_body: bool = False
) -> bytes:
    """Build the canonical text of a request for one candidate of target and host.

    :param without_body: leave the body out although clients of this version sign it.
    """
    content_type = media_type(request.content_type)
    body = request.body if signs_body(content_type, request.version) and not without_body else b""
    return b"\n".join(
        (
            request.method.upper(),
            target,
            request.date,
            b"host:" + host,
            b"content-type:" + content_type,
            request.version_header + b":" + request.version,
            _digest(hash_algorithm, body) if body else _digest_of_nothing(hash_algorithm),
        )
    )


def _digest(hash_algorithm: str, body: bytes) -> bytes:
    return hashlib.new(hash_algorithm, body, usedforsecurity=False).hexdigest().encode("ascii")


@lru_cache(len(HASHES))
def _digest_of_nothing(hash_algorithm: str) -> bytes:
    return _digest(hash_algorithm, b"")


def sign(secret_key: str, hash_algorithm: str, day: str, host: bytes, text: bytes) -> str:
    """Sign a canonical text; ``day`` is ``YYYYMMDD`` in the zone of the request's date."""
    return hmac.digest(_signing_key(secret_key, hash_algorithm, day, host), text, hash_algorithm).hex()


@lru_cache(_KEYS_REMEMBERED)
def _signing_key(secret_key: str, hash_algorithm: str, day: str, host: bytes) -> bytes:
    by_day = hmac.digest(secret_key.encode("utf-8"), day.encode("ascii"), hash_algorithm)
    return hmac.digest(by_day, host, hash_algorithm)


def signatures(request: SignedRequest, secret_key: str, hash_algorithm: str, day: str) -> Iterator[str]:
    """Give every signature that is right for a request, the likeliest first."""
    targets = [request.target]
    plain = decode_unreserved(request.target)
    if plain != request.target:
        targets.append(plain)
    # Later clients, which alone use paths without a version, never sign a body, whatever version they were told to speak.
    choices = (False,) if not request.body or _VERSIONED.match(request.target) else (False, True)
    for without_body in choices:
        for target in targets:
            for host in hosts(request.host):
                text = string_to_sign(request, hash_algorithm, target, host, without_body=without_body)
                yield sign(secret_key, hash_algorithm, day, host, text)


def verify(request: SignedRequest, secret_key: str, hash_algorithm: str, day: str, signature: str) -> bool:
    """Tell whether a signature is right; the time this takes says nothing about how wrong it is."""
    given = signature.encode("utf-8", "surrogateescape")
    return any(
        hmac.compare_digest(one.encode("ascii"), given) for one in signatures(request, secret_key, hash_algorithm, day)
    )


def signed_date(headers: Headers) -> bytes | None:
    """Give the date exactly as received: ``Date`` alone when it is there, else the headers of browser clients."""
    return _first(headers, b"Date", b"X-BackendAI-Date", b"X-Sorna-Date")


class Authentication:
    """The step that turns the headers of a request into a keypair."""

    def __init__(self, clock: IReactorTime, keypairs: Keypairs) -> None:
        self._clock = clock
        self._keypairs = keypairs

    async def authenticate(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> Keypair:
        """Find and verify the keypair of a request, and note that it was used.

        :raises InvalidAuthentication: the date or the header cannot be understood.
        :raises AuthenticationFailed: there are no credentials, or they are wrong, or the keypair is not active.
        """
        date = signed_date(headers)
        if date is None:
            raise InvalidAuthentication("Date/time sync error")
        at = check_date(date.decode("latin-1"), self._clock.seconds())
        day = f"{at.year:04}{at.month:02}{at.day:02}"
        header = _first(headers, b"Authorization")
        if header is None:
            raise AuthenticationFailed
        authorization = parse_authorization(header.decode("latin-1"))
        keypair = None
        if _ACCESS_KEY.fullmatch(authorization.access_key):
            keypair = await self._keypairs.find(authorization.access_key)
        if keypair is None:
            raise AuthenticationFailed("Access key not found")
        algorithm = hash_name(authorization.sign_method)
        request = _signed_request(method, target, date, headers, body)
        if not verify(request, keypair.secret_key, algorithm, day, authorization.signature):
            raise AuthenticationFailed
        if not keypair.is_active:
            # Only the owner, who has just proved to have the secret, learns this.
            raise AuthenticationFailed("The access key is not active")
        self._keypairs.used(keypair.access_key)
        return keypair


def _signed_request(method: bytes, target: bytes, date: bytes, headers: Headers, body: bytes) -> SignedRequest:
    for name in (b"X-BackendAI-Version", b"X-Sorna-Version"):
        version = _first(headers, name)
        if version is not None:
            return SignedRequest(
                method=method,
                target=target,
                date=date,
                host=_first(headers, b"Host") or b"",
                content_type=_first(headers, b"Content-Type"),
                version_header=name.lower(),
                version=version,
                body=body,
            )
    raise InvalidAuthentication("API version missing in request headers")


def _first(headers: Headers, *names: bytes) -> bytes | None:
    for name in names:
        values = headers.getRawHeaders(name)
        if values:
            return values[0]
    return None
