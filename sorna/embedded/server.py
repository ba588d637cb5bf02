"""What starting, watching and stopping is the same for every embedded server; knows no particular one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime, IReactorUNIX
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from sorna.embedded.process import BoundedLog, Command, ServerProcess
from sorna.embedded.state import EmbeddedError, ServerDirectory, kill, left_behind

T = TypeVar("T")

# Recovery after a crash may take a while on a slow disk.
START_TIMEOUT = 60.0
LEFTOVER_TIMEOUT = 5.0
PROBE_TIMEOUT = 5.0


class _Question(Protocol):
    """Sends one request and collects what comes back until it is long enough, or the other end closes."""

    def __init__(self, request: bytes, enough: int) -> None:
        self._request = request
        self._enough = enough
        self._received = b""
        self.answered: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) >= self._enough:
            self._tell()

    def connectionLost(self, _reason: Failure | None = None) -> None:
        self._tell()

    def _tell(self) -> None:
        if not self.answered.called:
            self.answered.callback(self._received)


async def ask(reactor: IReactorTime, path: str, request: bytes, enough: int) -> bytes:
    """Send a request to a unix socket and give the first bytes of the answer; empty when nobody answers in time."""
    endpoint = UNIXClientEndpoint(IReactorUNIX(reactor), path, timeout=PROBE_TIMEOUT)
    question = _Question(request, enough)
    try:
        await endpoint.connect(Factory.forProtocol(lambda: question))
    except ConnectError:
        return b""
    timer = reactor.callLater(PROBE_TIMEOUT, question.connectionLost)
    answer = await question.answered
    if timer.active():
        timer.cancel()
    if question.transport is not None:
        question.transport.loseConnection()
    return answer


class Server:
    """One server process in one directory.

    :ivar name: for messages.
    :ivar directory: taken between :meth:`open` and :meth:`close`.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, name: str, path: Path) -> None:
        self.reactor = reactor
        self.name = name
        self.directory = ServerDirectory(path)
        self._process: ServerProcess | None = None
        self._output: BoundedLog | None = None
        self._stopping = False
        self._lost: list[Deferred[str]] = []

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what may block the reactor elsewhere."""
        threads = IReactorFromThreads(self.reactor)
        pool: ThreadPool = threads.getThreadPool()  # type: ignore[attr-defined]  # missing from Twisted's interface
        return await deferToThreadPool(threads, pool, work)

    async def open(self) -> None:
        """Take the directory, and wait until what an earlier crash left in it is gone.

        :raises DirectoryTaken, EmbeddedError: it cannot be had.
        """
        self.directory.take()
        self._stopping = False
        try:
            self._output = BoundedLog(self.directory)
            await self._outlive_leftovers()
        except BaseException:
            self.close()
            raise

    async def _outlive_leftovers(self) -> None:
        places = (self.directory.path, self.directory.data, self.directory.path / "data.new")
        deadline = self.reactor.seconds() + LEFTOVER_TIMEOUT
        while pids := await self.in_thread(lambda: left_behind(*places)):
            if self.reactor.seconds() > deadline + LEFTOVER_TIMEOUT:
                raise EmbeddedError(f"processes of an earlier {self.name} do not go away: {pids}")
            if self.reactor.seconds() > deadline:
                self._log.warn("killing what an earlier {name} left behind: {pids}", name=self.name, pids=pids)
                kill(pids)
            await deferLater(self.reactor, 0.05)

    def _launch(self, command: Command) -> ServerProcess:
        if self._stopping or self._output is None:
            raise EmbeddedError(f"{self.name} was stopped while it started")
        self._process = ServerProcess.launch(self.reactor, command, self.directory, self._output)
        return self._process

    async def run_to_end(self, command: Command) -> None:
        """Run a program that prepares something.

        :raises EmbeddedError: it failed, or took too long.
        """
        process = self._launch(command)
        if not await process.ended_within(START_TIMEOUT):
            await process.stop(())
        if process.exit_status != 0:
            raise process.explain(command.argv[0].rpartition("/")[2])

    async def serve(self, command: Command, answers: Callable[[], Deferred[bool]]) -> None:
        """Start the server and wait until ``answers`` gives true.

        :raises EmbeddedError: it ended instead, or takes too long.
        """
        process = self._launch(command)
        deadline = self.reactor.seconds() + START_TIMEOUT
        while process.exit_status is None and not self._stopping:
            if await answers():
                process.when_ended().addCallback(self._ended)
                return
            if self.reactor.seconds() > deadline:
                await process.stop(((signal.SIGQUIT, 2.0),))
                raise EmbeddedError(
                    f"{self.name} does not answer after {START_TIMEOUT:.0f} s; see {self.directory.path}/server.log"
                )
            await process.ended_within(0.02)
        raise process.explain(self.name)

    def _ended(self, status: int) -> None:
        if self._stopping:
            return
        self._log.error("the embedded {name} ended on its own with status {status}", name=self.name, status=status)
        lost, self._lost = self._lost, []
        for one in lost:
            one.callback(f"{self.name} ended with status {status}")

    def when_lost(self) -> Deferred[str]:
        """Give a new Deferred that fires with a sentence if the server ends without having been stopped."""
        lost: Deferred[str] = Deferred(self._lost.remove)
        self._lost.append(lost)
        return lost

    async def stop(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """End the process, if there is one, and let go of the directory."""
        self._stopping = True
        if self._process is not None:
            await self._process.stop(steps)
        self.close()

    def close(self) -> None:
        """Let go of the directory; nothing may run in it any more."""
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None
        self.directory.release()
