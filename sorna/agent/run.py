"""One run of a kernel: where it stands, what it printed and what one call can be told about it.

Knows no queue, no timer and no channel: :mod:`sorna.agent.runs` moves it from state to state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from attrs import define, field, frozen

from sorna.agent.output_log import OutputLog, Record
from sorna.agent.runners.frames import EMIT, STDERR, STDOUT, FrameError
from sorna.cluster.messages import pack_value, unpack_run_request
from sorna.model.run import RunException, RunMode, RunReply, RunRequest, RunStatus

MAX_FILES = 1000
MAX_EXCEPTIONS = 32
_PLAIN_FIELDS = (
    "id", "wire_id", "is_password", "build_mark", "build_exit_code", "build_told", "delivered", "typed", "typed_ahead",
    "inputs",
)  # fmt: skip
_TEXT_STREAMS: Mapping[int, str] = {STDOUT: "stdout", STDERR: "stderr"}


class RunState(Enum):
    """Where a run stands in the agent."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    FINISHED = "finished"


@frozen
class Ending:
    """How a run ended, as its FINISHED frame or a limit tells.

    :ivar signal: the signal that ended the process, where one did.
    :ivar reset: whether the in-memory state was lost.
    :ivar timed_out: whether it was ended because it passed its time limit.
    """

    exit_code: int | None
    exceptions: Sequence[RunException] = ()
    files: Sequence[str] = ()
    signal: int | None = None
    reset: bool = False
    timed_out: bool = False


@frozen
class Before:
    """How a run stood before its last answer; see :class:`Run` for the fields, ``cursor`` is that of its log."""

    cursor: int
    told: RunStatus | None
    build_told: bool
    delivered: bool


