"""Execution in rounds: what resolvers lack is noted, fetched all at once, and the document is executed again.

Note [Rounds instead of awaitables]
    graphql-core gathers awaitables with asyncio, which does not run here, and awaits each where it stands, which makes
    one query per row. So resolvers are plain functions: one that lacks something says what, and gives nothing for now.
    After a round everything that was asked for is fetched, alike things of a whole level together, and the next round
    finds it. A document needs one round more than its lists are deep, and each is short; see Note [What a query may
    cost]. Errors of a round that lacked something mean nothing. Mutations are done one in each round, in their order: a
    round goes no further than the first that is not done yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any

from graphql import DocumentNode, GraphQLError, GraphQLSchema, execute_sync
from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from sorna.errors import InvalidRequest, NotFound, SornaError
from sorna.gateway.interfaces import Administration

#: More than any document within the bounds can need.
MAX_ROUNDS = 100


class QueryFailed(SornaError):
    """A resolver failed; the detail is the first error."""


class Need(ABC):
    """Something that a resolver lacks: a hashable value that says what."""

    @classmethod
    @abstractmethod
    async def fetch(cls, needs: Sequence[Any], administration: Administration) -> Mapping[Any, Any]:
        """Fetch what all needs of this kind lack, in as few queries as there are kinds of conditions."""


class Asking:
    """What one request knows, and what it lacks.

    :ivar access_key: who asks.
    :ivar owner: the only access key whose things it may see; None for an administrator.
    """

    def __init__(self, administration: Administration, access_key: str, *, is_admin: bool) -> None:
        self.administration = administration
        self.access_key = access_key
        self.owner = None if is_admin else access_key
        self._known: dict[Need, Any] = {}
        self._done: dict[Hashable, Any] = {}
        self._lacking: dict[Need, None] = {}
        self._act: tuple[Hashable, Callable[[], Awaitable[Any]]] | None = None

    def get(self, need: Need, meanwhile: Any = None) -> Any:
        """Give what a need stands for, or ``meanwhile`` and note it."""
        if need in self._known:
            return self._known[need]
        self._lacking[need] = None
        return meanwhile

    def do(self, key: Hashable, act: Callable[[], Awaitable[Mapping[str, Any]]]) -> Any:
        """Give the outcome of a mutation, which is named by its place in the answer, or note that it is the next."""
        if key in self._done:
            return self._done[key]
        if self._act is None:
            self._act = (key, act)
        return None

    async def execute(
        self, schema: GraphQLSchema, document: DocumentNode, variables: Mapping[str, Any], name: str | None
    ) -> Any:
        """Execute a document and give its data; see Note [Rounds instead of awaitables].

        :raises InvalidRequest: the variables do not fit.
        :raises QueryFailed: a resolver failed.
        """
        for _round in range(MAX_ROUNDS):
            result = execute_sync(
                schema, document, context_value=self, variable_values=dict(variables), operation_name=name
            )
            if self._act is not None:
                (key, act), self._act = self._act, None
                # What was read before is not believed after.
                self._lacking.clear()
                self._known.clear()
                self._done[key] = await _outcome(act)
            elif self._lacking:
                await self._fetch()
            elif result.errors:
                raise _failure(result.errors[0])
            else:
                return result.data
        raise QueryFailed("the query needs too many rounds")

    async def _fetch(self) -> None:
        kinds: dict[type[Need], list[Need]] = defaultdict(list)
        for need in self._lacking:
            kinds[type(need)].append(need)
        self._lacking.clear()
        fetching = [Deferred.fromCoroutine(_fetched(kind, needs, self.administration)) for kind, needs in kinds.items()]
        for _succeeded, found in await DeferredList(fetching, consumeErrors=True):
            if isinstance(found, Failure):
                found.raiseException()
            else:
                self._known.update(found)


async def _fetched(kind: type[Need], needs: Sequence[Need], administration: Administration) -> Mapping[Need, Any]:
    found = await kind.fetch(needs, administration)
    # What is not there is known, too: otherwise it would be asked for in every round.
    return {need: found.get(need) for need in needs}


async def _outcome(act: Callable[[], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
    """Do a mutation; clients of the time look for a refusal in ``ok`` and ``msg``."""
    try:
        return {"ok": True, "msg": "", **await act()}
    except (InvalidRequest, NotFound) as error:
        return {"ok": False, "msg": error.detail}


def _failure(error: GraphQLError) -> Exception:
    original = error.original_error
    if isinstance(original, SornaError):
        return original
    if error.path is None:
        return InvalidRequest(error.message)
    # The text of an exception that nobody raised on purpose may hold anything, so only its name leaves the house.
    message = error.message if original is None else f"{error.path[0]}: {type(original).__name__}"
    failed = QueryFailed(message)
    failed.__cause__ = original
    return failed
