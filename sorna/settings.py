"""The options of both programs as tables: names, defaults and a line of help each; knows no values and no programs."""

from __future__ import annotations

import sys

from attrs import frozen


@frozen
class Setting:
    """One option of a program.

    :ivar name: the flag without its dashes; the variable is ``SORNA_`` and the name in capitals.
    :ivar default: the value as text, None when there is none.
    :ivar shown: what ``--help`` says of the default.
    :ivar is_flag: whether it takes no value on the command line.
    """

    name: str
    default: str | None
    help: str
    is_flag: bool = False
    shown: str | None = None

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "SORNA_" + self.name.upper().replace("-", "_")

    @property
    def described(self) -> str:
        """The line for ``--help``."""
        shown = self.shown or ("off" if self.is_flag else self.default or "none")
        return f"{self.help} [{self.variable}, default: {shown}]"


_COMMON = (
    Setting("state-dir", None, "directory of everything Sorna keeps on this host", shown="the user's data directory"),
    Setting("config", None, "TOML file with options by these names; flags and variables win over it"),
    Setting("debug", None, "log what is of interest to developers only", is_flag=True),
    Setting("redis-password", None, "password of that Redis"),
    Setting(
        "trace-stages", None, "directory that the times of calls between parts are written to at the stop, for benches"
    ),
    Setting("agent-port", "6011", "port on which an agent listens for managers"),
)
_FOLDERS = (
    Setting(
        "folder-root",
        None,
        "directory of the virtual folders' content, on all hosts the same one",
        shown="folders in the state directory",
    ),
)
_REDIS = "Redis as HOST:PORT, redis://USER:PASSWORD@HOST:PORT or unix:///PATH"
_AGENT_ONLY = (
    Setting("redis-addr", None, f"the managers' {_REDIS}", shown="none, it must be given"),
    Setting("agent-id", None, "name of this agent, stable over restarts", shown="i- and the host's name"),
    Setting("agent-ip", "127.0.0.1", "address the agent listens on and tells the managers"),
    Setting("exit-with-parent", None, "stop when standard input closes", is_flag=True),
)
_KERNELS = (
    Setting("agent-labels", None, "comma list of KEY=VALUE that kernels may ask their agent for"),
    Setting("memory-overcommit", "8", "how many times over an agent promises its memory to kernels; 0 for no bound"),
    Setting("cpu-overcommit", "0", "how many times over an agent promises its processors; 0 for no bound"),
    Setting("isolation", "auto", "auto or namespaces; none runs code unconfined, for development only"),
    Setting("max-kernels", "100", "kernels one agent holds at once"),
    Setting(
        "kernel-pool",
        "auto",
        "kernels an agent keeps ready by demand, at the most; auto: a sixteenth of its memory; 0 makes each when it is asked for",
    ),
    Setting(
        "kernel-python", sys.executable, "interpreter of the python3 runtime", shown="the interpreter of Sorna itself"
    ),
    Setting(
        "gpu-devices", "/dev", "directory with the device nodes of GPUs that kernels may have: nvidia0, nvidia1..."
    ),
    Setting("output-kept", "64", "MiB of output that an agent keeps of kernels that have ended"),
    Setting("output-retention", "300", "seconds that output is kept after the end of its run"),
    Setting("kernel-preload", "numpy,pandas,matplotlib.pyplot", "modules imported before the first kernel of python3"),
)
_LIMITS = (
    Setting("exec-timeout", "180", "seconds that one run may take at the most"),
    Setting("idle-timeout", "600", "seconds after which an idle kernel is destroyed"),
    Setting("kernel-lifetime", "0", "seconds after which any kernel is destroyed; 0 for never"),
    Setting("kernel-memory", "512", "MiB of memory of a kernel whose client asks for nothing"),
    Setting("kernel-memory-max", "2048", "MiB of memory a client may ask for"),
    Setting("kernel-processes", "128", "processes and threads of a kernel"),
    Setting("kernel-cpus", "1", "processors of a kernel whose client asks for nothing"),
    Setting("kernel-output", "256", "MiB that one run may print"),
    Setting("kernel-file-size", "128", "MiB of the largest file in a kernel"),
    Setting("kernel-scratch", "256", "MiB of the working directory and /tmp together"),
    Setting("folder-size", "1024", "MiB that a virtual folder may hold"),
    Setting("folder-files", "10000", "files and directories that a virtual folder may hold"),
    Setting("folders", "10", "virtual folders that a keypair may own"),
)
AGENT_SETTINGS = (*_COMMON, *_AGENT_ONLY, *_FOLDERS, *_KERNELS)
WORKER_SETTINGS = (
    Setting("config", None, "TOML file with the options of the server"),
    Setting("worker", None, "which of the server's processes this is, from 2"),
    Setting("group", None, "what the server's processes have in common"),
)
SERVER_SETTINGS = (
    Setting("service-ip", None, "address of the REST service", shown="0.0.0.0, 127.0.0.1 in the embedded mode"),
    Setting("service-port", "0", "port of the REST service", shown="8080, 8443 with TLS"),
    Setting("workers", "1", "processes that serve the REST port together, each with a share of the connections"),
    Setting("manager-port", "5001", "port of the ZeroMQ interface of 2016"),
    Setting("legacy-execution-port", "6001", "port that clients of the ZeroMQ interface send executions to"),
    Setting("legacy-ip", "127.0.0.1", "address of both these ports and of terminals"),
    Setting(
        "legacy-keypair",
        None,
        "access key that users of the ZeroMQ interface, which knows none, are charged to; without it there is no such interface",
        shown="the first keypair in the embedded mode",
    ),
    Setting(
        "legacy-curve", None, "let into the ZeroMQ interface only those with an authorised CURVE key", is_flag=True
    ),
    Setting("ssl-cert", None, "PEM file with the certificate chain; turns TLS on together with --ssl-key"),
    Setting("ssl-key", None, "PEM file with the private key"),
    Setting("db-addr", None, "PostgreSQL as HOST:PORT or a socket directory", shown="a private one"),
    Setting("db-name", "sorna", "name of the database"),
    Setting("db-user", "postgres", "user of the database"),
    Setting("db-password", None, "password of that user"),
    *_COMMON,
    Setting("redis-addr", None, _REDIS, shown="a private one"),
    Setting(
        "agent-redis-addr",
        None,
        "that Redis as agents on other hosts reach it; told to those that enroll",
        shown="the same",
    ),
    Setting("local-agent", "auto", "yes or no: run an agent as a child process; auto: with the private Redis"),
    Setting("allow-remote", None, "let the embedded mode listen on other than loopback addresses", is_flag=True),
    Setting("example-keypair", None, "add the published example keypair; on loopback only", is_flag=True),
    Setting("kernel-ip-override", None, "address that ZeroMQ clients are told instead of the bound one"),
    Setting("placement", "spread", "how agents are chosen: spread, pack, device or label:KEY"),
    Setting("gpu-instances", None, "comma list of agents that alone get runtimes whose names end in -gpu"),
    *_FOLDERS,
    *_KERNELS,
    *_LIMITS,
)
