"""What the tests of published clients share: a running server, the client's environment, a folder to work in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

from attrs import frozen

from sorna.testing.server import RunningServer, shared_server
from sorna.testing.unit import UnitTestCase
from tests.interop.environments import ClientUnavailable, PublishedClient, prepare

TIMEOUT = 60.0

MAIN_C = """\
#include <stdio.h>
int main(void) { puts("hello from C"); return 0; }
"""
READS_DATA = """\
with open("data.txt") as file:
    print("read:", file.read().strip())
"""
FAILING_C = "int main(void) { return 3; }\n"


@frozen
class Said:
    """What a program printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams: the clients tell their progress on stderr."""
        return self.out + self.err


class InteropTestCase(UnitTestCase):
    """A published client, unmodified, against a real server.

    :cvar client: the client; a class without one holds no tests of its own.
    """

    client: ClassVar[PublishedClient]
    server: RunningServer

    def setUp(self) -> None:
        """Start the server and make the client's environment, or say why it cannot be had."""
        try:
            self.programs = prepare(self.client)
        except ClientUnavailable as error:
            raise SkipTest(str(error)) from error
        self.server = shared_server()
        self.access_key, self.secret_key = self.server.access_key, self.server.secret_key
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def need(self, tool: str) -> None:
        """Skip where the host lacks a language's tool: its agent does not offer the runtime then."""
        if shutil.which(tool) is None:
            raise SkipTest(f"{tool} is not installed")

    def write(self, name: str, content: str) -> None:
        """Put a file where the client runs."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")

    def environ(self) -> dict[str, str]:
        """Give the clean world of its own in which a program runs."""
        environ = {
            "HOME": str(self.folder.resolve()),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join((str(self.programs), os.defpath)),
            "PYTHONIOENCODING": "utf-8",
        }
        for prefix in ("SORNA", "BACKEND"):
            environ[f"{prefix}_ENDPOINT"] = self.server.endpoint
            environ[f"{prefix}_ACCESS_KEY"] = self.access_key
            environ[f"{prefix}_SECRET_KEY"] = self.secret_key
        return environ

    def run_program(self, program: str, *arguments: str, typed: str = "") -> Said:
        """Run a program of the client's environment in a clean world of its own."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            env=self.environ(),
            input=typed,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
            start_new_session=True,  # no terminal: a password is read from the input
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def start_program(self, program: str, *arguments: str) -> Path:
        """Start a program that runs until the test ends, and give the file that it prints to."""
        log = self.folder / f"{program}.log"
        with log.open("wb") as out:
            running = subprocess.Popen(
                [str(self.programs / program), *arguments],
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def stop() -> None:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(10.0)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()

        self.addCleanup(stop)
        return log

    def says(self, said: Said, *expected: str, code: int = 0) -> None:
        """Check that a program ended well and printed all of this."""
        for text in expected:
            self.assertIn(text, said.text, said.text)
        self.assertEqual(said.code, code, said.text)
        self.assertNotIn("Traceback", said.err)

    def library(self, code: str) -> list[str]:
        """Run a script over the client's library and give the lines it printed."""
        said = self.run_program("python", "-W", "ignore", "-c", code)
        self.assertEqual(said.code, 0, said.err)
        return said.out.splitlines()
