"""The first process of a kernel: takes frames from the agent, runs code, and sends back what it prints.

Standard library only, single-threaded, and never polluted by user code: everything of the user's runs in a child. It is
PID 1 of the kernel where there is a PID namespace, and works as an ordinary process where there is none. It never blocks
on a pipe or a child; when the agent closes the channel, everything is killed and it exits. The frames are described in
``frames.py``.

Known bounds: reads of standard input through a copy of descriptor 0, and ``select`` or ``poll`` on it, are not noticed
(see ``stdin_notify.py``); then the program gets what is typed without anybody having been asked.

Note [Rehearsal]
~~~~~~~~~~~~~~~~
Memory that is shared with the zygote is copied when it is first touched, which happens a thousand times until a first piece of
code has come through this process, the REPL and back: some milliseconds. So before the agent is told that the kernel is ready, one
is sent all the way, except that what it prints goes nowhere.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from sorna.agent.runners import frames
from sorna.agent.runners.commands import Commands, base_environ, exit_code_of
from sorna.agent.runners.files import Files
from sorna.agent.runners.init_run import Run, outcome
from sorna.agent.runners.language import Language, language_from_json
from sorna.agent.runners.output_files import fingerprints
from sorna.agent.runners.poller import Link, Poller
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.pump import Nobody, Pump, Sender
from sorna.agent.runners.repl import our_modules
from sorna.agent.runners.repl_host import ReplHost
from sorna.agent.runners.repl_link import from_json, to_json
from sorna.agent.runners.services import Services
from sorna.agent.runners.terminal import Terminal


class Init:
    """The state of a kernel. See the module's text."""

    def __init__(self, channel: socket.socket, processes: Processes | None = None) -> None:
        self._work = os.getcwd()  # noqa: PTH109 - as text, for environments
        self._poller = Poller()
        self._processes = processes or Processes()
        self._poller.add(self._processes.wakeup, lambda _events: self._processes.reap())
        self._pump = Pump(self._poller)
        self._terminal = Terminal(self._poller, self._processes)
        self._services = Services(self._poller, self._processes)
        self._files = Files()
        self._repl = ReplHost(self._poller, self._pump, self._processes, self)
        self._language: Language | None = None
        self._environ: dict[str, str] = {}
        self._run: Run | None = None
        self._last = 0
        self._ready = False
        self._over = False
        self._end_rehearsal: Callable[[], None] | None = None
        self._rehearsed = False
        self._link = Link(self._poller, channel, self._frame, self._channel_closed, self._link_idle, descriptors=True)
        self._speaker: Sender = self._link
        self._pump.attach(self._link)
        self._terminal.attach(self._link)
        self._services.attach(self._link)
        self._files.attach(self._link)
        self._raw_takers = {
            frames.TERMINAL_INPUT: self._terminal.type,
            frames.UPLOAD: self._files.upload,
            frames.OVER: self._end_run_of_lane,
            frames.SERVICE_INPUT: self._services.input,
            frames.SERVICE_CREDIT: self._services.add_credit,
            frames.SERVICE_FINISH: self._services.finish,
            frames.SERVICE_CLOSE: self._services.close,
        }
        self._takers: dict[int, Callable[[dict[str, Any]], None]] = {
            frames.CONFIGURE: self._configure,
            frames.ASSIGN: self._assign,
            frames.LANE: self._open_lane,
            frames.UNDER_WAY: self._take_charge,
            frames.RUN: self._start_run,
            frames.INPUT: self._input,
            frames.INTERRUPT: self._interrupt,
            frames.COMPLETE: self._complete,
            frames.RESTART: self._restart,
            frames.KILL_RUN: self._kill_run,
            frames.LIST: self._files.list,
            frames.READ: self._files.read,
            frames.TERMINAL_OPEN: self._open_terminal,
            frames.TERMINAL_RESIZE: lambda size: self._terminal.resize(size["rows"], size["columns"]),
            frames.TERMINAL_STOP: lambda _message: self._terminal.stop(),
            frames.SERVICE_OPEN: lambda message: self._services.open(message, self._environ),
            frames.SERVICE_STOP: self._services.stop,
            frames.SERVICE_LIST: self._services.list,
        }

    def serve(self) -> None:
        """Work until the agent closes the channel."""
        while not self._over:
            self.turn()

    def turn(self, longest: float = -1.0) -> None:
        """Wait for something to do, at the longest so many seconds if that is not negative, and do it."""
        self._poller.once(longest)

    def end(self) -> None:
        """Kill everything that is left."""
        self._repl.stop()
        self._processes.kill()

    def _channel_closed(self) -> None:
        self._over = True

    def _link_idle(self) -> None:
        self._pump.resume()
        self._terminal.resume()
        self._services.resume()

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.CREDIT:
            self._pump.add_credit(int.from_bytes(payload[:4], "big"))
        elif kind == frames.TERMINAL_CREDIT:
            self._terminal.add_credit(int.from_bytes(payload[:4], "big"))
        elif kind in self._raw_takers:
            self._raw_takers[kind](payload)
        elif kind in self._takers:
            self._takers[kind](from_json(payload))

    def _send(self, kind: int, message: dict[str, Any]) -> None:
        self._speaker.send(kind, to_json(message))

    def _reply(self, request: Any, result: Any) -> None:
        self._send(frames.REPLY, {"request": request, "error": None, "result": result})

    # What the agent asks for

    def _configure(self, message: dict[str, Any]) -> None:
        self._language = language_from_json(message["runtime"])
        configured = {str(name): str(value) for name, value in message["environ"].items()}
        self._environ = {**base_environ(self._work, self._language.repl), **configured}
        self._pump.add_credit(int(message["credit"]))
        if not self._language.repl or not self._start_repl():
            self.repl_warm()

    def _assign(self, message: dict[str, Any]) -> None:
        added = {str(name): str(value) for name, value in message["environ"].items()}
        self._environ.update(added)
        if not message.get("lane") or message["lane"] != self._repl.lane:
            self._repl.add_environ(added)

    # Runs that the REPL was given over a lane; see ``frames.py``

    def _open_lane(self, message: dict[str, Any]) -> None:
        if self._link.descriptors:
            self._repl.open_lane(int(message["lane"]), self._link.descriptors.pop(0))

    def _take_charge(self, message: dict[str, Any]) -> None:
        """Know of a run from now on."""
        if message["lane"] == self._repl.lane and self._adopt(message):
            self._repl.busy = True

    def _adopt(self, message: dict[str, Any]) -> bool:
        """Let a run be the current one, unless there is one, or a later one is over: what speaks of this was overtaken."""
        identity = str(message["run"])
        if self._run is not None or int(identity) <= self._last:
            return False
        self._run = Run(identity, {}, message.get("unattended") is True)
        if "since" in message:
            self._run.began(self._work, float(message["since"]))
        return True

    def _end_run_of_lane(self, payload: bytes) -> None:
        header, _nul, words = payload.partition(b"\0")
        message = from_json(header)
        self._adopt(message)
        if self._run is not None and self._run.identity == message["run"] and not self._run.ending:
            signal_number = message.get("signal")
            self._repl.busy = False
            self._run.found = message["files"]
            self._finish(message["exit_code"], message["exceptions"], signal_number, message["reset"], words)

    def _start_repl(self) -> bool:
        """Start a REPL where the language has one and none is there; False when that is not possible."""
        if self._language is None or not self._language.repl or self._repl.pid is not None:
            return True
        try:
            self._repl.start(self._environ)
        except OSError:
            # Tried again with the next run.
            return False
        return True

    def _start_run(self, message: dict[str, Any]) -> None:
        run = Run(str(message["run"]), fingerprints(self._work), bool(message.get("unattended")))
        if self._run is not None or self._language is None:
            # The agent queues; this one it did not.
            self._send(frames.FINISHED, outcome(run.identity, 1))
            return
        self._run = run
        self._pump.restore()
        code, batch = str(message.get("code") or ""), message.get("mode") == "batch"
        if self._language.repl and not batch:
            self._run_in_repl(code, run.unattended)
            return
        run.commands = Commands(
            self._poller, self._pump, self._processes, self, self._environ, can_type=not run.unattended
        )
        try:
            if batch:
                build_log = bool(message.get("build_log"))
                steps = (message.get("clean"), message.get("build"), message.get("exec"))
                run.commands.batch(self._language, *steps, build_log=build_log)
            elif code.strip():
                run.commands.query(self._language, code)
            else:
                self.command_done(0, None)
        except OSError as error:
            run.commands.fail(error)

    def _run_in_repl(self, code: str, unattended: bool) -> None:
        if not code.strip():
            self._finish(0, [])
        elif self._start_repl() and self._end_rehearsal is not None:
            self._repl.rehearse(code)
        elif self._repl.pid is not None:
            self._repl.execute(code, unattended)
        else:
            text = b"The Python process cannot be started: too many processes or too little memory.\n"
            self._pump.when_drained(lambda: None, [(frames.STDERR, text)])
            self._finish(1, [], reset=True)

    def _input(self, message: dict[str, Any]) -> None:
        run = self._run
        if run is None or run.identity != message["run"] or run.ending:
            return
        run.inputs += 1
        text = str(message["text"])
        if run.commands is not None:
            run.wants_line = False
            if run.commands.type(text):
                self.command_waits()
        elif run.wants_line:
            run.wants_line = False
            self._repl.answer(text + "\n")
        elif not run.keep(text):
            self._pump.last_words(frames.STDERR, b"Typed input was dropped: nothing reads it.\n")

    def _interrupt(self, _message: dict[str, Any]) -> None:
        run = self._run
        if run is None or run.ending:
            return
        if run.commands is not None:
            run.commands.interrupt()
        else:
            self._repl.interrupt()

    def _complete(self, message: dict[str, Any]) -> None:
        reply = partial(self._reply, message["request"])
        if self._run is not None:
            reply([])
        else:
            self._repl.complete(str(message.get("code") or ""), message, reply)

    def _open_terminal(self, size: dict[str, Any]) -> None:
        self._terminal.open(size["rows"], size["columns"], self._environ)

    def _restart(self, message: dict[str, Any]) -> None:
        self._terminal.stop()
        self._end_everything(self._terminal.pids)
        if self._run is not None:
            self._end_run(137, [], signal_number=int(signal.SIGKILL), reset=True)
        self._start_repl()
        self._reply(message["request"], None)

    def _kill_run(self, message: dict[str, Any]) -> None:
        run = self._run
        if run is None or run.identity != message["run"]:
            return
        idle = self._repl.pid if run.commands is not None else None
        if idle is None:
            self._end_everything(self._beside)
        else:
            self._abandon(run)
            if not self._processes.kill(spare={idle, *self._beside}):
                self._repl.stop()
            self._processes.reap()
            self._pump.discard()
        text = str(message.get("message") or "")
        if text and not text.endswith("\n"):
            text += "\n"
        self._pump.last_words(frames.STDERR, text.encode("utf-8", "replace"))
        self._end_run(137, [], signal_number=int(signal.SIGKILL), reset=True)
        self._start_repl()

    @property
    def _beside(self) -> set[int]:
        """What has nothing to do with a run: the terminal's shell, and applications."""
        return self._terminal.pids | self._services.pids

    def _end_everything(self, spare: set[int]) -> None:
        """End the REPL and the run with all that they started, and everything else but what is spared."""
        self._repl.stop()
        if self._run is not None:
            self._abandon(self._run)
        self._processes.kill(spare=spare)
        self._processes.reap()
        self._pump.discard()

    def _abandon(self, run: Run) -> None:
        run.ending = True
        if run.commands is not None:
            run.commands.abandon()

    # What the REPL and the commands tell

    def repl_warm(self) -> None:
        """See ``ReplOwner``; only the first REPL is waited for, and after its rehearsal."""
        if self._repl.pid is not None and not self._rehearsed:
            self._rehearse()
        elif not self._ready:
            self._ready = True
            self._send(frames.READY, {"pid": os.getpid()})

    def _rehearse(self) -> None:
        """Run a piece of code that nobody sent; see Note [Rehearsal]."""
        self._rehearsed = True
        nobody = Nobody()
        undo = self._pump.divert(nobody)

        def end() -> None:
            undo()
            self._speaker = self._link

        self._end_rehearsal, self._speaker = end, nobody
        self._frame(frames.ASSIGN, to_json({"environ": {}}))
        self._frame(frames.RUN, to_json({"run": "0", "mode": "query", "code": "0"}))

    def repl_done(
        self, exit_code: int, exceptions: list[Any], words: bytes, run: str | None, files: Sequence[str]
    ) -> None:
        """See ``ReplOwner``."""
        if run is not None:
            self._adopt({"run": run})
            if self._run is None or self._run.identity != run or self._run.commands is not None or self._run.ending:
                return
            self._run.found = files
        if self._run is not None:
            self._link.gather()
            try:
                self._finish(exit_code, exceptions, words=words)
            finally:
                self._link.let_go()

    def repl_asks(self, is_password: bool, of_lane: str | None, unattended: bool) -> None:
        """See ``ReplOwner``; between two runs and in an unattended one there is nobody to type."""
        if of_lane is not None and self._adopt({"run": of_lane, "unattended": unattended}):
            self._repl.busy = True
        run = self._run
        if run is None or run.commands is not None or run.ending or run.unattended:
            self._repl.answer("")
            return
        if run.typed:
            self._repl.answer(run.typed.popleft() + "\n")
            return
        self._ask(run, is_password)

    def repl_withdraws(self) -> None:
        """See ``ReplOwner``: what is typed from now on is kept for the next question."""
        run = self._run
        if run is not None and run.commands is None:
            run.wants_line = False

    def repl_died(self, status: int) -> None:
        """See ``ReplOwner``: end what it left behind, tell, and start afresh."""
        run = self._run
        during_run = run is not None and run.commands is None and not run.ending
        exit_code, signal_number = exit_code_of(status)
        if signal_number is None:
            what = f"The Python process ended with exit code {exit_code}"
        else:
            what = f"The Python process was ended by signal {signal_number} ({signal.strsignal(signal_number)})"
        if not during_run:
            if run is None:
                self._processes.kill(spare=self._beside)
                end = {"reason": what, "exit_code": exit_code, "signal": signal_number}
                # The agent may know of a run, whose output comes first.
                self._pump.when_drained(lambda: self._send(frames.RESTARTED, end))
            self._start_repl()
            return
        self._processes.kill(spare=self._beside)
        text = f"{what}; its state is lost.\n".encode()
        self._pump.when_drained(lambda: None, [(frames.STDERR, text)])
        self._finish(exit_code, [], signal_number=signal_number, reset=True)
        self._start_repl()

    def command_waits(self) -> None:
        """See ``CommandOwner``."""
        run = self._run
        if run is not None and not run.ending and not run.wants_line:
            self._ask(run, is_password=False)

    def build_finished(self, exit_code: int) -> None:
        """See ``CommandOwner``."""
        run = self._run
        if run is not None:
            message = {"run": run.identity, "exit_code": exit_code}
            self._pump.when_drained(lambda: self._send(frames.BUILD_FINISHED, message))

    def command_done(self, exit_code: int, signal_number: int | None) -> None:
        """See ``CommandOwner``."""
        if self._run is not None:
            self._finish(exit_code, [], signal_number=signal_number)

    def _ask(self, run: Run, is_password: bool) -> None:
        """Tell the agent that a line is wanted, after the prompt that was printed before."""
        run.wants_line = True
        run.asked += 1
        number = run.asked

        def tell() -> None:
            if self._run is run and run.wants_line and run.asked == number and not run.ending:
                message = {"run": run.identity, "is_password": is_password, "inputs": run.inputs}
                self._send(frames.WAITING_INPUT, message)

        self._pump.when_drained(tell)

    # How a run ends

    def _finish(
        self,
        exit_code: int,
        exceptions: list[Any],
        signal_number: int | None = None,
        reset: bool = False,
        words: bytes = b"",
    ) -> None:
        """End the current run as soon as its output and its last words are out."""
        run = self._run
        if run is None:
            return
        run.ending = True
        if run.wants_line and run.commands is None and self._repl.pid is not None:
            # A thread of the session still asks, and the run that could have answered is over.
            self._repl.answer("")
        behind = ((frames.STDOUT, words),) if words else ()
        self._pump.when_drained(lambda: self._end_run(exit_code, exceptions, signal_number, reset), behind)

    def _end_run(
        self, exit_code: int, exceptions: list[Any], signal_number: int | None = None, reset: bool = False
    ) -> None:
        run = self._run
        if run is None:
            return
        self._run = None
        self._last = int(run.identity)
        self._pump.end_characters()
        message = outcome(run.identity, exit_code)
        message.update(exceptions=exceptions, reset=reset, files=run.new_files(self._work))
        if signal_number is not None:
            message["signal"] = signal_number
        self._send(frames.FINISHED, message)
        if self._end_rehearsal is not None:
            end, self._end_rehearsal = self._end_rehearsal, None
            end()
            self.repl_warm()


def prepare() -> None:
    """Do once, in the process that kernels are clones of, what every kernel would do alike."""
    from sorna.agent.runners.exercise import exercise  # noqa: PLC0415 - it knows this module

    our_modules()
    exercise()


def main(channel_fd: int) -> NoReturn:
    """Be the first process of a kernel; the working directory is the current one.

    :param channel_fd: a connected stream socket to the agent.
    """
    status = 70
    try:
        init = Init(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, channel_fd))
        try:
            init.serve()
            status = 0
        finally:
            init.end()
    except BaseException:  # noqa: BLE001 - the last word of a process that may return to nobody
        with suppress(Exception):
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
    finally:
        os._exit(status)
