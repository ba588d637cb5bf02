"""``sorna folder``: virtual folders from the command line.

Knows flags and columns; what goes over the wire is ``folders.py``'s.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from sorna.client.door import Command, Door, Unusable, connection
from sorna.client.folders import FolderClient, Progress
from sorna.client.tables import FORMATS, print_rows

_FOLDERS = {"name": "NAME", "id": "ID", "is_owner": "OWN", "permission": "MAY", "created_at": "CREATED"}
_FILES = {"mode": "MODE", "size": "SIZE", "mtime": "MODIFIED", "filename": "NAME"}
_INVITATIONS = {"id": "ID", "vfolder_name": "FOLDER", "inviter": "FROM", "perm": "MAY"}

_format = click.option("--format", "how", type=click.Choice(FORMATS), default="table", show_default=True)


@click.group()
def folder() -> None:
    """Keep files beyond the life of kernels, and share them."""


def _does(work: Callable[[FolderClient], Awaitable[None]]) -> Command:
    async def carry_out(door: Door) -> int:
        await work(FolderClient(door.api, door.reactor))
        return 0

    return carry_out


@folder.command("list")
@_format
@connection
def list_folders(how: str) -> Command:
    """List your folders and those that are shared with you."""

    async def work(client: FolderClient) -> None:
        print_rows(_FOLDERS, await client.list_folders(), how, sys.stdout)

    return _does(work)


@folder.command()
@click.argument("name")
@click.option("--quota", default="0", metavar="SIZE", help="How much it may hold, for instance 500m.")
@connection
def create(name: str, quota: str) -> Command:
    """Make a folder."""

    async def work(client: FolderClient) -> None:
        click.echo((await client.create(name, quota)).get("id"))

    return _does(work)


@folder.command()
@click.argument("name")
@connection
def info(name: str) -> Command:
    """Describe a folder and what it holds."""

    async def work(client: FolderClient) -> None:
        found = await client.info(name)
        width = max(map(len, found))
        for key, value in found.items():
            click.echo(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")

    return _does(work)


@folder.command()
@click.argument("name")
@click.argument("new_name")
@connection
def rename(name: str, new_name: str) -> Command:
    """Give a folder another name."""
    return _does(lambda client: client.rename(name, new_name))


@folder.command()
@click.argument("name")
@connection
def delete(name: str) -> Command:
    """Remove a folder with everything in it."""
    return _does(lambda client: client.delete(name))


@folder.command()
@click.argument("name")
@connection
def leave(name: str) -> Command:
    """Give up a folder that somebody shares with you."""
    return _does(lambda client: client.leave(name))


@folder.command()
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--basedir", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
@connection
def upload(name: str, files: tuple[Path, ...], basedir: Path) -> Command:
    """Put files into a folder, under their path relative to --basedir.

    Files may be large; when the connection breaks, an upload goes on where it was.
    """
    try:
        places = [(file, file.resolve().relative_to(basedir.resolve()).as_posix()) for file in files]
    except ValueError as error:
        raise Unusable(f"A file lies outside of the base directory: {error}") from error

    async def work(client: FolderClient) -> None:
        for file, place in places:
            await client.upload(name, file, place, _progress(place))

    return _does(work)


@folder.command()
@click.argument("name")
@click.argument("paths", nargs=-1, required=True)
@click.option("--to", "target", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
@connection
def download(name: str, paths: tuple[str, ...], target: Path) -> Command:
    """Fetch files out of a folder, and directories as tar archives."""

    async def work(client: FolderClient) -> None:
        for path in paths:
            last = Path(path.rstrip("/")).name or name
            rows = await client.list_files(name, path)
            is_file = (
                len(rows) == 1 and rows[0].get("filename") == last and str(rows[0].get("mode", "")).startswith("-")
            )
            await client.download(name, path, target / (last if is_file else f"{last}.tar"), _progress(path))

    return _does(work)


@folder.command()
@click.argument("name")
@click.argument("path", default=".")
@_format
@connection
def ls(name: str, path: str, how: str) -> Command:
    """List what is in a folder, or in a directory of it."""

    async def work(client: FolderClient) -> None:
        rows = sorted(await client.list_files(name, path), key=lambda one: str(one.get("filename")))
        print_rows(_FILES, [{**one, "mtime": _time(one.get("mtime"))} for one in rows], how, sys.stdout)

    return _does(work)


@folder.command()
@click.argument("name")
@click.argument("path")
@connection
def mkdir(name: str, path: str) -> Command:
    """Make a directory, and those above it."""
    return _does(lambda client: client.make_directory(name, path))


@folder.command()
@click.argument("name")
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Directories too, with everything in them.")
@connection
def rm(name: str, paths: tuple[str, ...], recursive: bool) -> Command:
    """Remove files from a folder."""
    return _does(lambda client: client.delete_files(name, paths, recursive=recursive))


@folder.command()
@click.argument("name")
@click.argument("users", nargs=-1, required=True)
@click.option("-p", "--perm", type=click.Choice(["ro", "rw"]), default="ro", show_default=True)
@connection
def invite(name: str, users: tuple[str, ...], perm: str) -> Command:
    """Offer a folder to users, or to access keys."""

    async def work(client: FolderClient) -> None:
        for user in await client.invite(name, users, perm):
            click.echo(user)

    return _does(work)


@folder.command()
@_format
@connection
def invitations(how: str) -> Command:
    """List the folders that are offered to you."""

    async def work(client: FolderClient) -> None:
        print_rows(_INVITATIONS, await client.invitations(), how, sys.stdout)

    return _does(work)


@folder.command()
@click.argument("invitation")
@connection
def accept(invitation: str) -> Command:
    """Take an offer."""

    async def work(client: FolderClient) -> None:
        click.echo(await client.accept(invitation))

    return _does(work)


@folder.command()
@click.argument("invitation")
@connection
def refuse(invitation: str) -> Command:
    """Refuse an offer, or take your own back."""

    async def work(client: FolderClient) -> None:
        click.echo(await client.refuse(invitation))

    return _does(work)


def _time(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _progress(name: str) -> Progress:
    """Tell a person how far a transfer is; a program is told nothing."""
    if not sys.stderr.isatty():
        return lambda _done, _size: None
    return lambda done, size: click.echo(f"\r{name}: {done}{f' of {size}' if size else ''} bytes", err=True, nl=False)
