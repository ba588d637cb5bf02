"""Tests of the signature: the published vectors, every row of the table of refusals, and the quirks of clients."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from sorna.errors import AuthenticationFailed, InvalidAuthentication, SornaError
from sorna.gateway.authentication import (
    Authentication,
    SignedRequest,
    decode_unreserved,
    hash_name,
    hosts,
    media_type,
    parse_authorization,
    sign,
    signs_body,
    string_to_sign,
    verify,
)
from sorna.gateway.signed_date import check_date, parse_date
from sorna.model.keypair import EXAMPLE_SECRET_KEY, Keypair
from sorna.testing.gateway import EXAMPLE, MemoryKeypairs, Signer
from sorna.testing.unit import UnitTestCase
from tests.gateway.base import INACTIVE, NOW, OTHER

DATE = b"2017-09-07T01:02:03.456789+00:00"
T1 = SignedRequest(
    method=b"GET",
    target=b"/v2/authorize",
    date=DATE,
    host=b"127.0.0.1:8081",
    content_type=b"application/json",
    version_header=b"x-sorna-version",
    version=b"v2.20170315",
    body=b'{"echo": "hello"}',
)
T7 = evolve(T1, target=b"/v1/authorize", host=b"api.sorna.io", version=b"v1.20160915")
D1 = SignedRequest(
    method=b"GET",
    target=b"/v1",
    date=b"20160930T01:23:45Z",
    host=b"your.sorna.api.endpoint",
    content_type=b"application/json",
    version_header=b"x-sorna-version",
    version=b"v1.20160915",
    body=b"",
)
VECTORS = {
    "T1": (T1, "sha256", "3399d72e6d2ba5ba84d445ac985b650e406e32a9119fa5e9418a47305075b146"),
    "T2": (
        evolve(T1, version_header=b"x-backendai-version"),
        "sha256",
        "727243b440eb1b389e34e696be9bef8f34c23aa4bafe0f956e69897882e8f67b",
    ),
    "T3": (
        evolve(T1, target=b"/auth", version_header=b"x-backendai-version", version=b"v4.20181215"),
        "sha256",
        "5735c0f0297bd52556883c2ff539f5d6d257d1879f5269ce8aa99b28f4153ba0",
    ),
    "T4": (
        evolve(
            T1,
            method=b"POST",
            target=b"/v2/kernel/create",
            body=b'{"lang": "python3", "clientSessionToken": "testtoken01"}',
        ),
        "sha256",
        "3c2657058cd9d1871ede5be27fd09f08d7e77eb0f31991d086b1b36ba85af840",
    ),
    "T5": (
        evolve(T1, method=b"DELETE", target=b"/v2/kernel/abcdefgh", content_type=b"application/octet-stream", body=b""),
        "sha256",
        "286924ace9aa953f9e2170fb0109d1390e1950effd7d4e3a99ba59e82725462f",
    ),
    "T6": (
        evolve(
            T1,
            method=b"POST",
            target=b"/v2/kernel/abcdefgh/upload",
            content_type=b"multipart/form-data; boundary=x",
            body=b"whatever",
        ),
        "sha256",
        "50cb2d22232ad375793ce6b9e8430a49d85a5b63f1f5fb373d79b60fbe0d4fd2",
    ),
    "T7": (T7, "sha1", "5b535b4eef82c5122a8a8e8d83b02a69e3428a16"),
    "T8": (T7, "md5", "ff22dd40ef7a70172eec9a8ea9d88a74"),
    "D1": (D1, "sha256", "022ae894b4ecce097bea6eca9a97c41cd17e8aff545800cd696112cc387059cf"),
    "D2": (
        evolve(D1, target=b"/v2", version=b"v2.20170215"),
        "sha256",
        "ca177162e332893e70743f6612ffe2cfad8b1a036bcfddf4a83f4897459be757",
    ),
}


def verified(request: SignedRequest, signature: str, algorithm: str = "sha256") -> bool:
    day = parse_date(request.date.decode()).strftime("%Y%m%d")
    return verify(request, EXAMPLE_SECRET_KEY, algorithm, day, signature)


class VectorTests(UnitTestCase):
    def test_published_vectors(self) -> None:
        """Every signature of the specification is found right."""
        for name, (request, algorithm, signature) in VECTORS.items():
            self.assertTrue(verified(request, signature, algorithm), name)

    def test_a_changed_request_is_refused(self) -> None:
        """A change of any part that is signed makes the signature wrong."""
        _, _, signature = VECTORS["T1"]
        for change in (
            {"method": b"POST"},
            {"target": b"/v2/authorize?x=1"},
            {"date": b"2017-09-07T01:02:03.456789Z"},
            {"host": b"127.0.0.1:8082"},
            {"content_type": b"text/plain"},
            {"version_header": b"x-backendai-version"},
            {"version": b"v2.20170316"},
            {"body": b'{"echo": "hallo"}'},
        ):
            self.assertFalse(verified(evolve(T1, **change), signature), change)
        self.assertFalse(verified(T1, signature[:-1]))
        self.assertFalse(verified(T1, ""))
        self.assertFalse(verified(T1, "\udc80é"))

    def test_string_to_sign(self) -> None:
        """The canonical text is the one the specification spells out."""
        self.assertEqual(
            string_to_sign(T1, "sha256", T1.target, T1.host),
            b"GET\n/v2/authorize\n2017-09-07T01:02:03.456789+00:00\nhost:127.0.0.1:8081\ncontent-type:application/json\n"
            b"x-sorna-version:v2.20170315\nfe7a08f55fed2ca845f664205fe9667fa80a085c4668fd74386b7787d9f43a49",
        )

    def test_content_type_is_signed_without_parameters(self) -> None:
        """Parameters and case of the content type do not count, and a missing one has a default."""
        _, _, signature = VECTORS["T1"]
        self.assertTrue(verified(evolve(T1, content_type=b"Application/JSON; charset=utf-8"), signature))
        self.assertEqual(media_type(None), b"application/octet-stream")

    def test_escaped_unreserved_characters(self) -> None:
        """A target may be signed as sent or with its needless escapes undone, and no others."""
        _, _, signature = VECTORS["T1"]
        self.assertTrue(verified(evolve(T1, target=b"/v2/%61uthoriz%65"), signature))
        self.assertEqual(decode_unreserved(b"/%7e%2Fa?b=%20%zz%4"), b"/~%2Fa?b=%20%zz%4")

    def test_default_ports(self) -> None:
        """A default port may be in the signed host and not in the header, or the other way round."""
        for sent, signed, right in (
            (b"a.b", b"a.b:80", True),
            (b"a.b", b"a.b:443", True),
            (b"a.b:443", b"a.b", True),
            (b"a.b:8080", b"a.b", False),
            (b"a.b", b"a.b:8080", False),
        ):
            text = string_to_sign(T1, "sha256", T1.target, signed)
            signature = sign(EXAMPLE_SECRET_KEY, "sha256", "20170907", signed, text)
            self.assertEqual(verified(evolve(T1, host=sent), signature), right, (sent, signed))
        self.assertEqual(hosts(b"[::1]"), (b"[::1]", b"[::1]:80", b"[::1]:443"))
        self.assertEqual(hosts(b"[::1]:80"), (b"[::1]:80", b"[::1]"))

    def test_body_by_version(self) -> None:
        """From v4.20181215 on no body is signed, and a multipart body never is."""
        self.assertFalse(signs_body(b"application/json", b"v4.20181215"))
        self.assertFalse(signs_body(b"application/json", b"v10.20300101"))
        self.assertTrue(signs_body(b"application/json", b"v4.20181214"))
        self.assertTrue(signs_body(b"application/json", b"vtest"))
        self.assertFalse(signs_body(b"multipart/mixed", b"v2.20170315"))

    def test_every_hash(self) -> None:
        """Every hash of Python's guaranteed set with a size of its own works."""
        for name in ("md5", "sha1", "sha224", "sha384", "sha512", "blake2b", "sha3_256"):
            self.assertEqual(hash_name(f"hmac-{name.upper()}"), name)
            text = string_to_sign(T1, name, T1.target, T1.host)
            self.assertTrue(verified(T1, sign(EXAMPLE_SECRET_KEY, name, "20170907", T1.host, text), name), name)


