"""Virtual environments of published clients, each under the Python and with the libraries of its time.

``python -m tests.interop.environments`` prepares them all and says where they are; the tests prepare what is missing.
They are kept in the user's cache folder (``SORNA_INTEROP_CACHE`` names another), so that only the first run waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen
from platformdirs import user_cache_dir

BUILD_TIMEOUT = 300.0


class ClientUnavailable(Exception):
    """A client cannot be had on this machine; the text says why."""


@frozen
class PublishedClient:
    """A client as it was published.

    :ivar python: the Python version of its time.
    :ivar pins: every library it needs: newer ones do not run there, and installers of that time do not know it.
    """

    name: str
    python: str
    pins: tuple[str, ...]


_COMMON = (
    "ConfigArgParse==1.7",
    "chardet==3.0.4",
    "idna==3.7",
    "namedlist==1.8",
    "python-dateutil==2.9.0.post0",
    "six==1.16.0",
)
_REQUESTS = ("certifi==2024.2.2", "charset-normalizer==2.0.12", "requests==2.27.1", "urllib3==1.26.20")
_AIOHTTP3 = (
    "async-timeout==3.0.1",
    "attrs==22.2.0",
    "idna-ssl==1.1.0",
    "multidict==4.7.6",
    "yarl==1.2.6",
    "humanize==0.5.1",
    "tabulate==0.8.10",
)

SORNA_0_9_8 = PublishedClient(
    "sorna-client-0.9.8",
    "3.6",
    (
        *_COMMON,
        *_REQUESTS,
        "sorna-client==0.9.8",
        "aiohttp==2.2.5",
        "async-timeout==1.4.0",
        "multidict==3.3.2",
        "simplejson==3.19.2",
        "yarl==0.12.0",
    ),
)
BACKEND_1_1_11 = PublishedClient(
    "backend.ai-client-1.1.11",
    "3.6",
    (*_COMMON, *_REQUESTS, *_AIOHTTP3, "backend.ai-client==1.1.11", "aiohttp==3.0.9", "colorama==0.4.5"),
)
BACKEND_1_4_2 = PublishedClient(
    "backend.ai-client-1.4.2",
    "3.6",
    (*_COMMON, *_AIOHTTP3, "backend.ai-client==1.4.2", "aiohttp==3.4.4", "tqdm==4.62.3"),
)
#: Releases whose libraries are listed in a file each, and the Python of their time.
_LISTED = {
    "1.0.6": "3.6",
    "1.2.1": "3.6",
    "1.3.7": "3.6",
    "1.5.1": "3.6",
    "18.12.3": "3.6",
    "19.3.2": "3.6",
    "19.9.10": "3.6",
    "20.3.10": "3.8",
    "20.9.9": "3.8",
    "21.9.5": "3.8",
    "22.3.2": "3.9",
    "22.9.0": "3.10",
    "23.3.0": "3.11",
    "23.9.10": "3.11",
}


def _listed(release: str, python: str) -> PublishedClient:
    name = f"backend.ai-client-{release}"
    pins = (Path(__file__).parent / "pins" / f"{name}.txt").read_text("utf-8").split()
    return PublishedClient(name, python, tuple(pins))


BACKEND = {release: _listed(release, python) for release, python in _LISTED.items()}
#: The one release of the JavaScript client that was published to a registry.
JAVASCRIPT = "backend.ai-client@21.3.1"
#: The last release of the WebSocket conformance suite; its Python is 2.7.
AUTOBAHN = "autobahntestsuite-25.10.1"
# No client of Sorna: what a program of 2016 for the ZeroMQ interface was written with.
ZEROMQ_2016 = PublishedClient("zeromq-2016", "3.6", ("pyzmq==16.0.4",))
CLIENTS = (SORNA_0_9_8, BACKEND_1_1_11, BACKEND_1_4_2, *BACKEND.values(), ZEROMQ_2016)


def cache_folder() -> Path:
    """Give the folder that holds the environments."""
    return Path(os.environ.get("SORNA_INTEROP_CACHE") or user_cache_dir("sorna-interop", appauthor=False))


def prepare(client: PublishedClient) -> Path:
    """Give the ``bin`` folder of a client's environment, made now if need be.

    :raises ClientUnavailable: its Python is not found, or its libraries cannot be fetched.
    """
    return _cached(client.name, (client.python, *client.pins), lambda folder: _build(client, folder)) / "bin"


def prepare_javascript() -> Path:
    """Give the folder that has the JavaScript client among its modules, made now if need be.

    :raises ClientUnavailable: there is no node or npm, or the client cannot be fetched.
    """
    return _cached("javascript", (JAVASCRIPT,), _build_javascript)


def prepare_autobahn() -> tuple[Path, Path]:
    """Give the Python of the WebSocket conformance suite and the folder of its libraries, made now if need be.

    :raises ClientUnavailable: its Python is not found, or its libraries cannot be fetched.
    """
    python = find_python("2.7", modules="ssl, sys, pip")
    if python is None:
        raise ClientUnavailable(f"{AUTOBAHN} wants Python 2.7, which is not found here")
    pins = (Path(__file__).parent / "pins" / f"{AUTOBAHN}.txt").read_text("utf-8").split()
    # That Python has no module for virtual environments; a folder of libraries does as well.
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target"]
    return python, _cached(AUTOBAHN, ("2.7", *pins), lambda folder: _run(AUTOBAHN, [*install, str(folder), *pins]))


def _cached(name: str, contents: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    complete = folder / "complete"
    if complete.exists():
        return folder
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            complete.touch()
    return folder


def _build_javascript(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise ClientUnavailable(f"{JAVASCRIPT} wants node and npm, which are not found here")
    folder.mkdir()
    install = [
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        str(folder),
        JAVASCRIPT,
    ]
    _run(JAVASCRIPT, [npm, *install])


def _build(client: PublishedClient, folder: Path) -> None:
    python = find_python(client.python)
    if python is None:
        raise ClientUnavailable(f"{client.name} wants Python {client.python}, which is not found here")
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    limits = ["--timeout=20", "--retries=1", "--disable-pip-version-check"]
    for command in ([str(python), "-m", "venv", str(folder)], [*install, *limits, *client.pins]):
        _run(client.name, command)


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ClientUnavailable(f"{name} could not be installed within {BUILD_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise ClientUnavailable(f"{name} cannot be installed, is the registry reachable? {said[-1]}")


def find_python(version: str, modules: str = "ssl, sys, venv") -> Path | None:
    """Find an interpreter of this version that runs: on the path, or where pyenv keeps them."""
    for candidate in _candidates(version):
        try:
            done = subprocess.run(
                [str(candidate), "-c", f"import {modules}; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for root in filter(None, (os.environ.get("PYENV_ROOT"), str(Path.home() / ".pyenv"))):
        yield from sorted(Path(root).glob(f"versions/{version}*/bin/{name}"), reverse=True)
    found = shutil.which(name)
    if found:
        yield Path(found)


def main() -> int:
    """Prepare every client."""
    missing = 0
    for client in CLIENTS:
        try:
            where = str(prepare(client))
        except ClientUnavailable as error:
            where, missing = str(error), missing + 1
        sys.stdout.write(f"{client.name}: {where}\n")
    return missing


if __name__ == "__main__":
    sys.exit(main())
