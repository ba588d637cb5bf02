"""The process that keeps Python state between runs.

Standard library only. It is forked from init, so everything that is imported there is here at once; it talks to init over
the three sockets of ``repl_link.py``, and past it to the agent over a lane while there is one (see ``frames.py``). It ends
only by being killed or by losing init. User code lives in a ``__main__`` of its own, and a child that user code forks leaves
through :meth:`Repl._leave_child`: it never speaks to init.
"""

import __future__

import ast
import atexit
import builtins
import contextlib
import functools
import gc
import json
import os
import socket
import sys
import time
import types
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

from sorna.agent.runners import tracebacks
from sorna.agent.runners.completion import completions, text_before_cursor
from sorna.agent.runners.display import Display
from sorna.agent.runners.frames import FrameError, pack_frame
from sorna.agent.runners.interrupts import Interrupts
from sorna.agent.runners.keyboard import Keyboard
from sorna.agent.runners.output_files import changed, fingerprints
from sorna.agent.runners.passage import Passage
from sorna.agent.runners.processes import reserve
from sorna.agent.runners.pump import Flow
from sorna.agent.runners.repl_link import (
    COMPLETE,
    COMPLETED,
    DONE,
    ENDED,
    ENVIRON,
    EXECUTE,
    EXECUTE_UNATTENDED,
    LANE,
    LAST_WORDS,
    REHEARSE,
    WARM,
    Order,
    Typing,
    Wire,
    from_json,
    to_json,
)
from sorna.agent.runners.streams import Outlet

_FUTURES = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]


@functools.cache
def our_modules() -> Sequence[str]:
    """List the modules of ours that are loaded. Found once, in the zygote: every name that is looked at is a page copied."""
    return [name for name in sys.modules if name.partition(".")[0] == "sorna"]


def reseed() -> None:
    """Give this process its own random numbers: a fork goes on with its parent's (``random`` sees to itself)."""
    numpy, numpy_random = sys.modules.get("numpy"), sys.modules.get("numpy.random")
    if numpy is not None and numpy_random is not None:
        # As good as ``seed()``, which takes the state from a generator of its own and writes to twice as much memory.
        numpy_random.set_state(("MT19937", numpy.frombuffer(os.urandom(624 * 4), numpy.uint32), 624))


