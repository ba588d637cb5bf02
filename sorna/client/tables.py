"""Rows as a person, a spreadsheet or a program wants them; knows no server and no command."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

FORMATS = ("table", "csv", "json")
# Where no terminal bounds a line, nothing is folded: programs read it line by line.
_ENDLESS = 10_000


def print_rows(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], how: str, out: TextIO) -> None:
    """Print the columns (key -> title) of rows.

    :param how: one of :data:`FORMATS`; the machine-readable ones have the keys as names and values as they are.
    """
    if how == "json":
        out.write(json.dumps([{key: row.get(key) for key in columns} for row in rows], indent=2) + "\n")
    elif how == "csv":
        writer = csv.DictWriter(out, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table(columns, rows, out)


def _print_table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], out: TextIO) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, title in columns.items():
        numbers = bool(rows) and all(isinstance(row.get(key), int | float) and row.get(key) is not True for row in rows)
        table.add_column(title, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        # As plain text: a name may look like the library's own markup.
        table.add_row(*(Text(_cell(row.get(key))) for key in columns))
    Console(file=out, width=None if out.isatty() else _ENDLESS, highlight=False).print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}"
        case list():
            return ", ".join(map(str, value))
        case _:
            return "".join(character if character.isprintable() else "?" for character in str(value))
