"""What a figure was measured on: the machine's shape, the programs' versions. Reads the system; measures nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from bench.session import Failed, Session
from sorna.testing.server import PROJECT

_AGENTS = 'query { agents(status: "ALIVE") { isolation } }'


def processor_model(cpuinfo: str) -> str:
    """Read the model of the first processor from ``/proc/cpuinfo``; the architecture alone where it is not told."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def memory_size(meminfo: str) -> str:
    """Read how much memory there is from ``/proc/meminfo``."""
    found = re.search(r"^MemTotal:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return f"{int(found[1]) / (1 << 20):.0f} GiB of memory" if found else "memory of unknown size"


def shape() -> str:
    """Describe this machine in a line."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    cores = len(os.sched_getaffinity(0))
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else ""
    kernel = f"Linux {platform.release()}" + (f", {system}" if system else "")
    return f"{processor_model(cpuinfo)}, {cores} cores, {memory_size(meminfo)}, {kernel}"


def load() -> float:
    """Tell how many processes ran or waited to run, on average of the last minute."""
    return os.getloadavg()[0]


def isolation(session: Session) -> str:
    """Ask the server how its agents isolate kernels."""
    try:
        agents = session.ask(_AGENTS, {}).get("agents")
    except Failed:
        agents = None
    if not isinstance(agents, list):
        return "unknown"
    return ", ".join(sorted({str(agent.get("isolation")) for agent in agents})) or "unknown"


def commit() -> str:
    """Name the commit that is checked out, with a plus sign when files differ from it."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
