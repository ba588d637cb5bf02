"""What one program leaves to the next in the same process, and when it does not give way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgpack

from sorna.agent.handover import VARIABLE, VERSION, HandoverImpossible, Program, descriptors_of, pack, receive
from sorna.testing.server import PROJECT
from sorna.testing.unit import UnitTestCase

EXEC = """
import os, sys
from sorna.agent import handover
state = handover.receive(os.environ)
if state is None:
    r, w = os.pipe()
    os.write(w, b"still here")
    program = handover.Program(sys.orig_argv, ["twistd", "--nodaemon", "--pidfile=own.pid", "sorna-agent"])
    program.check()
    open("own.pid", "w").write(str(os.getpid()))
    handover.replace(program, handover.pack({"pid": os.getpid(), "read": r}), [r])
else:
    inherited = os.get_inheritable(state["read"])
    print(state["pid"] == os.getpid(), os.read(state["read"], 99).decode(), inherited, os.path.exists("own.pid"))
"""


class HandoverTests(UnitTestCase):
    """From one program to the next."""

    def leave(self, content: bytes, *descriptors: int) -> dict[str, str]:
        """Leave something as a program before this one would."""
        memory = os.memfd_create("test")
        os.write(memory, content)
        os.lseek(memory, 0, os.SEEK_SET)
        return {VARIABLE: f"{memory}:{','.join(map(str, descriptors))}"}

    def test_over_an_exec(self) -> None:
        """The process is the same, the descriptor is open, and closes at the exec of anything else; the pid file is gone."""
        folder = Path(self.mktemp())
        folder.mkdir()
        environ = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT)}
        ran = subprocess.run(
            [sys.executable, "-c", EXEC],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((ran.stdout, ran.returncode), ("True still here False False\n", 0), ran.stderr)

    def test_nothing_was_left(self) -> None:
        """An ordinary start finds nothing."""
        self.assertIsNone(receive({}))

    def test_what_was_left(self) -> None:
        """It is read once: the variable does not reach anybody's children."""
        environ = self.leave(pack({"a": 1}))
        self.assertEqual(receive(environ), {"version": VERSION, "a": 1})
        self.assertEqual(environ, {})

    def test_what_cannot_be_read(self) -> None:
        """What is broken, or of another version, is refused, and every descriptor that came with it is closed."""
        for content in (b"", b"\xc1", b"\x01", msgpack.packb({"version": VERSION + 1}), msgpack.packb({})):
            read, write = os.pipe()
            with self.assertRaises(HandoverImpossible):
                receive(self.leave(content, read, write))
            for descriptor in (read, write):
                self.assertRaises(OSError, os.fstat, descriptor)

    def test_descriptors(self) -> None:
        """All of them are found, and what is not there is left out."""
        state = {
            "kernels": {"live": [[b"", [], {"channel": {"descriptor": 5}}]]},
            "sandbox": {
                "kernels": {"k": {"pidfd": 6, "scratch": -1}},
                "stacks": {"python3": {"control": 7, "errors": 8}},
            },
        }
        self.assertEqual(descriptors_of(state), [5, 6, 7, 8])

    def test_daemons(self) -> None:
        """A program that twistd would put into the background again does not give way."""
        for words in (["--nodaemon"], ["-n"], ["--logfile=x", "-n"]):
            Program([], ["twistd", *words, "sorna-agent"]).check()
        for words in ([], ["--logfile=x"], ["--no_save"]):
            with self.assertRaises(HandoverImpossible):
                Program([], ["twistd", *words, "sorna-agent", "--nodaemon"]).check()

    def test_pid_files(self) -> None:
        """Only a file with our own number is removed."""
        path = Path(self.mktemp())
        for content, stays in ((str(os.getpid()), False), ("1", True), ("no number", True)):
            path.write_text(content)
            for words in ([f"--pidfile={path}"], ["--pidfile", str(path)]):
                Program([], ["twistd", *words, "sorna-agent"]).forget_pidfile()
            self.assertEqual(path.exists(), stays)
