"""``python -m sorna.agent``: an agent in the foreground; the same as ``twistd --nodaemon sorna-agent``."""

from __future__ import annotations

import sys

from twisted.scripts.twistd import run

if __name__ == "__main__":
    sys.argv = [
        "twistd",
        "--nodaemon",
        "--pidfile=",
        "--logger=sorna.observability.child_log_observer",
        "sorna-agent",
        *sys.argv[1:],
    ]
    run()
