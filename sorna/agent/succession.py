"""How an agent's program gives way to the next one in the same process, while its kernels live on.

Knows the agent's parts by what it asks of them; how a program is replaced is in ``handover.py``.

Note [In which order]
=====================
First everything that may fail: the next program is tried beside this one, managers are told to wait, every call that waits for
output is answered with what there is, other calls get time to end, and kernels that are nobody's are let go. When something
cannot be carried after :data:`PATIENCE` seconds, everything goes on as before, and the log says what it was. Then a heartbeat
that lasts longer than others, so that no manager takes the agent for dead; the link is closed, and what there is is
written down in one turn of the reactor, from the last look at it to ``exec``: nothing happens in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from sorna.agent.handover import HandoverImpossible
from sorna.agent.heartbeat import Heart
from sorna.agent.interfaces import Sandbox
from sorna.agent.kernels import Kernels
from sorna.agent.lane import OpenChannel
from sorna.agent.pool import Pool
from sorna.agent.service import FIRST_RUNTIME, KEPT_READY
from sorna.errors import Unavailable

PATIENCE = 10.0
LOOK = 0.02
# Until what the managers were told and answered has left this process.
LINGER = 0.1
# A heartbeat lasts two intervals: so long may the next program take until its first one.
LAST_INTERVAL = 5.0


class PausableLink(Protocol):
    """The link's server, as :class:`sorna.agent.link_server.LinkServer` is."""

    @property
    def calls_in_flight(self) -> int:
        """How many calls are being worked on."""
        ...

    def pause(self) -> None:
        """Begin no call."""
        ...

    def resume(self) -> None:
        """Begin calls again."""
        ...

    def carry(self) -> Mapping[str, Any]:
        """Give the news that nobody has acknowledged."""
        ...

    def stopService(self) -> Deferred[None]:
        """Close."""
        ...


@define
class Succession:
    """Replaces the program.

    :ivar incarnation: this life of the agent, which goes on.
    :ivar prepare: sees to it that the next program can be started. :raises HandoverImpossible:.
    :ivar give_way: executes the next program with what it is to find.
    :ivar failed: is told, with a sentence, when there is no way back and none ahead; it ends the process.
    """

    reactor: IReactorTime
    sandbox: Sandbox
    pool: Pool
    kernels: Kernels
    link: PausableLink
    heart: Heart
    incarnation: str
    prepare: Callable[[], Awaitable[None]]
    give_way: Callable[[Mapping[str, Any]], NoReturn]
    failed: Callable[[str], None]
    _going: bool = False

    _log = Logger()

    async def begin(self) -> None:
        """Try the next program, and replace this one soon after this has returned, if it can be.

        :raises Unavailable: it cannot; the detail says why.
        """
        if self._going:
            raise Unavailable("the agent replaces its program already")
        self._going = True
        try:
            await self.prepare()
        except HandoverImpossible as error:
            self._going = False
            raise Unavailable(f"the program is not replaced: {error}") from error
        self._log.info("the program of this agent is to be replaced")
        self.reactor.callLater(0, self._replace_now)

    def _replace_now(self) -> None:
        Deferred.fromCoroutine(self._replace()).addErrback(
            lambda failure: self._log.failure("replacing the program", failure)
        )

    async def _replace(self) -> None:
        try:
            await self._settle()
        except HandoverImpossible as error:
            self._log.error("the program is not replaced, everything goes on: {why}", why=str(error))
            self.link.resume()
            self.heart.go_on()
            self.pool.start(FIRST_RUNTIME, KEPT_READY)
            self._going = False
            return
        try:
            await self.link.stopService()
            self.give_way(self._state())
        except Exception as error:  # noqa: BLE001 - whatever it was, kernels must not be left to nobody
            self._log.failure("the program could not be replaced")
            self.failed(f"the program could not be replaced: {error}")

    async def _settle(self) -> None:
        deadline = self.reactor.seconds() + PATIENCE
        self.link.pause()
        await self.pool.stop()
        while True:
            await self._until_settled(deadline)
            try:
                await self.heart.outlive(LAST_INTERVAL)
            except Exception as error:  # noqa: BLE001 - without a store there is nobody to be taken for dead by
                self._log.warn("no last heartbeat: {error!r}", error=error)
            await deferLater(self.reactor, LINGER)
            if not self._unsettled():
                return

    async def _until_settled(self, deadline: float) -> None:
        self.kernels.answer_all()
        while why := self._unsettled():
            if self.reactor.seconds() > deadline:
                raise HandoverImpossible(why)
            self.kernels.answer_all()
            await deferLater(self.reactor, LOOK)

    def _unsettled(self) -> str:
        """Say what cannot be carried now; empty when there is nothing."""
        if self.link.calls_in_flight:
            return f"{self.link.calls_in_flight} calls of managers do not end"
        if not self.sandbox.settled or self.sandbox.held != len(self.kernels.live()):
            return "kernels come or go"
        return self.kernels.unsettled

    def _state(self) -> Mapping[str, Any]:
        # The news last: what is written down of the kernels may still have made some.
        kernels, sandbox = self.kernels.carry(), self.sandbox.carry()
        return {"incarnation": self.incarnation, "kernels": kernels, "sandbox": sandbox, "news": self.link.carry()}


async def take_over(state: Mapping[str, Any], sandbox: Sandbox, kernels: Kernels, open_channel: OpenChannel) -> None:
    """Go on with the sandbox and the kernels of the program before this one."""
    channels = {one["confined"]: one["channel"]["descriptor"] for _id, _folders, one in state["kernels"]["live"]}
    confined = await sandbox.take_over(state["sandbox"], channels)
    kernels.take_over(state["kernels"], confined, open_channel)
