"""Agents in Redis db 2: what each says of itself, and which of them live.

The layout is the historic one: a hash per agent, the set ``{id}.kernels`` and the expiring ``shadow:{id}``; new are a few fields
and the set ``instances``, so that nobody has to walk over the keys. Trusts no agent's word for its public key: whether an
agent is enrolled, the manager checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict
from twisted.logger import Logger

from sorna.errors import InvalidRequest
from sorna.live.channels import PREFIX
from sorna.live.connection import RedisConnection, Script
from sorna.model.agent import AGENT_TOPIC, Agent, AgentAddress, Capacity, Heartbeat, HostLoad, Room

INSTANCES_DB = 2
# Agents in one command: some 60 KiB of answer, which are read within five milliseconds.
MOST_TOGETHER = 250

# Fields of a kernel's hash that the manager owns; an agent's figures never overwrite them.
MANAGER_FIELDS = frozenset(
    {
        "id",
        "instance",
        "lang",
        "runtime",
        "access_key",
        "session_token",
        "addr",
        "public_key",
        "created_at",
        "stdin_port",
        "stdout_port",
        "num_queries",
        "takes",
    }
)

# What is left of an agent that died without a word goes after this long.
_REMAINS_MS = 7 * 24 * 3600 * 1000

# "instances", "shadow:..." and "....kernels" are keys of the layout itself.
_AGENT_ID = re.compile(r"(?!instances\Z)(?!.*\.kernels\Z)[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)

# SELECT inside a script lasts until the script ends; the connection stays where it was.
_BEAT = Script(
    """
local id = ARGV[1]
local fields = {'incarnation', 'runtimes', 'max_kernels', 'storage', 'labels', 'room_memory', 'room_cpu_millis', 'room_gpus',
                'refuses_kernels'}
local function said()
  local values = redis.call('HMGET', id, unpack(fields))
  for number, value in ipairs(values) do values[number] = tostring(value) end
  return table.concat(values, '|')
