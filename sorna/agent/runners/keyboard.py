"""The standard input of user code: lines that init asks the client for.

Standard library only. Knows streams and passwords' prompts; may not know runs. There is no end of input: whoever reads
to the end waits until the run is ended. In forked children and between runs input is at its end.
"""

import getpass
import io
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from sorna.agent.runners.repl_link import Typing


class _TypedLines(io.RawIOBase):
    """Gives the bytes of typed lines, asking for one when there are none left."""

    def __init__(self, typing: Typing, flush: Callable[[], None]) -> None:
        self._typing = typing
        self._flush = flush
        self._rest = b""
        self.name = "<stdin>"
        self.mode = "rb"
        self.used = False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def isatty(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._flush()
            self.used = True
            self._rest = self._typing.ask(is_password=False).encode("utf-8", "replace")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class Keyboard:
    """Owner of ``sys.stdin`` and ``getpass.getpass``."""

    def __init__(self, typing: Typing, flush: Callable[[], None]) -> None:
        self._typing = typing
        self._flush = flush
        # CPython's input() holds no reference to the stream that it reads: a thread that still waits in it would go on in
        # freed memory, and to free it waits for that thread. Whoever asks is answered when the run ends, so a few are enough.
        self._left: deque[TextIO] = deque(maxlen=4)
        self._make()

    def install(self) -> None:
        """Make it the input of this process."""
        sys.stdin = sys.__stdin__ = self._stream  # type: ignore[misc]  # a new process has new originals

        def getpass_(prompt: str = "Password: ", stream: TextIO | None = None, **_options: Any) -> str:
            """Prompt for a password, with echo turned off where it is typed."""
            return self._password(prompt, stream)

        getpass_.__name__ = getpass_.__qualname__ = "getpass"
        getpass_.__module__ = "getpass"
        getpass.getpass = getpass_

    def mend(self) -> None:
        """Before a run: forget what the last one left unread, and open again what it closed."""
        if self._lines.used or not self._usable():
            old = self._stream
            self._left.append(old)
            self._make()
            if sys.stdin is old:
                sys.stdin = self._stream
            sys.__stdin__ = self._stream  # type: ignore[misc]  # as in install

    def _usable(self) -> bool:
        try:
            return not self._stream.closed
        except ValueError:
            return False

    def _make(self) -> None:
        self._lines = _TypedLines(self._typing, self._flush)
        self._stream = io.TextIOWrapper(io.BufferedReader(self._lines), encoding="utf-8", errors="surrogateescape")
        vars(self._stream)["mode"] = "r"

    def _password(self, prompt: str, stream: TextIO | None) -> str:
        output = stream or sys.stdout
        output.write(prompt)
        output.flush()
        if sys.stdin is self._stream:
            self._flush()
            line = self._typing.ask(is_password=True)
        else:
            line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
