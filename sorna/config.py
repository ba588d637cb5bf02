"""One frozen, validated configuration per program, read from flags, ``SORNA_*`` variables, a TOML file and defaults.

Flags win over variables, variables over the file, the file over defaults. Knows no Twisted service and opens no socket; a
value that cannot be right is a :class:`ConfigurationError` that names the option. Secrets are not shown by ``repr``.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from attrs import field, frozen

from sorna.model.agent import MAX_LABELS, read_label
from sorna.model.folder import FolderBounds
from sorna.model.limits import MIB, LimitPolicy, Limits, OutputBounds
from sorna.model.placement import PlacementRules, read_rules
from sorna.settings import AGENT_SETTINGS, SERVER_SETTINGS, Setting

# Below the state directory of an agent that has enrolled itself.
ENROLLED_FILE = Path("agent") / "enrolled.toml"

MOST_WORKERS = 64
# Each keeps up to eight connections, and the private server takes sixty in all.
MOST_PRIVATE_WORKERS = 6


class ConfigurationError(ValueError):
    """An option has a value that cannot be right."""


def default_state_dir() -> str:
    """Give the platform's directory for a user's data of this program."""
    return platformdirs.user_data_dir("sorna", appauthor=False)


@frozen
class DatabaseConfig:
    """Where PostgreSQL is. ``host`` is an address, a name, or a directory with its socket."""

    host: str
    port: int
    name: str
    user: str
    password: str = field(repr=False)


@frozen
class RedisConfig:
    """Where Redis is."""

    address: str = field(repr=False)  # a URL may hold a password
    password: str | None = field(default=None, repr=False)


@frozen
class KernelsConfig:
    """What an agent is told about holding kernels.

    :ivar pool: most kernels that are kept ready; None for what the host's memory suggests.
    """

    isolation: str
    max_kernels: int
    pool: int | None
    python: str
    preload: Sequence[str]
    output: OutputBounds
    gpu_devices: Path
    labels: Mapping[str, str]
    memory_overcommit: float
    cpu_overcommit: float


@frozen
class FoldersConfig:
    """Where virtual folders are, and how many and how large a keypair may have where no policy says otherwise."""

    root: Path
    bounds: FolderBounds
    most: int


@frozen
class LegacyConfig:
    """The ZeroMQ interface.

    :ivar access_key: None where the operator named none.
    :ivar override: the address that clients are told; None for the bound one.
    """

    ip: str
    manager_port: int
    execution_port: int
    access_key: str | None
    curve: bool
    override: str | None


@frozen
class AgentConfig:
    """Everything ``twistd sorna-agent`` needs."""

    agent_id: str
    ip: str
    port: int
    redis: RedisConfig
    state_dir: Path
    folder_root: Path
    kernels: KernelsConfig
    exit_with_parent: bool
    debug: bool
    trace_stages: Path | None


@frozen
class ServerConfig:
    """Everything ``twistd sorna`` needs. ``database`` and ``redis`` are None where a private one is to be started.

    :ivar texts: the options as they were chosen, for a process that is to be given the same.
    """

    service_ip: str
    service_port: int
    workers: int
    ssl_cert: Path | None
    ssl_key: Path | None
    legacy: LegacyConfig
    agent_port: int
    agent_redis_address: str | None = field(repr=False)  # a URL may hold a password
    database: DatabaseConfig | None
    redis: RedisConfig | None
    state_dir: Path
    local_agent: bool
    example_keypair: bool
    placement: PlacementRules
    kernels: KernelsConfig
    limits: LimitPolicy
    folders: FoldersConfig
    debug: bool
    trace_stages: Path | None
    texts: Mapping[str, str | None] = field(repr=False)

    @property
    def embedded(self) -> bool:
        """Whether any part that others usually run is started by this process."""
        return self.database is None or self.redis is None

    @property
    def tls(self) -> bool:
        """Whether the REST service speaks TLS."""
        return self.ssl_cert is not None


def gather(
    settings: Sequence[Setting],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    last: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """Choose each option's text from flags, variables, the file, ``last`` and defaults, in this order.

    :param flags: what the command line gave; an option that was not given is absent, None or 0.
    :raises ConfigurationError: the file cannot be read or has an unknown option.
    """
    given = {s.name: str(flags[s.name]) for s in settings if flags.get(s.name) not in {None, 0}}
    variables = {s.name: environ[s.variable] for s in settings if environ.get(s.variable)}
    path = given.get("config", variables.get("config"))
    file = {**(last or {}), **(_read_file(Path(path), settings) if path else {})}
    return {s.name: given.get(s.name, variables.get(s.name, file.get(s.name, s.default))) for s in settings}


def _enrolled(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Mapping[str, str]:
    """Read what ``sorna agent enroll`` has left in an agent's state directory, if it was used there."""
    path = _Reader(gather(AGENT_SETTINGS, flags, environ)).state_dir() / ENROLLED_FILE
    return _read_file(path, AGENT_SETTINGS) if path.exists() else {}


