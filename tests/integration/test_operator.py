"""What an operator does: every way to start the server, TLS, and starts that cannot be, each with a clear last word."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import SkipTest
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing.doctor import check_promises
from sorna.testing.server import PROJECT, START_TIMEOUT, free_ports, server_command, shared_server
from sorna.testing.unit import UnitTestCase


class OperatorCase(UnitTestCase):
    """Starts servers with a folder and ports of their own."""

    def setUp(self) -> None:
        """Find ports and make the folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="sorna-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o711)
        self.port, manager, agent = free_ports(3)
        self.options = {
            "service-ip": "127.0.0.1",
            "service-port": str(self.port),
            "manager-port": str(manager),
            "agent-port": str(agent),
            "state-dir": str(self.folder / "state"),
        }

    def flags(self, **changed: str) -> list[str]:
        """Give the options for a command line."""
        options = {**self.options, **{name.replace("_", "-"): value for name, value in changed.items()}}
        return [f"--{name}={value}" for name, value in options.items()]

    def environ(self, **more: str) -> dict[str, str]:
        """Give an environment without options of a server."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SORNA_")}
        return {**kept, "PYTHONPATH": str(PROJECT), **more}

    def start(self, command: list[str], **environ: str) -> subprocess.Popen[bytes]:
        """Start a server that the end of the test ends."""
        with (self.folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command, cwd=self.folder, env=self.environ(**environ), stdin=-3, stdout=log, stderr=log
            )
        self.addCleanup(self.end, server)
        return server

    def end(self, server: subprocess.Popen[bytes]) -> None:
        """End a server as a service manager does, with all its promises kept."""
        if server.poll() is None and "Sorna is ready" in (self.folder / "log").read_text("utf-8", "replace"):
            check_promises("--state-dir", self.options["state-dir"])
        server.terminate()
        try:
            server.wait(20)
        finally:
            server.kill()
            server.wait()

    def wait(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the server says that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT
        while "Sorna is ready" not in (said := (self.folder / "log").read_text("utf-8", "replace")):
            self.assertIsNone(server.poll(), said[-3000:])
            self.assertLess(time.monotonic(), deadline, said[-3000:])
            time.sleep(0.05)

    def sorna(self, **environ: str) -> str:
        """Run code with the command line and give what it printed."""
        command = [sys.executable, "-m", "sorna.client.cli", "run", "-q", "python3", "-c", "print(6*7)"]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT), **environ}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr


class StartTests(OperatorCase):
    """Each start makes its own keypair, which the command line finds in the state directory."""

    def runs(self, server: subprocess.Popen[bytes]) -> None:
        """Check that code runs on a server."""
        self.wait(server)
        self.assertEqual(self.sorna(SORNA_STATE_DIR=self.options["state-dir"]), "42\n")

    def test_module_of_the_gateway(self) -> None:
        """``python -m sorna.gateway.server``, with a file whose values variables and flags win over."""
        (self.folder / "sorna.toml").write_text(
            f'service-port = 1\nservice-ip = "127.0.0.3"\nstate-dir = "{self.options["state-dir"]}"\n'
        )
        words = [f"--{name}={self.options[name]}" for name in ("service-port", "manager-port", "agent-port")]
        command = [sys.executable, "-m", "sorna.gateway.server", "--config", str(self.folder / "sorna.toml"), *words]
        self.runs(self.start(command, SORNA_SERVICE_PORT="2", SORNA_SERVICE_IP="127.0.0.2"))
        self.assertIn(f"http://127.0.0.2:{self.port}", (self.folder / "log").read_text())

    def test_tac_file(self) -> None:
        """``twistd -y sorna.tac`` takes everything from variables."""
        variables = {f"SORNA_{name.upper().replace('-', '_')}": value for name, value in self.options.items()}
        tac = PROJECT / "sorna.tac"
        if not tac.exists():
            raise SkipTest("the project lies elsewhere")
        run = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
        self.runs(self.start([sys.executable, "-c", run, "--nodaemon", "--pidfile=", "-y", str(tac)], **variables))

    def test_tls(self) -> None:
        """With a certificate the service speaks TLS, and nothing else, and the command line checks it."""
        certificate, key = self.certificate()
        server = self.start(
            server_command(self.flags(ssl_cert=str(certificate), ssl_key=str(key)), ["--example-keypair"])
        )
        self.wait(server)
        keys = {
            "SORNA_ENDPOINT": f"https://127.0.0.1:{self.port}",
            "SORNA_ACCESS_KEY": EXAMPLE_ACCESS_KEY,
            "SORNA_SECRET_KEY": EXAMPLE_SECRET_KEY,
        }
        self.assertEqual(self.sorna(**keys, SSL_CERT_FILE=str(certificate)), "42\n")
        self.assertIn("certificate", self.sorna(**keys))
        context = ssl.create_default_context(cafile=str(certificate))
        # As curl and browsers do.
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", self.port), 20) as wire,
            context.wrap_socket(wire, server_hostname="127.0.0.1") as secured,
        ):
            self.assertEqual(secured.selected_alpn_protocol(), "http/1.1")
        with socket.create_connection(("127.0.0.1", self.port), 5) as plain:
            plain.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertNotIn(b"HTTP", plain.recv(100))

    def certificate(self) -> tuple[Path, Path]:
        """Make a certificate for the loopback address that nobody else has signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.fromtimestamp(self.folder.stat().st_mtime, UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(key, hashes.SHA256())
        )
        certificate, private = self.folder / "cert.pem", self.folder / "key.pem"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private


