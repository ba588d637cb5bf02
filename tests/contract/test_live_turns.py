"""The contract of Turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorna.live.memory import MemoryTurn
from sorna.live.turns import RedisTurn
from sorna.manager.turns import Turn
from tests.contract.live_backends import MemoryCase, ValkeyCase

if TYPE_CHECKING:
    from tests.contract.live_backends import LiveCase as _Base

    class _Case(_Base):
        def turn(self, holder: str, work: str = "mending", group: str = "one") -> Turn: ...
else:
    _Case = object

LEASE = 0.8


class TurnContract(_Case):
    async def test_one_has_it_and_keeps_it(self) -> None:
        """Who asks first has the turn, at every later question too, and nobody else has."""
        one, two = self.turn("1"), self.turn("2")
        for _ in range(3):
            self.assertEqual([await one.mine(), await two.mine()], [True, False])
            await self.pass_time(LEASE / 2)

    async def test_who_asks_no_more_loses_it(self) -> None:
        """When the lease has run out, whoever asks next has it, and the one that had it before has not."""
        one, two = self.turn("1"), self.turn("2")
        self.assertTrue(await one.mine())
        await self.pass_time(LEASE + 0.1)
        self.assertEqual([await two.mine(), await one.mine()], [True, False])

    async def test_passing_on(self) -> None:
        """Who passes it on leaves out the next question; then anybody may have it."""
        one, two = self.turn("1"), self.turn("2")
        self.assertTrue(await one.mine())
        await one.pass_on()
        self.assertEqual([await one.mine(), await one.mine()], [False, True])
        await one.pass_on()
        self.assertEqual([await two.mine(), await one.mine(), await one.mine()], [True, False, False])

    async def test_passing_on_what_one_has_not(self) -> None:
        """The turn of another one is left alone."""
        one, two = self.turn("1"), self.turn("2")
        self.assertTrue(await one.mine())
        await two.pass_on()
        self.assertEqual([await two.mine(), await two.mine(), await one.mine()], [False, False, True])

    async def test_each_work_and_group_for_itself(self) -> None:
        """Turns for other work and of other servers have nothing to do with it."""
        turns = self.turn("1"), self.turn("2", work="tidying"), self.turn("3", group="two")
        self.assertEqual([await turn.mine() for turn in turns], [True] * 3)


class MemoryTurnTests(TurnContract, MemoryCase):
    def turn(self, holder: str, work: str = "mending", group: str = "one") -> Turn:
        """Give a turn."""
        return MemoryTurn(self.redis, group, work, holder, LEASE)


class RedisTurnTests(TurnContract, ValkeyCase):
    def turn(self, holder: str, work: str = "mending", group: str = "one") -> Turn:
        """Give a turn."""
        return RedisTurn(self.db[4], group, work, holder, LEASE)
