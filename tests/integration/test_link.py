"""The link over real ZeroMQ on loopback: keys, loss, floods, large messages and news."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import zmq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from sorna import errors
from sorna.cluster.messages import Call, encode
from sorna.curve_keys import CurveKeypair, generate, load_or_make
from sorna.manager.interfaces import KernelEnded, UploadFile
from sorna.model.agent import AgentAddress
from tests.cluster.real import LinkCase, pause, reactor
from tests.cluster.scripted import KERNEL, OTHER, QUERY, REPLY, USAGE


def start(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


class RawManager:
    """A DEALER that sends what it likes, with blocking ZeroMQ's non-blocking calls."""

    def __init__(self, endpoint: str, own: CurveKeypair, server: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, 100_000)
        self.socket.set(zmq.CURVE_PUBLICKEY, own.public.encode())
        self.socket.set(zmq.CURVE_SECRETKEY, own.secret.encode())
        self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
        self.socket.connect(endpoint)

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts, zmq.NOBLOCK)

    def received(self) -> list[bytes]:
        messages = []
        while self.socket.poll(0):
            messages.append(self.socket.recv(zmq.NOBLOCK))
        return messages

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class KeyTests(LinkCase):
    """Who gets in."""

    async def test_an_agent_that_is_not_to_be_trusted_is_not_called(self) -> None:
        """Before a connection is made it is asked whether it may be; one that is made is not asked about again."""
        server = self.agent()
        self.authorise(self.manager_keys)
        asked: list[AgentAddress] = []

        async def permits(address: AgentAddress) -> bool:
            asked.append(address)
            return len(asked) > 1

        link = self.manager(permits=permits)
        address = self.address(server)
        with self.assertRaisesRegex(errors.AgentFailed, "not enrolled with this key"):
            await link.ping(address)
        self.assertEqual([await link.ping(address) for _ in range(3)], ["first"] * 3)
        self.assertEqual(asked, [address] * 2)

    async def test_an_agent_pauses(self) -> None:
        """Calls to an agent that pauses wait, and are made when it goes on, or when another program has its place."""
        server = self.agent()
        link = self.manager()
        address = self.address(server)
        await link.ping(address)
        server.pause()
        waiting = start(link.usage(address, KERNEL))
        await pause(0.3)
        self.assertNoResult(waiting)
        self.assertEqual(self.operations.calls, [])
        server.resume()
        self.assertEqual(await waiting, USAGE)
        server.kernel_ended(OTHER, "news", USAGE)
        server.pause()
        waiting = start(link.usage(address, KERNEL))
        await pause(0.3)
        port = int(server.endpoint.rpartition(":")[2])
        await server.stopService()
        again = self.agent(port)
        self.assertEqual(await waiting, USAGE)
        self.assertEqual(again.calls_in_flight, 0)

    async def test_restarting_a_program(self) -> None:
        """An agent is asked to replace its program; one that cannot says so."""
        server = self.agent()
        link = self.manager()
        address = self.address(server)
        with self.assertRaises(errors.Unavailable):
            await link.restart_program(address)
        asked: list[bool] = []

        async def restart() -> None:
            asked.append(True)

        server.restart_program = restart
        await link.restart_program(address)
        self.assertEqual(asked, [True])

    async def test_forgetting_ends_calls(self) -> None:
        """When an agent is distrusted its connections close at once, its calls fail, and the next one asks again."""
        server = self.agent()
        self.authorise(self.manager_keys)
        allowed = [True]

        async def permits(_address: AgentAddress) -> bool:
            return allowed[0]

        link = self.manager(permits=permits)
        address = self.address(server)
        self.operations.script["execute"] = Deferred
        running = Deferred.fromCoroutine(link.execute(address, KERNEL, QUERY))
        await self.until(lambda: self.operations.calls)
        allowed[0] = False
        link.forget("another")
        self.assertNoResult(running)
        link.forget("i-1")
        self.failureResultOf(running, errors.Unavailable)
        with self.assertRaises(errors.AgentFailed):
            await link.ping(address)

    async def test_manager_with_an_unauthorised_key_is_refused(self) -> None:
        """It hears quickly that its key is not accepted, and reaches no operation."""
        link = self.manager(keypair=generate())
        at = self.address(self.agent())
        failure = await self.assertFailure(start(link.usage(at, KERNEL)), errors.AgentFailed)
        self.assertIn("does not accept this manager's key", failure.detail)
        self.assertEqual(self.operations.calls, [])

    async def test_wrong_agent_key_gets_silence(self) -> None:
        """A manager that expects another key sends nothing that could be read, and gets no answer."""
        link = self.manager()
        at = self.address(self.agent(), generate())
        await self.assertFailure(start(link.usage(at, KERNEL)), errors.AgentTimeout)
        self.assertEqual(self.operations.calls, [])

    async def test_plain_and_unauthorised_peers_get_silence(self) -> None:
        """Without CURVE, or with a stranger's key, a peer gets not one byte of an answer."""
        server = self.agent()
        stranger = RawManager(server.endpoint, generate(), self.agent_keys.public)
        self.addCleanup(stranger.close)
        plain = zmq.Context()
        socket = plain.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.connect(server.endpoint)
        self.addCleanup(plain.term)
        self.addCleanup(socket.close)
        call = encode(Call(1, "usage", {"kernel_id": KERNEL.bytes}, 1.0))
        stranger.send(call)
        socket.send(call, zmq.NOBLOCK)
        await pause(0.3)
        self.assertEqual((stranger.received(), socket.poll(0), self.operations.calls), ([], 0, []))

    async def test_enrolling_and_revoking_need_no_restart(self) -> None:
        """A key that is added is accepted soon; one that is removed is refused on its open connection too."""
        late = generate()
        link = self.manager(keypair=late)
        at = self.address(self.agent())
        await self.assertFailure(start(link.ping(at)), errors.AgentFailed)
        self.authorise(late)
        end = reactor.seconds() + 5
        while True:
            try:
                await link.ping(at)
                break
            except errors.AgentError:
                if reactor.seconds() > end:
                    raise
                await pause(0.05)
        (self.authorised / "1.public").unlink()
        await pause(0.6)
        self.operations.calls.clear()
        call = start(link.usage(at, KERNEL))
        await pause(0.2)
        self.assertEqual(self.operations.calls, [])
        call.cancel()
        await self.assertFailure(call, Exception)


