"""Keys on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sorna.curve_keys import (
    AuthorisedKeys,
    CurveKeypair,
    KeyFileError,
    generate,
    load,
    load_or_make,
    valid_public_key,
)
from sorna.testing.unit import UnitTestCase


class KeypairTests(UnitTestCase):
    """This process's own keypair."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "deep"

    def test_made_once_and_loaded_after(self) -> None:
        """The first start makes the files, with the modes they need, and the second finds them."""
        made = load_or_make(self.directory, "agent")
        self.assertEqual(load_or_make(self.directory, "agent"), made)
        self.assertEqual(sorted(path.name for path in self.directory.iterdir()), ["agent.public", "agent.secret"])
        self.assertEqual(stat.S_IMODE((self.directory / "agent.secret").stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE((self.directory / "agent.public").stat().st_mode), 0o644)
        self.assertEqual((self.directory / "agent.public").read_text().strip(), made.public)
        self.assertTrue(valid_public_key(made.public))

    def test_secret_is_not_shown(self) -> None:
        """The repr, which may end in a log, has no secret."""
        keypair = generate()
        self.assertNotIn(keypair.secret, repr(keypair))

    def test_lost_public_file_is_written_again(self) -> None:
        """The public half can be had from the secret one."""
        made = load_or_make(self.directory)
        (self.directory / "curve.public").unlink()
        self.assertEqual(load_or_make(self.directory), made)
        self.assertEqual((self.directory / "curve.public").read_text().strip(), made.public)

    def test_open_secret_is_refused(self) -> None:
        """A secret that others may read is no secret; the message says what to do."""
        load_or_make(self.directory)
        (self.directory / "curve.secret").chmod(0o640)
        with self.assertRaises(KeyFileError) as caught:
            load_or_make(self.directory)
        self.assertIn("0640", str(caught.exception))

    def test_broken_files_are_refused(self) -> None:
        """Cut, binary or foreign content is named, and not replaced."""
        keypair = load_or_make(self.directory)
        secret = self.directory / "curve.secret"
        for content in (b"", b"short\n", b"\xff" * 40, b"#" * 40, keypair.secret.encode() + b"x"):
            secret.write_bytes(content)
            with self.assertRaises(KeyFileError) as caught:
                load_or_make(self.directory)
            self.assertIn(str(secret), str(caught.exception))
            self.assertEqual(secret.read_bytes(), content)

    def test_foreign_public_half_is_refused(self) -> None:
        """Two halves that do not belong together are an error of the operator's, not to be guessed at."""
        load_or_make(self.directory)
        (self.directory / "curve.public").write_text(generate().public)
        self.assertRaises(KeyFileError, load_or_make, self.directory)

    def test_links_directories_and_pipes_are_refused(self) -> None:
        """A secret is a regular file of its own."""
        load_or_make(self.directory)
        secret = self.directory / "curve.secret"
        secret.rename(self.directory / "elsewhere")
        secret.symlink_to("elsewhere")
        self.assertRaises(KeyFileError, load_or_make, self.directory)
        secret.unlink()
        secret.mkdir()
        self.assertRaises(KeyFileError, load_or_make, self.directory)
        secret.rmdir()
        os.mkfifo(secret, 0o600)
        self.assertRaises(KeyFileError, load_or_make, self.directory)

    def test_unusable_directory(self) -> None:
        """Where no directory can be made, the error says so."""
        self.directory.parent.write_text("a file")
        self.assertRaises(KeyFileError, load_or_make, self.directory)

    def test_known_pair(self) -> None:
        """The example keypair of ZeroMQ's own documentation of CURVE gives its public half."""
        self.directory.mkdir(parents=True)
        secret = self.directory / "x.secret"
        secret.write_text("JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6")
        secret.chmod(0o600)
        self.assertEqual(load(secret).public, "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7")

    @given(st.text(max_size=45))
    def test_judging_texts_is_total(self, text: str) -> None:
        """Any text is a key or not."""
        self.assertIn(valid_public_key(text), {True, False})


class AuthorisedTests(UnitTestCase):
    """The keys that may connect."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp())
        self.one, self.two = generate(), generate()
        self.keys = AuthorisedKeys(self.clock, self.path)

    def permits(self, keypair: CurveKeypair) -> bool:
        self.clock.advance(AuthorisedKeys.INTERVAL)
        return self.keys.permits(keypair.public)

    def test_nothing_there_lets_nobody_in(self) -> None:
        """A missing path authorises nobody, and a later one is found."""
        self.assertFalse(self.permits(self.one))
        self.path.write_text(self.one.public)
        self.assertTrue(self.permits(self.one))

    def test_file_with_comments(self) -> None:
        """One key a line, with comments; a line that is no key hurts no other."""
        self.path.write_text(f"# managers\n\n{self.one.public} # the first\nnonsense\n  {self.two.public}\n")
        self.assertTrue(self.permits(self.one))
        self.assertTrue(self.permits(self.two))
        self.assertFalse(self.permits(generate()))

    def test_directory_follows_changes(self) -> None:
        """Added, changed and removed files are seen; files of other names are not."""
        self.path.mkdir()
        (self.path / "a.public").write_text(self.one.public)
        (self.path / "b.txt").write_text(self.two.public)
        self.assertTrue(self.permits(self.one))
        self.assertFalse(self.permits(self.two))
        (self.path / "c.public").write_text(self.two.public)
        self.assertTrue(self.permits(self.two))
        (self.path / "a.public").unlink()
        self.assertFalse(self.permits(self.one))

    def test_looks_at_the_disk_now_and_then_only(self) -> None:
        """Within the interval no change is seen, whoever asks how often."""
        self.path.write_text(self.one.public)
        self.assertTrue(self.permits(self.one))
        self.path.unlink()
        self.assertTrue(self.keys.permits(self.one.public))
        self.assertFalse(self.permits(self.one))

    def test_binary_file(self) -> None:
        """Any content can be read without harm."""
        self.path.write_bytes(os.urandom(5000))
        self.assertFalse(self.permits(self.one))
