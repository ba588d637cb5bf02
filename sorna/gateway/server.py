"""``python -m sorna.gateway.server``: the original way to start the server, kept; the same as ``twistd --nodaemon sorna``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.scripts.twistd import run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server in the foreground with the given options (those of the process when None)."""
    options = sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [
        "twistd",
        "--nodaemon",
        "--pidfile=",
        "--logger=sorna.observability.text_log_observer",
        "sorna",
        *options,
    ]
    run()


if __name__ == "__main__":
    main()
