"""The terminal: what is printed where, lines that are typed, and media."""

from __future__ import annotations

import base64
import io
import os
import pty
import termios
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from sorna.client.terminal import InputLines, Terminal, hidden, media_content
from sorna.client.wire import Output
from sorna.testing.unit import UnitTestCase


class InputLinesTests(UnitTestCase):
    """Lines from a descriptor."""

    def setUp(self) -> None:
        """Make a pipe with a reader at its end."""
        self.reactor = MemoryReactorClock()
        self.end, self.start = os.pipe()
        self.addCleanup(os.close, self.end)
        self.lines = InputLines(self.reactor, self.end)

    def feed(self, text: bytes) -> None:
        """Write, and let the reactor read."""
        os.write(self.start, text)
        self.lines.doRead()

    def test_interface(self) -> None:
        """The reactor finds all it needs."""
        verifyObject(IReadDescriptor, self.lines)
        self.assertEqual(self.lines.fileno(), self.end)
        self.addCleanup(os.close, self.start)

    def test_watches_only_while_asked(self) -> None:
        """Nothing is read before somebody asks, nor after."""
        self.assertEqual(self.reactor.readers, set())
        line = Deferred.fromCoroutine(self.lines.read())
        self.assertEqual(self.reactor.readers, {self.lines})
        self.feed(b"hel")
        self.assertNoResult(line)
        self.feed(b"lo\r\nnext\nthi")
        self.assertEqual(self.successResultOf(line), "hello")
        self.assertEqual(self.reactor.readers, set())
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.lines.read())), "next")
        last = Deferred.fromCoroutine(self.lines.read())
        os.close(self.start)
        self.lines.doRead()
        self.assertEqual(self.successResultOf(last), "thi")
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(self.lines.read())))

    def test_give_up(self) -> None:
        """Whoever waits can be told that nothing comes."""
        self.addCleanup(os.close, self.start)
        self.lines.give_up()
        line = Deferred.fromCoroutine(self.lines.read())
        self.lines.give_up()
        self.assertIsNone(self.successResultOf(line))
        self.assertEqual(self.reactor.readers, set())

    def test_cancelled(self) -> None:
        """Cancelling ends the watching."""
        self.addCleanup(os.close, self.start)
        line = Deferred.fromCoroutine(self.lines.read())
        line.cancel()
        self.failureResultOf(line)
        self.assertEqual(self.reactor.readers, set())

    def test_lost(self) -> None:
        """A descriptor that the reactor gave up is at its end."""
        self.addCleanup(os.close, self.start)
        line = Deferred.fromCoroutine(self.lines.read())
        self.lines.connectionLost(Failure(ConnectionDone()))
        self.assertIsNone(self.successResultOf(line))


class TerminalTests(UnitTestCase):
    """What a run's console becomes."""

    def setUp(self) -> None:
        """Make streams in memory."""
        self.reactor = MemoryReactorClock()
        self.out, self.err = io.StringIO(), io.StringIO()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def terminal(self, *, quiet: bool = False, media: Path | None = None, stdin: int = 0) -> Terminal:
        """Make a terminal on them."""
        return Terminal(self.reactor, stdin, self.out, self.err, quiet=quiet, media=media)

    def test_streams(self) -> None:
        """The run's streams stay apart, and notes are not among its output."""
        terminal = self.terminal()
        for kind in ("stdout", "stderr", "log"):
            terminal.show(Output(kind, f"{kind}\n"))
        terminal.note("ready")
        self.assertEqual(self.out.getvalue(), "stdout\n")
        self.assertEqual(self.err.getvalue(), "stderr\nsorna: log: log\n\nsorna: ready\n")

    def test_quiet(self) -> None:
        """Quiet means no notes; what went wrong is still told."""
        terminal = self.terminal(quiet=True)
        terminal.note("ready")
        terminal.complain("broken")
        self.assertEqual(self.err.getvalue(), "sorna: broken\n")

    def test_media_noted(self) -> None:
        """Without a folder a figure is only mentioned."""
        self.terminal().show(Output("media", ["image/png", "data:image/png;base64,AAAA"]))
        self.assertEqual(self.err.getvalue(), "sorna: image/png, 3 bytes; --media FOLDER saves it\n")

    def test_media_saved(self) -> None:
        """With a folder, figures and pages become files, and none replaces another."""
        (self.folder / "sorna-1.png").write_bytes(b"before")
        terminal = self.terminal(media=self.folder)
        encoded = base64.b64encode(b"\x89PNG").decode()
        terminal.show(Output("media", ["image/png", f"data:image/png;base64,{encoded}"]))
        terminal.show(Output("media", ["image/svg+xml", "<svg/>"]))
        terminal.show(Output("html", "<b>"))
        terminal.show(Output("media", ["no/such", "x"]))
        found = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.assertEqual(
            found,
            {
                "sorna-1.png": b"before",
                "sorna-2.png": b"\x89PNG",
                "sorna-3.svg": b"<svg/>",
                "sorna-4.html": b"<b>",
                "sorna-5.bin": b"x",
            },
        )

    def test_characters_that_the_encoding_lacks(self) -> None:
        """A lone surrogate or a character outside of the encoding becomes a question mark."""
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="ascii")
        Terminal(self.reactor, 0, out, self.err, quiet=True, media=None).show(Output("stdout", "é\udc80!\n"))
        self.assertEqual(raw.getvalue(), b"??!\n")

    def test_data_uris(self) -> None:
        """Both encodings of data URIs, and text that is none."""
        self.assertEqual(media_content("data:text/plain,a%20b"), b"a b")
        self.assertEqual(media_content("data:image/png;base64,!"), b"!")
        self.assertEqual(media_content("<svg>, and more</svg>"), b"<svg>, and more</svg>")


class HiddenTests(UnitTestCase):
    """Passwords are not shown."""

    def test_on_a_terminal(self) -> None:
        """Echo is off while the password is typed, and on again afterwards."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        reactor, err = MemoryReactorClock(), io.StringIO()
        terminal = Terminal(reactor, slave, io.StringIO(), err, quiet=True, media=None)

        def echoes() -> bool:
            return bool(termios.tcgetattr(slave)[3] & termios.ECHO)

        self.assertTrue(echoes())
        line = Deferred.fromCoroutine(terminal.read_input(is_password=True))
        self.assertFalse(echoes())
        os.write(master, b"secret\n")
        for reader in list(reactor.readers):
            reader.doRead()
        self.assertEqual(self.successResultOf(line), "secret")
        self.assertTrue(echoes())
        self.assertEqual(err.getvalue(), "\n")

    def test_elsewhere(self) -> None:
        """A pipe has no echo to switch off."""
        end, start = os.pipe()
        self.addCleanup(os.close, end)
        self.addCleanup(os.close, start)
        with hidden(end):
            pass