class HeaderTests(UnitTestCase):
    def test_refusals(self) -> None:
        """Each malformed header is refused with its historic detail."""
        for header, detail in {
            "": "Malformed authorization header",
            "Sorna": "Malformed authorization header",
            "Basic abc": "Invalid authorization type name",
            "sorna signMethod=HMAC-SHA256, credential=a:b": "Invalid authorization type name",
            "Sorna ": "Missing or malformed authorization parameters",
            "Sorna signMethod=HMAC-SHA256": "Missing or malformed authorization parameters",
            "Sorna credential=a:b": "Missing or malformed authorization parameters",
            "Sorna signMethod=HMAC-SHA256, credential=ab": "Missing or malformed authorization parameters",
            "Sorna signMethod=HMAC-SHA256, credential=a:b, x": "Missing or malformed authorization parameters",
        }.items():
            with self.assertRaises(InvalidAuthentication) as caught:
                parse_authorization(header)
            self.assertEqual(caught.exception.detail, detail, header)

    def test_sign_methods(self) -> None:
        """A method that is not an HMAC of a known hash is refused."""
        for method, error, detail in (
            ("HMACSHA256", AuthenticationFailed, "Invalid signature"),
            ("HMAC-SHA-256", AuthenticationFailed, "Invalid signature"),
            ("CMAC-SHA256", InvalidAuthentication, "Unsupported request signing method (MAC type)"),
            ("HMAC-SHA257", InvalidAuthentication, "Unsupported request signing method (hash type)"),
            ("HMAC-SHAKE_128", InvalidAuthentication, "Unsupported request signing method (hash type)"),
        ):
            with self.assertRaises(error) as caught:
                hash_name(method)
            self.assertEqual(caught.exception.detail, detail)

    def test_order_and_spaces_do_not_count(self) -> None:
        """Parameters come in any order, and the signature may hold colons and equal signs."""
        parsed = parse_authorization("BackendAI  credential = key:si:g= ,signMethod=HMAC-MD5")
        self.assertEqual((parsed.access_key, parsed.signature, parsed.sign_method), ("key", "si:g=", "HMAC-MD5"))
        self.assertNotIn("si:g", repr(parsed))

    @given(st.text(max_size=200).map(lambda rest: rest.replace("\n", "")) | st.just("Sorna "))
    @example("Sorna =,==,:")
    def test_any_text(self, rest: str) -> None:
        """No text raises anything but the two refusals."""
        for header in (rest, "Sorna " + rest, "BackendAI signMethod=" + rest):
            with contextlib.suppress(InvalidAuthentication, AuthenticationFailed):
                hash_name(parse_authorization(header).sign_method)


