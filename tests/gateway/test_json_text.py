"""JSON of a program's output: the same as the library's, whatever was printed."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sorna.gateway.json_text import SHORT, encode_output, encode_text
from sorna.testing.unit import UnitTestCase

TEXTS = st.one_of(
    st.text(max_size=50),
    st.text(st.characters(max_codepoint=0x7F), max_size=50),
    st.builds(
        lambda text, plain: f"{plain}{text}{plain}", st.text(st.characters(max_codepoint=0xFF)), st.just("x" * SHORT)
    ),
    st.builds(lambda text: text * SHORT, st.text(st.characters(max_codepoint=0x7F), min_size=1, max_size=4)),
    st.builds(lambda text: (text + "x" * 99) * 20, st.text(st.characters(max_codepoint=0x7F), max_size=3)),
)


class TextTests(UnitTestCase):
    @given(TEXTS)
    def test_is_what_the_library_writes(self, text: str) -> None:
        """Long or short, with whatever characters, a text is written as the library writes it."""
        self.assertEqual(encode_text(text), json.dumps(text))

    def test_every_character(self) -> None:
        """Each single character among many plain ones is written as the library writes it, backslashes beside others too."""
        for number in range(0x100):
            text = f"{'x' * SHORT}{chr(number)}\\{chr(number)}"
            self.assertEqual(encode_text(text), json.dumps(text), number)


class OutputTests(UnitTestCase):
    @given(st.lists(st.tuples(st.sampled_from(("stdout", "stderr", "html")), TEXTS)), st.integers())
    def test_says_the_same(self, console: list[tuple[str, str]], number: int) -> None:
        """A message reads as it would if the library had written it, whatever its size."""
        content = {"status": "continued", "console": console, "next": number}
        self.assertEqual(json.loads(encode_output(content)), json.loads(json.dumps(content)))

    def test_media_among_text(self) -> None:
        """What is no text stands in its place."""
        console = [["stdout", "x\n" * SHORT], ["media", ["image/png", "AAAA"]], ["log", ["info", "1", "a", "b"]]]
        content = {"console": console, "runId": "r", "exitCode": None}
        self.assertEqual(json.loads(encode_output(content)), content)
