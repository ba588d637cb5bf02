"""Control of a terminal through EXECUTE: ``%ping``, ``%resize``, ``%chdir``, ``%show graph``; source: section 5.6.

Only the ``git`` runtime has them, because it alone was a terminal in 2016, and a ``%`` begins nothing else in its language; in
other runtimes code that begins so is code. What a client names is never part of a command: paths travel as hexadecimal bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from attrs import frozen

from sorna.legacy.execution import execute
from sorna.legacy.interfaces import Kernels
from sorna.legacy.terminals import TerminalPorts

RUNTIME = "git"
GRAPH = "application/vnd.sorna.gitgraph"
MOST_PATH = 4096
MOST_COMMITS = 1000
INVALID = "Invalid command."

_RESIZE = re.compile(r"%resize\s+([0-9]{1,9})\s+([0-9]{1,9})\s*", re.ASCII)
_CHDIR = re.compile(r"%chdir\s+(\S.*?)\s*", re.DOTALL)
_SHOW = re.compile(r"%show\s+graph(?:\s+(\S.*?))?\s*", re.DOTALL)
# Between fields and between commits: control characters that git refuses in names, and hardly anybody writes in a message.
_FIELD, _COMMIT = "\x1f", "\x1e"
_LOG = f"exec git log --all --topo-order --max-count={MOST_COMMITS} --format=%H%x1f%P%x1f%an%x1f%aI%x1f%D%x1f%B%x1e"


@frozen
class Control:
    """Carries out control commands for the owner of a kernel."""

    kernels: Kernels

    async def obey(self, access_key: str, reference: str, ports: TerminalPorts, command: str) -> dict[str, Any]:
        """Carry out one command and give the result object. :raises SornaError: what the manager raises."""
        if command.strip() == "%ping":
            return _result("pong!")
        if resize := _RESIZE.fullmatch(command):
            ports.resize(int(resize[1]), int(resize[2]))
            return _result(f"OK; terminal resized to {ports.rows} rows and {ports.columns} cols")
        if chdir := _CHDIR.fullmatch(command):
            return await self._chdir(access_key, reference, ports, chdir[1])
        if show := _SHOW.fullmatch(command):
            return await self._show(access_key, reference, ports, show[1] or "")
        return _result(stderr=INVALID)

    async def _chdir(self, access_key: str, reference: str, ports: TerminalPorts, path: str) -> dict[str, Any]:
        done = await self._run(access_key, reference, (ports.folder, path), "pwd -P && printf x")
        if not done["stdout"].endswith("x"):
            return _result(stderr=done["stderr"] or INVALID)
        ports.folder = done["stdout"].removesuffix("x").removesuffix("\n")
        return _result(f"OK; changed working directory to {ports.folder}")

    async def _show(self, access_key: str, reference: str, ports: TerminalPorts, path: str) -> dict[str, Any]:
        done = await self._run(access_key, reference, (ports.folder, path), _LOG)
        if done["stderr"]:
            return _result(stderr=done["stderr"])
        return _result(media=[[GRAPH, json.dumps(commits_in(done["stdout"]), ensure_ascii=False)]])

    async def _run(self, access_key: str, reference: str, folders: tuple[str, ...], command: str) -> dict[str, Any]:
        """Run a command of ours in a folder that is reached step by step."""
        steps = [_change_to(folder) for folder in folders if folder]
        return await execute(self.kernels, access_key, reference, "\n".join((*steps, command)))


def commits_in(log: str) -> list[dict[str, Any]]:
    """Read what ``git log`` printed: the commits, newest first, each with the ids of its parents."""
    commits = []
    for piece in log.split(_COMMIT):
        fields = piece.lstrip("\n").split(_FIELD, 5)
        if len(fields) == 6:
            oid, parents, author, date, refs, message = fields
            commits.append(
                {
                    "oid": oid,
                    "parents": parents.split(),
                    "author": author,
                    "date": date,
                    "refs": [ref for ref in refs.split(", ") if ref],
                    "message": message.rstrip("\n"),
                }
            )
    return commits


def _change_to(folder: str) -> str:
    raw = folder.encode("utf-8", "replace")[:MOST_PATH]
    escaped = "".join(f"\\x{byte:02x}" for byte in raw)
    return f"printf -v folder '{escaped}'\ncd -- \"$folder\" || exit 1"


def _result(stdout: str = "", stderr: str = "", media: list[list[str]] | None = None) -> dict[str, Any]:
    return {
        "stdout": stdout,
        "stderr": stderr,
        "media": media or [],
        "options": {"upload_output_files": False},
        "exceptions": [],
        "files": [],
    }
