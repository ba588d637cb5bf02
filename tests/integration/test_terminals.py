"""Terminals end to end: a WebSocket, the gateway, the link, the agent, and a shell in a real sandbox."""

from __future__ import annotations

import hashlib
import os

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from sorna.manager.interfaces import UploadFile
from sorna.model.kernel import short_id
from sorna.testing.gateway import Signer
from tests.cluster.real import reactor
from tests.integration.linked_kernel import LinkedKernelCase
from tests.integration.websocket_client import WebSocketClient, open_websocket


class TerminalTests(LinkedKernelCase):
    """Clients that look at the kernel's terminal."""

    async def look(self) -> WebSocketClient:
        signer = Signer(reactor, host=b"127.0.0.1:%d" % self.port)
        target = f"/v2/stream/kernel/{short_id(self.kernel_id)}/pty"
        client = await open_websocket(reactor, self.port, target, signer)
        self.assertEqual(client.status, 101, client.refusal)

        async def close() -> None:
            if not client.lost:
                client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await client.until(lambda: client.lost)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client

    async def sees(self, client: WebSocketClient, text: bytes, times: int = 1) -> None:
        try:
            await client.until(lambda: client.screen.count(text) >= times)
        except Exception as error:
            raise AssertionError(f"no {text!r} on the screen {client.screen[-2000:]!r}") from error

    async def test_a_session(self) -> None:
        """The shell is in the sandbox, in the working directory, of the size that was asked for, and shares its files."""
        client = await self.look()
        client.send({"type": "resize", "rows": 33, "cols": 111})
        client.type("tty; stty size; pwd; id -un; echo $TERM; head -c 6 /proc/1/comm; echo from-shell > made\n")
        await self.sees(client, b"xterm-256color")
        client.type("echo do''ne\n")
        await self.sees(client, b"done")
        screen = client.screen
        for text in (b"/dev/pts/0\r\n", b"33 111\r\n", b"/home/work\r\n"):
            self.assertIn(text, screen)
        self.assertEqual(await self.query("print(open('made').read())"), "from-shell\n\n")

    async def test_a_program_on_the_whole_screen(self) -> None:
        """A curses program draws, resizes and quits."""
        client = await self.look()
        program = (
            b"import curses\n"
            b"def main(screen):\n"
            b"    while True:\n"
            b"        screen.erase()\n"
            b"        screen.addstr(0, 0, 'size=%dx%d' % screen.getmaxyx())\n"
            b"        screen.refresh()\n"
            b"        if screen.getch() == ord('q'):\n"
            b"            return\n"
            b"curses.wrapper(main)\n"
        )
        await self.link.upload(self.at, self.kernel_id, UploadFile("draw.py", program))
        client.type("python3 draw.py; echo st''atus $?\n")
        await self.sees(client, b"size=24x80")
        client.send({"type": "resize", "rows": 40, "cols": 120})
        await self.sees(client, b"40x120")
        client.type("q")
        await self.sees(client, b"status 0")

    async def test_two_viewers(self) -> None:
        """Both see the same bytes; one that comes later sees the recent past first."""
        first, second = await self.look(), await self.look()
        first.type("seq 1000; echo en''d\n")
        await self.sees(first, b"\r\nend\r\n")
        await self.sees(second, b"\r\nend\r\n")
        second.type("echo fr''om the other\n")
        await self.sees(first, b"from the other\r\n")
        await self.sees(second, b"from the other\r\n")
        third = await self.look()
        await self.sees(third, b"from the other\r\n")
        self.assertEqual(first.screen, second.screen)
        self.assertTrue(first.screen.endswith(third.screen))

    async def test_many_bytes_arrive_whole(self) -> None:
        """Megabytes pass in order and complete."""
        client = await self.look()
        client.type(
            "stty raw; printf 'st''art'; python3 -c 'import sys; sys.stdout.write(chr(233) * 4000000)'; printf 'st''op'\n"
        )
        await self.sees(client, b"stop")
        content = client.screen.partition(b"start")[2].partition(b"stop")[0]
        self.assertEqual(hashlib.sha256(content).digest(), hashlib.sha256("\u00e9".encode() * 4_000_000).digest())

    async def test_a_stalled_viewer(self) -> None:
        """Fifty megabytes for a client that does not read grow nothing; runs answer meanwhile; no byte is lost."""
        client = await self.look()
        client.type("echo rea''dy\n")
        await self.sees(client, b"ready")
        client.transport.pauseProducing()  # type: ignore[union-attr]  # TCP
        before = _resident()
        client.type("seq 9999999 | head -c 50000000; echo en''d\n")
        for number in range(10):
            await deferLater(reactor, 0.2)
            self.assertEqual(await self.query(f"{number} + 1"), f"{number + 1}\n")
        self.assertLess(_resident() - before, 10_000_000)
        client.type("\x03")
        client.transport.resumeProducing()  # type: ignore[union-attr]  # TCP
        client.type("echo af''ter\n")
        await self.sees(client, b"after\r\n")
        numbers = client.screen.partition(b"\r1\r\n")[2].partition(b"^C")[0].split(b"\r\n")[:-1]
        self.assertGreater(len(numbers), 10_000)
        self.assertEqual(numbers, [b"%d" % number for number in range(2, len(numbers) + 2)])

    async def test_exit_and_restart(self) -> None:
        """The shell comes again after ``exit`` and after a restart of the kernel, and the socket stays."""
        client = await self.look()
        client.type("x=5; echo x=$x; sleep 1; exit\n")
        await self.sees(client, b"Restarting the shell...\r\n")
        client.type("echo y=$x.\n")
        await self.sees(client, b"y=.")
        await self.query("a = 1")
        client.type("echo kee''p > kept; cat kept; sleep 1000\n")
        await self.sees(client, b"keep\r\n")
        client.send({"type": "restart"})
        client.send({"type": "restart"})
        await self.sees(client, b"Restarting the shell...\r\n", times=2)
        client.type("cat kept; ps ax | grep -c '[s]leep 1000'\n")
        await self.sees(client, b"keep\r\n0\r\n")
        self.assertEqual(await self.query("'a' in globals()"), "False\n")

    async def test_destroyed(self) -> None:
        """When the kernel is destroyed the client is told why and closed with 1000."""
        client = await self.look()
        client.type("sleep 1000\n")
        await self.sees(client, b"sleep 1000")
        await self.link.destroy_kernel(self.at, self.kernel_id, "user-requested")
        await client.until(lambda: client.lost)
        self.assertEqual(client.code, 1000)
        self.assertEqual(client.messages[-1], {"type": "error", "data": "The kernel has ended (user-requested)."})

    async def test_interrupt_is_a_key(self) -> None:
        """Ctrl-C ends what runs in the terminal and no run; interrupting a run does not touch the terminal."""
        client = await self.look()
        client.type("echo st''arted; sleep 1000\n")
        await self.sees(client, b"started")
        await self.link.interrupt(self.at, self.kernel_id)
        await deferLater(reactor, 0.2)
        client.type("\x03")
        client.type("echo co''de=$?\n")
        await self.sees(client, b"code=130")


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