class Repl:
    """One Python session.

    :param sockets: this side of control, order and typing.
    :param spares: copies of the descriptors 1 and 2.
    :param flow: what init takes from them.
    """

    def __init__(self, sockets: Sequence[socket.socket], spares: tuple[int, int], flow: Flow) -> None:
        self._pid = os.getpid()
        self._work = os.getcwd()  # noqa: PTH109 - as text, as init has it
        self._interrupts = Interrupts()
        self._wires = [Wire(sock, self._interrupts, descriptors=sock is sockets[0]) for sock in sockets]
        self._lane: Wire | None = None
        order = Order(self._wires[1])
        self._outlet = Outlet(order, self._interrupts, spares)
        self._typing = Typing(self._wires[2])
        self._passage = Passage(order, self._outlet, flow)
        self._keyboard = Keyboard(self._typing, self._outlet.flush_all)

        def emit(record: list[Any]) -> bool:
            self._outlet.flush_all()
            return order.emit(record)

        self._display = Display(emit, self._outlet.hold)
        self._sources = tracebacks.Sources()
        self._module = types.ModuleType("__main__")
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._count = 0
        self._prints_errors = True
        self._loop: Any = None

    def serve(self) -> None:
        """Run what init sends, until it is gone."""
        self._prepare()
        self.greet()
        while True:
            self.obey()

    def greet(self) -> None:
        """Tell init that code can run."""
        self._wires[0].send(WARM, b"")

    def obey(self) -> None:
        """Wait for one order of init's, or one that comes over the lane, and carry it out."""
        control = self._wires[0]
        wire, kind, payload = self._next_order()
        if kind in {EXECUTE, EXECUTE_UNATTENDED}:
            self._prints_errors = kind == EXECUTE
            if wire is control:
                outcome = self._run(payload.decode("utf-8", "replace"))
                self._done(outcome, self._outlet.last_words())
            else:
                identity, _nul, code = payload.partition(b"\0")
                self._run_of_lane(identity.decode("ascii", "replace"), code.decode("utf-8", "replace"))
        elif kind == ENVIRON:
            os.environ.update(from_json(payload))
            time.tzset()
        elif wire is control:
            self._obey_init(control, kind, payload)

    def _obey_init(self, control: Wire, kind: int, payload: bytes) -> None:
        if kind == REHEARSE:
            outcome = self._run(payload.decode("utf-8"))
            vars(builtins).pop("_", None)
            self._count = 0
            self._done(outcome, self._outlet.last_words())
        elif kind == COMPLETE:
            control.send(COMPLETED, to_json(self._complete(json.loads(payload))))
        elif kind == LANE:
            self._close_lane()
            # Beyond what programs close before they start others, as the sockets to init.
            sock = socket.socket(fileno=reserve(control.descriptors.pop(0)))
            self._lane = Wire(sock, self._interrupts)
            self._tell_agent(WARM, b"")

    def _next_order(self) -> tuple[Wire, int, bytes]:
        """Wait for a frame. :raises OSError: init is gone; that a lane is, is no misfortune."""
        while True:
            wires = [self._wires[0]] if self._lane is None else [self._wires[0], self._lane]
            for wire in wires:
                frame = wire.next()
                if frame is not None:
                    return wire, *frame
            with self._interrupts.held_back():
                ready = self._interrupts.wait(*[wire.fileno() for wire in wires])
                for wire in wires:
                    if wire.fileno() not in ready:
                        continue
                    try:
                        wire.fill()
                    except (OSError, FrameError):
                        if wire is not self._lane:
                            raise
                        self._close_lane()

    def _close_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def _tell_agent(self, kind: int, payload: bytes) -> bool:
        """Send a frame over the lane; False when there is none any more."""
        try:
            if self._lane is not None:
                self._lane.send(kind, payload)
        except OSError:
            self._close_lane()
        return self._lane is not None

    def _run_of_lane(self, identity: str, code: str) -> None:
        """Execute code of which init knows nothing yet, and tell of its end whoever has heard of the rest."""
        self._passage.begin()
        self._typing.begin(identity, unattended=not self._prints_errors)
        before = fingerprints(self._work)
        outcome = self._run(code)
        files = changed(before, fingerprints(self._work))
        outcome = {"run": identity, **outcome, "files": files, "reset": False}
        quiet = not self._typing.end() and self._passage.was_quiet
        words = self._outlet.last_words()
        if not (quiet and self._tell_agent(ENDED, to_json(outcome) + b"\0" + words)):
            self._done(outcome, words)

    def _done(self, outcome: dict[str, Any], words: bytes) -> None:
        """Tell init what became of a run, and what belongs behind its output."""
        self._wires[0].send(DONE, to_json(outcome), before=pack_frame(LAST_WORDS, words) if words else b"")

    def _prepare(self) -> None:
        """Make this process look like a fresh interpreter."""
        atexit._clear()  # noqa: SLF001 - what init's own process registered is not for this one
        # Kept, because taking modules apart touches memory that is shared with the parent, and copies it.
        self._hidden = [sys.modules.pop(name, None) for name in our_modules()]
        self._module.__dict__.update(__builtins__=builtins, __annotations__={})
        sys.modules["__main__"] = self._module
        sys.argv = [""]
        sys.orig_argv = [sys.executable]
        if "" not in sys.path:
            sys.path.insert(0, "")
        reseed()
        self._interrupts.install()
        self._outlet.install()
        self._keyboard.install()
        self._display.install()
        os._exit = self._shown_before(os._exit)  # type: ignore[assignment]  # it has another name for its argument
        os.register_at_fork(after_in_child=self._in_forked_child)
        gc.freeze()

    def _shown_before(self, leave: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
        @functools.wraps(leave)
        def leave_later(status: int) -> NoReturn:
            self._outlet.end_hurry()
            leave(status)

        return leave_later

    def _in_forked_child(self) -> None:
        for wire in self._wires:
            wire.close()
        self._close_lane()

    def _run(self, code: str) -> dict[str, Any]:
        """Execute one piece of code and give its outcome; what it prints is in the pipes then, or among the last words."""
        self._count += 1
        self._outlet.mend()
        self._keyboard.mend()
        self._interrupts.enter_run()
        source = code if code.endswith("\n") else code + "\n"
        name = f"{tracebacks.INPUT}-{self._count}>"
        self._sources.add(name, source)
        try:
            steps, error = self._interrupts.call(lambda: self._compile(source, name))
            before_exec = error is not None
            if steps is not None:
                error = self._execute(steps)
            outcome = self._outcome(error, before_exec)
            late = self._guarded(self._display.end_run)
            if late is not None and error is None:
                outcome = self._outcome(late, before_exec=False)
            if not self._outlet.is_quiet:
                self._guarded(self._outlet.flush_all)
                self._outlet.flush_all()
        finally:
            self._interrupts.leave_run()
        return outcome

    def _compile(self, source: str, name: str) -> list[tuple[types.CodeType, bool]]:
        """Cut the source into what is executed and a last expression that is echoed."""
        flags = self._flags
        tree = compile(source, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        steps: list[tuple[types.CodeType, bool]] = []
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        if body:
            code = compile(tree, name, "exec", flags, dont_inherit=True)
            for future in _FUTURES:
                flags |= code.co_flags & future
            steps.append((code, False))
        if isinstance(last, ast.Expr):
            steps.append((compile(ast.Expression(last.value), name, "eval", flags, dont_inherit=True), True))
        self._flags = flags
        return steps

    def _execute(self, steps: list[tuple[types.CodeType, bool]]) -> BaseException | None:
        def everything() -> None:
            for code, echoed in steps:
                value = eval(code, self._module.__dict__)  # noqa: S307 - executing code is what this is for
                if code.co_flags & ast_coroutine:
                    value = self._drive(value)
                if echoed:
                    self._display.echo_last(value)

        ast_coroutine = 0x80  # inspect.CO_COROUTINE: the code awaits
        return self._guarded(everything)

    def _guarded(self, thunk: Callable[[], Any]) -> BaseException | None:
        """Run user code; a forked child that comes out of it never returns from here."""
        _result, error = self._interrupts.call(thunk)
        if os.getpid() != self._pid:
            self._leave_child(error)
        return error

    def _drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the session's event loop; its other tasks go on whenever something is awaited."""
        import asyncio  # noqa: PLC0415 - most sessions never need it

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)
            raise

    def _outcome(self, error: BaseException | None, before_exec: bool) -> dict[str, Any]:
        """Report what ended the run, and give its exit code and records."""
        if error is None:
            return {"exit_code": 0, "exceptions": []}
        if isinstance(error, SystemExit):
            return {"exit_code": self._exit_code(error), "exceptions": []}
        struck = self._interrupts.struck
        text = self._report(error)
        # The representation of its arguments is user code again, so it is interruptible again; and when it had to be
        # interrupted for the traceback (which swallows that), it is not tried a second time.
        if struck == self._interrupts.struck:
            record, _failure = self._interrupts.call(lambda: tracebacks.record_of(error, before_exec, text))
        else:
            record = None
        return {"exit_code": 1, "exceptions": [record or tracebacks.bare_record(error, text)]}

    def _exit_code(self, error: SystemExit) -> int:
        """Do what Python does with the argument of ``sys.exit``."""
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        self._guarded(lambda: self._write_error(f"{error.code}\n"))
        return 1

    def _report(self, error: BaseException) -> str:
        """Show an uncaught exception as Python would; its ``str`` and ``repr`` are user code."""
        text = ""

        def show() -> None:
            nonlocal text
            trace = tracebacks.without_ours(error.__traceback__)
            error.__traceback__ = trace
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
            sys.last_exc = error  # type: ignore[attr-defined]  # Python 3.12's name for the same
            text = tracebacks.text_of(error)
            if sys.excepthook is not sys.__excepthook__:
                sys.excepthook(type(error), error, trace)
            elif self._prints_errors:
                self._write_error(text)

        failure = self._guarded(show)
        if failure is not None and self._prints_errors:
            self._guarded(lambda: self._write_error(text or tracebacks.last_resort(error)))
        return text or tracebacks.last_resort(error)

    def _write_error(self, text: str) -> None:
        """Write to stderr, to ours when user code has replaced it by something that does not work."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - whatever user code has put there
            self._outlet.stderr.write(text)

    def _leave_child(self, error: BaseException | None) -> None:
        """End a child that user code forked, as the end of its program."""
        status = 0
        try:
            with contextlib.suppress(BaseException):
                status = 1 if error is not None else 0
                if isinstance(error, SystemExit):
                    status = self._child_exit_code(error)
                elif error is not None:
                    error.__traceback__ = tracebacks.without_ours(error.__traceback__)
                    self._write_error(tracebacks.text_of(error))
                atexit._run_exitfuncs()  # noqa: SLF001 - what the end of a program does
            self._outlet.flush_all()
        finally:
            os._exit(status)

    def _child_exit_code(self, error: SystemExit) -> int:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        self._write_error(f"{error.code}\n")
        return 1

    def _complete(self, question: dict[str, Any]) -> dict[str, Any]:
        text = text_before_cursor(question["code"], question)
        words, _error = self._interrupts.call(lambda: completions(text, self._module.__dict__))
        return {"request": question["request"], "result": words or []}


def run_repl(sockets: Sequence[socket.socket], spares: tuple[int, int], flow: Flow) -> None:
    """Be the REPL process until init is gone; does not return."""
    try:
        Repl(sockets, spares, flow).serve()
    except OSError:
        # Init is gone, or user code closed our sockets: nothing can be told any more.
        os._exit(70)
