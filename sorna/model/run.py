"""One execution of code in a kernel, and the piece of its output that one answer carries."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from attrs import field, frozen


class RunMode(StrEnum):
    """What the client means with a call to execute."""

    QUERY = "query"
    BATCH = "batch"
    CONTINUE = "continue"
    INPUT = "input"


class RunStatus(StrEnum):
    """Why an answer was given now; clients of 2016 know exactly these."""

    FINISHED = "finished"
    CONTINUED = "continued"
    WAITING_INPUT = "waiting-input"
    BUILD_FINISHED = "build-finished"


@frozen
class RunRequest:
    """One call to execute.

    :ivar run_id: the client's id of the run; None when it sent none.
    :ivar code: the code, or the typed line when the run waits for input.
    :ivar clean: batch: a command to run before the build, None to skip.
    :ivar build: batch: the build command, ``*`` for the runtime's default, None to skip.
    :ivar exec: batch: the command to run, likewise.
    :ivar build_log: batch: whether the client wants the build's output although it succeeded.
    :ivar wait: seconds after which to answer ``continued``; None waits for the end.
    :ivar unattended: nobody can type, so that reading input finds its end; and an uncaught exception is wanted as a record
        only, not as a traceback on stderr.
    :ivar eager: answer as soon as there is any output.
    """

    mode: RunMode
    code: str = ""
    run_id: str | None = None
    build: str | None = None
    exec: str | None = None
    build_log: bool = False
    wait: float | None = 2.0
    unattended: bool = False
    eager: bool = False
    clean: str | None = None


@frozen
class RunException:
    """An uncaught exception of user code, as clients of the first interface want it.

    :ivar before_exec: whether the code did not even start (a syntax error).
    """

    name: str
    args: Sequence[Any]
    before_exec: bool
    traceback: str | None = None


@frozen
class RunReply:
    """What one call to execute gives back.

    :ivar console: ``(type, data)`` in order; type is stdout, stderr, media, html or log; data is text, and ``[mime,
        data]`` for media. Neighbouring pieces of the same text stream are merged.
    :ivar options: for waiting-input ``{"is_password": bool}``; for finished ``{}``; else None.
    :ivar exit_code: the process's exit status once known; None while the run goes on.
    :ivar timed_out: whether the run was ended because it passed its time limit.
    :ivar first_seq: number of the first record of this piece, and ``next_seq`` the one to ask for next.
    :ivar missing: how many bytes before ``first_seq`` were asked for and are not kept any more.
    """

    run_id: str
    status: RunStatus
    console: Sequence[tuple[str, Any]] = ()
    options: Mapping[str, Any] | None = None
    exit_code: int | None = None
    files: Sequence[str] = ()
    exceptions: Sequence[RunException] = field(factory=tuple)
    first_seq: int = 0
    next_seq: int = 0
    timed_out: bool = False
    missing: int = 0


@frozen
class OutputRequest:
    """A call to read the output of a run from a number on, again if need be.

    :ivar seq: the number; what lies before it needs not be kept from ``acknowledged`` backwards.
    :ivar wait: seconds to wait for something new.
    :ivar known: the status that the caller was told last; that alone is nothing new.
    """

    run_id: str
    seq: int
    acknowledged: int
    wait: float = 0.0
    known: str | None = None


def new_run_id() -> str:
    """Draw a run id: 16 hexadecimal digits, as the historic server gave them."""
    return secrets.token_hex(8)