end
local before = redis.call('EXISTS', 'shadow:' .. id) == 1 and redis.call('EXISTS', id) == 1 and said()
redis.call('HSET', id, unpack(cjson.decode(ARGV[2])))
if said() ~= before then redis.call('PUBLISH', ARGV[7], id) end
redis.call('PEXPIRE', id, ARGV[6])
redis.call('SADD', 'instances', id)
local members = id .. '.kernels'
local kernels = cjson.decode(ARGV[3])
redis.call('DEL', members)
for first = 1, #kernels, 1000 do
  redis.call('SADD', members, unpack(kernels, first, math.min(first + 999, #kernels)))
end
if #kernels > 0 then redis.call('PEXPIRE', members, ARGV[6]) end
redis.call('SET', 'shadow:' .. id, '', 'PX', ARGV[5])
redis.call('SELECT', 1)
for kernel, fields in pairs(cjson.decode(ARGV[4])) do
  if redis.call('HGET', kernel, 'instance') == id then redis.call('HSET', kernel, unpack(fields)) end
end
return 1
""",
    INSTANCES_DB,
)

_LEAVE = Script(
    """
redis.call('SREM', 'instances', ARGV[1])
return redis.call('DEL', ARGV[1], ARGV[1] .. '.kernels', 'shadow:' .. ARGV[1])
""",
    INSTANCES_DB,
)

_DESCRIBE = """
local function describe(id)
  if redis.call('EXISTS', 'shadow:' .. id) == 0 then return nil end
  local row = redis.call('HMGET', id, 'addr', 'public_key', 'incarnation', 'runtimes', 'max_kernels', 'isolation')
  row[9] = redis.call('HMGET', id, 'cpu_millis', 'memory', 'gpus', 'storage', 'cpu_percent', 'memory_used')
  row[10] = redis.call('HMGET', id, 'room_memory', 'room_cpu_millis', 'room_gpus',
                       'taken_memory', 'taken_cpu_millis', 'taken_gpus', 'labels', 'refuses_kernels')
  row[7] = redis.call('SCARD', id .. '.kernels')
  row[8] = id
  return row
end
"""

# Gives rows, or where there are more than ARGV[1] agents their ids, which are then asked for in parts.
_ALIVE = Script(
    _DESCRIBE
    + """
local ids = redis.call('SMEMBERS', 'instances')
if #ids > tonumber(ARGV[1]) then return cjson.encode({ids = ids}) end
local rows = {}
for _, id in ipairs(ids) do
  local row = describe(id)
  if row then rows[#rows + 1] = row else redis.call('SREM', 'instances', id) end
end
if #rows == 0 then return '[]' end
return cjson.encode(rows)
""",
    INSTANCES_DB,
)

_SOME = Script(
    _DESCRIBE
    + """
local rows = {}
for _, id in ipairs(ARGV) do
  local row = describe(id)
  if row then rows[#rows + 1] = row else redis.call('SREM', 'instances', id) end
end
if #rows == 0 then return '[]' end
return cjson.encode(rows)
""",
    INSTANCES_DB,
)

_FIND = Script(
    _DESCRIBE
    + """
local row = describe(ARGV[1])
return row and cjson.encode({row}) or '[]'
""",
    INSTANCES_DB,
)

_KERNELS = Script(
    """
local members = redis.call('SMEMBERS', ARGV[1] .. '.kernels')
if #members == 0 then return '[]' end
return cjson.encode(members)
""",
    INSTANCES_DB,
)


def valid_agent_id(agent_id: str) -> bool:
    """Tell whether an id may be a key: at most 128 of ``A-Za-z0-9_.-`` and no key of the layout itself."""
    return _AGENT_ID.fullmatch(agent_id) is not None


def instance_fields(heartbeat: Heartbeat) -> dict[str, str]:
    """Give the fields of an agent's hash."""
    return {
        "status": "ok",
        "id": heartbeat.agent_id,
        "ip": _host(heartbeat.endpoint),
        "addr": heartbeat.endpoint,
        "type": "unknown",
        "num_kernels": str(len(heartbeat.kernels)),
        "max_kernels": str(heartbeat.max_kernels),
        "incarnation": heartbeat.incarnation,
        "public_key": heartbeat.public_key,
        "runtimes": ",".join(sorted(heartbeat.runtimes)),
        "isolation": heartbeat.isolation,
        "cpu_millis": str(heartbeat.capacity.cpu_millis),
        "memory": str(heartbeat.capacity.memory),
        "gpus": str(heartbeat.capacity.gpus),
        "storage": heartbeat.storage,
        **_load_fields(heartbeat.load),
        # What has no bound is empty. These three are kept up to date between heartbeats, like the set of kernels.
        **{f"room_{name}": "" if bound is None else str(bound) for name, bound in asdict(heartbeat.room).items()},
        "taken_memory": str(heartbeat.taken.memory),
        "taken_cpu_millis": str(heartbeat.taken.cpu_millis),
        "taken_gpus": str(heartbeat.taken.gpus),
        "labels": json.dumps(dict(heartbeat.labels)),
        "refuses_kernels": "1" if heartbeat.refuses_kernels else "",
    }


def _load_fields(load: HostLoad | None) -> dict[str, str]:
    # What was known a beat ago and is not now must not stay.
    return {
        "cpu_percent": "" if load is None else f"{load.cpu_percent:.1f}",
        "memory_used": "" if load is None else str(load.memory),
    }


def kernel_figures(stats: Mapping[str, str]) -> dict[str, str]:
    """Give those of an agent's figures that it may write into its kernel's hash."""
    return {name: value for name, value in stats.items() if name not in MANAGER_FIELDS}


def _host(endpoint: str) -> str:
    """Give the host of ``tcp://host:port``, without the brackets of an IPv6 address."""
    return endpoint.rpartition("://")[2].rpartition(":")[0].strip("[]")


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for pair in fields.items() for word in pair]


class RedisHeartbeatStore:
    """The agent's side.

    :param connection: any connection to the server.
    :param prefix: of the managers' announcements, who are told of an agent that is new or offers something else.
    """

    def __init__(self, connection: RedisConnection, prefix: str = PREFIX) -> None:
        self._connection = connection
        self._channel = f"{prefix}{AGENT_TOPIC}"

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        """Write one heartbeat atomically; the liveness key expires after two intervals (seconds).

        The figures go only into hashes of kernels that the manager has placed on this agent and not forgotten.

        :raises InvalidRequest: the agent's id cannot be a key.
        """
        if not valid_agent_id(heartbeat.agent_id):
            raise InvalidRequest("The id of the agent must be of letters, digits, '_', '.' and '-'.")
        figures = {kernel: _flat(kernel_figures(stats)) for kernel, stats in heartbeat.stats.items()}
        await self._connection.run(
            _BEAT,
            arguments=(
                heartbeat.agent_id,
                json.dumps(_flat(instance_fields(heartbeat)), ensure_ascii=False),
                json.dumps(sorted(heartbeat.kernels)),
                json.dumps({kernel: flat for kernel, flat in figures.items() if flat}, ensure_ascii=False),
                max(1, round(interval * 2000)),
                _REMAINS_MS,
                self._channel,
            ),
        )

    async def leave(self, agent_id: str) -> None:
        """Remove the agent at its orderly stop; harmless when it is not there."""
        if valid_agent_id(agent_id):
            await self._connection.run(_LEAVE, arguments=(agent_id,))


class RedisAgentDirectory:
    """The manager's side.

    :param connection: any connection to the server.
    """

    _log = Logger()

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._malformed: set[str] = set()

    async def alive(self) -> Sequence[Agent]:
        """List the agents whose liveness key has not expired, in order of id; ``num_kernels`` counts younger kernels too."""
        answer = _decode(await self._connection.run(_ALIVE, arguments=(MOST_TOGETHER,)))
        if not isinstance(answer, dict):
            return self._read(answer)
        agents, ids = [], sorted(answer["ids"])
        for first in range(0, len(ids), MOST_TOGETHER):
            part = await self._connection.run(_SOME, arguments=tuple(ids[first : first + MOST_TOGETHER]))
            agents += self._read(_decode(part))
        return agents

    async def find(self, agent_id: str) -> Agent | None:
        """Give one live agent, or None."""
        if not valid_agent_id(agent_id):
            return None
        return next(iter(self._read(_decode(await self._connection.run(_FIND, arguments=(agent_id,))))), None)

    async def kernels_of(self, agent_id: str) -> frozenset[str]:
        """Give the short ids of the kernels that the agent named in its last heartbeat or that were placed on it since.

        A heartbeat that was under way while a kernel was placed or removed may undo that until the next one: whoever
        concludes something from a kernel's absence must find it absent after a later heartbeat too.
        """
        if not valid_agent_id(agent_id):
            return frozenset()
        return frozenset(_decode(await self._connection.run(_KERNELS, arguments=(agent_id,))))

    def _read(self, rows: Sequence[Any]) -> list[Agent]:
        agents = []
        for row in sorted(rows, key=lambda row: str(row[7])):
            agent = _agent(row)
            if agent is not None:
                agents.append(agent)
            elif row[7] not in self._malformed and len(self._malformed) < 1000:
                self._malformed.add(row[7])
                self._log.error("the heartbeat of agent {agent_id} cannot be read; it gets no kernels", agent_id=row[7])
        return agents


def _decode(answer: bytes) -> Any:
    return json.loads(answer.decode("utf-8", "replace"))


def _agent(row: Sequence[Any]) -> Agent | None:
    """Read one row of a script's answer; a field that is missing in the hash is False."""
    endpoint, public_key, incarnation, runtimes, max_kernels, isolation, num_kernels, agent_id, capacity, slots = row
    if not (endpoint and public_key and incarnation and isinstance(runtimes, str)):
        return None
    try:
        most = int(max_kernels)
        # Agents of before did not say what their hosts have.
        *figures, storage, cpu_percent, memory_used = capacity
        cpu_millis, memory, gpus = (int(one or 0) for one in figures)
        load = HostLoad(float(cpu_percent), int(memory_used)) if cpu_percent and memory_used else None
        room = Room(*(int(bound) if bound else None for bound in slots[:3]))
        memory_taken, cpu_millis_taken, gpus_taken = (int(one or 0) for one in slots[3:6])
        labels = json.loads(slots[6] or "{}")
    except ValueError:
        return None
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        return None
    return Agent(
        address=AgentAddress(agent_id=agent_id, endpoint=endpoint, public_key=public_key),
        incarnation=incarnation,
        runtimes=frozenset(runtimes.split(",")) - {""},
        num_kernels=num_kernels,
        max_kernels=most,
        isolation=isolation or "",
        capacity=Capacity(cpu_millis, memory, gpus),
        storage=storage or "",
        load=load,
        room=room,
        memory_taken=memory_taken,
        cpu_millis_taken=cpu_millis_taken,
        gpus_taken=gpus_taken,
        labels=labels,
        refuses_kernels=bool(slots[7]),
    )
