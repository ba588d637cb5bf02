"""Kernel ids, session tokens and the changes of status that are allowed."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from sorna.model.kernel import (
    FINAL_STATUSES,
    KernelStatus,
    may_change,
    new_kernel_id,
    parse_kernel_id,
    short_id,
    statuses_before,
    valid_session_token,
)
from sorna.testing.unit import UnitTestCase


class KernelIdTests(UnitTestCase):
    """One random number in two spellings."""

    @given(st.uuids())
    def test_both_spellings_are_read(self, kernel_id: uuid.UUID) -> None:
        """The short and the long spelling of an id give the same id."""
        self.assertEqual(len(short_id(kernel_id)), 22)
        self.assertEqual(parse_kernel_id(short_id(kernel_id)), kernel_id)
        self.assertEqual(parse_kernel_id(str(kernel_id)), kernel_id)

    @given(st.text(alphabet="ABCabcQgw019_-=", max_size=40))
    def test_one_id_has_one_short_spelling(self, text: str) -> None:
        """What is read as a short id is spelled exactly so again, or an alias of an id could slip past a check."""
        kernel_id = parse_kernel_id(text)
        if kernel_id is not None and len(text) == 22:
            self.assertEqual(short_id(kernel_id), text)

    def test_all_bits_are_random(self) -> None:
        """No bit of an id is fixed, as it would be in a version 4 UUID."""
        ids = [new_kernel_id().int for _ in range(200)]
        ones = zeros = 0
        for one in ids:
            ones |= one
            zeros |= ~one
        self.assertEqual(ones, (1 << 128) - 1)
        self.assertEqual(zeros & ((1 << 128) - 1), (1 << 128) - 1)


class SessionTokenTests(UnitTestCase):
    """What clients may call their sessions."""

    def test_tokens(self) -> None:
        """Every generation's own tokens are valid; others are not."""
        for token in ("testtoken01", "f" * 32, "a.b-c_d", "0123", "x" * 80, "test-atom-live-code-runner"):
            self.assertTrue(valid_session_token(token), token)
        for token in ("", "abc", "x" * 81, "a b c d", "-abcd", "abcd.", "abc\n", "abcdé", "a/../b"):
            self.assertFalse(valid_session_token(token), token)


class StatusTests(UnitTestCase):
    """The table of allowed changes."""

    def test_nothing_follows_a_final_status(self) -> None:
        """From a final status no change is allowed."""
        for final in FINAL_STATUSES:
            self.assertFalse(any(may_change(final, after) for after in KernelStatus))

    def test_destroying_is_legal_from_every_other(self) -> None:
        """Every status that is not final may end."""
        for before in set(KernelStatus) - FINAL_STATUSES:
            self.assertTrue(may_change(before, KernelStatus.TERMINATED))

    def test_statuses_before_is_the_inverse(self) -> None:
        """The inverse table says the same as the table."""
        for after in KernelStatus:
            for before in KernelStatus:
                self.assertEqual(before in statuses_before(after), may_change(before, after))
