"""Ratios, those that are kept, and whether one has become worse by half. Pure, but for reading and writing the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

#: A ratio may grow by this factor. The lower a ratio, the better.
TOLERANCE = 1.5
FILE = Path(__file__).with_name("baseline.json")


class UnreadableBaseline(Exception):
    """The file with the kept ratios is missing or is not what it should be."""


@frozen
class Verdict:
    """One ratio beside what is kept of it.

    :ivar kept: None when nothing is.
    """

    name: str
    measured: float
    kept: float | None

    @property
    def fine(self) -> bool:
        """Whether it is not worse by half; one of which nothing is kept is not fine, since nobody would look after it."""
        return self.kept is not None and self.measured <= self.kept * TOLERANCE

    @property
    def in_words(self) -> str:
        """What the table says of it."""
        if self.kept is None:
            return "nothing is kept of it: --update"
        change = self.measured / self.kept
        return f"{change:.2f} of what is kept" + ("" if self.fine else f", more than {TOLERANCE:g}")


def compare(measured: Mapping[str, float], kept: Mapping[str, float]) -> list[Verdict]:
    """Put ratios beside those that are kept."""
    return [Verdict(name, value, kept.get(name)) for name, value in measured.items()]


def better(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Give the lower of two measurements of each ratio; one that was measured once stays as it is."""
    return {name: min(value, second.get(name, value)) for name, value in first.items()}


def highest(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Give the highest of several runs, of each ratio that all of them have: what differs between them is no change."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: max(run[name] for run in runs) for name in names}


def load(path: Path = FILE) -> dict[str, float]:
    """Read the kept ratios.

    :raises UnreadableBaseline: there are none.
    """
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise UnreadableBaseline(f"{path} cannot be read: {error}") from error
    ratios = content.get("ratios") if isinstance(content, dict) else None
    if not isinstance(ratios, dict) or not all(
        isinstance(value, int | float) and value > 0 for value in ratios.values()
    ):
        raise UnreadableBaseline(f"{path} has no ratios")
    return {str(name): float(value) for name, value in ratios.items()}


def keep(ratios: Mapping[str, float], machine: str, path: Path = FILE) -> None:
    """Write the ratios to be kept, and what they were measured on."""
    content = {"machine": machine, "ratios": {name: round(value, 2) for name, value in ratios.items()}}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
