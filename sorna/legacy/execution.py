"""One EXECUTE from its code to its result object: the run is followed to its end and its pieces are put together.

Knows the manager's calls and the result's shape, and no socket. Each execution is a run of its own, so that those of several
clients in one kernel queue up; nobody can type into it, so that what reads finds the end of its input.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.logger import Logger

from sorna.errors import KernelExecutionFailed, KernelNotFound, SornaError
from sorna.legacy.interfaces import Kernels
from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus, new_run_id

# Seconds until one call to the agent is answered although there is nothing new; the next one follows at once.
WAIT = 20.0
# Characters of text and media in a result; what is beyond is left out, and stderr says so.
MOST_RESULT = 8 * 1024 * 1024

_log = Logger()


class RunTimedOut(SornaError):
    """The run passed its time limit, and its kernel was destroyed."""


async def execute(kernels: Kernels, access_key: str, reference: str, code: str) -> dict[str, Any]:
    """Run code to its end and give the result object.

    :raises RunTimedOut: it took too long; the kernel is gone.
    :raises SornaError: what the manager raises.
    """
    run_id = new_run_id()
    result = _Result()
    request = RunRequest(RunMode.QUERY, code, run_id, wait=WAIT, unattended=True)
    while True:
        reply = await kernels.execute(access_key, reference, request)
        result.add(reply)
        if reply.status is RunStatus.FINISHED:
            break
        if reply.status is not RunStatus.CONTINUED:
            raise KernelExecutionFailed(f"The run cannot go on: it is {reply.status.value}.")
        request = RunRequest(RunMode.CONTINUE, "", run_id, wait=WAIT, unattended=True)
    if reply.timed_out:
        try:
            await kernels.destroy(access_key, reference, "execution-timeout")
        except KernelNotFound:
            pass  # it did not obey, and its agent has destroyed it already
        except SornaError as error:
            _log.warn("a kernel whose run took too long is not gone yet: {error}", error=error)
        raise RunTimedOut
    return result.finished(reply)


@define
class _Result:
    """What a run has said so far, within ``MOST_RESULT``."""

    texts: dict[str, list[str]] = field(factory=lambda: {"stdout": [], "stderr": []})
    media: list[list[Any]] = field(factory=list)
    room: int = MOST_RESULT
    is_cut: bool = False

    def add(self, reply: RunReply) -> None:
        for kind, content in reply.console:
            if kind in self.texts:
                self._add_text(self.texts[kind], content)
            elif kind == "media":
                self._add_media(list(content))
            elif kind == "html":
                self._add_media(["text/html", content])

    def _add_text(self, texts: list[str], content: str) -> None:
        kept = content[: self.room]
        texts.append(kept)
        self.room -= len(kept)
        self.is_cut = self.is_cut or len(kept) < len(content)

    def _add_media(self, media: list[Any]) -> None:
        size = sum(len(one) if isinstance(one, str) else len(repr(one)) for one in media)
        if size > self.room:
            self.is_cut = True
            return
        self.media.append(media)
        self.room -= size

    def finished(self, reply: RunReply) -> dict[str, Any]:
        stderr = "".join(self.texts["stderr"])
        if self.is_cut:
            stderr += f"\nThe output was cut: a result holds {MOST_RESULT // (1024 * 1024)} MiB.\n"
        return {
            "stdout": "".join(self.texts["stdout"]),
            "stderr": stderr,
            "media": self.media,
            "options": None,
            # The historic agents left the traceback out, and kept the place for it.
            "exceptions": [[one.name, list(one.args), one.before_exec, None] for one in reply.exceptions],
            "files": list(reply.files),
        }
