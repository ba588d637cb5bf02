"""Replacing the agent's program in place: what one program leaves to the next, and the ``exec`` between them.

The process keeps its number, its children and the descriptors that are named; everything else goes. What the next program
needs is in a file in memory. Knows plain values, descriptors and the operating system; may not know what they are for.

Note [Nothing is left behind]: the descriptors are what kernels live by (their zygotes end when the agent's end of a control
socket closes, however that happens). So whatever goes wrong between the two programs, the end of the process ends the
kernels, and a program that cannot read what was left closes the descriptors, whose numbers come beside it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import msgpack
from attrs import frozen

VERSION = 1
MAX_STATE = 256 * 1024 * 1024
#: The file's descriptor, a colon, and the others with commas.
VARIABLE = "SORNA_AGENT_HANDOVER"
SIGNAL = signal.SIGUSR2
_SUBCOMMAND = "sorna-agent"
_DEFAULT_PIDFILE = "twistd.pid"


class HandoverImpossible(Exception):
    """The program cannot be replaced now; the text says why, and everything goes on."""


@frozen
class Program:
    """The program of this process, as it was started.

    :ivar arguments: interpreter and arguments, ``sys.orig_argv``.
    :ivar twistd: the arguments that twistd was given, ``sys.argv``.
    """

    arguments: Sequence[str]
    twistd: Sequence[str]

    def check(self) -> None:
        """See that it can replace itself.

        :raises HandoverImpossible: twistd has put it into the background, and would do so again.
        """
        own = self.twistd[1 : self.twistd.index(_SUBCOMMAND)] if _SUBCOMMAND in self.twistd else self.twistd[1:]
        if not any(word == "--nodaemon" or (word.startswith("-n") and word[1:2] != "-") for word in own):
            raise HandoverImpossible("twistd runs it as a daemon: start it with --nodaemon, under a supervisor")

    def forget_pidfile(self) -> None:
        """Remove twistd's file with our number, which would keep the next program from starting; it writes it again."""
        path = _DEFAULT_PIDFILE
        for word, after in zip(self.twistd, [*self.twistd[1:], ""], strict=True):
            if word == _SUBCOMMAND:
                break
            if word.startswith("--pidfile="):
                path = word.partition("=")[2]
            elif word == "--pidfile":
                path = after
        with suppress(OSError, ValueError):
            if path and int(Path(path).read_text("ascii")) == os.getpid():
                Path(path).unlink()


def pack(state: Mapping[str, Any]) -> bytes:
    """Write down what the next program needs.

    :raises HandoverImpossible: it is too much.
    """
    packed: bytes = msgpack.packb({"version": VERSION, **state})
    if len(packed) > MAX_STATE:
        raise HandoverImpossible(f"{len(packed)} bytes of unread output and the like are more than can be carried")
    return packed


def replace(program: Program, packed: bytes, descriptors: Collection[int]) -> NoReturn:
    """Execute the program anew in this process; it finds what was packed, and these descriptors open."""
    memory = os.memfd_create("sorna-agent-handover")
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(packed)
    os.lseek(memory, 0, os.SEEK_SET)
    for descriptor in (memory, *descriptors):
        os.set_inheritable(descriptor, True)
    os.environ[VARIABLE] = f"{memory}:{','.join(map(str, descriptors))}"
    program.forget_pidfile()
    # The next program hears of it only when it is ready to; until then the default would end it.
    signal.signal(SIGNAL, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program.arguments[0], list(program.arguments))  # noqa: S606 - there is to be no shell


def receive(environ: MutableMapping[str, str]) -> Mapping[str, Any] | None:
    """Read what the program before this one has left, None where there was none.

    :raises HandoverImpossible: it cannot be read; all its descriptors are closed.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    memory, _, rest = text.partition(":")
    descriptors = [int(number) for number in rest.split(",") if number]
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        with os.fdopen(int(memory), "rb") as file:
            packed = file.read(MAX_STATE + 1)
        state: Mapping[str, Any] = msgpack.unpackb(packed, strict_map_key=False)
        if state["version"] != VERSION:
            raise HandoverImpossible(f"it is of version {state['version']}, and this program reads {VERSION}")
    except Exception as error:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
        raise HandoverImpossible(f"what the program before left cannot be read: {error}") from error
    return state


def descriptors_of(state: Mapping[str, Any]) -> Sequence[int]:
    """List the descriptors in what an agent leaves."""
    sandbox = state["sandbox"]
    found = [one["channel"]["descriptor"] for _id, _folders, one in state["kernels"]["live"]]
    found += [one[name] for one in sandbox["kernels"].values() for name in ("pidfd", "scratch")]
    found += [one[name] for one in sandbox["stacks"].values() for name in ("control", "errors")]
    return [descriptor for descriptor in found if descriptor >= 0]
