"""Goes through what every kernel does from its start to its first results, in the process that kernels are forked from.

Standard library only; only :mod:`sorna.agent.runners.init` and its parts are known. Nothing of it may be seen afterwards: the caller
has the signals, descriptors and variables that it had.

Note [Exercise]: Python adapts code to its use: it counts calls, replaces instructions and remembers which attribute was found where.
All of that is writing to memory, and in a process that was forked it copies pages, in each kernel the same ones. What has been done
often enough before the fork has settled and is only read after it. So here a kernel's first process and its REPL work together
some times over the real code, except that both are this one process, taking turns, and that no process is started.
"""

import builtins
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from sorna.agent.runners import frames, repl_link
from sorna.agent.runners.init import Init
from sorna.agent.runners.language import Language
from sorna.agent.runners.linux import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.pump import Flow
from sorna.agent.runners.repl import Repl, reseed
from sorna.agent.runners.repl_link import to_json

# As often as CPython wants to see a piece of code before it leaves it as it is, and some more.
_ROUNDS = 24
_LANGUAGE = Language("python3", repl=True, source="", query="", build="", exec="")
_CODE = "1+1", "print(1)", "x = 1\nx"
# What people begin with in libraries, where those were imported.
_LIBRARIES = {
    "numpy": "import numpy as np\nx = np.arange(6.0).reshape(2, 3)\nprint(x.sum(), x.mean(axis=0), x[0, 1] * 2, np.zeros(3).dtype)",
    "pandas": "import pandas as pd\ns = pd.Series([1, 2, 3])\nprint(len(s), s.sum(), pd.DataFrame({'a': [1], 'b': [2.0]}))",
}
_NOBODY = 1 << 23  # no process has such a number


class _Stage(Processes):
    """Where a REPL is not started but played."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []

    def start(
        self,
        _body: Callable[[], None],
        _stdio: tuple[int, int, int],
        keep: Collection[int],
        _environ: Mapping[str, str],
        _on_exit: Callable[[int], None],
    ) -> int:
        """Keep what the process would have kept."""
        self.kept = [os.dup(descriptor) for descriptor in keep]
        return _NOBODY

    def repl(self) -> Repl:
        """Play the process."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in self.kept[:3]]
        return Repl(sockets, (self.kept[3], self.kept[4]), Flow())


def exercise(rounds: int = _ROUNDS) -> None:
    """Do it some times over."""
    before = _descriptors()
    with _undone():
        for _round in range(rounds):
            _go_through()
            reseed()
        gc.collect()
    for descriptor in _descriptors() - before:
        os.close(descriptor)


def _go_through() -> None:
    agent, channel = socket.socketpair()
    agent.setblocking(False)
    stage = _Stage()
    init = Init(channel, stage)

    def tell(kind: int, message: Mapping[str, object]) -> None:
        agent.sendall(frames.pack_frame(kind, to_json(message)))
        init.turn()

    tell(frames.CONFIGURE, {"runtime": _LANGUAGE._asdict(), "environ": dict(os.environ), "credit": 1 << 20})
    repl = stage.repl()
    repl.greet()
    init.turn()  # hears of it, and rehearses
    _play(init, repl, 2)
    lane, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(agent, [frames.pack_frame(frames.LANE, b'{"lane": 1}')], [theirs.fileno()])
    init.turn()
    _play(init, repl, 1)
    tell(frames.ASSIGN, {"environ": {"LANG": "C.UTF-8"}, "lane": 1})
    lane.sendall(frames.pack_frame(repl_link.ENVIRON, b'{"LANG": "C.UTF-8"}'))
    _play(init, repl, 1)
    for number, code in enumerate((*_CODE, *(code for name, code in _LIBRARIES.items() if name in sys.modules))):
        lane.sendall(frames.pack_frame(repl_link.EXECUTE, f"{number}\0{code}".encode()))
        _play(init, repl, 1)
    lane.close()
    _play(init, repl, 0)
    agent.close()
    init.turn()


def _play(init: Init, repl: Repl, orders: int) -> None:
    """Let the REPL work off its orders, and init what came of it."""
    for _order in range(orders):
        repl.obey()
    for _turn in range(4):
        init.turn(0.0)


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - names are what is wanted


@contextmanager
def _undone() -> Iterator[None]:
    """Take back what the block does to this process."""
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    actions = {number: signal.getsignal(number) for number in numbers}
    environ, echo, last = dict(os.environ), sys.displayhook, vars(builtins).get("_")
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, action in actions.items():
            if action is not None:
                signal.signal(number, action)
        os.environ.clear()
        os.environ.update(environ)
        sys.displayhook = echo
        vars(builtins).pop("_", None)
        if last is not None:
            vars(builtins)["_"] = last
        prctl(PR_SET_DUMPABLE, 1)
        prctl(PR_SET_CHILD_SUBREAPER, 0)
