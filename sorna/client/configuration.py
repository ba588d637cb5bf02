"""Where the command line finds the server and the keypair: flags, variables, and the file that a server leaves at its first start.

Knows files and nothing of HTTP.  The file is ``client.toml`` in the state directory, readable by its owner only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from platformdirs import user_data_dir

DEFAULT_ENDPOINT = "http://127.0.0.1:8080"
FILE_NAME = "client.toml"
LARGEST_FILE = 64 * 1024


class ConfigurationMissing(Exception):
    """No keypair can be found; the text says where one was looked for and what to do."""


@frozen
class ClientConfiguration:
    """Which server to ask, and in whose name."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)


def state_directory(environ: Mapping[str, str]) -> Path:
    """Give the folder in which a server of this user keeps its state."""
    return Path(environ.get("SORNA_STATE_DIR") or user_data_dir("sorna", appauthor=False))


def find_configuration(
    environ: Mapping[str, str],
    *,
    endpoint: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> ClientConfiguration:
    """Complete what was given with what the file of a local server says.

    A keypair is taken as a whole from one place, so that a key never meets the secret of another.

    :raises ConfigurationMissing: half a keypair was given, or none and there is no usable file.
    """
    if bool(access_key) != bool(secret_key):
        missing = "SORNA_SECRET_KEY" if access_key else "SORNA_ACCESS_KEY"
        raise ConfigurationMissing(f"Half of the keypair is missing: set {missing} too.")
    if access_key and secret_key:
        return ClientConfiguration(endpoint or DEFAULT_ENDPOINT, access_key, secret_key)
    found = read_configuration(state_directory(environ) / FILE_NAME)
    return ClientConfiguration(endpoint or found.endpoint, found.access_key, found.secret_key)


def read_configuration(path: Path) -> ClientConfiguration:
    """Read a ``client.toml``.

    :raises ConfigurationMissing: it is not there, cannot be read, or lacks something.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.loads(file.read(LARGEST_FILE).decode("utf-8"))
    except FileNotFoundError:
        raise ConfigurationMissing(
            f"No keypair: SORNA_ACCESS_KEY and SORNA_SECRET_KEY are not set, and no local server has left {path}. "
            "Start one with `make run`, or set both."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationMissing(f"Cannot read {path}: {error}") from error
    texts = {name: values.get(name) for name in ("access_key", "secret_key")}
    endpoint = values.get("endpoint", DEFAULT_ENDPOINT)
    for name, value in {**texts, "endpoint": endpoint}.items():
        if not isinstance(value, str) or not value:
            raise ConfigurationMissing(f"{path} holds no {name}.")
    return ClientConfiguration(str(endpoint), str(texts["access_key"]), str(texts["secret_key"]))
