"""Names of sessions."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.legacy.sessions import fresh_token, session_token
from sorna.model.kernel import valid_session_token
from sorna.store.rows import storable
from sorna.testing.unit import UnitTestCase

NAMES = st.text(st.characters(), max_size=200) | st.text(":%a", max_size=6)


class SessionTokenTests(UnitTestCase):
    def test_ordinary_names_stay(self) -> None:
        """The key that an operator sees is the one of 2016, with the runtime's canonical name."""
        self.assertEqual(session_token("test", "abcdef", "python3"), "test:abcdef:python3")
        self.assertEqual(session_token("a@b.org", "x-1_2", "c"), "a@b.org:x-1_2:c")

    def test_any_value_is_a_name(self) -> None:
        """Values are spelt as the old server's ``str`` did."""
        spelt: list[tuple[Any, str]] = [(1, "1"), (None, "None"), (True, "True"), (1.5, "1.5"), ("", "")]
        for value, text in spelt:
            self.assertEqual(session_token(value, "e", "c"), f"{text}:e:c")
        self.assertEqual(session_token([1, "a"], {"k": None}, "c"), session_token("[1, 'a']", "{'k': None}", "c"))

    @given(NAMES, NAMES, NAMES, NAMES)
    def test_what_is_apart_stays_apart(self, one: str, two: str, three: str, four: str) -> None:
        """Two pairs of names have one token only if they are the same."""
        same = session_token(one, two, "c") == session_token(three, four, "c")
        self.assertEqual(same, (one, two) == (three, four))

    @given(NAMES | st.text(st.characters(), min_size=5000, max_size=5000), NAMES)
    def test_safe_everywhere(self, one: str, two: str) -> None:
        """A token is short, printable ASCII, and never one that a client of the REST interface may choose."""
        token = session_token(one, two, "python3-tensorflow-gpu")
        self.assertLessEqual(len(token), 300)
        self.assertTrue(token.isascii() and token.isprintable() and storable(token), token)
        self.assertFalse(valid_session_token(token))

    @given(NAMES, NAMES)
    def test_kernels_without_a_session(self, one: str, two: str) -> None:
        """Nobody can name the session of a kernel that has none."""
        self.assertNotEqual(session_token(one, two, "c").split(":")[0], fresh_token("c").split(":")[0])
        self.assertNotEqual(fresh_token("c"), fresh_token("c"))
        self.assertFalse(valid_session_token(fresh_token("c")))
