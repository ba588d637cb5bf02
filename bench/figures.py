"""From what was measured to what is shown: percentiles, rows beside their goals, and the table. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from attrs import field, frozen

MET, MISSED, UNKNOWN = "yes", "no", ""


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share of all values do not exceed (nearest rank).

    :param share: from 0 to 1.
    :raises ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@frozen
class Section:
    """Something that is shown below the table, under its own title."""

    title: str
    text: str


@frozen
class Row:
    """One figure.

    :ivar met: whether the goal was reached, None where there is none or nothing was measured.
    :ivar client: share of one processor that the load client took, None where that says nothing.
    :ivar notes: sentences below the table.
    """

    what: str
    goal: str
    measured: str
    met: bool | None = None
    client: float | None = None
    notes: Sequence[str] = field(factory=tuple)

    @property
    def verdict(self) -> str:
        """The word in the table."""
        return {True: MET, False: MISSED, None: UNKNOWN}[self.met]


def milliseconds(seconds: float) -> str:
    """Write a time."""
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times_row(
    what: str,
    seconds: Sequence[float],
    goals: tuple[float, float] | None,
    client: float | None = None,
    notes: Sequence[str] = (),
) -> Row:
    """Make the row of a distribution of times.

    :param goals: p50 and p99 in milliseconds.
    """
    middle, high = percentile(seconds, 0.5), percentile(seconds, 0.99)
    met = goals and middle * 1000 <= goals[0] and high * 1000 <= goals[1]
    goal = f"{goals[0]:g} / {goals[1]:g} ms" if goals else "-"
    return Row(what, goal, f"{milliseconds(middle)} / {milliseconds(high)} ms", met, client, notes)


def least_row(
    what: str, value: float, goal: float, unit: str, *, client: float | None = None, notes: Sequence[str] = ()
) -> Row:
    """Make the row of a figure that is to be at least its goal."""
    return Row(what, f"{goal:,.0f}{unit}", f"{_number(value)}{unit}", value >= goal, client, notes)


def most_row(
    what: str, value: float, goal: float, unit: str, *, client: float | None = None, notes: Sequence[str] = ()
) -> Row:
    """Make the row of a figure that is to be at most its goal."""
    return Row(what, f"{goal:g}{unit}", f"{_number(value)}{unit}", value <= goal, client, notes)


def not_measured(what: str, goal: str, why: str) -> Row:
    """Make the row of what could not be measured."""
    return Row(what, goal, "not measured", notes=(why,))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def text_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a simple table of reStructuredText; no cell may be empty in the first column, or hold a line's end.

    :raises ValueError: a line has another number of cells than the heads.
    """
    if any(len(line) != len(heads) for line in lines):
        raise ValueError("a line has too few or too many cells")
    columns = list(zip(heads, *lines, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    rule = "  ".join("=" * width for width in widths)
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (heads, *lines)]
    return "\n".join([rule, rows[0].rstrip(), rule, *(row.rstrip() for row in rows[1:]), rule])


def goals_table(rows: Sequence[Row]) -> str:
    """Write the rows as a table, and their notes as a list below it."""
    lines = []
    notes = []
    for row in rows:
        marks = ""
        for note in row.notes:
            notes.append(plain(note))
            marks += f" [{len(notes)}]"
        client = "" if row.client is None else f"{row.client:.0%}"
        lines.append((row.what, row.goal, row.measured + marks, row.verdict, client))
    table = text_table(("figure", "goal", "here", "met", "client"), lines)
    listed = [f"* [{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([table, "", *listed]) if listed else table


def plain(text: str) -> str:
    """Take what would be markup in reStructuredText literally: a note may quote what a server said."""
    return re.sub(r"[\\*`|]|_(?![A-Za-z0-9])", r"\\\g<0>", text)


def report(results: Sequence[Row | Section]) -> str:
    """Write the table of all rows, and below it the sections, each under its title."""
    rows = [result for result in results if isinstance(result, Row)]
    parts = [goals_table(rows)] if rows else []
    sections = [result for result in results if isinstance(result, Section)]
    parts += [f"{section.title}\n{'-' * len(section.title)}\n\n{section.text}" for section in sections]
    return "\n\n".join(parts)
