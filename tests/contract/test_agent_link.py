"""What every link to agents promises, held against the fake in memory and against the real one over loopback."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from sorna import errors
from sorna.cluster.memory import MemoryAgentLink
from sorna.manager.interfaces import AgentLink, KernelEnded, KernelOrder, UploadFile
from sorna.model.agent import AgentAddress
from sorna.model.run import OutputRequest, RunMode, RunRequest
from sorna.model.service import WINDOW as TUNNEL_WINDOW
from sorna.model.service import Tunnel, TunnelWish
from sorna.model.terminal import WINDOW, Terminal
from sorna.testing.services import SERVICES, MemoryUser
from sorna.testing.terminals import MemoryViewer
from tests.cluster.real import LinkCase, reactor
from tests.cluster.scripted import ENTRY, KERNEL, OTHER, PIECE, QUERY, REPLY, SPEC, USAGE, ScriptedOperations

WISH = TunnelWish("files", 8009, {"--directory": ["d"]}, {"LANG": "C"})


def _raise(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


class AgentLinkContract(LinkCase):
    """The suite; the classes below say for which link."""

    link: AgentLink
    at: AgentAddress
    nobody: AgentAddress
    kernel_ended: Callable[[uuid.UUID, str, Any], None]

    async def refused(self, error: type[Exception], call: Coroutine[Any, Any, Any]) -> Any:
        return await self.assertFailure(Deferred.fromCoroutine(call), error)

    async def test_every_call_arrives_whole(self) -> None:
        """Each method reaches its operation with equal values, and its result comes back equal."""
        link, at = self.link, self.at
        request = RunRequest(RunMode.BATCH, "", None, "*", "./a.out", build_log=True, wait=None)
        spec = evolve(SPEC, ports=(8000, 9000))
        self.assertEqual(await link.create_kernel(at, KernelOrder(OTHER, spec)), SERVICES)
        self.assertEqual(await link.services(at, OTHER), SERVICES)
        await link.stop_service(at, KERNEL, "files")
        self.assertEqual(await link.execute(at, OTHER, request), REPLY)
        reading = OutputRequest("run-1", 1 << 40, 1 << 39, 0.5, "waiting-input")
        self.assertEqual(await link.read_output(at, OTHER, reading), REPLY)
        self.assertEqual(await link.complete(at, KERNEL, "pr", {"row": 0, "col": 2}), ["print", "property"])
        await link.upload(at, KERNEL, UploadFile("a/b.bin", bytes(range(256)) * 2000))
        entries = await link.list_files(at, KERNEL, "a", recursive=True)
        self.assertEqual(list(entries), [ENTRY, evolve(ENTRY, name="", size=1 << 40)])
        self.assertEqual(await link.read_file(at, KERNEL, "a/é.txt", 1 << 33, 99), PIECE)
        await link.interrupt(at, KERNEL)
        await link.restart_kernel(at, KERNEL)
        self.assertEqual(await link.usage(at, KERNEL), USAGE)
        self.assertEqual(await link.logs(at, KERNEL), "printed\n")
        await link.drain(at, draining=True)
        await link.drain(at, draining=False)
        self.assertEqual(await link.destroy_kernel(at, OTHER, "user-requested"), USAGE)
        self.assertEqual(
            self.operations.calls,
            [
                ("create_kernel", OTHER, spec),
                ("services", OTHER),
                ("stop_service", KERNEL, "files"),
                ("execute", OTHER, request),
                ("read_output", OTHER, reading),
                ("complete", KERNEL, "pr", {"row": 0, "col": 2}),
                ("upload", KERNEL, "a/b.bin", bytes(range(256)) * 2000),
                ("list_files", KERNEL, "a", True),
                ("read_file", KERNEL, "a/é.txt", 1 << 33, 99),
                ("interrupt", KERNEL),
                ("restart_kernel", KERNEL),
                ("usage", KERNEL),
                ("logs", KERNEL),
                ("drain", True),
                ("drain", False),
                ("destroy_kernel", OTHER, "user-requested"),
            ],
        )

    async def test_domain_errors_keep_their_class_and_detail(self) -> None:
        """What an operation raises on purpose is raised here, by the same name."""
        for error in (
            errors.InvalidRequest("no such run"),
            errors.RuntimeUnknown("cobol"),
            errors.NoAgentAvailable("full"),
            errors.AgentRefused("it climbs out"),
            errors.AgentTimeout("slow"),
            errors.Unavailable("later"),
        ):
            self.operations.script["execute"] = _raise(error)
            raised = await self.refused(type(error), self.link.execute(self.at, KERNEL, QUERY))
            self.assertEqual(raised.detail, error.detail)
        raised = await self.refused(errors.KernelNotFound, self.link.usage(self.at, OTHER))
        self.assertIn(str(OTHER), raised.detail)

    async def test_agent_failed_keeps_the_exception(self) -> None:
        """The text of the agent's own exception travels with AgentFailed."""
        self.operations.script["logs"] = _raise(errors.AgentFailed("broken", "OSError(5)"))
        raised = await self.refused(errors.AgentFailed, self.link.logs(self.at, KERNEL))
        self.assertEqual((raised.detail, raised.exception), ("broken", "OSError(5)"))

    async def test_unexpected_error_becomes_agent_failed(self) -> None:
        """Whatever else an operation raises is AgentFailed with the exception as text, and is logged by the agent."""
        self.operations.script["usage"] = _raise(ValueError("boom", 1))
        raised = await self.refused(errors.AgentFailed, self.link.usage(self.at, KERNEL))
        self.assertEqual(raised.exception, "ValueError('boom', 1)")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_cancelling_cancels_the_operation(self) -> None:
        """When the caller is gone the operation hears of it, so that it gives its output back."""
        self.operations.script["execute"] = Deferred
        call = Deferred.fromCoroutine(self.link.execute(self.at, KERNEL, QUERY))
        await self.until(lambda: self.operations.calls)
        call.cancel()
        await self.assertFailure(call, CancelledError)
        await self.until(lambda: self.operations.cancelled == ["execute"])

    async def test_what_cannot_travel_is_the_callers_fault(self) -> None:
        """A lone surrogate, as JSON can hold one, is InvalidRequest and reaches no operation."""
        await self.refused(errors.InvalidRequest, self.link.complete(self.at, KERNEL, "\ud800", {}))
        await self.refused(errors.InvalidRequest, self.link.upload(self.at, KERNEL, UploadFile("\udcff", b"")))
        self.assertEqual(self.operations.calls, [])

    async def test_unknown_agent_is_a_timeout(self) -> None:
        """Where no agent is, the call ends soon and says so."""
        raised = await self.refused(errors.AgentTimeout, self.link.usage(self.nobody, KERNEL))
        self.assertIn("cannot be reached", raised.detail)

    async def look(self, kernel_id: uuid.UUID = KERNEL, **size: int) -> tuple[Terminal, MemoryViewer]:
        viewer = MemoryViewer()
        return await self.link.open_terminal(self.at, kernel_id, viewer, **size), viewer

    async def test_terminal(self) -> None:
        """What is typed and done arrives in order, and what is printed comes back, byte for byte, to every viewer."""
        screen = self.operations.terminal
        terminal, viewer = await self.look(rows=5000, columns=0)
        self.assertEqual(self.operations.calls, [("open_terminal", KERNEL, 1000, 1)])
        every = bytes(range(256))
        _, other = await self.look()
        for piece in (every, b"", b"x" * 70_000):
            terminal.write(piece)
        await self.until(lambda: len(viewer.seen) == len(other.seen) == 70_256)
        self.assertEqual((viewer.seen, other.seen), (every + b"x" * 70_000,) * 2)
        self.assertEqual(screen.writes, 3)
        terminal.restart()
        terminal.resize(-1, 2**40)
        await self.until(lambda: screen.restarts == 1 and screen.size == (1, 1000))

    async def test_terminal_shows_the_past(self) -> None:
        """Who comes later is shown what is on the screen, after the call has returned."""
        self.operations.terminal.show(b"$ ls\r\n")
        _, viewer = await self.look()
        self.assertEqual(viewer.seen, b"")
        await self.until(lambda: viewer.seen == b"$ ls\r\n")

    async def test_terminal_gives_no_more_than_is_consumed(self) -> None:
        """A viewer that does not read gets a window full, and everything else once it reads; others are not held up."""
        content = b"".join(b"%9d\n" % number for number in range(200_000))
        terminal, viewer = await self.look()
        self.operations.terminal.show(content)
        await self.until(lambda: len(viewer.seen) == WINDOW)
        self.assertEqual(await self.link.logs(self.at, KERNEL), "printed\n")
        self.assertEqual(len(viewer.seen), WINDOW)
        taken = 0
        while len(viewer.seen) < len(content):
            new = len(viewer.seen) - taken
            taken += new
            terminal.consumed(new)
            most = min(len(content), taken + WINDOW)
            await self.until(lambda most=most: len(viewer.seen) == most)
        self.assertEqual(viewer.seen, content)

    async def test_terminal_ends(self) -> None:
        """The end comes after the last output, once, with its reason; then nothing does anything."""
        terminal, viewer = await self.look()
        self.operations.terminal.show(b"last words")
        self.operations.terminal.end("idle-timeout")
        await self.until(lambda: viewer.ends)
        terminal.write(b"x")
        terminal.close()
        await self.link.logs(self.at, KERNEL)
        self.assertEqual((viewer.seen, viewer.ends), (b"last words", ["idle-timeout"]))
        self.assertEqual(self.operations.terminal.writes, 0)

    async def test_terminal_is_closed_at_the_agent(self) -> None:
        """Who closes is told nothing more, and the agent forgets the viewer."""
        terminal, viewer = await self.look()
        terminal.close()
        terminal.write(b"x")
        await self.until(lambda: not self.operations.terminal.seats)
        self.operations.terminal.show(b"x")
        self.operations.terminal.end("destroyed")
        await self.link.logs(self.at, KERNEL)
        self.assertEqual((viewer.seen, viewer.ends), (b"", []))

    async def test_terminal_of_no_kernel(self) -> None:
        """A kernel that the agent does not hold has no terminal, and an agent that is not there has none."""
        await self.refused(errors.KernelNotFound, self.look(OTHER))
        await self.refused(errors.AgentTimeout, self.link.open_terminal(self.nobody, KERNEL, MemoryViewer()))

    async def test_cancelled_look(self) -> None:
        """Whoever stops waiting for a terminal leaves no viewer behind."""
        gate: Deferred[None] = Deferred()
        self.operations.script["open_terminal"] = lambda: gate
        call = Deferred.fromCoroutine(self.link.open_terminal(self.at, KERNEL, MemoryViewer()))
        await self.until(lambda: self.operations.calls)
        call.cancel()
        await self.assertFailure(call, CancelledError)
        await self.until(lambda: self.operations.cancelled == ["open_terminal"])
        self.assertEqual(self.operations.terminal.seats, [])

    async def dig(self, kernel_id: uuid.UUID = KERNEL, wish: TunnelWish = WISH) -> tuple[Tunnel, MemoryUser]:
        user = MemoryUser()
        return await self.link.open_tunnel(self.at, kernel_id, user, wish), user

    async def test_tunnel(self) -> None:
        """Every byte goes both ways in order, with room and both ends, and each tunnel has its own."""
        every = bytes(range(256)) * 700
        (tunnel, user), (other, quiet) = await self.dig(), await self.dig()
        self.assertEqual(self.operations.calls, [("open_tunnel", KERNEL, WISH)] * 2)
        app, silent = self.operations.services_inside.tunnels
        for piece in (every, b"", b"x"):
            tunnel.write(piece)
        tunnel.finish()
        await self.until(lambda: app.client_finished)
        self.assertEqual(app.taken, every + b"x")
        await self.until(lambda: user.room == len(every) + 1)
        app.say(every)
        app.user.tunnel_finished()
        await self.until(lambda: user.told)
        self.assertEqual((user.seen, user.told), (every, ["finished"]))
        app.end("")
        await self.until(lambda: user.reasons)
        other.write(b"still")
        await self.until(lambda: silent.taken == b"still")
        self.assertEqual((user.reasons, quiet.seen, quiet.told), ([""], b"", []))

    async def test_tunnel_gives_no_more_than_is_consumed(self) -> None:
        """A user that does not read gets a window full, and everything else once it reads; others are not held up."""
        content = b"".join(b"%9d\n" % number for number in range(200_000))
        tunnel, user = await self.dig()
        self.operations.services_inside.tunnels[0].say(content)
        await self.until(lambda: len(user.seen) == TUNNEL_WINDOW)
        _, other = await self.dig()
        self.operations.services_inside.tunnels[1].say(b"quick")
        await self.until(lambda: other.seen == b"quick")
        self.assertEqual(len(user.seen), TUNNEL_WINDOW)
        taken = 0
        while len(user.seen) < len(content):
            new = len(user.seen) - taken
            taken += new
            tunnel.consumed(new)
            most = min(len(content), taken + TUNNEL_WINDOW)
            await self.until(lambda most=most: len(user.seen) == most)
        self.assertEqual(user.seen, content)

    async def test_tunnel_waits_for_room(self) -> None:
        """An application that does not read gives no room; when it reads, everything that was taken comes back."""
        tunnel, user = await self.dig()
        (app,) = self.operations.services_inside.tunnels
        app.reads = False
        tunnel.write(bytes(TUNNEL_WINDOW))
        await self.until(lambda: len(app.taken) == TUNNEL_WINDOW)
        await self.link.logs(self.at, KERNEL)
        self.assertEqual(user.room, 0)
        app.read()
        await self.until(lambda: user.room == TUNNEL_WINDOW)

    async def test_tunnel_is_closed_at_the_agent(self) -> None:
        """Who closes is told nothing more, and the agent forgets the tunnel."""
        tunnel, user = await self.dig()
        (app,) = self.operations.services_inside.tunnels
        tunnel.close()
        tunnel.write(b"x")
        await self.until(lambda: not self.operations.services_inside.tunnels)
        app.say(b"late")
        await self.link.logs(self.at, KERNEL)
        self.assertEqual((user.seen, user.told, app.taken), (b"", [], b""))

    async def test_tunnels_that_cannot_be(self) -> None:
        """No kernel, no agent, nothing of that name: each is refused by its own error and opens nothing."""
        await self.refused(errors.KernelNotFound, self.dig(OTHER))
        await self.refused(errors.InvalidRequest, self.dig(wish=TunnelWish("nothing")))
        await self.refused(errors.InvalidRequest, self.dig(wish=TunnelWish("files", 22)))
        await self.refused(errors.InvalidRequest, self.dig(wish=TunnelWish("\ud800")))
        await self.refused(errors.AgentTimeout, self.link.open_tunnel(self.nobody, KERNEL, MemoryUser(), WISH))
        self.assertEqual(self.operations.services_inside.tunnels, [])

    async def test_cancelled_tunnel(self) -> None:
        """Whoever stops waiting for a tunnel leaves none behind."""
        gate: Deferred[None] = Deferred()
        self.operations.script["open_tunnel"] = lambda: gate
        call = Deferred.fromCoroutine(self.dig())
        await self.until(lambda: self.operations.calls)
        call.cancel()
        await self.assertFailure(call, CancelledError)
        await self.until(lambda: self.operations.cancelled == ["open_tunnel"])
        self.assertEqual(self.operations.services_inside.tunnels, [])

    async def test_news_is_told_until_taken_care_of(self) -> None:
        """News whose recording failed comes again."""
        self.failing = 1
        self.kernel_ended(KERNEL, "idle-timeout", USAGE)
        expected = KernelEnded("i-1", KERNEL, "idle-timeout", USAGE)
        await self.until(lambda: len(self.news) >= 2)
        self.assertEqual(self.news[:2], [expected, expected])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    failing = 0

    async def take(self, news: KernelEnded) -> None:
        await super().take(news)
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the database is away")


class MemoryAgentLinkTests(AgentLinkContract):
    """The fake."""

    def setUp(self) -> None:
        super().setUp()
        operations: dict[str, ScriptedOperations] = {"i-1": self.operations}
        link = MemoryAgentLink(reactor, operations, self.take)
        self.link = link
        self.at = AgentAddress("i-1", "tcp://127.0.0.1:1", "")
        self.nobody = AgentAddress("i-2", "tcp://127.0.0.1:1", "")
        self.kernel_ended = lambda *news: link.kernel_ended("i-1", *news)


class ZmqAgentLinkTests(AgentLinkContract):
    """The real one."""

    def setUp(self) -> None:
        super().setUp()
        server, link = self.agent(), self.manager()
        self.link = link
        self.at = self.address(server)
        self.nobody = AgentAddress("i-2", "tcp://127.0.0.1:1", self.agent_keys.public)
        self.kernel_ended = server.kernel_ended
        link.watch([self.at])


del AgentLinkContract  # trial would run it without a link