class DateTests(UnitTestCase):
    def test_spellings(self) -> None:
        """Every spelling that the historic parser is known to have read is read."""
        at = datetime(2017, 9, 7, 1, 2, 3, tzinfo=UTC)
        for text in (
            "2017-09-07T01:02:03",
            "2017-09-07T01:02:03Z",
            "2017-09-07T01:02:03.000000+00:00",
            "20170907T010203Z",
            "20170907T01:02:03Z",
            "Thu, 07 Sep 2017 01:02:03 GMT",
            "Thu, 07 Sep 2017 01:02:03 +0000",
            "2017-09-07T10:02:03+09:00",
            "2017-09-07T10:02:03+0900",
            "Thu, 07 Sep 2017 10:02:03 KST",
            "Wed, 06 Sep 2017 21:02:03 EDT",
            "Thu Sep 07 2017 01:02:03 XYZ",
            "2017-09-07 01:02:03",
        ):
            self.assertEqual(parse_date(text), at, text)

    def test_the_day_is_that_of_the_written_zone(self) -> None:
        """The day that enters the key is not converted to UTC."""
        parsed = check_date("2017-09-07T00:30:00+09:00", datetime(2017, 9, 6, 15, 30, tzinfo=UTC).timestamp())
        self.assertEqual(parsed.strftime("%Y%m%d"), "20170907")

    def test_junk(self) -> None:
        """What is no complete date is refused, not completed from today."""
        now = datetime(2017, 9, 7, 10, 0, tzinfo=UTC).timestamp()
        for text in (
            "",
            "junk",
            "10:00",
            "7",
            "September 7",
            "9" * 64,
            "2017-09-07T10:00:00" + " " * 64,
            "10:00 +99:99",
        ):
            with self.assertRaises(InvalidAuthentication, msg=text):
                check_date(text, now)

    def test_window(self) -> None:
        """A quarter of an hour either way is accepted, more is not."""
        at = datetime(2017, 9, 7, 1, 2, 3, tzinfo=UTC)
        for minutes, right in ((-16, False), (-15, True), (14, True), (15, True), (16, False)):
            text = (at + timedelta(minutes=minutes)).astimezone(timezone(timedelta(hours=9))).isoformat()
            if right:
                check_date(text, at.timestamp())
            else:
                self.assertRaises(InvalidAuthentication, check_date, text, at.timestamp())

    @given(st.text(max_size=70) | st.text(alphabet="0123456789-+:.,TZ /GMTaeSp", max_size=40))
    def test_any_text(self, text: str) -> None:
        """No text raises anything but the refusal."""
        with contextlib.suppress(InvalidAuthentication):
            check_date(text, NOW)


