"""One ``sorna run`` from the kernel's creation to its end, whatever happens between: errors, Ctrl-C, a closed pipe.

Knows the API client and the terminal, and neither flags nor signals: whoever catches a signal calls :meth:`RunOfCode.interrupt`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.client.api import LARGEST_FILE, ApiClient, Run
from sorna.client.terminal import Terminal
from sorna.client.wire import ApiError, BuildFinished

FAILED = 125  # exit code of this program's own failures; everything else is the run's
INTERRUPTED = 130
GRACE = 5.0  # seconds that an interrupted run has to end


@frozen
class RunOrder:
    """What is to be run and what becomes of the kernel.

    :ivar token: the session to use, made anew by the caller where the user named none.
    :ivar files: path below the working directory, and content.
    :ivar build: with files: the build command, ``*`` for the runtime's own; ``execute`` likewise.
    :ivar labels: that the kernel's agent must have; ``wait`` seconds that it may wait for one.
    :ivar keep: whether the kernel stays when the run is over.
    """

    runtime: str
    token: str
    keep: bool
    code: str = ""
    files: tuple[tuple[str, bytes], ...] = ()
    build: str = "*"
    execute: str = "*"
    environ: Mapping[str, str] = field(factory=dict)
    mounts: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    wait: float = 0.0


class FilesUnusable(Exception):
    """A file cannot be uploaded; the text says which and why."""


def read_files(paths: tuple[Path, ...], base: Path) -> tuple[tuple[str, bytes], ...]:
    """Read what is to be uploaded; each file's place is its path relative to ``base``.

    :raises FilesUnusable: a path is outside of ``base``, cannot be read, or is larger than the interface takes.
    """
    files = []
    base = base.resolve()
    for path in paths:
        try:
            place = path.resolve().relative_to(base)
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
        except ValueError:
            raise FilesUnusable(f"{path} is outside of {base}; name the folder that holds it with --basedir") from None
        except OSError as error:
            raise FilesUnusable(f"cannot read {path}: {error.strerror}") from error
        if len(content) > LARGEST_FILE:
            raise FilesUnusable(f"{path} is larger than {LARGEST_FILE:,} bytes, the most that can be uploaded")
        files.append((place.as_posix(), content))
    return tuple(files)


class RunOfCode:
    """One run, in a kernel that is destroyed afterwards unless it is to be kept."""

    def __init__(self, api: ApiClient, terminal: Terminal, order: RunOrder, clock: IReactorTime) -> None:
        self._api = api
        self._terminal = terminal
        self._order = order
        self._clock = clock
        self._kernel: str | None = None  # what to destroy: the id, or the token while no answer has told the id
        self._running = False
        self._interrupted = False
        self._work: Deferred[int] | None = None

    async def carry_out(self) -> int:
        """Do it all and give the exit code."""
        self._work = Deferred.fromCoroutine(self._run())
        try:
            code = await self._work
        except CancelledError:
            code = INTERRUPTED
        except ApiError as error:
            self._terminal.complain(str(error))
            code = FAILED
        finally:
            self._work = None
            await self._clean_up()
        return INTERRUPTED if self._interrupted else code

    def interrupt(self) -> None:
        """Interrupt the run in its kernel; the second time, or where nothing runs yet, give up at once."""
        work = self._work
        if work is None:
            return
        if not self._running or self._interrupted or self._kernel is None:
            self._interrupted = True
            work.cancel()
            return
        self._interrupted = True
        self._terminal.note("interrupting; once more gives up waiting")
        too_late = self._clock.callLater(GRACE, work.cancel)

        def ended(result: object) -> object:
            if too_late.active():
                too_late.cancel()
            return result

        work.addBoth(ended)
        # A run that waits for a line is interrupted by not getting it.
        if not self._terminal.give_up_input():
            self._detach(self._api.interrupt(self._kernel))

    async def _run(self) -> int:
        order = self._order
        self._kernel = order.token
        try:
            session = await self._api.create(
                order.runtime,
                order.token,
                environ=order.environ,
                mounts=order.mounts,
                labels=order.labels,
                wait=order.wait,
            )
        except ApiError as error:
            # A refusal made no kernel, and the token may name one that this run did not ask for; silence may have made one.
            if error.type != "timeout":
                self._kernel = None
            raise
        self._kernel = session.kernel_id
        self._terminal.note(f"kernel {session.kernel_id} {'is ready' if session.created else 'was there already'}")
        if order.files:
            await self._api.upload(session.kernel_id, order.files)
            self._terminal.note(f"uploaded {', '.join(path for path, _ in order.files)}")
            run = self._api.run_batch(session.kernel_id, order.build, order.execute, self._terminal.read_input)
        else:
            run = self._api.run(session.kernel_id, order.code, self._terminal.read_input)
        self._running = True
        return await self._show(run)

    async def _show(self, run: Run) -> int:
        async for item in run:
            if isinstance(item, BuildFinished):
                if item.exit_code:
                    self._terminal.note(f"the build ended with exit code {item.exit_code}")
            else:
                self._terminal.show(item)
        return shell_code(run.exit_code)

    async def _clean_up(self) -> None:
        """Destroy the kernel, or tell how to find it again.

        A kernel whose creation was cut off has no known id, but the server finds it by its token.
        """
        if self._kernel is None:
            return
        if self._order.keep:
            self._terminal.note(f"the kernel stays; -t {self._order.token} finds it again")
            return
        try:
            await self._api.destroy(self._kernel)
        except ApiError as error:
            if error.status != 404:
                self._terminal.complain(f"the kernel could not be destroyed: {error}")

    def _detach(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        """Do something beside the run; a failure is told and changes nothing else."""
        Deferred.fromCoroutine(work).addErrback(lambda failure: self._terminal.complain(failure.getErrorMessage()))


def shell_code(exit_code: int | None) -> int:
    """Give the exit code that a shell would report: 128 and the signal's number for a program that a signal ended."""
    if exit_code is None:
        return 0
    return 128 - exit_code if -128 < exit_code < 0 else exit_code & 0xFF
