"""``python -m sorna.worker``: one more process of a server that was started with ``--workers``; started by the first one."""

from __future__ import annotations

import sys

from twisted.scripts.twistd import run

if __name__ == "__main__":
    sys.argv = [
        "twistd",
        "--nodaemon",
        "--pidfile=",
        "--logger=sorna.observability.child_log_observer",
        "sorna-worker",
        *sys.argv[1:],
    ]
    run()