def _read_file(path: Path, settings: Sequence[Setting]) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config: {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config: {path} is not TOML: {error}") from error
    known = {s.name for s in (*SERVER_SETTINGS, *AGENT_SETTINGS)}
    options: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            raise ConfigurationError(f"--config: {path} has an unknown option {key!r}")
        if isinstance(value, dict):
            raise ConfigurationError(f"--config: {key!r} in {path} must be a plain value")
        options[name] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    ours = {s.name for s in settings}
    return {name: value for name, value in options.items() if name in ours}


def agent_config(flags: Mapping[str, Any], environ: Mapping[str, str]) -> AgentConfig:
    """Build the configuration of an agent.

    :raises ConfigurationError: an option cannot be right.
    """
    read = _Reader(gather(AGENT_SETTINGS, flags, environ, _enrolled(flags, environ)))
    redis = read.redis()
    if redis is None:
        raise ConfigurationError(
            "--redis-addr is missing: an agent reports to the Redis of its managers; `sorna agent enroll` finds it out"
        )
    agent_id = read.text("agent-id") or f"i-{socket.gethostname()}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", agent_id):
        raise ConfigurationError("--agent-id must be up to 64 of A-Z a-z 0-9 . _ -")
    return AgentConfig(
        agent_id=agent_id,
        ip=read.address("agent-ip") or "127.0.0.1",
        port=read.port("agent-port"),
        redis=redis,
        state_dir=read.state_dir(),
        folder_root=read.folder_root(),
        kernels=read.kernels(),
        exit_with_parent=read.yes("exit-with-parent"),
        debug=read.yes("debug"),
        trace_stages=read.directory("trace-stages"),
    )


def server_config(flags: Mapping[str, Any], environ: Mapping[str, str]) -> ServerConfig:
    """Build the configuration of the server.

    :raises ConfigurationError: an option cannot be right.
    """
    read = _Reader(gather(SERVER_SETTINGS, flags, environ))
    database, redis = read.database(), read.redis()
    embedded = database is None or redis is None
    cert, key = read.file("ssl-cert"), read.file("ssl-key")
    if (cert is None) != (key is None):
        raise ConfigurationError("--ssl-cert and --ssl-key belong together")
    service_ip = read.address("service-ip") or ("127.0.0.1" if embedded else "0.0.0.0")
    if not is_loopback(service_ip):
        if embedded and not read.yes("allow-remote"):
            raise ConfigurationError(
                f"--service-ip {service_ip}: the embedded mode listens on loopback addresses; --allow-remote permits others"
            )
        if read.yes("example-keypair"):
            raise ConfigurationError(f"--example-keypair is for loopback addresses, not for --service-ip {service_ip}")
    local_agent = read.choice("local-agent", ("auto", "yes", "no"))
    return ServerConfig(
        service_ip=service_ip,
        service_port=read.port("service-port") or (8443 if cert else 8080),
        workers=read.workers(private_database=database is None),
        ssl_cert=cert,
        ssl_key=key,
        legacy=read.legacy(embedded=embedded),
        agent_port=read.port("agent-port"),
        agent_redis_address=read.redis_address("agent-redis-addr"),
        database=database,
        redis=redis,
        state_dir=read.state_dir(),
        local_agent=local_agent == "yes" or (local_agent == "auto" and redis is None),
        example_keypair=read.yes("example-keypair"),
        placement=read.placement(),
        kernels=read.kernels(),
        limits=read.limits(),
        folders=read.folders(),
        debug=read.yes("debug"),
        trace_stages=read.directory("trace-stages"),
        texts=read.texts,
    )


