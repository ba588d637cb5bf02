"""Which published client has which command, and how it spells it: ``python -m tests.interop.matrix`` writes the table of it.

The table of the documentation, ``docs/clients.rst``, is made of this; that each client has these commands and no others, and
that each works, is what the tests of ``test_matrix.py`` see.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

import sorna
from tests.interop.environments import BACKEND, BACKEND_1_1_11, BACKEND_1_4_2, SORNA_0_9_8, PublishedClient

PAGE = Path(sorna.__file__).parents[1] / "docs" / "clients.rst"
RUNS = ("run a snippet", "build and run a program", "input", "complete code")
SESSIONS = ("ps", "terminate")
MOUNT = "run with a folder"
#: Commands about folders, by the name in the clients.
FOLDERS = (
    "list",
    "create",
    "info",
    "upload",
    "download",
    "ls",
    "mkdir",
    "rm",
    "invite",
    "invitations",
    "list-hosts",
    "rename",
    "list-allowed-types",
    "rename-file",
    "leave",
    "request-download",
    "clone",
    "update-options",
    "share",
    "unshare",
    "mv",
    "list-own",
    "list-invited",
    "list-project",
    "delete",
)
#: A command that is in the clients' help and that no client does anything for.
UNMADE = frozenset({"cp"})
COMMANDS = (*RUNS, *SESSIONS, MOUNT, *(f"vfolder {name}" for name in FOLDERS))

_FIRST = frozenset({"list", "create", "delete", "info", "upload"})
_1_4 = _FIRST | {"download", "mkdir", "rm", "ls", "invite", "invitations"}
_19_9 = _1_4 | {"list-hosts", "rename", "list-allowed-types", "rename-file"}
_20_3 = _19_9 | {"leave", "request-download"}
_20_9 = _20_3 | {"clone", "update-options"}
_21_9 = _20_9 | {"share", "unshare"}
_22_3 = _21_9 | {"mv"}
_23_9 = _22_3 | {"list-own", "list-invited", "list-project"}
# The command calls a function that the library does not have any more.
_UNREQUESTED = frozenset({"request-download"})

# How a library makes a session of a name, k, and what ends the library's own threads.
_SORNA = "from sorna.kernel import Kernel\nk = Kernel.get_or_create('python3', {name!r})\n"
_KERNEL = "from ai.backend.client.kernel import Kernel\nk = Kernel.get_or_create('python3', {name!r})\n"
_SESSION = (
    "from ai.backend.client.session import Session\nsession = Session()\n"
    "k = session.Kernel.get_or_create('python3', client_token={name!r}, envs={{}})\n"
)
_COMPUTE = (
    "from ai.backend.client.session import Session\nsession = Session().__enter__()\n"
    "k = session.ComputeSession.get_or_create('python3', name={name!r}, envs={{}})\n"
)
_HINTS = "{'row': 0, 'col': 4, 'line': 'prin', 'post': ''}"


@frozen
class Dialect:
    """One client as it was published.

    :ivar folders: its commands about folders.
    :ivar make: makes a session of a name.
    :ivar complete: completes ``prin``.
    :ivar removes: options after which a run ends its session.
    :ivar options: how the commands to build and to run are given.
    :ivar ends: the words of the command that ends a session; none where only the library does.
    :ivar create: what the creation of a folder wants besides its name.
    :ivar fails: those of its commands about folders that end with an error of the client's own before they ask anybody.
    """

    client: PublishedClient
    folders: frozenset[str] = frozenset()
    make: str = _COMPUTE
    complete: str = f"k.complete('prin', {_HINTS})['result']"
    removes: tuple[str, ...] = ("--rm",)
    options: tuple[str, str] = ("--build", "--exec")
    lists: bool = True
    ends: tuple[str, ...] = ("terminate",)
    create: tuple[str, ...] = ("local",)
    fails: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The client with its version."""
        return self.client.name

    def has(self, command: str) -> bool:
        """Tell whether the client has one of :data:`COMMANDS`."""
        if command in SESSIONS:
            return self.lists if command == "ps" else bool(self.ends)
        if command == MOUNT:
            return bool(self.folders)
        return command in RUNS or command.removeprefix("vfolder ") in self.folders


DIALECTS = (
    Dialect(
        SORNA_0_9_8,
        make=_SORNA,
        complete=f"k.execute('prin', mode='complete', opts={_HINTS})",
        removes=(),
        options=("-b", "-e"),
        lists=False,
        ends=(),
    ),
    Dialect(BACKEND["1.0.6"], make=_KERNEL, removes=(), ends=()),
    Dialect(BACKEND_1_1_11, _FIRST, make=_KERNEL, create=()),
    Dialect(BACKEND_1_4_2, _1_4, make=_SESSION, create=()),
    Dialect(BACKEND["18.12.3"], _1_4, make=_SESSION),
    Dialect(BACKEND["19.9.10"], _19_9, make=_SESSION),
    Dialect(BACKEND["20.3.10"], _20_3),
    Dialect(BACKEND["20.9.9"], _20_9, fails=_UNREQUESTED),
    Dialect(BACKEND["21.9.5"], _21_9, ends=("session", "destroy"), fails=_UNREQUESTED),
    Dialect(BACKEND["22.3.2"], _22_3, ends=("session", "destroy"), fails=_UNREQUESTED),
    Dialect(BACKEND["23.3.0"], _22_3, ends=("session", "destroy"), fails=_UNREQUESTED),
    Dialect(BACKEND["23.9.10"], _23_9, ends=("session", "destroy"), fails=_UNREQUESTED),
)

_HEAD = """Published clients
=================

Clients of the years 2017 to 2023, unmodified from PyPI, each with the commands that it has. Every command that is marked runs in
the tests against a server, with the Python and the libraries of the client's time; a dash stands where the client has no such
command, which the tests look up in its own help, and what fails does so in the client, before it asks the server. ``vfolder cp`` is in the help of some and does nothing in any.

Made by ``python -m tests.interop.matrix``; a test fails when it is not current.

"""


def page() -> str:
    """Give the text of the page."""
    versions = [dialect.name.replace("sorna-client-", "sorna ").rpartition("-")[2] for dialect in DIALECTS]
    rows = [["command", *versions]]
    rows += [[f"``{one}``" if " " not in one or "vfolder" in one else one, *_cells(one)] for one in COMMANDS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return _HEAD + "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def _cells(command: str) -> Sequence[str]:
    return [
        "-" if not dialect.has(command) else "fails" if command.removeprefix("vfolder ") in dialect.fails else "yes"
        for dialect in DIALECTS
    ]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
