"""Sealed messages: who can open them, and that nobody changes them unnoticed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from sorna.curve_keys import generate
from sorna.sealing import OVERHEAD, Broken, Seal
from sorna.testing.unit import UnitTestCase

ALICE, BOB, EVE = (Seal(generate()) for _ in range(3))
TO_BOB = BOB.keypair.public
FROM_ALICE = ALICE.keypair.public


class SealTests(UnitTestCase):
    """Both directions, and everything that must not open."""

    @given(st.binary(max_size=300), st.binary(max_size=40), st.binary(max_size=40))
    @settings(max_examples=30, deadline=None)
    def test_round_trip(self, message: bytes, purpose: bytes, secret: bytes) -> None:
        """What was sealed for somebody opens, for them, and is not longer than it says."""
        sealed = ALICE.close(message, TO_BOB, purpose, secret)
        self.assertEqual(len(sealed), len(message) + OVERHEAD)
        self.assertEqual(BOB.open(sealed, FROM_ALICE, purpose, secret), message)

    def test_nobody_else_opens_it(self) -> None:
        """Another key, another sender, another purpose, another secret, or the way back: none of them opens it."""
        sealed = ALICE.close(b"hello", TO_BOB, b"purpose", b"secret")
        for seal, sender, purpose, secret in (
            (EVE, FROM_ALICE, b"purpose", b"secret"),
            (BOB, EVE.keypair.public, b"purpose", b"secret"),
            (BOB, FROM_ALICE, b"another", b"secret"),
            (BOB, FROM_ALICE, b"purpose", b""),
            (ALICE, TO_BOB, b"purpose", b"secret"),
        ):
            with self.assertRaises(Broken):
                seal.open(sealed, sender, purpose, secret)

    def test_every_change_is_noticed(self) -> None:
        """A message with any byte changed, cut off or added does not open."""
        sealed = ALICE.close(b"hello", TO_BOB, b"purpose")
        changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
        for one in (*changed, sealed[:-1], sealed + b"\0", b"", sealed[: OVERHEAD - 1]):
            with self.assertRaises(Broken):
                BOB.open(one, FROM_ALICE, b"purpose")

    def test_keys_that_are_none(self) -> None:
        """A text that is no key, and a key that makes the same secret with everybody's, are refused."""
        zero = z85.encode(bytes(32)).decode("ascii")
        for key in ("", "x" * 39, "\N{SNOWMAN}" * 40, zero):
            with self.assertRaises(Broken):
                ALICE.close(b"hello", key, b"purpose")
            with self.assertRaises(Broken):
                ALICE.open(bytes(100), key, b"purpose")

    def test_the_same_message_never_looks_the_same(self) -> None:
        """Two messages of the same words have nothing in common."""
        self.assertNotEqual(ALICE.close(b"x", TO_BOB, b"p"), ALICE.close(b"x", TO_BOB, b"p"))