def is_loopback(address: str) -> bool:
    """Tell whether an IP address is one of this host's own loopback addresses."""
    return ipaddress.ip_address(address).is_loopback


def host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Split ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.

    :raises ConfigurationError: the port is no number from 1 to 65535 or there is no host.
    """
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?|([^:\s]+)(?::(\d+))?", text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not HOST:PORT")
    host, port = match[1] or match[3], int(match[2] or match[4] or default_port)
    if not 0 < port < 65536:
        raise ConfigurationError(f"{text!r} has no port from 1 to 65535")
    return host, port


@frozen
class _Reader:
    """Turns the chosen texts into values; every method names its option when the text is wrong."""

    texts: Mapping[str, str | None]

    def text(self, name: str) -> str | None:
        return self.texts[name] or None

    def yes(self, name: str) -> bool:
        text = (self.texts[name] or "").lower()
        if text in {"1", "true", "yes", "on"}:
            return True
        if text in {"", "0", "false", "no", "off"}:
            return False
        raise ConfigurationError(f"--{name}: {text!r} is neither yes nor no")

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        text = self.texts[name] or ""
        if text not in allowed:
            raise ConfigurationError(f"--{name} must be one of {', '.join(allowed)}, not {text!r}")
        return text

    def names(self, name: str) -> list[str]:
        return [part.strip() for part in (self.texts[name] or "").split(",") if part.strip()]

    def number(self, name: str, least: float, most: float, kind: Callable[[str], float] = float) -> float:
        text = self.texts[name] or ""
        try:
            value = kind(text)
        except ValueError:
            raise ConfigurationError(f"--{name}: {text!r} is not a number") from None
        if not least <= value <= most:
            raise ConfigurationError(f"--{name} must be from {least:g} to {most:g}, not {text}")
        return value

    def port(self, name: str) -> int:
        return int(self.number(name, 0, 65535, int))

    def workers(self, *, private_database: bool) -> int:
        count = int(self.number("workers", 1, MOST_WORKERS, int))
        if private_database and count > MOST_PRIVATE_WORKERS:
            raise ConfigurationError(
                f"--workers must be at most {MOST_PRIVATE_WORKERS} with the private PostgreSQL, whose connections are few; "
                "--db-addr names another one"
            )
        return count

    def address(self, name: str) -> str | None:
        text = self.text(name)
        if text is None:
            return None
        text = "127.0.0.1" if text == "localhost" else text
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            raise ConfigurationError(f"--{name}: {text!r} is not an IP address") from None

    def file(self, name: str) -> Path | None:
        text = self.text(name)
        if text is None:
            return None
        if not Path(text).is_file():
            raise ConfigurationError(f"--{name}: there is no file {text}")
        return Path(text).absolute()

    def directory(self, name: str) -> Path | None:
        text = self.text(name)
        if text is None:
            return None
        if not Path(text).is_dir():
            raise ConfigurationError(f"--{name}: there is no directory {text}")
        return Path(text).absolute()

    def state_dir(self) -> Path:
        return Path(self.text("state-dir") or default_state_dir()).expanduser().absolute()

    def folder_root(self) -> Path:
        root = self.text("folder-root")
        return Path(root).expanduser().absolute() if root else self.state_dir() / "folders"

    def folders(self) -> FoldersConfig:
        size = int(self.number("folder-size", 1, 1 << 30) * MIB)
        files = int(self.number("folder-files", 1, 1_000_000, int))
        return FoldersConfig(
            self.folder_root(), FolderBounds(files, size), int(self.number("folders", 0, 1_000_000, int))
        )

    def database(self) -> DatabaseConfig | None:
        address = self.text("db-addr")
        if address is None:
            return None
        host, port = (address, 5432) if address.startswith("/") else host_and_port(address, 5432)
        return DatabaseConfig(
            host,
            port,
            self.text("db-name") or "sorna",
            self.text("db-user") or "postgres",
            self.text("db-password") or "",
        )

    def redis(self) -> RedisConfig | None:
        address = self.redis_address("redis-addr")
        return None if address is None else RedisConfig(address, self.text("redis-password"))

    def redis_address(self, name: str) -> str | None:
        address = self.text(name)
        if address is None:
            return None
        if "://" not in address:
            host, port = host_and_port(address, 6379)
            return f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}"
        if not address.startswith(("redis://", "unix://")):
            raise ConfigurationError(f"--{name} must be HOST:PORT, redis:// or unix://")
        return address

    def legacy(self, *, embedded: bool) -> LegacyConfig:
        ip = self.address("legacy-ip") or "127.0.0.1"
        if embedded and not is_loopback(ip) and not self.yes("allow-remote"):
            raise ConfigurationError(
                f"--legacy-ip {ip}: the embedded mode listens on loopback addresses; --allow-remote permits others"
            )
        ports = self.port("manager-port"), self.port("legacy-execution-port")
        if ports[0] == ports[1] != 0:
            raise ConfigurationError("--manager-port and --legacy-execution-port must differ")
        return LegacyConfig(
            ip=ip,
            manager_port=ports[0],
            execution_port=ports[1],
            access_key=self.text("legacy-keypair"),
            curve=self.yes("legacy-curve"),
            override=self.address("kernel-ip-override"),
        )

    def kernels(self) -> KernelsConfig:
        python = self.text("kernel-python") or sys.executable
        if not Path(python).is_file():
            raise ConfigurationError(f"--kernel-python: there is no file {python}")
        return KernelsConfig(
            isolation=self.choice("isolation", ("auto", "namespaces", "none")),
            max_kernels=int(self.number("max-kernels", 1, 100_000, int)),
            pool=None if self.texts["kernel-pool"] == "auto" else int(self.number("kernel-pool", 0, 10_000, int)),
            python=python,
            preload=tuple(self.names("kernel-preload")),
            gpu_devices=Path(self.text("gpu-devices") or "/dev").absolute(),
            output=OutputBounds(
                size=int(self.number("output-kept", 0, 1 << 20) * MIB),
                retention=self.number("output-retention", 1, 86_400),
            ),
            labels=self.labels(),
            memory_overcommit=self.number("memory-overcommit", 0, 1000),
            cpu_overcommit=self.number("cpu-overcommit", 0, 1000),
        )

    def labels(self) -> Mapping[str, str]:
        labels = {}
        for text in self.names("agent-labels"):
            label = read_label(text)
            if label is None:
                raise ConfigurationError(
                    f"--agent-labels: {text!r} is not KEY=VALUE of letters, digits, '.', '_' and '-'"
                )
            labels[label[0]] = label[1]
        if len(labels) > MAX_LABELS:
            raise ConfigurationError(f"--agent-labels: at most {MAX_LABELS} labels")
        return labels

    def placement(self) -> PlacementRules:
        rules = read_rules(self.text("placement") or "", self.names("gpu-instances"))
        if rules is None:
            raise ConfigurationError("--placement must be spread, pack, device or label:KEY")
        return rules

    def limits(self) -> LimitPolicy:
        memory = int(self.number("kernel-memory", 48, 1 << 20)) * MIB
        execution_timeout = self.number("exec-timeout", 0.1, 86_400 * 7)
        cpus = self.number("kernel-cpus", 0.01, 1024)
        default = Limits(
            memory=memory,
            processes=int(self.number("kernel-processes", 8, 100_000)),
            cpu_cores=cpus,
            execution_timeout=execution_timeout,
            idle_timeout=self.number("idle-timeout", 1, 86_400 * 365),
            lifetime=self.number("kernel-lifetime", 0, 86_400 * 3650),
            output_size=int(self.number("kernel-output", 1, 1 << 20) * MIB),
            file_size=int(self.number("kernel-file-size", 1, 1 << 20) * MIB),
            scratch_size=int(self.number("kernel-scratch", 1, 1 << 20) * MIB),
        )
        return LimitPolicy(
            default=default,
            most_memory=max(memory, int(self.number("kernel-memory-max", 48, 1 << 20)) * MIB),
            most_execution_timeout=execution_timeout,
            most_cpu_cores=max(cpus, 2.0),
        )
