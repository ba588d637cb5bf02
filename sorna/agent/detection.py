"""What this host offers: which rows of the language table have their tools here, and where these really are.

Runs once at the agent's start. Looks at the search path, asks a tool that lies outside the system's directories where it
was installed (a toolchain manager puts shims on the path), and asks the kernels' Python which modules it has. Each question
is a process with a deadline, so that the reactor never waits and a broken tool costs only its own runtime.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent.deadlines import cancel
from sorna.agent.languages import RUNTIMES, Application, Runtime, Tool
from sorna.model.agent import Capacity

PROBE_DEADLINE = 5.0
MAX_ANSWER = 64 * 1024
BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/")
# Directories that hold more than one installation: binding one would show kernels what is not theirs to see.
_SHARED_PLACES = frozenset({"/", "/opt", "/srv", "/home", "/root", "/var", "/tmp", "/mnt", "/media"})  # noqa: S108
_ASK_MODULES = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m)])"

_log = Logger()


def host_capacity(gpus: int) -> Capacity:
    """Count the processors this process may use and the host's memory, beside the GPUs that it has."""
    return Capacity(
        cpu_millis=1000 * len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=gpus,
    )


@frozen
class Offered:
    """An application that can run in kernels here.

    :ivar environ: variables for its start, with the place of its tool.
    """

    application: Application
    environ: Mapping[str, str]


@frozen
class DetectedRuntime:
    """A runtime that this host offers.

    :ivar environ: variables for its kernels, ``PATH`` and ``SORNA_TOOL`` among them.
    :ivar read_only: host paths outside the system's own that its kernels must be able to read.
    :ivar applications: which of its applications can run here.
    """

    runtime: Runtime
    environ: Mapping[str, str]
    read_only: tuple[str, ...] = ()
    applications: tuple[Offered, ...] = ()


@frozen
class Detection:
    """What was found.

    :ivar missing: canonical name -> why the runtime is not offered.
    """

    runtimes: Mapping[str, DetectedRuntime]
    missing: Mapping[str, str]

    @property
    def read_only(self) -> tuple[str, ...]:
        """Every host path that some kernel must be able to read, for the sandbox's settings."""
        return tuple(sorted({path for found in self.runtimes.values() for path in found.read_only}))


@frozen
class _Place:
    """Where a tool really is. ``outside`` tells that it is not in the system's directories."""

    path: str
    prefix: str
    outside: bool


class _Missing(Exception):
    """A runtime cannot be offered; the text says why."""


class _Probe(ProcessProtocol):
    """One question to a program."""

    def __init__(self, clock: IReactorTime, answer: Deferred[str | None], *, own_group: bool) -> None:
        self._answer = answer
        self._own_group = own_group
        self._answered = False
        self._chunks: list[bytes] = []
        self._size = 0
        self._timer: IDelayedCall = clock.callLater(PROBE_DEADLINE, self._give_up)

    def outReceived(self, data: bytes) -> None:
        """Keep a bounded answer."""
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self._give_up()
        else:
            self._chunks.append(data)

    def processEnded(self, reason: Failure) -> None:
        """Give the answer of a program that succeeded."""
        cancel(self._timer)
        failed = reason.check(ProcessTerminated) is not None
        self._give(None if failed else b"".join(self._chunks).decode("utf-8", "replace").strip())

    def _give_up(self) -> None:
        """Kill it, and do not wait for what still holds its pipes."""
        cancel(self._timer)
        transport = self.transport
        if transport is not None:
            pid = transport.pid
            # Each by itself: a process that was only just started has no group of its own yet.
            if self._own_group and pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            with suppress(ProcessExitedAlready):
                transport.signalProcess("KILL")
            transport.loseConnection()
        self._give(None)

    def _give(self, answer: str | None) -> None:
        if not self._answered:
            self._answered = True
            self._answer.callback(answer)


def ask(
    reactor: IReactorTime, processes: IReactorProcess, arguments: Sequence[str], environ: Mapping[str, str]
) -> Deferred[str | None]:
    """Run a program and give what it printed, or None when it failed or took too long."""
    answer: Deferred[str | None] = Deferred()
    setsid = shutil.which("setsid")  # so that what a shim starts can be killed with it
    command = [*([] if setsid is None else [setsid]), *arguments]
    probe = _Probe(reactor, answer, own_group=setsid is not None)
    processes.spawnProcess(probe, command[0], command, dict(environ), path="/")
    return answer


async def detect(
    reactor: IReactorTime,
    processes: IReactorProcess,
    python: str,
    environ: Mapping[str, str],
    runtimes: Mapping[str, Runtime] = RUNTIMES,
    *,
    has_gpu: bool = False,
) -> Detection:
    """Find out what this host offers.

    :param python: the interpreter of kernels of ``python3``.
    :param environ: the agent's own environment: where to search, and what toolchain managers need.
    :param has_gpu: whether runtimes that want a GPU can have one.
    """

    async def question(arguments: Sequence[str]) -> str | None:
        return await ask(reactor, processes, arguments, environ)

    search = _Search(question, environ)
    wanted = sorted(
        {module for row in runtimes.values() for module in row.modules}
        | {module for row in runtimes.values() for one in row.applications for module in one.modules}
    )
    modules: frozenset[str] = frozenset()
    if wanted:
        modules = frozenset((await question([python, "-c", _ASK_MODULES, *wanted]) or "").split())
    names = list(runtimes)
    results = await gatherResults(
        [Deferred.fromCoroutine(_examine(search, runtimes[name], python, modules, has_gpu=has_gpu)) for name in names]
    )
    found = {name: result for name, result in zip(names, results, strict=True) if isinstance(result, DetectedRuntime)}
    missing = {name: result for name, result in zip(names, results, strict=True) if isinstance(result, str)}
    for name, why in missing.items():
        _log.debug("runtime {runtime} is not offered: {why}", runtime=name, why=why)
    _log.info("runtimes offered: {runtimes}", runtimes=", ".join(found))
    return Detection(found, missing)


