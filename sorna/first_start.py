"""What a first start leaves for its operator: the managers' key, a keypair, a private file with it for the command line, and a few lines to read.

Knows the keypair store and one directory; prints nothing itself.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tomllib
from pathlib import Path

from attrs import frozen
from twisted.logger import Logger

from sorna.config import ServerConfig, default_state_dir
from sorna.curve_keys import CurveKeypair, load_or_make, replace
from sorna.manager.enrolment_interfaces import ClusterKeyStore
from sorna.manager.interfaces import KeypairStore
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY, Keypair, generate_keypair

CLIENT_FILE = "client.toml"


@frozen
class FirstKeypair:
    """The keypair that the command line on this host uses.

    :ivar made_now: whether this start made it, which is the one time its secret is shown.
    """

    keypair: Keypair
    made_now: bool


async def ensure_keypairs(store: KeypairStore, config: ServerConfig, now: float) -> FirstKeypair | None:
    """Make the first keypair of an empty installation, add the example one where asked for, and find the operator's own.

    :returns: None when there are keypairs and this host's file names none of them.
    """
    empty = await store.count() == 0
    if config.example_keypair:
        await store.add(Keypair(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY, is_admin=True, created_at=now))
    path = config.state_dir / CLIENT_FILE
    if empty or (config.example_keypair and not path.exists() and await store.count() == 1):
        keypair = generate_keypair(is_admin=True, created_at=now)
        await store.add(keypair)
        return FirstKeypair(keypair, made_now=True)
    access_key = _access_key_in(path)
    found = await store.by_access_key(access_key) if access_key else None
    return FirstKeypair(found, made_now=False) if found is not None else None


def _access_key_in(path: Path) -> str | None:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8")).get("access_key")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, str) else None


async def manager_keys(directory: Path, shared: ClusterKeyStore, now: float) -> CurveKeypair:
    """Give the key of all managers: the one in PostgreSQL, or this host's own for all, where there is none yet."""
    own = load_or_make(directory)
    keys = CurveKeypair(*await shared.manager_key(own.public, own.secret, now))
    if keys != own:
        Logger().info("this manager takes the key {key}, which all of them share", key=keys.public)
        replace(directory, keys)
    return keys


def write_client_file(state_dir: Path, endpoint: str, keypair: Keypair) -> Path:
    """Write the file that ``sorna run`` reads, replacing it at once and readable by this user only."""
    path = state_dir / CLIENT_FILE
    text = "".join(
        f"{name} = {json.dumps(value)}\n"
        for name, value in {
            "endpoint": endpoint,
            "access_key": keypair.access_key,
            "secret_key": keypair.secret_key,
        }.items()
    )
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
    return path


def endpoint_of(config: ServerConfig) -> str:
    """Give the URL under which clients on this host reach the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.service_ip, config.service_ip)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if config.tls else 'http'}://{host}:{config.service_port}"


def banner(config: ServerConfig, first: FirstKeypair | None) -> str:
    """Compose what a start prints: the address, the keys of a first start, and a command that works as pasted."""
    lines = ["", f"Sorna is ready at {endpoint_of(config)}"]
    if first is not None:
        lines.append(f"  access key  {first.keypair.access_key}")
        if first.made_now:
            lines.append(
                f"  secret key  {first.keypair.secret_key}  (shown once; kept in {config.state_dir / CLIENT_FILE})"
            )
        else:
            lines.append(f"  secret key  in {config.state_dir / CLIENT_FILE}")
        lines += ["Run code:", f"  {command(config)}"]
    lines.append("")
    return "\n".join(lines) + "\n"


def command(config: ServerConfig) -> str:
    """Give one complete shell command that runs code on this server."""
    program = Path(sys.executable).with_name("sorna")
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    prefix = ""
    if str(config.state_dir) != default_state_dir():
        prefix = f"SORNA_STATE_DIR={shlex.quote(str(config.state_dir))} "
    return f"{prefix}{shlex.quote(str(shown))} run python3 -c {shlex.quote('print(1+1)')}"