class AuthenticationTests(UnitTestCase):
    """The step with keypairs, row by row of the table."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.keypairs = MemoryKeypairs(EXAMPLE, INACTIVE)
        self.authentication = Authentication(self.clock, self.keypairs)
        self.signer = Signer(self.clock)

    def outcome(self, signer: Signer, *without: bytes) -> tuple[type[SornaError] | None, str]:
        """Authenticate one request; give the error's class and detail."""
        headers = Headers()
        for name, value in signer.headers(b"GET", b"/v2/authorize", b"{}").items():
            if name not in without:
                headers.addRawHeader(name, value)
        attempt = Deferred.fromCoroutine(self.authentication.authenticate(b"GET", b"/v2/authorize", headers, b"{}"))
        outcome: list[Keypair | Failure] = []
        attempt.addBoth(outcome.append)
        if isinstance(outcome[0], Failure):
            error = outcome[0].value
            assert isinstance(error, SornaError)
            return type(error), error.detail
        self.assertEqual(outcome[0], signer.keypair)
        return None, ""

    def test_both_families_and_schemes(self) -> None:
        """Any scheme goes with any version header, whatever the version says."""
        for scheme in (b"Sorna", b"BackendAI"):
            for header in (b"X-Sorna-Version", b"X-BackendAI-Version"):
                signer = evolve(self.signer, scheme=scheme, version_header=header, version=b"vtest")
                self.assertEqual(self.outcome(signer), (None, ""))
        self.assertEqual(self.keypairs.uses, [EXAMPLE.access_key] * 4)

    def test_the_newer_version_header_wins(self) -> None:
        """With both headers, the signature covers X-BackendAI-Version."""
        both = evolve(self.signer, changes={b"X-Sorna-Version": b"v1.20160915"})
        self.assertEqual(self.outcome(both)[0], None)
        older = evolve(self.signer, version_header=b"X-Sorna-Version", changes={b"X-BackendAI-Version": b"v2.20170315"})
        self.assertEqual(self.outcome(older)[0], AuthenticationFailed)

    def test_dates_of_browser_clients(self) -> None:
        """The date may come in two other headers, which do not count when Date is there."""
        date = self.signer.date().isoformat().encode()
        for name in (b"X-BackendAI-Date", b"X-Sorna-Date"):
            self.assertEqual(self.outcome(evolve(self.signer, changes={name: date}), b"Date"), (None, ""))
        junk = evolve(self.signer, changes={b"Date": b"junk", b"X-BackendAI-Date": date})
        self.assertEqual(self.outcome(junk), (InvalidAuthentication, "Date/time sync error"))

    def test_refusals(self) -> None:
        """Every row of the table of refusals."""
        old = Clock()
        old.advance(NOW - 16 * 60)
        auth = b"Authorization"
        for signer, without, error, detail in (
            (self.signer, b"Date", InvalidAuthentication, "Date/time sync error"),
            (evolve(self.signer, clock=old), b"", InvalidAuthentication, "Date/time sync error"),
            (self.signer, auth, AuthenticationFailed, ""),
            (evolve(self.signer, scheme=b"Basic"), b"", InvalidAuthentication, "Invalid authorization type name"),
            (evolve(self.signer, keypair=OTHER), b"", AuthenticationFailed, "Access key not found"),
            (evolve(self.signer, keypair=INACTIVE), b"", AuthenticationFailed, "The access key is not active"),
            (evolve(self.signer, keypair=evolve(INACTIVE, secret_key="x")), b"", AuthenticationFailed, ""),
            (evolve(self.signer, keypair=evolve(EXAMPLE, secret_key="x")), b"", AuthenticationFailed, ""),
            (evolve(self.signer, changes={b"Host": b"elsewhere"}), b"", AuthenticationFailed, ""),
            (self.signer, b"X-BackendAI-Version", InvalidAuthentication, "API version missing in request headers"),
        ):
            self.assertEqual(self.outcome(signer, without), (error, detail))
        self.assertEqual(self.keypairs.uses, [])

    def test_impossible_access_keys_are_not_looked_up(self) -> None:
        """What no keypair can be called does not reach the store."""
        for key in ("", "x" * 65, "a b", "\xe9"):
            header = f"Sorna signMethod=HMAC-SHA256, credential={key}:00".encode("latin-1")
            signer = evolve(self.signer, changes={b"Authorization": header})
            self.assertEqual(self.outcome(signer), (AuthenticationFailed, "Access key not found"))
        self.assertEqual(self.keypairs.searches, [])
