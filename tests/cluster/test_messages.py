"""The codec of the link: whole for what it writes, and total for whatever arrives."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from sorna import errors
from sorna.cluster import messages
from sorna.cluster.messages import (
    Acknowledge,
    Answer,
    Call,
    Cancel,
    Ended,
    Event,
    Failed,
    Finished,
    MalformedMessage,
    Message,
    Output,
    Room,
    Steer,
    Took,
    decode,
    encode,
    error_to_failed,
    failed_to_error,
    pack_value,
)
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits
from sorna.model.run import RunException, RunMode, RunReply, RunRequest, RunStatus
from sorna.testing.unit import UnitTestCase

INTEGER = st.integers(-(2**63), 2**64 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGER | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
PARAMETERS = st.dictionaries(st.text(max_size=8), PLAIN, max_size=4)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Call, INTEGER, st.text(), PARAMETERS, st.integers(1, 10**9).map(lambda ms: ms / 1000)),
    st.builds(Cancel, INTEGER),
    st.builds(Took, INTEGER),
    st.builds(Answer, INTEGER, PLAIN),
    st.builds(Failed, INTEGER, st.text(), st.text(), st.none() | st.text()),
    st.builds(Event, INTEGER, st.text(), PARAMETERS),
    st.builds(Acknowledge, INTEGER),
    st.builds(Output, INTEGER, st.binary()),
    st.builds(Ended, INTEGER, st.text()),
    st.builds(Steer, INTEGER, st.just("write"), st.binary()),
    st.builds(Steer, INTEGER, st.just("resize"), st.lists(INTEGER, min_size=2, max_size=2)),
    st.builds(Steer, INTEGER, st.just("consumed"), st.integers(0, 2**63)),
    st.builds(Steer, INTEGER, st.sampled_from(["restart", "finish", "close"])),
    st.builds(Room, INTEGER, st.integers(1, 2**63)),
    st.builds(Finished, INTEGER),
)
# Nonsense that is shaped like a message.
ROWS = st.builds(
    lambda head, rest: [head, *rest],
    st.sampled_from(
        ["call", "cancel", "answer", "error", "event", "acknowledge", "steer", "output", "ended", "room", "finished", 1]
    ),
    st.lists(PLAIN, max_size=5),
)
UNPACKERS: list[Callable[[Any], Any]] = [
    messages.unpack_limits,
    messages.unpack_spec,
    messages.unpack_usage,
    messages.unpack_run_request,
    messages.unpack_run_reply,
    messages.unpack_kernel_id,
    messages.unpack_services,
    messages.unpack_tunnel_wish,
]
SPEC = KernelSpec("AKIA", "token", "c", "c", Limits(), {"A": "b"}, None)
REPLY = RunReply(
    "r",
    RunStatus.WAITING_INPUT,
    (("stdout", "a"), ("media", ["image/png", "AA"])),
    {"is_password": True},
    None,
    ("a", "b"),
    (RunException("ValueError", ["x", 1], before_exec=False, traceback=None),),
    1,
    2,
)


class MessageTests(UnitTestCase):
    """Encoding and decoding."""

    @settings(max_examples=200, deadline=None)
    @given(MESSAGES)
    def test_what_is_written_is_read(self, message: Message) -> None:
        """Every message survives the journey."""
        self.assertEqual(decode(encode(message)), message)

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200) | ROWS.map(msgpack.packb) | MESSAGES.map(encode).map(lambda raw: raw[:-1]))
    def test_reading_is_total(self, raw: bytes) -> None:
        """Any bytes are a message that would be written the same, or MalformedMessage."""
        try:
            message = decode(raw)
        except MalformedMessage:
            return
        try:
            again = encode(message)
        except (ValueError, TypeError, OverflowError):
            return  # a value that only msgpack's extensions can spell
        self.assertEqual(decode(again), message)

    def test_hostile_headers(self) -> None:
        """Announced sizes, depth, keys, kinds and trailing bytes are refused without effort."""
        for raw in (
            b"",
            b"\xdd\x7f\xff\xff\xff",
            b"\xdf\x7f\xff\xff\xff",
            b"\x91" * 100_000,
            b"\x81\x91\x01\x02",
            b"\xc1",
            b"\xd7\xff" + b"\xff" * 8,
            encode(Cancel(1)) + b"\0",
            msgpack.packb(["cancel", True]),
            msgpack.packb(["call", 1, "ping", {}, 0]),
            msgpack.packb(["call", 1, "ping", {}, True]),
            msgpack.packb(["call", 1, b"ping", {}, 1000]),
            msgpack.packb({"call": 1}),
            msgpack.packb([]),
            bytes(messages.MAX_MESSAGE + 1),
        ):
            with self.assertRaises(MalformedMessage):
                decode(raw)

    def test_large_content(self) -> None:
        """Content beyond the size that is spliced in comes out whole, among other parameters."""
        content = bytes(range(256)) * (messages.LARGE_CONTENT // 256)
        call = Call(3, "upload", {"path": "x", "content": content, "more": 1, "other": content + b"!"}, 30.0)
        self.assertEqual(decode(encode(call)), call)
        self.assertEqual(decode(memoryview(encode(call))), call)

    def test_unsendable_values(self) -> None:
        """What msgpack cannot spell raises what the docstring says."""
        for value in ("\ud800", object(), 1 << 65):
            with self.assertRaises((ValueError, TypeError, OverflowError)):
                encode(Call(1, "x", {"value": value}, 1.0))


class ValueTests(UnitTestCase):
    """Values of the model on the wire."""

    def test_values_survive(self) -> None:
        """Packing, travelling and unpacking give an equal value."""
        for value, unpack in (
            (Limits(memory=1), messages.unpack_limits),
            (SPEC, messages.unpack_spec),
            (Usage(cpu_used=1), messages.unpack_usage),
            (RunRequest(RunMode.INPUT, "x", None, wait=None), messages.unpack_run_request),
            (REPLY, messages.unpack_run_reply),
        ):
            travelled = msgpack.unpackb(msgpack.packb(pack_value(value)))
            self.assertEqual(unpack(travelled), value)
        kernel = uuid.uuid4()
        self.assertEqual(messages.unpack_kernel_id(kernel.bytes), kernel)

    @settings(max_examples=200, deadline=None)
    @given(PLAIN)
    def test_unpacking_is_total(self, raw: Any) -> None:
        """Nothing but MalformedMessage comes of nonsense."""
        for unpack in UNPACKERS:
            with contextlib.suppress(MalformedMessage):
                unpack(raw)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_wrong_fields_are_named(self, data: st.DataObject) -> None:
        """A field of the wrong type is refused, and the refusal says which."""
        good = pack_value(data.draw(st.sampled_from([SPEC, REPLY, Limits(), Usage()])))
        name = data.draw(st.sampled_from(sorted(good)))
        broken = {**good, name: object()}
        unpack = next(one for one in UNPACKERS if not self._refuses(one, good))
        with self.assertRaises(MalformedMessage) as caught:
            unpack(broken)
        if name not in {"console", "files", "exceptions", "status", "limits", "exit_code"}:
            self.assertIn(name, str(caught.exception))

    def _refuses(self, unpack: Callable[[Any], Any], raw: Any) -> bool:
        try:
            unpack(raw)
        except MalformedMessage:
            return True
        return False

    def test_numbers_that_are_none(self) -> None:
        """Truth values, infinities and texts are no numbers."""
        for value in (True, float("inf"), float("nan"), "1", None):
            with self.assertRaises(MalformedMessage):
                messages.unpack_limits({"cpu_cores": value})


class ErrorTests(UnitTestCase):
    """Errors on the wire."""

    def test_named_errors_survive(self) -> None:
        """Each error of the table is rebuilt with its detail."""
        for name, cls in messages.ERROR_NAMES.items():
            error = failed_to_error(error_to_failed(1, cls("why")))
            self.assertEqual((type(error).__name__, error.detail), (name, "why"))

    def test_strange_names_are_agent_failed(self) -> None:
        """A name that is not in the table raises nothing of this process's choosing."""
        for name in ("KeyboardInterrupt", "SystemExit", "", "InvalidAuthentication"):
            self.assertIs(type(failed_to_error(Failed(1, name, "x", None))), errors.AgentFailed)

    def test_long_exceptions_are_cut(self) -> None:
        """The text of an exception is bounded."""
        self.assertEqual(len(error_to_failed(1, ValueError("x" * 5000)).exception or ""), 1000)
