"""Frames to requests and replies to frames."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.legacy.codec import (
    MOST_STRUCTURE,
    SLICE,
    MalformedRequest,
    decode,
    encode,
    encode_in_turns,
    failure,
    pong,
    success,
)
from sorna.testing.unit import UnitTestCase
from tests.legacy.fuzz_codec import frames

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def written(reply: Mapping[str, Any]) -> bytes:
    """Encode in turns."""
    encoding = encode_in_turns(reply)
    while True:
        try:
            next(encoding)
        except StopIteration as end:
            content: bytes = end.value
            return content


class DecodeTests(UnitTestCase):
    @given(VALUES, VALUES)
    def test_whatever_has_an_action_is_a_request(self, action: Any, body: Any) -> None:
        """Every JSON value survives, in both spellings of non-ASCII text."""
        request = {"action": action, "body": body}
        self.assertEqual(decode(json.dumps(request).encode()), request)
        plain = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            plain.decode()
        except UnicodeDecodeError:
            self.assertRaises(MalformedRequest, decode, plain)
        else:
            self.assertEqual(decode(memoryview(plain)), request)

    @given(st.binary(max_size=200) | frames())
    def test_total(self, raw: bytes) -> None:
        """Whatever arrives is a request or malformed, and every request's echo can be written."""
        try:
            request = decode(raw)
        except MalformedRequest:
            return
        json.loads(encode(pong(request)))

    def test_malformed(self) -> None:
        """What is no JSON object with an action is malformed: wrong text, nesting bombs, huge numbers, what JSON has not."""
        for raw in (
            b"",
            b"not json",
            b"[]",
            b"null",
            b"{}",
            b'{"foo": 1}',
            b'{"action": 0',
            b'{"action": NaN}',
            b'{"action": 0, "body": -Infinity}',
            b'\xef\xbb\xbf{"action": 0}',
            '{"action": 0}'.encode("utf-16"),
            b'{"action": "\xed\xa0\x80"}',
            b'{"action": 0} {}',
            b'{"action": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"action":' * 50_000,
            b'{"action": 0, "body": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
            b'{"action": 0, "body": "' + b"x" * 100_000,
        ):
            self.assertRaises(MalformedRequest, decode, raw)

    def test_structure_is_bounded(self) -> None:
        """Long strings are welcome, many values are not: those would keep everybody waiting."""
        code = 'print("a,b", [1, 2])\n' * 40_000
        self.assertEqual(decode(json.dumps({"action": 1, "code": code}).encode())["code"], code)
        for body in (b"[" + b"1," * MOST_STRUCTURE + b"1]", b"[" + b'"",' * MOST_STRUCTURE + b'""]'):
            self.assertRaises(MalformedRequest, decode, b'{"action": 0, "body": ' + body + b"}")
        self.assertRaises(MalformedRequest, decode, b'{"action": 0, "body": "x"' + b" " * MOST_STRUCTURE + b"}")

    def test_deep_but_readable(self) -> None:
        """A body that can be read and not be written again is answered all the same."""
        depth = sys.getrecursionlimit() - 200
        request = decode(b'{"action": 0, "body": ' + b"[" * depth + b"]" * depth + b"}")
        self.assertIn(json.loads(encode(pong(request["body"])))["reply"], {0, 500})


class EncodeTests(UnitTestCase):
    def test_bytes_of_2016(self) -> None:
        """Order, separators and unescaped text are those of the historic encoder, byte for byte."""
        request = {"action": 2, "user_id": "test", "entry_id": "abcdef", "lang": "python34"}
        self.assertEqual(
            encode(request).hex(),
            "7b22616374696f6e223a20322c2022757365725f6964223a202274657374222c2022656e7472795f6964223a2022616263646566"
            "222c20226c616e67223a2022707974686f6e3334227d",
        )
        self.assertEqual(encode(pong({"x": [1, None, "한"]})), '{"reply": 0, "body": {"x": [1, null, "한"]}}'.encode())

    def test_lone_surrogates(self) -> None:
        """What UTF-8 has no bytes for becomes a question mark, one each."""
        self.assertEqual(encode(pong("\ud800a\udfff")), b'{"reply": 0, "body": "?a?"}')

    def test_what_json_has_not(self) -> None:
        """Infinity becomes an error that says so, never a word that is no JSON."""
        reply = encode(pong(float("inf")))
        self.assertEqual(json.loads(reply)["reply"], 500)

    @given(VALUES)
    def test_readable(self, body: Any) -> None:
        """Every reply is UTF-8 and reads back as what was written, but for surrogates."""
        reply = pong(body)
        again = json.loads(encode(reply).decode("utf-8"))
        spelt = json.loads(json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace"))
        self.assertEqual((list(again), again), (list(spelt), spelt))

    @given(st.text(st.characters(), min_size=1, max_size=9), st.integers(1, 3))
    def test_turns_change_nothing(self, text: str, times: int) -> None:
        """A reply that is written in slices has the same bytes, wherever the cuts fall."""
        long = text * (times * SLICE // len(text) + 1)
        reply = success(result={"stdout": long, "stderr": text, "media": [["image/png", long]], "exceptions": []})
        self.assertEqual(written(reply), encode(reply))

    def test_turns_of_what_cannot_be_written(self) -> None:
        """The error comes whole where the rest of a reply cannot be written."""
        reply = success(result={"stdout": "x" * (SLICE + 1), "media": [float("nan")]})
        self.assertEqual(json.loads(written(reply))["reply"], 500)

    def test_short_replies_take_one_turn(self) -> None:
        """Nothing is delayed that need not be."""
        self.assertEqual(written(failure("x")), b'{"reply": 500, "cause": "x"}')