class RefusalTests(OperatorCase):
    """Starts beside a server that runs."""

    def refused(self, *flags: str) -> str:
        """Check that a start ends soon and not well; give what it said."""
        done = subprocess.run(
            server_command(flags),
            cwd=self.folder,
            env=self.environ(),
            stdin=-3,
            stdout=-1,
            stderr=-2,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 1, done.stdout)
        return done.stdout.decode()

    def running(self) -> tuple[int, Path]:
        """Give port and state directory of the running server."""
        server = shared_server()
        if server.folder is None:
            raise SkipTest("the server was running before, and its state directory is not known")
        return urlsplit(server.endpoint).port or 0, server.folder / "state"

    def test_taken_port(self) -> None:
        """The address and the reason are named."""
        port, _state = self.running()
        said = self.refused(*self.flags(service_port=str(port)))
        self.assertIn(f"sorna: cannot listen on 127.0.0.1 port {port}: [Errno 98] Address already in use", said)

    def test_taken_state_directory(self) -> None:
        """The directory and the way out are named, and the running server is not disturbed."""
        _port, state = self.running()
        said = self.refused(*self.flags(state_dir=str(state)))
        self.assertRegex(
            said, f"sorna: cannot start: {state}/(postgres|redis) is in use by another server: .*--state-dir"
        )
        self.assertEqual(self.sorna(SORNA_STATE_DIR=str(state)), "42\n")

    def test_taken_port_of_the_agent(self) -> None:
        """When the agent cannot listen for some seconds, the server does not go on without it."""
        _port, state = self.running()
        taken = tomllib.loads((state / "agent.toml").read_text())["agent-port"]
        said = self.refused(*self.flags(agent_port=str(taken)))
        self.assertRegex(said, f"sorna: cannot start: the local agent does not start: .*127.0.0.1:{taken}")

    def test_open_to_everybody(self) -> None:
        """The embedded mode listens on loopback unless it is told otherwise, and the published keypair never elsewhere."""
        said = self.refused(*self.flags(service_ip="0.0.0.0"))
        self.assertIn("--allow-remote", said)
        said = self.refused(*self.flags(service_ip="0.0.0.0"), "--allow-remote", "--example-keypair")
        self.assertIn("--example-keypair is for loopback addresses", said)
        self.assertFalse((self.folder / "state").exists())
