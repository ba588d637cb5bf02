"""The signature against the published vectors of the interface."""

from __future__ import annotations

import hashlib

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sorna.client.signing import Credentials, SignedParts, authorization, signature, signed_headers, string_to_sign
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing.unit import UnitTestCase

ECHO = b'{"echo": "hello"}'
T1 = SignedParts(
    method="GET",
    target="/v2/authorize",
    date="2017-09-07T01:02:03.456789+00:00",
    day="20170907",
    host="127.0.0.1:8081",
    content_type="application/json",
    version="v2.20170315",
    version_header="X-Sorna-Version",
    body=ECHO,
)
T7 = evolve(T1, target="/v1/authorize", host="api.sorna.io", version="v1.20160915")
DOCUMENTED = SignedParts(
    method="GET",
    target="/v1",
    date="20160930T01:23:45Z",
    day="20160930",
    host="your.sorna.api.endpoint",
    content_type="application/json",
    version="v1.20160915",
    version_header="X-Sorna-Version",
)


class VectorTests(UnitTestCase):
    """Each vector of section 1.3 of the interface's description."""

    def check(self, parts: SignedParts, expected: str, hash_name: str = "sha256") -> None:
        """Compare the signature under the published example keypair."""
        self.assertEqual(signature(EXAMPLE_SECRET_KEY, parts, hash_name), expected)

    def test_t1(self) -> None:
        """A GET that carries JSON, with the older version header."""
        self.check(T1, "3399d72e6d2ba5ba84d445ac985b650e406e32a9119fa5e9418a47305075b146")

    def test_t2(self) -> None:
        """The same with the newer version header."""
        newer = evolve(T1, version_header="X-BackendAI-Version")
        self.check(newer, "727243b440eb1b389e34e696be9bef8f34c23aa4bafe0f956e69897882e8f67b")

    def test_t3(self) -> None:
        """From v4 on the body is not hashed."""
        later = evolve(T1, target="/auth", version="v4.20181215", version_header="X-BackendAI-Version", body=b"")
        self.check(later, "5735c0f0297bd52556883c2ff539f5d6d257d1879f5269ce8aa99b28f4153ba0")

    def test_t4(self) -> None:
        """Creating a kernel."""
        body = b'{"lang": "python3", "clientSessionToken": "testtoken01"}'
        create = evolve(T1, method="POST", target="/v2/kernel/create", body=body)
        self.check(create, "3c2657058cd9d1871ede5be27fd09f08d7e77eb0f31991d086b1b36ba85af840")

    def test_t5(self) -> None:
        """Destroying a kernel: no body, the default content type."""
        destroy = evolve(
            T1, method="DELETE", target="/v2/kernel/abcdefgh", content_type="application/octet-stream", body=b""
        )
        self.check(destroy, "286924ace9aa953f9e2170fb0109d1390e1950effd7d4e3a99ba59e82725462f")

    def test_t6(self) -> None:
        """Uploading: the body of a multipart request does not count."""
        upload = evolve(
            T1,
            method="POST",
            target="/v2/kernel/abcdefgh/upload",
            content_type="multipart/form-data; boundary=xyz",
            body=b"anything",
        )
        self.check(upload, "50cb2d22232ad375793ce6b9e8430a49d85a5b63f1f5fb373d79b60fbe0d4fd2")

    def test_t7(self) -> None:
        """SHA-1."""
        self.check(T7, "5b535b4eef82c5122a8a8e8d83b02a69e3428a16", "sha1")

    def test_t8(self) -> None:
        """MD5."""
        self.check(T7, "ff22dd40ef7a70172eec9a8ea9d88a74", "md5")

    def test_documented(self) -> None:
        """The example of the old documentation, and what its second edition should have said."""
        self.check(DOCUMENTED, "022ae894b4ecce097bea6eca9a97c41cd17e8aff545800cd696112cc387059cf")
        second = evolve(DOCUMENTED, target="/v2", version="v2.20170215")
        self.check(second, "ca177162e332893e70743f6612ffe2cfad8b1a036bcfddf4a83f4897459be757")


class StringToSignTests(UnitTestCase):
    """The text that is signed."""

    def test_lines(self) -> None:
        """Seven lines in the published order, none after the last."""
        expected = (
            b"GET\n/v2/authorize\n2017-09-07T01:02:03.456789+00:00\nhost:127.0.0.1:8081\n"
            b"content-type:application/json\nx-sorna-version:v2.20170315\n"
        ) + hashlib.sha256(ECHO).hexdigest().encode()
        self.assertEqual(string_to_sign(T1), expected)

    def test_parameters_of_the_media_type_do_not_count(self) -> None:
        """``; charset=utf-8`` is not signed, nor is the case of the media type."""
        loud = evolve(T1, content_type="Application/JSON; charset=utf-8")
        self.assertEqual(string_to_sign(loud), string_to_sign(T1))

    @given(st.binary(max_size=64), st.binary(max_size=64))
    def test_body_counts(self, one: bytes, other: bytes) -> None:
        """Two signatures are equal exactly when the bodies are."""
        signatures = {signature("secret", evolve(T1, body=body)) for body in (one, other)}
        self.assertEqual(len(signatures), len({one, other}))


class HeaderTests(UnitTestCase):
    """The headers of a request."""

    def test_authorization(self) -> None:
        """Scheme, method and credential are spelled as servers of every age parse them."""
        credentials = Credentials(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)
        self.assertEqual(
            authorization(credentials, T1, scheme="Sorna"),
            "Sorna signMethod=HMAC-SHA256, credential=AKIAIOSFODNN7EXAMPLE:"
            "3399d72e6d2ba5ba84d445ac985b650e406e32a9119fa5e9418a47305075b146",
        )

    def test_signed_headers_agree_with_each_other(self) -> None:
        """The date, host, content type and version that are sent are those that were signed."""
        headers = signed_headers(
            Credentials(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY),
            method="POST",
            target="/v3/kernel/create",
            host="localhost:8080",
            content_type="application/json",
            body=b"{}",
            version="v3.20170615",
            now=1504746123.456789,
        )
        parts = SignedParts(
            method="POST",
            target="/v3/kernel/create",
            date=headers["Date"],
            day="20170907",
            host=headers["Host"],
            content_type=headers["Content-Type"],
            version=headers["X-BackendAI-Version"],
            body=b"{}",
        )
        self.assertEqual(headers["Date"], "2017-09-07T01:02:03.456789+00:00")
        self.assertTrue(headers["Authorization"].endswith(":" + signature(EXAMPLE_SECRET_KEY, parts)))

    def test_secret_is_not_shown(self) -> None:
        """The secret key is not in the credentials' text."""
        self.assertNotIn("wJalr", repr(Credentials(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)))
