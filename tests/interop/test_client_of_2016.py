"""A ZeroMQ program of 2016 with the Python and the pyzmq of its time, against a real server."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sorna.testing.server import PROJECT
from tests.interop.environments import ZEROMQ_2016
from tests.interop.setting import InteropTestCase

PROGRAM = Path(__file__).with_name("client_of_2016.py")


class ClientOf2016Tests(InteropTestCase):
    """``client_of_2016.py``, which knows nothing but the interface's description."""

    client = ZEROMQ_2016

    def test_session(self) -> None:
        """It opens a session, runs snippets with every kind of result, uses the terminal, and leaves."""
        self.need("git")
        said = self.run_program("python", str(PROGRAM), f"tcp://127.0.0.1:{self.server.manager_port}")
        self.says(said)
        steps = said.out.splitlines()
        self.assertEqual((steps[0], steps[-2:], len(steps)), ("pong", ["terminal", "left"], 15))

    def test_documented_example(self) -> None:
        """The client in the documentation works as it stands there, and is as short as it says."""
        text = (PROJECT / "docs" / "legacy-protocol.rst").read_text(encoding="utf-8")
        block = text.split("::\n\n", 1)[1].split("\nIt prints", 1)[0]
        self.write("example.py", textwrap.dedent(block))
        self.assertLessEqual(len([line for line in block.splitlines() if line.strip()]), 20)
        address = f"tcp://127.0.0.1:{self.server.manager_port}"
        self.assertEqual(self.run_program("python", "example.py", address).out, "42\n{'reply': 200}\n")

    def test_versions(self) -> None:
        """What runs is what is said to run."""
        said = self.run_program("python", "-c", "import sys, zmq; print(sys.version_info[:2], zmq.pyzmq_version())")
        self.assertEqual(said.out, "(3, 6) 16.0.4\n")
