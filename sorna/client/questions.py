"""How a command asks the server's GraphQL and prints what it says: lists page by page, and changes with their refusals.

Knows no query and no column: the commands bring those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from sorna.client.door import Command, Door
from sorna.client.running import FAILED
from sorna.client.tables import FORMATS, print_rows
from sorna.client.wire import ApiError

PAGE = 100
#: Pages after which a list ends although the server has more: nobody reads so many lines.
MOST_PAGES = 1000

UNREADABLE = ApiError(200, "unreadable-answer", "The server's answer is not what this client understands.")

format_option = click.option(
    "--format", "how", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print."
)


def listing(query: str, variables: Mapping[str, Any], columns: Mapping[str, str], how: str) -> Command:
    """Give the command that prints everything a query finds, page by page."""

    async def carry_out(door: Door) -> int:
        rows: list[Mapping[str, Any]] = []
        for page in range(MOST_PAGES):
            answer = await door.api.ask(query, {**variables, "limit": PAGE, "offset": page * PAGE})
            page_rows = items(answer.get("found"))
            rows += page_rows
            if len(page_rows) < PAGE:
                break
        print_rows(columns, rows, how, sys.stdout)
        return 0

    return carry_out


def items(found: Any) -> Sequence[Mapping[str, Any]]:
    """Give the rows of a list, or of a page."""
    items = found.get("items") if isinstance(found, dict) else found
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UNREADABLE
    return items


def change(
    mutation: str, variables: Mapping[str, Any], done: Callable[[Mapping[str, Any]], None] | None = None
) -> Command:
    """Give the command that changes something, and ends with what the server has against it."""

    async def carry_out(door: Door) -> int:
        answer = (await door.api.ask(mutation, variables)).get("done")
        if not isinstance(answer, dict):
            raise UNREADABLE
        if not answer.get("ok"):
            click.echo(f"sorna: {answer.get('msg')}", err=True)
            return FAILED
        if done is not None:
            done(answer)
        return 0

    return carry_out