async def _examine(
    search: _Search, row: Runtime, python: str, modules: frozenset[str], *, has_gpu: bool
) -> DetectedRuntime | str:
    """Give the runtime as it is here, or say why it is not."""
    try:
        for module in row.modules:
            if module not in modules:
                raise _Missing(f"{python} has no module {module}")
        if row.gpu and not has_gpu:
            raise _Missing("there is no GPU")
        if row.stack == "python3":
            places = [_Place(python, str(Path(python).parent.parent), not python.startswith(_SYSTEM))]
            read_only: tuple[str, ...] = ()  # the tier itself knows what its interpreter needs
        else:
            places = [await search.find(tool) for tool in row.tools]
            read_only = tuple(sorted({place.prefix for place in places if place.outside}))
    except _Missing as missing:
        return str(missing)
    environ = dict(row.environ)
    extra = dict.fromkeys(str(Path(place.path).parent) for place in places if place.outside)
    environ["PATH"] = ":".join([*extra, BASE_PATH])
    environ["SORNA_TOOL"] = places[0].path
    for tool, place in zip(row.tools, places, strict=False):
        if tool.home is not None:
            environ[tool.home] = place.prefix
    applications = [_offer(one, places[0].path, modules) for one in row.applications]
    return DetectedRuntime(row, environ, read_only, tuple(one for one in applications if one is not None))


def _offer(application: Application, own: str, modules: frozenset[str]) -> Offered | None:
    """Give an application as it is here, None where something that it needs is missing."""
    if not modules.issuperset(application.modules):
        return None
    path = own if application.tool is None else _of_the_system(application.tool)
    return None if path is None else Offered(application, {"SORNA_APP_TOOL": path})


def _of_the_system(tool: Tool) -> str | None:
    """Find a tool where every kernel sees it; one from elsewhere would have to be shown to kernels of every runtime."""
    for name in tool.names:
        for directory in BASE_PATH.split(":"):
            path = f"{directory}/{name}"
            if os.access(path, os.X_OK) and _real(path).startswith(_SYSTEM):
                return path
    return None


class _Search:
    """Looks for tools on one search path."""

    def __init__(self, question: Callable[[Sequence[str]], Awaitable[str | None]], environ: Mapping[str, str]) -> None:
        self._ask = question
        self._home = environ.get("HOME", "/nonexistent").rstrip("/")
        self._path = environ.get("PATH", BASE_PATH).split(":")

    async def find(self, tool: Tool) -> _Place:
        """Find a tool that works. :raises _Missing: there is none."""
        why = f"there is no {tool.names[0]}"
        for candidate in self._candidates(tool):
            real = _real(candidate)
            if real.startswith(_SYSTEM):
                # The name stays: a program may look at what it was called.
                return _Place(candidate if candidate.startswith(_SYSTEM) else real, _above_bin(real), outside=False)
            place = await self._outside(tool, candidate, real)
            if place is not None:
                return place
            why = f"{candidate} does not work or lies where kernels may not look"
        raise _Missing(why)

    def _candidates(self, tool: Tool) -> list[str]:
        directories = [directory for directory in self._path if directory.startswith("/")]
        for pattern in tool.search:
            directories.extend(sorted(glob.glob(pattern.replace("~", self._home, 1)), reverse=True))  # noqa: PTH207
        paths = [f"{directory}/{name}" for name in tool.names for directory in directories]
        return [path for path in dict.fromkeys(paths) if os.path.isfile(path) and os.access(path, os.X_OK)]  # noqa: PTH113

    async def _outside(self, tool: Tool, candidate: str, real: str) -> _Place | None:
        """Find where a tool outside the system's directories was installed; None when it cannot be used."""
        if tool.prefix:
            prefix = await self._ask([candidate, *tool.prefix])
            if not prefix:
                return None
            prefix = _real(prefix)
            path = f"{prefix}/bin/{Path(candidate).name}"
        else:
            prefix, path = _above_bin(real), real
        if not os.access(path, os.X_OK) or not self._may_be_shown(prefix):
            return None
        return _Place(path, prefix, outside=not f"{prefix}/".startswith(_SYSTEM))

    def _may_be_shown(self, prefix: str) -> bool:
        """Tell whether kernels may read a directory: an installation, but never a home or what is above one."""
        too_much = {self._home, f"{self._home}/.local", _real(self._home)}
        return (
            prefix.startswith("/")
            and prefix not in _SHARED_PLACES
            and not any(f"{place}/".startswith(f"{prefix}/") for place in too_much)
        )


def _real(path: str) -> str:
    return str(Path(path).resolve())


def _above_bin(real: str) -> str:
    """Give the directory a program was installed to: the one above its ``bin``, or else its own."""
    directory = Path(real).parent
    return str(directory.parent if directory.name == "bin" else directory)