class ServiceTests(LinkCase):
    """Starting, stopping and the connections that are kept."""

    async def test_taken_port_fails_the_start(self) -> None:
        """A second agent on the port raises at its start and leaves nothing open."""
        first = self.agent()
        with self.assertRaises(CannotListenError) as caught:
            self.agent(port=int(first.endpoint.rpartition(":")[2]))
        self.assertIn("Address already in use", str(caught.exception))
        await self.manager().ping(self.address(first))

    async def test_stop_fails_what_is_outstanding(self) -> None:
        """Calls end with Unavailable when the manager's service stops, and later ones at once."""
        link, at = self.manager(), self.address(self.agent())
        self.operations.script["execute"] = Deferred
        call = start(link.execute(at, KERNEL, QUERY))
        await self.until(lambda: self.operations.calls)
        await link.stopService()
        await self.assertFailure(call, errors.Unavailable)
        await self.assertFailure(start(link.ping(at)), errors.Unavailable)

    async def test_idle_and_moved_connections_are_closed(self) -> None:
        """What nobody uses is dropped; so is the old address of an agent that moved."""
        link = self.manager(idle=0.2)
        old, new = self.address(self.agent()), self.address(self.agent())
        await link.ping(old)
        await link.ping(new)
        self.assertEqual(list(link._agents), [new])
        await self.until(lambda: not link._agents)
        link.watch([new])
        await pause(0.5)
        self.assertEqual(list(link._agents), [new])

    async def test_nonsense_address_is_refused(self) -> None:
        """What an agent advertises may name a TCP address and nothing else."""
        link = self.manager()
        for endpoint in ("ipc:///tmp/x", "inproc://x", "tcp://*:1", "tcp://localhost:6011", "tcp://127.0.0.1:0", ""):
            at = AgentAddress("i-1", endpoint, self.agent_keys.public)
            await self.assertFailure(start(link.ping(at)), errors.AgentFailed)
        await self.assertFailure(start(link.ping(AgentAddress("i-1", "tcp://127.0.0.1:1", "x"))), errors.AgentFailed)


