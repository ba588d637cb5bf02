"""Terminals over the real link, where connections get lost, stay idle and have no room."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from sorna import errors
from sorna.cluster.link import ZmqAgentLink
from sorna.model.terminal import WINDOW, Terminal
from sorna.testing.terminals import MemoryViewer
from tests.cluster.real import LinkCase, pause
from tests.cluster.scripted import KERNEL


class TerminalLossTests(LinkCase):
    """A manager and an agent on loopback."""

    async def look(self, link: ZmqAgentLink) -> tuple[Terminal, MemoryViewer]:
        viewer = MemoryViewer()
        return await link.open_terminal(self.at, KERNEL, viewer), viewer

    async def test_lost_agent(self) -> None:
        """When the agent goes, every viewer is told once, and another look fails until it is back."""
        server, link = self.agent(), self.manager()
        self.at = self.address(server)
        _, first = await self.look(link)
        terminal, second = await self.look(link)
        await server.stopService()
        await self.until(lambda: first.ends and second.ends)
        self.assertEqual(first.ends, ["the connection to agent i-1 was lost"])
        self.assertEqual(self.operations.terminal.seats, [])
        terminal.write(b"x")
        await self.assertFailure(Deferred.fromCoroutine(self.look(link)), errors.AgentTimeout)

    async def test_lost_manager(self) -> None:
        """When a manager goes, its own viewers are told, and the agent forgets them and no others."""
        server, link, other = self.agent(), self.manager(), self.manager()
        self.at = self.address(server)
        _, viewer = await self.look(link)
        _, stays = await self.look(other)
        await link.stopService()
        self.assertEqual(viewer.ends, ["the link to the agent is closed"])
        await self.until(lambda: len(self.operations.terminal.seats) == 1)
        self.operations.terminal.show(b"still there")
        await self.until(lambda: stays.seen == b"still there")
        self.assertEqual(stays.ends, [])

    async def test_a_look_keeps_its_connection(self) -> None:
        """An agent that nobody calls stays connected while somebody looks, and not for longer."""
        server, link = self.agent(), self.manager(idle=0.1)
        self.at = self.address(server)
        terminal, viewer = await self.look(link)
        await pause(0.5)
        self.operations.terminal.show(b"x")
        await self.until(lambda: viewer.seen == b"x")
        terminal.close()
        await self.until(lambda: not self.operations.terminal.seats)
        await self.until(lambda: not link._agents)

    async def test_many_stalled_viewers_hold_up_nobody(self) -> None:
        """Two hundred viewers that do not read cost a window each; calls and another viewer go on."""
        server, link = self.agent(), self.manager()
        self.at = self.address(server)
        stalled = [(await self.look(link))[1] for _ in range(200)]
        self.operations.terminal.show(b"x" * 3 * WINDOW)
        await self.until(lambda: all(len(viewer.seen) == WINDOW for viewer in stalled))
        terminal, viewer = await self.look(link)
        self.assertEqual(await link.logs(self.at, KERNEL), "printed\n")
        taken = 0
        while taken < 3 * WINDOW:
            await self.until(lambda: len(viewer.seen) > taken)  # noqa: B023 -- it is over before the next round
            new = len(viewer.seen) - taken
            taken += new
            terminal.consumed(new)
        self.assertEqual([len(one.seen) for one in stalled], [WINDOW] * 200)