@define(eq=False)
class Run:
    """One run. ``wire_id`` names it on the channel: clients may use an id twice, the channel never does.

    :ivar told: the status that the last answer gave, None when nothing was said since the client last spoke to it.
    :ivar build_mark: where in the log the build's output ends, once it has.
    :ivar typed: lines that were typed before the run started.
    :ivar typed_ahead: how many bytes were typed since the run last waited for input.
    :ivar inputs: how many lines were sent to the run.
    :ivar cost: what its log cost when that was counted last; reading makes it less.
    :ivar before: how it stood before its last answer.
    """

    id: str
    wire_id: str
    request: RunRequest
    state: RunState = RunState.QUEUED
    log: OutputLog = field(factory=OutputLog)
    told: RunStatus | None = None
    is_password: bool = False
    build_mark: int | None = None
    build_exit_code: int | None = None
    build_told: bool = False
    ending: Ending | None = None
    delivered: bool = False
    typed: list[str] = field(factory=list)
    typed_ahead: int = 0
    inputs: int = 0
    finished_at: float = 0.0
    cost: int = 0
    before: Before | None = None

    @property
    def for_repl(self) -> bool:
        """Whether nothing but code has to be told of it, and some of that."""
        return self.request.mode is RunMode.QUERY and bool(self.request.code.strip())

    def frame(self) -> Mapping[str, Any]:
        """Give what a RUN frame says of it."""
        request = self.request
        values = {
            "run": self.wire_id, "mode": request.mode.value, "code": request.code, "clean": request.clean,
            "build": request.build, "exec": request.exec, "build_log": request.build_log, "unattended": request.unattended,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value}

    def finish(self, ending: Ending) -> None:
        """Let it be over."""
        self.state = RunState.FINISHED
        self.ending = ending
        self.typed.clear()

    def note_build(self, exit_code: int | None) -> None:
        """Remember where the build ended; only the first build of a run is told of."""
        if self.build_mark is None:
            self.build_mark = self.log.seal()
            self.build_exit_code = exit_code

    def carry(self, now: float) -> Mapping[str, Any]:
        """Give everything as plain values; :meth:`carried` makes a run of them."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return {
            **plain,
            "request": pack_value(self.request),
            "state": self.state.value,
            "told": None if self.told is None else self.told.value,
            "ending": None if self.ending is None else pack_value(self.ending),
            "log": self.log.carry(),
            "age": now - self.finished_at,
        }

    @classmethod
    def carried(cls, state: Mapping[str, Any], now: float) -> Run:
        """Make a run of what :meth:`carry` gave."""
        ending = state["ending"]
        if ending is not None:
            exceptions = tuple(RunException(**one) for one in ending["exceptions"])
            ending = Ending(**{**ending, "exceptions": exceptions, "files": tuple(ending["files"])})
        return cls(
            **{name: state[name] for name in _PLAIN_FIELDS},
            request=unpack_run_request(state["request"]),
            state=RunState(state["state"]),
            told=None if state["told"] is None else RunStatus(state["told"]),
            ending=ending,
            log=OutputLog.carried(state["log"]),
            finished_at=now - state["age"],
        )

    @property
    def _build_to_tell(self) -> bool:
        return self.build_mark is not None and not self.build_told

    def answerable(self, most: int) -> bool:
        """Tell whether a call that takes up to ``most`` bytes has to be answered now."""
        # By identity: to look an enumeration's member up in a set takes longer than all of the rest.
        over_or_waiting = self.state is RunState.FINISHED or self.state is RunState.WAITING
        return over_or_waiting or self._build_to_tell or self.log.pressure >= most

    def reply(self, most: int) -> RunReply:
        """Take up to ``most`` bytes of output and say how things stand; this moves the log on."""
        self.before = Before(self.log.cursor, self.told, self.build_told, self.delivered)
        build = self._build_to_tell
        piece = self.log.take(most, before=self.build_mark if build else None)
        status, options, exit_code = RunStatus.CONTINUED, None, None
        ending = Ending(None)
        if build:
            if piece.next_seq == self.build_mark:
                status, exit_code = RunStatus.BUILD_FINISHED, self.build_exit_code
                self.build_told = True
        elif self.log.unread:
            pass
        elif self.ending is not None:
            status, options, ending = RunStatus.FINISHED, {}, self.ending
            exit_code = ending.exit_code
            self.delivered = True
        elif self.state is RunState.WAITING:
            status, options = RunStatus.WAITING_INPUT, {"is_password": self.is_password}
        self.told = status
        return RunReply(
            run_id=self.id,
            status=status,
            console=console_of(piece.records),
            options=options,
            exit_code=exit_code,
            files=tuple(ending.files),
            exceptions=tuple(ending.exceptions),
            first_seq=piece.first_seq,
            next_seq=piece.next_seq,
            timed_out=ending.timed_out,
        )

    def take_back(self, before: Before) -> None:
        """Stand as before an answer that did not arrive."""
        self.log.give_back(before.cursor)
        self.told, self.build_told, self.delivered = before.told, before.build_told, before.delivered

    def read(self, seq: int, most: int) -> RunReply:
        """Give up to ``most`` bytes of output from a number on and say how things stand; nothing moves on."""
        piece = self.log.read_from(seq, most)
        status, options, exit_code = RunStatus.CONTINUED, None, None
        if piece.next_seq >= self.log.next_seq:
            if self.ending is not None:
                status, options, exit_code = RunStatus.FINISHED, {}, self.ending.exit_code
                self.delivered = True
            elif self.state is RunState.WAITING:
                status, options = RunStatus.WAITING_INPUT, {"is_password": self.is_password}
        return RunReply(
            run_id=self.id,
            status=status,
            console=console_of(piece.records),
            options=options,
            exit_code=exit_code,
            first_seq=piece.first_seq,
            next_seq=piece.next_seq,
            missing=piece.missing,
        )


def console_of(records: Iterable[Record]) -> tuple[tuple[str, Any], ...]:
    """Turn records into what an answer carries: neighbours of one text stream become one item, bytes become text."""
    console: list[tuple[str, Any]] = []
    kind = EMIT
    pending: list[bytes] = []

    def flush() -> None:
        if pending:
            console.append((_TEXT_STREAMS[kind], b"".join(pending).decode("utf-8", "replace")))
            pending.clear()

    for record in records:
        if record.kind != kind:
            flush()
            kind = record.kind
        if kind == EMIT:
            console.append(parse_emit(record.content))
        else:
            pending.append(record.content)
    flush()
    return tuple(console)


def parse_emit(payload: bytes) -> tuple[str, Any]:
    """Read an EMIT record.

    :raises FrameError: it is neither media, nor html, nor log.
    """
    match read_json(payload):
        case ["media", [str(mime), content]]:
            return "media", [mime, content]
        case ["html", str(text)]:
            return "html", text
        case ["log", [str(level), str(time), str(logger), str(text)]]:
            return "log", [level, time, logger, text]
        case _:
            raise FrameError("an EMIT record of an unknown shape")


def read_json(payload: bytes) -> Any:
    """Read JSON from the other side of the wall.

    :raises FrameError: it is not JSON.
    """
    try:
        text = payload.decode("utf-8")
        value = _JSON.decode(text)
        # A lone surrogate can only be written as an escape.
        return _portable(value) if "\\u" in text else value
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {type(error).__name__}") from error


def _whole_number(digits: str) -> int | str:
    """Read a number; the link to the managers carries none beyond 64 bits."""
    value = int(digits)
    return value if -(1 << 63) <= value < 1 << 63 else digits if abs(value) < 1 << 1024 else "..."


_JSON = json.JSONDecoder(parse_constant=str, parse_int=_whole_number)


def _portable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can carry and the link to the managers cannot."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
        case list():
            return [_portable(one) for one in value]
        case dict():
            return {_portable(name): _portable(one) for name, one in value.items()}
        case _:
            return value


def read_object(payload: bytes) -> Mapping[str, Any]:
    """Read a JSON object. :raises FrameError: it is something else."""
    value = read_json(payload)
    if not isinstance(value, dict):
        raise FrameError("not a JSON object")
    return value


def read_ending(frame: Mapping[str, Any]) -> Ending:
    """Read what a FINISHED frame says; more files or exceptions than anyone reads are left out.

    :raises FrameError: something is of the wrong type.
    """
    try:
        exceptions = tuple(_read_exception(raw) for raw in frame["exceptions"][:MAX_EXCEPTIONS])
        files = tuple(str(name) for name in frame["files"][:MAX_FILES])
        signal = frame.get("signal")
        return Ending(
            exit_code=_optional_int(frame["exit_code"]),
            exceptions=exceptions,
            files=files,
            signal=_optional_int(signal),
            reset=bool(frame["reset"]),
        )
    except (KeyError, TypeError) as error:
        raise FrameError(f"a FINISHED frame without its fields: {error!r}") from error


def _read_exception(raw: Mapping[str, Any]) -> RunException:
    traceback = raw["traceback"]
    return RunException(
        name=str(raw["name"]),
        args=list(raw["args"]),
        before_exec=bool(raw["before_exec"]),
        traceback=None if traceback is None else str(traceback),
    )


def _optional_int(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -256 < value < 256 else value & 0xFF
    raise TypeError("not an integer")
