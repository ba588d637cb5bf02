"""A whole Sorna on one machine: PostgreSQL, Redis, managers and agents, each a process that a test can start and kill.

Knows how the parts find and trust each other, as an operator would arrange it: addresses on command lines, passwords and keys
in files. See the package for how it is used.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from attrs import define, field

from sorna.beneath.storage_root import prepare_root
from sorna.client.signing import Credentials
from sorna.curve_keys import load_or_make
from sorna.testing.cluster.client import Client
from sorna.testing.cluster.network import Loopback, Network
from sorna.testing.cluster.parts import (
    Agent,
    Database,
    Manager,
    Part,
    agent_part,
    database_part,
    manager_part,
)

# Small and quick: what a kernel can import is no matter here, and the machine is shared.
AGENT_OPTIONS = ("--kernel-pool=4", "--kernel-preload=")
MANAGER_OPTIONS = ("--legacy-ip=127.0.0.1",)


@define(eq=False)
class Cluster:
    """Parts that belong together; made by :func:`make_cluster`, started by :meth:`start`, gone after :meth:`close`.

    Usable as a context manager, which starts and closes it.
    """

    folder: Path
    network: Network
    postgres: Database
    redis: Database
    managers: Sequence[Manager]
    agents: Sequence[Agent]
    _owner: int = field(factory=os.getpid)

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order in which they are started."""
        return [self.postgres, self.redis, *self.agents, *self.managers]

    def part(self, name: str) -> Part:
        """Find a part by its name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def credentials(self) -> Credentials:
        """The administrator's keypair that the first manager made."""
        values = tomllib.loads((self.managers[0].folder / "state" / "client.toml").read_text("utf-8"))
        return Credentials(values["access_key"], values["secret_key"])

    def client(self, manager: Manager, seconds: Callable[[], float], credentials: Credentials | None = None) -> Client:
        """Give a client of one manager, the administrator's where no other credentials are given.

        :param seconds: a reactor's ``seconds``; signatures are dated with it.
        """
        return Client(manager.address, manager.port, credentials or self.credentials, seconds)

    def start(self) -> None:
        """Start every part that does not run, and wait until all of them serve.

        :raises PartDidNotStart: with what it said.
        """
        databases = (self.postgres, self.redis)
        for database in databases:
            database.start(wait=False)
        for database in databases:
            database.wait_until_ready()
        self.write_options()
        for agent in self.agents:
            agent.start(wait=False)
        # One after the other: the first manager to find no keypair makes the one that all clients use.
        for manager in self.managers:
            manager.start()
        for agent in self.agents:
            agent.wait_until_ready()

    def write_options(self) -> None:
        """Write where the databases are, with their passwords, into the file that every manager and agent reads."""
        values: dict[str, Any] = {
            "db-addr": f"{self.postgres.address}:{self.postgres.port}",
            "db-user": "sorna",
            "db-password": self.postgres.password,
            "redis-addr": f"{self.redis.address}:{self.redis.port}",
            "redis-password": self.redis.password,
            "folder-root": str(self.folder / "folders"),
        }
        path = self.options_file
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()), "utf-8")

    @property
    def options_file(self) -> Path:
        """The file of options that all managers and agents, and ``sorna doctor``, can be given with ``--config``."""
        return self.folder / "options.toml"

    def introduce(self) -> None:
        """Make the folders' storage and everybody's keys, and give managers and agents each other's public ones, as an operator copies the files."""
        prepare_root(self.folder / "folders")
        for one in self.managers:
            known = one.folder / "state" / "manager" / "agents"
            known.mkdir(mode=0o700, parents=True)
            for other in self.agents:
                key = load_or_make(other.folder / "state" / "agent").public
                (known / f"{other.agent_id}.public").write_text(f"{key}\n", "ascii")
        for other in self.agents:
            authorised = other.folder / "state" / "agent" / "authorised"
            authorised.mkdir(mode=0o700)
            for one in self.managers:
                key = load_or_make(one.folder / "state" / "manager").public
                (authorised / f"{one.name}.public").write_text(f"{key}\n", "ascii")

    def heal(self) -> None:
        """Thaw what is frozen, mend every link, and start what does not run; returns when all serve."""
        for part in self.parts:
            part.thaw()
            self.network.mend(part.name)
        self.start()

    def stop(self) -> None:
        """Stop every part in order, those first that need others."""
        for part in reversed(self.parts):
            part.stop()

    def save_logs(self, folder: str) -> None:
        """Copy what every part said into a folder, as ``NAME.log``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for part in self.parts:
            Path(folder, f"{part.name}.log").write_text(part.log, "utf-8")

    def close(self) -> None:
        """End everything and remove every trace. Harmless twice, and in a fork."""
        if os.getpid() != self._owner:
            return
        try:
            self.stop()
        finally:
            self.network.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def make_cluster(
    managers: int = 2,
    agents: int = 3,
    *,
    network: Network | None = None,
    manager_options: Sequence[str] = (),
    agent_options: Sequence[str] = (),
) -> Cluster:
    """Describe a cluster in a new temporary folder; nothing runs yet.

    :param network: where the parts run; on loopback when None.
    :param manager_options, agent_options: more flags for every manager or agent; they win over ours.
    """
    # Readable for other users but not listable: databases that root starts run as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="sorna-cluster-"))
    folder.chmod(0o711)
    network = network or Loopback()
    config = f"--config={folder / 'options.toml'}"
    # Control groups are named after agents: those of two clusters on one host must not meet.
    ids = {f"a{number}": f"a{number}-{secrets.token_hex(3)}" for number in range(1, agents + 1)}
    try:
        cluster = Cluster(
            folder,
            network,
            database_part("postgres", "postgres", folder / "postgres", network.place("postgres", 5432)),
            database_part("redis", "redis", folder / "redis", network.place("redis", 6379)),
            [
                manager_part(
                    name, folder / name, network.place(name, 8080), (config, *MANAGER_OPTIONS, *manager_options)
                )
                for name in (f"m{number}" for number in range(1, managers + 1))
            ],
            [
                agent_part(
                    name, agent_id, folder / name, network.place(name, 6011), (config, *AGENT_OPTIONS, *agent_options)
                )
                for name, agent_id in ids.items()
            ],
        )
        cluster.introduce()
    except BaseException:
        network.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return cluster
