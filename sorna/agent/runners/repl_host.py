"""Init's side of the REPL process: starts it, hands it code, carries its questions, and notices its death.

Standard library only. Knows processes, links and the pump; what a run is, its owner knows. What the REPL process says is
not trusted: user code shares its memory. A message that makes no sense ends that process.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sorna.agent.runners import repl_link
from sorna.agent.runners.frames import EMIT as EMIT_FRAME
from sorna.agent.runners.frames import MAX_PAYLOAD
from sorna.agent.runners.poller import Link, Poller
from sorna.agent.runners.processes import Processes, reserve
from sorna.agent.runners.pump import Pump
from sorna.agent.runners.repl import run_repl

# Longest time for a completion; then the REPL is interrupted and the answer is an empty list.
_COMPLETION = 1.0
_LONGEST_NAME = 20


class ReplOwner(Protocol):
    """What the host tells; implemented by ``init.py``."""

    def repl_warm(self) -> None:
        """Take note that code can run."""
        ...

    def repl_done(
        self, exit_code: int, exceptions: list[Any], words: bytes, run: str | None, files: Sequence[str]
    ) -> None:
        """Take note that a run came to its end; its output is still to be drained, and ``words`` belong behind it.

        :param run: which one, with what files, when it came over a lane; else it is the current one.
        """
        ...

    def repl_asks(self, is_password: bool, run: str | None, unattended: bool) -> None:
        """Take note that a line of input is wanted; ``run`` says by which run of a lane, if it came over one."""
        ...

    def repl_withdraws(self) -> None:
        """Take note that nobody wants the line any more."""
        ...

    def repl_died(self, status: int) -> None:
        """Take note that the process is gone; the status is what ``waitpid`` gave."""
        ...


class ReplHost:
    """Owner of the REPL process."""

    def __init__(self, poller: Poller, pump: Pump, processes: Processes, owner: ReplOwner) -> None:
        self._poller = poller
        self._pump = pump
        self._processes = processes
        self._owner = owner
        self._links: list[Link] = []
        self._completions: dict[int, Callable[[list[str]], None]] = {}
        self._count = 0
        self._question = b""
        self._words = b""
        self.pid: int | None = None
        self.busy = False
        self.lane = 0

    def start(self, environ: Mapping[str, str]) -> None:
        """Fork a fresh REPL. :raises OSError: that was not possible."""
        pairs = []
        spares: list[int] = []
        try:
            for _number in range(3):
                ours, theirs = socket.socketpair()
                theirs_high = socket.socket(ours.family, ours.type, ours.proto, reserve(theirs.detach()))
                pairs.append((ours, theirs_high))
            stdout, stderr = self._pump.write_ends
            spares = [reserve(os.dup(fd)) for fd in (stdout, stderr)]
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            try:
                theirs_only = [pair[1] for pair in pairs]
                self.pid = self._processes.start(
                    lambda: run_repl(theirs_only, (spares[0], spares[1]), self._pump.flow),
                    (nothing, stdout, stderr),
                    [*(sock.fileno() for sock in theirs_only), *spares],
                    environ,
                    self._exited,
                )
            finally:
                os.close(nothing)
        except BaseException:
            for ours, _theirs in pairs:
                ours.close()
            raise
        finally:
            for _ours, theirs in pairs:
                theirs.close()
            for fd in spares:
                os.close(fd)
        self.busy = False
        self._words = b""
        takers = (self._control, self._order, self._typing)
        self._links = [
            Link(self._poller, ours, taker, lambda: None) for (ours, _theirs), taker in zip(pairs, takers, strict=True)
        ]

    def open_lane(self, number: int, descriptor: int) -> None:
        """Hand a lane to the REPL that runs; where there is none, the agent finds its end of it closed."""
        if not self._links:
            os.close(descriptor)
        elif self._links[0].hand(repl_link.LANE, descriptor):
            self.lane = number

    def add_environ(self, added: Mapping[str, str]) -> None:
        """Give more variables to a REPL that runs already."""
        if self._links:
            self._links[0].send(repl_link.ENVIRON, repl_link.to_json(added))

    def execute(self, code: str, unattended: bool = False) -> None:
        """Hand over a piece of code; of an unattended one an uncaught exception is recorded and not printed."""
        self._execute(repl_link.EXECUTE_UNATTENDED if unattended else repl_link.EXECUTE, code)

    def rehearse(self, code: str) -> None:
        """Hand over a piece of code of which no trace shall stay in the session."""
        self._execute(repl_link.REHEARSE, code)

    def _execute(self, kind: int, code: str) -> None:
        self.busy = True
        self._links[0].send(kind, code.encode("utf-8", "replace"))
        if self._links[0].closed and self.pid is not None:
            # The process lives but does not listen any more: user code replaced it.
            os.kill(self.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Do what Ctrl-C does: SIGINT to the process and to what it runs in the foreground."""
        if self.pid is not None:
            for target in (-self.pid, self.pid):
                try:
                    os.kill(target, signal.SIGINT)
                except ProcessLookupError:
                    continue
                return

    def answer(self, text: str) -> None:
        """Give the line that was asked for; empty text means that there will be none."""
        if self._links:
            self._links[2].send(repl_link.LINE, self._question + text.encode("utf-8", "replace"))

    def complete(self, code: str, options: Mapping[str, Any], reply: Callable[[list[str]], None]) -> None:
        """Ask for completions; a REPL that is busy has none."""
        if self.pid is None or self.busy or self._links[0].closed:
            reply([])
            return
        self._count += 1
        number = self._count
        self._completions[number] = reply
        question = {**options, "code": code, "request": number}
        self._links[0].send(repl_link.COMPLETE, repl_link.to_json(question))
        self._poller.later(_COMPLETION, lambda: self._give_up(number))

    def stop(self) -> None:
        """Forget the process; the caller kills it."""
        if self.pid is not None:
            self._processes.forget(self.pid)
            self.pid = None
        self._drop()

    def _drop(self) -> None:
        self.lane = 0
        links, self._links = self._links, []
        for link in links:
            link.close()
        waiting, self._completions = self._completions, {}
        for reply in waiting.values():
            reply([])

    def _exited(self, status: int) -> None:
        self.pid = None
        self._drop()
        self._owner.repl_died(status)

    def _give_up(self, number: int) -> None:
        reply = self._completions.pop(number, None)
        if reply is not None:
            reply([])
            self.interrupt()

    def _control(self, kind: int, payload: bytes) -> None:
        if kind == repl_link.WARM:
            self._owner.repl_warm()
            return
        if kind == repl_link.LAST_WORDS:
            self._words = payload[: repl_link.MOST_LAST_WORDS]
            return
        try:
            message = repl_link.from_json(payload)
            run = _run_of(message)
            if kind == repl_link.DONE and (self.busy or run is not None):
                exit_code, exceptions = int(message["exit_code"]), list(message["exceptions"])
                files = [str(name) for name in message.get("files", ())]
                self.busy = False
                words, self._words = self._words, b""
                self._owner.repl_done(exit_code, exceptions, words, run, files)
            elif kind == repl_link.COMPLETED:
                reply = self._completions.pop(message["request"], None)
                if reply is not None:
                    reply([str(word) for word in message["result"]])
        except (ValueError, KeyError, TypeError, AttributeError):
            self._broken()

    def _order(self, kind: int, payload: bytes) -> None:
        links = self._links
        link, number, content = links[1], payload[:8], payload[8:]

        def settled() -> None:
            link.listen(True)
            link.send(repl_link.SETTLED, number)

        if kind == repl_link.SYNC:
            self._pump.when_drained(settled)
        elif kind == repl_link.EMIT and len(content) <= MAX_PAYLOAD // 2 and _is_record(content):
            # One at a time, so that what waits for credit here is bounded.
            link.listen(False)
            self._pump.when_drained(settled, [(EMIT_FRAME, content)])
        else:
            self._broken()

    def _typing(self, kind: int, payload: bytes) -> None:
        number, content = payload[:8], payload[8:]
        if kind == repl_link.WITHDRAW:
            if number == self._question:
                self._owner.repl_withdraws()
            return
        try:
            question = json.loads(content) if kind == repl_link.ASK else {}
            is_password, run = bool(question["is_password"]), _run_of(question)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._broken()
            return
        self._question = number
        self._owner.repl_asks(is_password, run, question.get("unattended") is True)

    def _broken(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)


def _run_of(message: Mapping[str, Any]) -> str | None:
    """Give the run of a lane that a message is about. :raises ValueError: that is no run's name."""
    run = message.get("run")
    if run is not None and not (isinstance(run, str) and run.isdecimal() and len(run) < _LONGEST_NAME):
        raise ValueError(run)
    return run


def _is_record(content: bytes) -> bool:
    try:
        record = json.loads(content)
    except ValueError:
        return False
    return isinstance(record, list) and len(record) == 2 and record[0] in {"media", "html", "log"}
