"""How values become columns."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from sorna.errors import InvalidRequest
from sorna.model.kernel import KernelSpec, new_kernel_id
from sorna.model.limits import Limits
from sorna.store import rows
from sorna.testing.unit import UnitTestCase


class RowTests(UnitTestCase):
    def test_unknown_limit_is_passed_over(self) -> None:
        """A limit that a newer manager wrote does not break this one."""
        kernel = rows.new_kernel(new_kernel_id(), KernelSpec("k", "token", "c", "c", Limits()), 1.0)
        limits = {**attrs.asdict(kernel.limits), "bandwidth": 1}
        row = (
            str(kernel.id), "k", "token", "c", "c", "PREPARING", "requested", 1.0, 1.0, None,
            None, limits, {}, None, 0, *attrs.astuple(kernel.usage),
        )  # fmt: skip
        self.assertEqual(rows.kernel(row), kernel)

    @given(st.text())
    def test_storable(self, text: str) -> None:
        """Text is storable exactly when it is UTF-8 without NUL, and only then accepted."""
        fine = "\0" not in text and not any(0xD800 <= ord(character) < 0xE000 for character in text)
        self.assertEqual(rows.storable(text), fine)
        if not fine:
            self.assertRaises(InvalidRequest, rows.require_storable, (None, text))

    @given(st.floats(min_value=0, max_value=4e9))
    def test_microseconds(self, seconds: float) -> None:
        """A rounded time stays as it is, and is near."""
        once = rows.to_microseconds(seconds)
        self.assertEqual(rows.to_microseconds(once), once)
        self.assertLess(abs(once - seconds), 1e-6)
