"""Live kernels in Redis: a hash per kernel in db 1, membership of its agent's set in db 2, the session id in db 3.

Field names are the historic ones where the value still exists. PostgreSQL owns the truth; what is here can be written anew
from it. Decides nothing about whether a kernel or its agent still lives.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from sorna.live.connection import RedisConnection, Script
from sorna.live.instances import MANAGER_FIELDS
from sorna.live.together import Together
from sorna.manager.interfaces import KernelPlace
from sorna.model.agent import AgentAddress
from sorna.model.census import Traces
from sorna.model.kernel import SHORT_ID_LENGTH, Kernel, parse_kernel_id, short_id
from sorna.model.limits import KIB
from sorna.model.policy import slots_of

KERNELS_DB = 1
# No session token is as long: the longest, of clients of 2016, are three names joined.
LONGEST_REFERENCE = 1024
# Uses in one command: some 50 KiB of answer, which are read within a millisecond.
MOST_TOGETHER = 50

# Note [Three databases in one script]
#
# A kernel is written to three databases. SELECT inside a script lasts until the script ends and leaves the connection in its
# own database, so that one script does all of it: atomically, in one round trip, and on one connection. Nobody ever
# sees a session id whose kernel is not there yet, and nothing is left behind by half a removal.

# Names that are given at once: some 15 KiB of answer; they take less than a millisecond, of Redis' time as of ours.
NAMES_TOGETHER = 500
# Kernels that are forgotten at once.
FORGOTTEN_TOGETHER = 100

# What a kernel has been promised counts on its agent from when it is added until it is forgotten, as its membership does; the
# agent's next heartbeat says the same.
_PROMISED = """
local function count(agent, sign, memory, cpu_millis, gpus)
  if redis.call('EXISTS', agent) == 1 then
    redis.call('HINCRBY', agent, 'taken_memory', sign * memory)
    redis.call('HINCRBY', agent, 'taken_cpu_millis', sign * cpu_millis)
    redis.call('HINCRBY', agent, 'taken_gpus', sign * gpus)
  end
end
"""

# In db 1, and it ends there.  The session id may already name the owner's next kernel: leave that alone.
_REMOVE = (
    _PROMISED
    + """
local function forget(id, session, agent, memory, cpu_millis, gpus)
  redis.call('DEL', id)
  redis.call('SELECT', 2)
  if agent ~= '' and redis.call('SREM', agent .. '.kernels', id) == 1 and memory then
    count(agent, -1, memory, cpu_millis, gpus)
  end
  redis.call('SELECT', 3)
  if redis.call('GET', session) == id then redis.call('DEL', session) end
  redis.call('SELECT', 1)
end
"""
)

# ARGV: short id, session key, agent, query count, fields as JSON, and what it takes: memory, cpu_millis, gpus.
_ADD = Script(
    _PROMISED
    + """
redis.call('HSET', ARGV[1], 'takes', table.concat({ARGV[6], ARGV[7], ARGV[8]}, ' '), unpack(cjson.decode(ARGV[5])))
redis.call('HSETNX', ARGV[1], 'num_queries', ARGV[4])
redis.call('SELECT', 2)
if redis.call('SADD', ARGV[3] .. '.kernels', ARGV[1]) == 1 then count(ARGV[3], 1, ARGV[6], ARGV[7], ARGV[8]) end
redis.call('SELECT', 3)
redis.call('SET', ARGV[2], ARGV[1])
return 1
""",
    KERNELS_DB,
)

# ARGV: as one JSON list, because each argument costs the driver more than a word of a text, for each use an access key, a
# short id or '', a session key, and 1 to count the query.
# The owner is checked on either way, so that no reference whatsoever finds another owner's kernel.
_USE = Script(
    """
