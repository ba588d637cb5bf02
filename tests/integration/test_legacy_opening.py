"""How a whole server opens its ZeroMQ door, or does not."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import zmq

from sorna.curve_keys import generate
from sorna.model.keypair import EXAMPLE_ACCESS_KEY
from sorna.testing.legacy import LegacyClient, legacy_context
from sorna.testing.server import ServerDidNotStart, running_server
from sorna.testing.unit import UnitTestCase

SESSION = {"action": 2, "user_id": "u", "entry_id": "e", "lang": "git"}
PING = {"action": 0, "body": 1}


class OpeningTests(UnitTestCase):
    def taken_port(self) -> int:
        """Give a port that somebody listens on."""
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        return int(taken.getsockname()[1])

    def refused(self, *options: str) -> str:
        """Give what a server says that does not start."""
        try:
            with running_server(*options):
                raise AssertionError("it started")
        except ServerDidNotStart as error:
            return str(error)

    def test_unknown_keypair(self) -> None:
        """A keypair that does not exist is the operator's error, and ends the start."""
        said = self.refused("--legacy-keypair=AKIANOBODYHASTHISKEY")
        self.assertIn("--legacy-keypair: there is no keypair AKIANOBODYHASTHISKEY", said)

    def test_taken_port(self) -> None:
        """A taken port ends a start that was to open the door, and closes a door that nobody asked for."""
        port = self.taken_port()
        said = self.refused(f"--manager-port={port}", f"--legacy-keypair={EXAMPLE_ACCESS_KEY}")
        self.assertIn(f"the ZeroMQ interface cannot listen on port {port} of 127.0.0.1", said)
        with running_server(f"--legacy-execution-port={port}") as server:
            self.assertIn("the ZeroMQ interface is closed, as it cannot listen", server.log)

    def test_override(self) -> None:
        """Clients are told the operator's address."""
        with running_server("--kernel-ip-override=203.0.113.7") as server, legacy_context() as context:
            client = LegacyClient(context, server.manager_port)
            reply = client.ask(SESSION)
            self.assertEqual(reply["kernel_addr"], f"tcp://203.0.113.7:{server.execution_port}")
            client.socket.close()

    def test_curve(self) -> None:
        """With keys asked for, only an authorised one is answered, by a terminal too; the server makes its own."""
        mine, stranger = generate(), generate()
        with running_server("--legacy-curve") as server, legacy_context() as context:
            assert server.folder is not None
            folder = server.folder / "state" / "legacy"
            (folder / "authorised" / "me.public").write_text(mine.public)
            public = (folder / "curve.public").read_text().strip()

            def keys(one: zmq.Socket[bytes], secret: str, own: str) -> None:
                one.curve_secretkey, one.curve_publickey, one.curve_serverkey = (
                    text.encode() for text in (secret, own, public)
                )

            client = LegacyClient(context, server.manager_port, ready=lambda one: keys(one, mine.secret, mine.public))
            reply = client.ask(SESSION)
            self.assertEqual(reply["reply"], 200)
            refused = [
                LegacyClient(context, server.manager_port),
                LegacyClient(
                    context, server.manager_port, ready=lambda one: keys(one, stranger.secret, stranger.public)
                ),
            ]
            for one in refused:
                # One that has been refused already has nowhere to send to, and would wait for ever.
                with contextlib.suppress(zmq.Again):
                    one.socket.send_json(PING, zmq.NOBLOCK)
            for key, seen in ((stranger, 0), (mine, zmq.POLLIN)):
                stdout = context.socket(zmq.SUB)
                keys(stdout, key.secret, key.public)
                stdout.setsockopt(zmq.SUBSCRIBE, b"")
                stdout.connect(reply["stdout_addr"])
                self.assertEqual(stdout.poll(10_000 if seen else 700), seen)
                stdout.close(0)
            self.assertEqual([one.socket.poll(0) for one in refused], [0, 0])
            for one in (client, *refused):
                one.socket.close()
            self.assertTrue(Path(folder / "curve.secret").stat().st_mode & 0o777 == 0o600)