class LossTests(LinkCase):
    """One end goes away."""

    async def test_restarted_agent_fails_calls_at_once(self) -> None:
        """A call in flight ends when its agent does; the next one reaches the agent's new life."""
        server, link = self.agent(), self.manager()
        at = self.address(server)
        self.operations.script["execute"] = Deferred
        call = start(link.execute(at, KERNEL, QUERY))
        await self.until(lambda: self.operations.calls)
        began = reactor.seconds()
        await server.stopService()
        await self.assertFailure(call, errors.AgentTimeout)
        self.assertLess(reactor.seconds() - began, 1.0)
        self.assertEqual(self.operations.cancelled, ["execute"])
        self.agent(port=int(at.endpoint.rpartition(":")[2]), incarnation="second")
        self.assertEqual(await link.ping(at), "second")

    async def test_lost_manager_cancels_its_runs(self) -> None:
        """When a manager goes, its runs give their output back within half a second; destroying goes on."""
        server = self.agent()
        leaving, staying = self.manager(), self.manager()
        at = self.address(server)
        held: Deferred[None] = Deferred()
        self.operations.script.update(execute=Deferred, destroy_kernel=lambda: held)
        calls = [start(leaving.execute(at, KERNEL, QUERY)), start(leaving.destroy_kernel(at, KERNEL, "x"))]
        calls.append(start(staying.execute(at, KERNEL, QUERY)))
        await self.until(lambda: len(self.operations.calls) == 3)
        gone = gatherResults([self.assertFailure(call, errors.Unavailable) for call in calls[:2]])
        await leaving.stopService()
        await gone
        await self.until(lambda: self.operations.cancelled == ["execute"], 0.5)
        held.callback(None)
        await self.until(lambda: not self.operations.kernels)
        calls[2].cancel()
        await self.assertFailure(calls[2], Exception)


class Printed(ProcessProtocol):
    """Waits for the first line of a process, and for its end."""

    def __init__(self) -> None:
        self.text = b""
        self.line: Deferred[str] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.text += data
        if b"\n" in self.text and not self.line.called:
            self.line.callback(self.text.decode().strip())

    def processEnded(self, reason: Any) -> None:
        if not self.line.called:
            self.line.errback(reason)
        self.ended.callback(None)


