"""Applications end to end: a WebSocket, the gateway, the link, the agent, and servers in a real sandbox."""

from __future__ import annotations

import hashlib
import socket

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from sorna.gateway.tunnels import BROKEN
from sorna.model.service import MOST_TUNNELS
from tests.cluster.real import reactor
from tests.integration.linked_kernel import LinkedKernelCase

# A server of the user's own: it answers each connection with the digest of what came, after its end.
DIGESTS = """
import hashlib, socket, threading
listener = socket.create_server(("127.0.0.1", 5000))
def serve():
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=talk, args=(peer,), daemon=True).start()
def talk(peer):
    digest = hashlib.sha256()
    while data := peer.recv(65536):
        digest.update(data)
    peer.sendall(digest.hexdigest().encode())
    peer.close()
threading.Thread(target=serve, daemon=True).start()
"""
BIG = "import os, hashlib; content = os.urandom(8_000_000); open('big', 'wb').write(content)\n"


class ServiceTests(LinkedKernelCase):
    """One kernel of each test, and clients of its applications."""

    async def get(self, path: str, app: str = "files") -> bytes:
        """Fetch a page and give its body."""
        client = await self.dig(app)
        client.send_bytes(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        await client.until(lambda: client.lost, 40.0)
        self.assertEqual((client.code, client.reason), (1000, ""))
        head, _, body = bytes(client.received).partition(b"\r\n\r\n")
        self.assertIn(b" 200 ", head.partition(b"\r\n")[0])
        return body

    async def test_files(self) -> None:
        """The application is started on first use, serves the working directory byte for byte, and several at once."""
        digest = (await self.query(BIG + "print(hashlib.sha256(content).hexdigest())")).strip()
        pages = await gatherResults([Deferred.fromCoroutine(self.get("/big")) for _ in range(4)])
        self.assertEqual({hashlib.sha256(page).hexdigest() for page in pages}, {digest})

    async def test_what_the_program_listens_on(self) -> None:
        """A port of the user's own program is listed while it listens, and takes megabytes byte for byte."""
        await self.query(DIGESTS)
        services = await self.link.services(self.at, self.kernel_id)
        self.assertEqual([one.name for one in services][-1:], ["5000"])
        client = await self.dig("5000", "&half-close=1")
        content = bytes(range(256)) * 40_000
        for start in range(0, len(content), 65_536):
            client.send_bytes(content[start : start + 65_536])
        client.send_bytes(b"")
        await client.until(lambda: client.lost, 40.0)
        self.assertEqual(client.received.decode(), hashlib.sha256(content).hexdigest())
        self.assertEqual(client.empty_messages, 1)

    async def test_nothing_listens(self) -> None:
        """The close says so."""
        client = await self.dig("5001")
        await client.until(lambda: client.lost)
        self.assertEqual((client.code, client.reason), (BROKEN, "Nothing listens on port 5001 (Connection refused)."))

    async def test_only_the_kernels_own_loopback(self) -> None:
        """What listens on the host's loopback is not reached through a kernel, by any spelling."""
        with socket.create_server(("127.0.0.1", 0)) as host:
            port = host.getsockname()[1]
            client = await self.dig(str(port))
            await client.until(lambda: client.lost)
            self.assertEqual(client.code, BROKEN)
            host.setblocking(False)
            with self.assertRaises(BlockingIOError):
                host.accept()

    async def test_a_slow_reader(self) -> None:
        """A client that stops reading stops its own download alone; runs and other clients go on, and it loses nothing."""
        await self.query(BIG + "open('small', 'w').write('small')")
        slow = await self.dig("files")
        slow.send_bytes(b"GET /big HTTP/1.0\r\n\r\n")
        await slow.until(lambda: slow.received)
        slow.transport.pauseProducing()  # type: ignore[union-attr]  # connected
        self.assertEqual(await self.get("/small"), b"small")
        self.assertEqual(await self.query("print(1 + 1)"), "2\n")
        slow.transport.resumeProducing()  # type: ignore[union-attr]
        await slow.until(lambda: slow.lost, 40.0)
        self.assertEqual(len(slow.received.partition(b"\r\n\r\n")[2]), 8_000_000)

    async def test_most_at_once(self) -> None:
        """So many connections into one kernel and no more; when one ends there is room for another."""
        await self.query(DIGESTS)
        clients = [await self.dig("5000") for _ in range(MOST_TUNNELS)]
        self.assertEqual((await self.ask("5000")).status, 503)
        await self.drop(clients[0])
        for _ in range(200):
            client = await self.ask("5000")
            if client.status == 101:
                return
            await deferLater(reactor, 0.05, lambda: None)
        self.fail("there is no room again")

    async def test_restarted_and_destroyed(self) -> None:
        """A restart ends applications, and the next connection starts them again; the kernel's end closes every tunnel."""
        await self.query("open('a', 'w').write('here')")
        self.assertEqual(await self.get("/a"), b"here")
        await self.link.restart_kernel(self.at, self.kernel_id)
        self.assertEqual(await self.get("/a"), b"here")
        await self.link.stop_service(self.at, self.kernel_id, "files")
        self.assertEqual(await self.get("/a"), b"here")
        client = await self.dig("files")
        await self.link.destroy_kernel(self.at, self.kernel_id, "user-requested")
        await client.until(lambda: client.lost)
        self.assertEqual((client.code, client.reason), (BROKEN, "The kernel has ended (user-requested)."))

    async def test_git(self) -> None:
        """The application that is no web server answers in its own protocol."""
        detection = self.detection
        assert detection is not None
        offered = {one.application.name for one in detection.runtimes["python3"].applications}
        if "git" not in offered:
            self.skipTest("git is not installed")
        made = await self.query("import subprocess; print(subprocess.run(['git', 'init', '-q', 'r']).returncode)")
        self.assertEqual(made, "0\n")
        client = await self.dig("git")
        request = b"git-upload-pack /r\0host=localhost\0"
        client.send_bytes(b"%04x" % (len(request) + 4) + request)
        await client.until(lambda: client.received)
        self.assertRegex(bytes(client.received), rb"^00[0-9a-f]{2}")
        self.assertNotIn(b"ERR", client.received)