local places, uses = {}, cjson.decode(ARGV[1])
for first = 1, #uses, 4 do
  local owner, id, session = uses[first], uses[first + 1], uses[first + 2]
  local function owned()
    return id and id ~= '' and redis.call('HGET', id, 'access_key') == owner
  end
  local found = owned()
  if not found then
    redis.call('SELECT', 3)
    id = redis.call('GET', session)
    redis.call('SELECT', 1)
    found = owned()
  end
  if found and uses[first + 3] == 1 then redis.call('HINCRBY', id, 'num_queries', 1) end
  places[#places + 1] = found and redis.call('HGETALL', id) or false
end
return cjson.encode(places)
""",
    KERNELS_DB,
)

# ARGV: for each kernel its short id and how many queries to add.  A kernel that is gone is not brought back.
_COUNT = Script(
    """
for first = 1, #ARGV, 2 do
  if redis.call('EXISTS', ARGV[first]) == 1 then
    redis.call('HINCRBY', ARGV[first], 'num_queries', ARGV[first + 1])
  end
end
return 1
""",
    KERNELS_DB,
)

# ARGV: short id, session key, agent or '', and what it takes.
_FORGET = Script(
    _REMOVE
    + """
local agent = redis.call('HGET', ARGV[1], 'instance') or ARGV[3]
forget(ARGV[1], ARGV[2], agent, ARGV[4], ARGV[5], ARGV[6])
return 1
""",
    KERNELS_DB,
)

# ARGV: short ids, and flat pairs of a session key and the short id it names, each as a JSON list.
# Managers of before wrote no 'takes': what such a kernel counts, the next heartbeat of its agent sets right.
_FORGET_TRACES = Script(
    _REMOVE
    + """
local gone = 0
for _, id in ipairs(cjson.decode(ARGV[1])) do
  if redis.call('TYPE', id).ok == 'hash' then
    local row = redis.call('HMGET', id, 'id', 'instance', 'access_key', 'session_token', 'takes')
    if row[1] == id then
      local session = (row[3] or '') .. ':' .. (row[4] or '')
      forget(id, session, row[2] or '', string.match(row[5] or '', '^(%d+) (%d+) (%d+)$'))
      gone = gone + 1
    end
  end
end
redis.call('SELECT', 3)
local sessions = cjson.decode(ARGV[2])
for first = 1, #sessions, 2 do
  if redis.pcall('GET', sessions[first]) == sessions[first + 1] then
    gone = gone + redis.call('DEL', sessions[first])
  end
end
return gone
""",
    KERNELS_DB,
)

# ARGV: cursors of db 1 and of db 3, each empty when there is nothing left to look at, how many to look at, and how long a
# name is.  What is no name by its length is none of ours.
_TRACES = Script(
    """
local function scan(cursor)
  if cursor == '' then return '', {} end
  local found = redis.call('SCAN', cursor, 'COUNT', ARGV[3])
  return found[1] == '0' and '' or found[1], found[2]
end
local length = tonumber(ARGV[4])
local entries, keys = scan(ARGV[1])
local names = {}
for _, key in ipairs(keys) do
  if #key == length then names[#names + 1] = key end
end
redis.call('SELECT', 3)
local sessions, keys = scan(ARGV[2])
local values, named, lone = {}, {}, {}
if #keys > 0 then values = redis.call('MGET', unpack(keys)) end
for number = 1, #keys do
  local name = values[number]
  if name and #name == length then named[#named + 1] = name end
end
redis.call('SELECT', 1)
-- One command finds out that none is alone, as it mostly is.
if #named > 0 and redis.call('EXISTS', unpack(named)) < #named then
  for number, key in ipairs(keys) do
    local name = values[number]
    if name and #name == length and redis.call('EXISTS', name) == 0 then lone[#lone + 1] = {key, name} end
  end
end
return cjson.encode({entries, sessions, names, lone})
""",
    KERNELS_DB,
)

# ARGV: short ids.
_PLACES = Script(
    """
local rows = {}
for _, id in ipairs(ARGV) do
  local row = redis.call('HGETALL', id)
  if #row > 0 then rows[#rows + 1] = row end
end
if #rows == 0 then return '[]' end
return cjson.encode(rows)
""",
    KERNELS_DB,
)

# ARGV: short ids as JSON, for the same reason.
_ABSENT = Script(
    """
local absent = {}
for _, id in ipairs(cjson.decode(ARGV[1])) do
  if redis.call('EXISTS', id) == 0 then absent[#absent + 1] = id end
end
if #absent == 0 then return '[]' end
return cjson.encode(absent)
""",
    KERNELS_DB,
)


def session_key(access_key: str, session_token: str) -> str:
    """Spell the key of a session id in db 3: scoped by its owner, which the old server's were not."""
    return f"{access_key}:{session_token}"


def kernel_fields(kernel: Kernel, agent: AgentAddress) -> dict[str, str]:
    """Give the fields of a kernel's hash, without its count of queries and what it takes."""
    return {
        "id": short_id(kernel.id),
        "instance": agent.agent_id,
        "lang": kernel.requested_runtime,
        "runtime": kernel.runtime,
        "access_key": kernel.access_key,
        "session_token": kernel.session_token,
        "addr": agent.endpoint,
        "public_key": agent.public_key,
        "created_at": datetime.fromtimestamp(kernel.created_at, UTC).isoformat(timespec="microseconds"),
        "stdin_port": "",
        "stdout_port": "",
        "exec_timeout": f"{kernel.limits.execution_timeout:.12g}",
        "idle_timeout": f"{kernel.limits.idle_timeout:.12g}",
        "mem_limit": str(kernel.limits.memory // KIB),
    }


def place_of(fields: Mapping[str, str]) -> KernelPlace | None:
    """Read a kernel's hash; None when it is not one of ours or lacks a field."""
    try:
        kernel_id = parse_kernel_id(fields["id"])
        if kernel_id is None:
            return None
        return KernelPlace(
            kernel_id=kernel_id,
            access_key=fields["access_key"],
            runtime=fields["runtime"],
            requested_runtime=fields["lang"],
            session_token=fields["session_token"],
            agent=AgentAddress(fields["instance"], fields["addr"], fields["public_key"]),
            created_at=datetime.fromisoformat(fields["created_at"]).timestamp(),
            num_queries=int(fields["num_queries"]),
            stats={name: value for name, value in fields.items() if name not in MANAGER_FIELDS},
        )
    except (KeyError, ValueError):
        return None


class RedisLiveKernels:
    """Where the live kernels are.

    :param connection: any connection to the server.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._together = Together(connection.reactor, self._use_all, MOST_TOGETHER)

    async def add(self, kernel: Kernel, agent: AgentAddress) -> None:
        """Write a kernel into all three databases; written again, it keeps its figures and the count of its queries."""
        fields = kernel_fields(kernel, agent)
        await self._connection.run(
            _ADD,
            arguments=(
                short_id(kernel.id),
                session_key(kernel.access_key, kernel.session_token),
                agent.agent_id,
                kernel.num_queries,
                json.dumps([word for pair in fields.items() for word in pair], ensure_ascii=False),
                *_slots(kernel),
            ),
        )

    async def use(self, access_key: str, reference: str, *, count: bool = True) -> KernelPlace | None:
        """Find a kernel by id (either spelling) or by the owner's session token, and count the query.

        One round trip, and one command for all uses of a turn. A token that happens to look like an id is tried as an id
        first.
        """
        if len(reference) > LONGEST_REFERENCE:
            return None
        kernel_id = parse_kernel_id(reference)
        short = short_id(kernel_id) if kernel_id is not None else ""
        return await self._together.ask((access_key, short, session_key(access_key, reference), int(count)))

    async def _use_all(self, uses: Sequence[tuple[str, str, str, int]]) -> Sequence[KernelPlace | None]:
        words = [word for use in uses for word in use]
        answer = await self._connection.run(_USE, arguments=(json.dumps(words, ensure_ascii=False),))
        found = json.loads(answer.decode("utf-8", "replace"))
        return [place_of(_paired(fields)) if fields else None for fields in found]

    async def count(self, queries: Mapping[uuid.UUID, int]) -> None:
        """Count queries of kernels that were found before; those that are gone stay so. One round trip."""
        if queries:
            arguments = [word for kernel_id, number in queries.items() for word in (short_id(kernel_id), number)]
            await self._connection.run(_COUNT, arguments=tuple(arguments))

    async def forget(self, kernel: Kernel) -> None:
        """Remove every trace of a kernel; harmless when there is none."""
        await self._connection.run(
            _FORGET,
            arguments=(
                short_id(kernel.id),
                session_key(kernel.access_key, kernel.session_token),
                kernel.agent_id or "",
                *_slots(kernel),
            ),
        )

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, KernelPlace]:
        """Find several kernels of any owner and count nothing; one round trip."""
        if not kernel_ids:
            return {}
        answer = await self._connection.run(_PLACES, arguments=tuple(short_id(one) for one in kernel_ids))
        places = (place_of(_paired(flat)) for flat in json.loads(answer.decode("utf-8", "replace")))
        return {place.kernel_id: place for place in places if place is not None}

    async def absent(self, names: Collection[str]) -> Collection[str]:
        """Give those of these short ids that have no entry; one round trip."""
        if not names:
            return ()
        answer = await self._connection.run(_ABSENT, arguments=(json.dumps(list(names)),))
        absent: list[str] = json.loads(answer)
        return absent

    async def traces(self, begin: str = "") -> Traces:
        """Give a part of what there is by name only; one round trip."""
        cursors = begin.split(" ") if begin else ("0", "0")
        answer = await self._connection.run(_TRACES, arguments=(*cursors, NAMES_TOGETHER, SHORT_ID_LENGTH))
        entries, sessions, names, lone = json.loads(answer.decode("utf-8", "replace"))
        rest = f"{entries} {sessions}" if entries or sessions else ""
        # An empty table of Lua is an object in JSON.
        sessions_of = {key: name for key, name in lone or () if parse_kernel_id(name) is not None}
        return Traces(frozenset(names), sessions_of, rest)

    async def forget_traces(self, stale: Traces) -> int:
        """Remove every trace of kernels of which only names are known; a round trip for each hundred."""
        names, sessions, gone = sorted(stale.names), sorted(stale.sessions.items()), 0
        for first in range(0, max(len(names), len(sessions)), FORGOTTEN_TOGETHER):
            part = slice(first, first + FORGOTTEN_TOGETHER)
            words = [word for pair in sessions[part] for word in pair]
            arguments = json.dumps(names[part]), json.dumps(words, ensure_ascii=False)
            gone += await self._connection.run(_FORGET_TRACES, arguments=arguments)
        return gone


def _slots(kernel: Kernel) -> tuple[int, int, int]:
    slots = slots_of(kernel.runtime, kernel.limits)
    return slots.memory, slots.cpu_millis, slots.gpus


def _paired(flat: Iterable[str]) -> dict[str, str]:
    words = iter(flat)
    return dict(zip(words, words, strict=True))