class ProcessTests(LinkCase):
    """The agent is a process that is killed or frozen."""

    async def spawn(self) -> tuple[Any, AgentAddress]:
        keys = Path(self.mktemp())
        keypair = load_or_make(keys)
        printed = Printed()
        process = reactor.spawnProcess(
            printed,
            sys.executable,
            [sys.executable, "-m", "tests.cluster.agent_process", str(keys), str(self.authorised), "0"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            childFDs={0: "w", 1: "r", 2: 2},
        )

        def end() -> Deferred[None]:
            with contextlib.suppress(ProcessExitedAlready):
                process.signalProcess("KILL")
            return printed.ended

        self.addCleanup(end)
        return process, AgentAddress("i-1", await printed.line, keypair.public)

    async def lost_after(self, blow: str) -> float:
        process, at = await self.spawn()
        link = self.manager()
        call = start(link.execute(at, KERNEL, QUERY))
        await link.ping(at)
        await self.until(lambda: link._agents[at].lanes["output"].conversation._sent)
        began = reactor.seconds()
        os.kill(process.pid, getattr(signal, blow))
        await self.assertFailure(call, errors.AgentTimeout)
        return float(reactor.seconds() - began)

    async def test_killed_agent(self) -> None:
        """``kill -9`` of the agent fails the calls in flight at once."""
        self.assertLess(await self.lost_after("SIGKILL"), 0.5)

    async def test_frozen_agent(self) -> None:
        """An agent that no longer moves, as behind a dead network, is noticed by heartbeats."""
        self.assertLess(await self.lost_after("SIGSTOP"), 5.5)


class LoadTests(LinkCase):
    """Many calls, large calls and nonsense."""

    async def test_a_thousand_calls_at_once(self) -> None:
        """All are answered, each with its own result."""
        link, at = self.manager(), self.address(self.agent())
        held: list[Deferred[None]] = []

        def hold() -> Deferred[None]:
            held.append(Deferred())
            return held[-1]

        self.operations.script["execute"] = hold
        calls = [start(link.execute(at, KERNEL, QUERY)) for _ in range(1000)]
        await self.until(lambda: len(held) == 1000)
        await link.ping(at)
        for one in held:
            one.callback(None)
        self.assertEqual(await gatherResults(calls), [REPLY] * 1000)

    async def test_too_many_calls_are_refused(self) -> None:
        """Beyond the bound a call is Unavailable at once, and other kinds of calls go on."""
        link, at = self.manager(), self.address(self.agent())
        self.operations.script["execute"] = Deferred
        calls = [start(link.execute(at, KERNEL, QUERY)) for _ in range(2048)]
        await self.assertFailure(start(link.execute(at, KERNEL, QUERY)), errors.Unavailable)
        await link.ping(at)
        for call in calls:
            call.addErrback(lambda _: None)
            call.cancel()
        await self.until(lambda: len(self.operations.cancelled) == len(self.operations.calls))

    async def test_garbage_of_an_authorised_peer_stops_nothing(self) -> None:
        """Pings of another manager are answered while one floods the agent with nonsense."""
        server = self.agent()
        link, at = self.manager(), self.address(server)
        await link.ping(at)
        raw = RawManager(server.endpoint, self.manager_keys, self.agent_keys.public)
        self.addCleanup(raw.close)
        nonsense = [
            b"", b"\xc1", b"\xdd\x7f\xff\xff\xff", b"\x91" * 5000, os.urandom(100), encode(Call(1, "x" * 1000, {}, 1e9)),
            encode(Call(1, "usage", {"kernel_id": 5}, 5.0)), encode(Call(1, "execute", {"kernel_id": b"", "request": []}, 5.0)),
        ]  # fmt: skip
        slowest = 0.0
        for _ in range(30):
            for each in nonsense * 50:
                raw.send(each)
            raw.send(b"a", b"b", b"c")
            raw.send(*[b""] * 100)
            began = reactor.seconds()
            await link.ping(at)
            slowest = max(slowest, reactor.seconds() - began)
        self.assertLess(slowest, 1.0)
        self.assertEqual(self.operations.calls, [])
        self.assertEqual(await link.usage(at, KERNEL), USAGE)

    async def test_oversize_message_ends_only_its_own_connection(self) -> None:
        """More than the link's limit is not even read."""
        server = self.agent()
        link, at = self.manager(), self.address(server)
        await link.ping(at)
        raw = RawManager(server.endpoint, self.manager_keys, self.agent_keys.public)
        self.addCleanup(raw.close)
        raw.send(bytes(25 * 1024 * 1024))
        await pause(0.2)
        self.assertEqual(await link.ping(at), "first")
        call = start(link.upload(at, KERNEL, UploadFile("big", bytes(25 * 1024 * 1024))))
        await self.assertFailure(call, errors.InvalidRequest)

    async def test_pings_pass_a_large_upload(self) -> None:
        """While 20 MiB go to the agent, pings do not wait for them."""
        link, at = self.manager(), self.address(self.agent())
        await link.ping(at)
        content = os.urandom(1024) * (20 * 1024)
        upload = start(link.upload(at, KERNEL, UploadFile("big", content)))
        slowest = 0.0
        count = 0
        while not upload.called:
            began = reactor.seconds()
            await link.ping(at)
            count += 1
            slowest = max(slowest, reactor.seconds() - began)
        await upload
        self.assertEqual(self.operations.calls[0][3], content)
        self.assertGreater(count, 3)
        self.assertLess(slowest, 0.5)


class NewsTests(LinkCase):
    """``kernel_ended`` from the agent to its managers."""

    async def test_told_again_after_a_reconnect(self) -> None:
        """News from before any manager came, and news that was lost with a connection, arrives."""
        server = self.agent()
        server.kernel_ended(KERNEL, "idle-timeout", USAGE)
        first = self.manager(on_kernel_ended=lambda _news: Deferred())
        first.watch([self.address(server)])
        await self.until(lambda: first._agents[self.address(server)].news)
        await first.stopService()
        self.manager().watch([self.address(server)])
        await self.until(lambda: self.news)
        self.assertEqual(self.news, [KernelEnded("i-1", KERNEL, "idle-timeout", USAGE)])

    async def test_acknowledged_news_is_over(self) -> None:
        """A second manager is not told what the first has taken care of, and each kernel is told once."""
        server = self.agent()
        first = self.manager()
        first.watch([self.address(server)])
        server.kernel_ended(KERNEL, "a", USAGE)
        server.kernel_ended(KERNEL, "b", USAGE)
        await self.until(lambda: self.news and not server._sessions._events)
        server.kernel_ended(OTHER, "c", USAGE)
        await self.until(lambda: len(self.news) == 2 and not server._sessions._events)
        second = self.manager()
        await second.ping(self.address(server))
        await pause(0.1)
        self.assertEqual([news.reason for news in self.news], ["a", "c"])
