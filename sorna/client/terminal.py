"""The terminal of the person who runs code: what the run prints, what is typed, and media that no terminal can show.

Knows the descriptors and streams it is given, and nothing of HTTP.  Reading never blocks the reactor and holds no thread, so
that Ctrl-C works while the run waits for a line.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import mimetypes
import os
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from sorna.client.wire import Output

LONGEST_LINE = 1024 * 1024


@implementer(IReadDescriptor)
class InputLines:
    """Lines from a descriptor, read only while somebody waits for one."""

    def __init__(self, reactor: IReactorFDSet, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._buffer = b""
        self._ended = False
        self._waiting: Deferred[str | None] | None = None

    async def read(self) -> str | None:
        """Give the next line without its end, or None at the end of the input or after :meth:`give_up`."""
        line = self._pop()
        if line is not None or self._ended:
            return line
        self._waiting = Deferred(lambda _: self._reactor.removeReader(self))
        self._reactor.addReader(self)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def give_up(self) -> bool:
        """Answer the one who waits that nothing will be typed; tells whether there was one."""
        return self._answer(None)

    def _pop(self) -> str | None:
        """Take a line out of what was read."""
        line, end, rest = self._buffer.partition(b"\n")
        if not end and not (line and self._ended) and len(line) < LONGEST_LINE:
            return None
        self._buffer = rest
        return line.decode("utf-8", "replace").removesuffix("\r")

    def _answer(self, line: str | None) -> bool:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return False
        self._reactor.removeReader(self)
        waiting.callback(line)
        return True

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Name this reader in log lines."""
        return "input"

    def doRead(self) -> None:
        """Take what is there; the reactor calls this when reading does not block."""
        try:
            chunk = os.read(self._descriptor, 65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""  # a terminal that hung up
        self._buffer += chunk
        self._ended = self._ended or not chunk
        line = self._pop()
        if line is not None or self._ended:
            self._answer(line)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - the interface's own argument
        """Note that the reactor stopped watching the descriptor for good."""
        self._ended = True
        self._answer(None)


@contextlib.contextmanager
def hidden(descriptor: int) -> Iterator[None]:
    """Keep a terminal from showing what is typed; does nothing to what is no terminal."""
    if not os.isatty(descriptor):
        yield
        return
    before: list[Any] = termios.tcgetattr(descriptor)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


class Terminal:
    """Where a run's console goes and where its input comes from.

    :param media: folder for figures and pages; without one they are only noted.
    """

    def __init__(
        self, reactor: IReactorFDSet, stdin: int, stdout: TextIO, stderr: TextIO, *, quiet: bool, media: Path | None
    ) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._quiet = quiet
        self._media = media
        self._lines = InputLines(reactor, stdin)
        self._shown = 0

    async def read_input(self, is_password: bool) -> str | None:
        """Ask for a line, which a terminal does not show when it is a password."""
        if not is_password:
            return await self._lines.read()
        with hidden(self._stdin):
            line = await self._lines.read()
        if os.isatty(self._stdin):
            self._write(self._stderr, "\n")  # the typed one was not shown either
        return line

    def give_up_input(self) -> bool:
        """Answer a waiting :meth:`read_input` with None; tells whether there was one."""
        return self._lines.give_up()

    def note(self, text: str) -> None:
        """Say how things go, to a person; never among the run's own output."""
        if not self._quiet:
            self._write(self._stderr, f"sorna: {text}\n")

    def complain(self, text: str) -> None:
        """Say what went wrong, also to somebody who wants quiet."""
        self._write(self._stderr, f"sorna: {text}\n")

    def show(self, item: Output) -> None:
        """Show one item of a run's console.

        :raises OSError: nobody reads the output any more.
        """
        if item.kind == "stdout":
            self._write(self._stdout, str(item.data))
        elif item.kind == "stderr":
            self._write(self._stderr, str(item.data))
        elif item.kind == "media" and isinstance(item.data, list) and len(item.data) == 2:
            self._keep(str(item.data[0]), media_content(str(item.data[1])))
        elif item.kind == "html":
            self._keep("text/html", str(item.data).encode("utf-8"))
        else:
            self.note(f"{item.kind}: {item.data}")

    def _keep(self, mime: str, content: bytes) -> None:
        """Save what cannot be shown, or say that it was there."""
        if self._media is None:
            self.note(f"{mime}, {len(content):,} bytes; --media FOLDER saves it")
            return
        suffix = mimetypes.guess_extension(mime) or ".bin"
        while True:
            self._shown += 1
            path = self._media / f"sorna-{self._shown}{suffix}"
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                continue
            self.note(f"{mime} saved as {path}")
            return

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        # What a program prints may hold characters that this terminal's encoding lacks.
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()


def media_content(data: str) -> bytes:
    """Give the bytes of a medium: of a data URI, or of text as it is."""
    head, comma, rest = data.partition(",")
    if not head.startswith("data:") or not comma:
        return data.encode("utf-8", "replace")
    if not head.endswith(";base64"):
        return unquote_to_bytes(rest)
    try:
        return base64.b64decode(rest, validate=True)
    except binascii.Error:
        return rest.encode("utf-8", "replace")
