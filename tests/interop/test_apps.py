"""Applications in a session, as the ``app`` command of published clients tunnels them."""

from __future__ import annotations

import hashlib
import http.client
import secrets
import socket
import time
from typing import ClassVar

from tests.interop.environments import BACKEND
from tests.interop.setting import TIMEOUT, InteropTestCase

SIZE = 6_000_000
WRITES = (
    "import hashlib, os\n"
    "open('page.html', 'w').write('<h1>hello</h1>')\n"
    f"content = os.urandom({SIZE})\n"
    "open('big.bin', 'wb').write(content)\n"
    "print(hashlib.sha256(content).hexdigest())\n"
)
SERVES = (
    "import http.server, threading\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    def do_POST(self):\n"
    "        content = self.rfile.read(int(self.headers['Content-Length']))\n"
    "        self.send_response(200)\n"
    "        self.end_headers()\n"
    "        self.wfile.write(content[::-1])\n"
    "    def log_message(self, *arguments): pass\n"
    "server = http.server.ThreadingHTTPServer(('127.0.0.1', 5000), Handler)\n"
    "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
)


def free_port() -> int:
    """Give a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Release1812Tests(InteropTestCase):
    """Release 18.12.3, which asks for no list; the others run the same tests, as they spell things."""

    client = BACKEND["18.12.3"]
    end: ClassVar[tuple[str, ...]] = ("terminate",)

    def session(self, code: str) -> tuple[str, str]:
        """Make a session that has run some code; give its name and what that printed."""
        token = f"interop-{secrets.token_hex(6)}"
        said = self.run_program("backend.ai", "run", "-q", "-t", token, "python3", "-c", code)
        self.assertEqual(said.code, 0, said.text)
        self.addCleanup(self.run_program, "backend.ai", *self.end, token)
        return token, said.out.strip()

    def bind(self, port: int) -> tuple[str, ...]:
        """Spell where to listen."""
        return ("--bind", "127.0.0.1", "-p", str(port))

    def open(self, token: str, app: str) -> int:
        """Start the client's proxy, and give its port once it listens."""
        port = free_port()
        self.start(token, app, port, "is available at")
        return port

    def start(self, token: str, app: str, port: int, expected: str) -> None:
        """Start the client's proxy, which runs on whatever happens, and wait until it has said this."""
        log = self.start_program("backend.ai", "app", token, app, *self.bind(port))
        deadline = time.monotonic() + TIMEOUT
        while expected not in log.read_text("utf-8", "replace"):
            self.assertLess(time.monotonic(), deadline, log.read_text("utf-8", "replace"))
            time.sleep(0.05)

    def fetch(self, port: int, path: str, content: bytes | None = None) -> bytes:
        """Make a request through the proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            connection.request("GET" if content is None else "POST", path, content)
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200)
            return answer.read()
        finally:
            connection.close()

    def test_files(self) -> None:
        """The runtime's own application is started, and gives a page and megabytes byte for byte."""
        token, printed = self.session(WRITES)
        port = self.open(token, "files")
        self.assertEqual(self.fetch(port, "/page.html"), b"<h1>hello</h1>")
        content = self.fetch(port, "/big.bin")
        self.assertEqual((len(content), hashlib.sha256(content).hexdigest()), (SIZE, printed.splitlines()[-1]))

    def test_own_server(self) -> None:
        """What the session's own program listens on is reached by its port, and takes megabytes as well."""
        token, _ = self.session(SERVES)
        content = secrets.token_bytes(SIZE)
        self.assertEqual(self.fetch(self.open(token, "5000"), "/", content), content[::-1])


class Release1909Tests(Release1812Tests):
    """Release 19.9.10."""

    client = BACKEND["19.9.10"]

    def bind(self, port: int) -> tuple[str, ...]:
        """Spell where to listen."""
        return ("-b", f"127.0.0.1:{port}")


class Release2003Tests(Release1909Tests):
    """Release 20.3.10, the first that asks for a list before."""

    client = BACKEND["20.3.10"]

    def test_lists(self) -> None:
        """The list names what there is and what can be chosen; what is not in it is refused by the client."""
        token, _ = self.session(SERVES)
        said = self.run_program("backend.ai", "apps", token)
        self.says(said, "Information for service files", "--directory", "Service 5000 does not have")
        self.start(token, "nothing", free_port(), '"nothing" is not supported')


class Release2009Tests(Release2003Tests):
    """Release 20.9.9."""

    client = BACKEND["20.9.9"]


class Release2109Tests(Release2003Tests):
    """Release 21.9.5."""

    client = BACKEND["21.9.5"]
    end = ("session", "destroy")


class Release2203Tests(Release2109Tests):
    """Release 22.3.2."""

    client = BACKEND["22.3.2"]


class Release2209Tests(Release2109Tests):
    """Release 22.9.0."""

    client = BACKEND["22.9.0"]


class Release2303Tests(Release2109Tests):
    """Release 23.3.0."""

    client = BACKEND["23.3.0"]
