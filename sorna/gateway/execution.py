"""From the body of an execute request to a run, and from a piece of a run's output to the shapes clients know; pure.

Source: sections 2.6 and 3.5 of the REST interface's specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from sorna.gateway.parameters import Parameters
from sorna.model.run import RunMode, RunReply, RunRequest, new_run_id

STREAM_MODES = ("query", "batch")
#: Seconds of silence after which the agent is asked again.
STREAM_WAIT = 20.0
MODES = ("query", "batch", "continue", "input", "complete")
MAX_RUN_ID = 64
_MAX_COMMAND = 16 * 1024


def read_first_run(body: Parameters) -> RunRequest:
    """Read an execute request of the first version: code, and the answer waits for the end of the run."""
    body.text("codeId")
    return RunRequest(
        mode=RunMode.QUERY,
        code=body.required_text("code"),
        run_id=body.optional_text("runId", MAX_RUN_ID),
        wait=None,
    )


def read_mode(body: Parameters) -> str:
    """Read the mode of an execute request; ``complete`` is one that is no run."""
    mode = body.required_text("mode")
    if mode not in MODES:
        raise body.wrong("mode", "one of " + ", ".join(MODES))
    return mode


def read_run(body: Parameters) -> RunRequest:
    """Read an execute request of the later versions, whose mode is not ``complete``."""
    mode = RunMode(read_mode(body))
    options = read_options(body)
    return RunRequest(
        mode=mode,
        code=body.text("code"),
        run_id=body.optional_text("runId", MAX_RUN_ID),
        clean=_clean(options),
        build=options.optional_text("build", _MAX_COMMAND),
        exec=options.optional_text("exec", _MAX_COMMAND),
        build_log=options.flag("buildLog"),
    )


def _clean(options: Parameters) -> str | None:
    # Clients from 18.12 on ask for the default unasked, and a fresh working directory needs none.
    command = options.optional_text("clean", _MAX_COMMAND)
    return None if command == "*" else command


def read_streamed_run(body: Parameters) -> RunRequest:
    """Read what a client sends first over a WebSocket: a query or a batch, whose output is wanted as it comes."""
    mode = body.text("mode", "query")
    if mode not in STREAM_MODES:
        raise body.wrong("mode", "one of " + ", ".join(STREAM_MODES))
    return evolve(
        read_run(Parameters({**body.content, "mode": mode, "runId": new_run_id()})), wait=STREAM_WAIT, eager=True
    )


def read_options(body: Parameters) -> Parameters:
    """Read the options, which the JavaScript and Java clients call ``opts``."""
    return body.inner("opts" if body.content.get("options") is None else "options")


def read_completion(body: Parameters) -> tuple[str, dict[str, Any]]:
    """Read a wish for completions: the code and the position in it."""
    options = read_options(body)
    position = {key: options.whole_number(key) for key in ("row", "col")}
    around = {key: options.text(key) for key in ("line", "post")}
    return body.text("code"), {**{key: value for key, value in position.items() if value is not None}, **around}


def first_result(reply: RunReply) -> dict[str, Any]:
    """Give the result in the shape of the first version: one text per stream."""
    return {
        "status": reply.status.value,
        "stdout": _joined(reply, "stdout"),
        "stderr": _joined(reply, "stderr"),
        "media": [content for kind, content in reply.console if kind == "media"],
        "html": [content for kind, content in reply.console if kind == "html"],
        "options": dict(reply.options or {}),
        # Editors would show an exception twice: its traceback is in stderr.
        "exceptions": [],
        "files": list(reply.files),
    }


def result(reply: RunReply) -> dict[str, Any]:
    """Give the result in the shape that every later client finds its fields in."""
    return {
        "status": reply.status.value,
        "runId": reply.run_id,
        "exitCode": reply.exit_code,
        "console": [[kind, content] for kind, content in reply.console],
        # An object even where the documents say null: some clients index it without looking.
        "options": dict(reply.options or {}),
        # Later clients expect objects with a URL to fetch from, which needs a file door that is not there yet.
        "files": [],
        "completions": [],
    }


def completion_result(run_id: str, completions: Sequence[str]) -> dict[str, Any]:
    """Give completions in the shape of an execute request's result."""
    return {
        "status": "finished",
        "runId": run_id,
        "exitCode": None,
        "console": [],
        "options": {},
        "files": [],
        "completions": list(completions),
    }


def _joined(reply: RunReply, stream: str) -> str:
    return "".join(content for kind, content in reply.console if kind == stream)
