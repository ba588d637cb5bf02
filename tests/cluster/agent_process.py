"""An agent's end of the link as a process of its own, so that tests can kill and freeze it.

Arguments: directory of the agent's keys, directory of authorised keys, port. Prints its endpoint; every run waits for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor  # noqa: TID251 -- the main module of a process
from twisted.internet.defer import Deferred

from sorna.agent.link_server import LinkServer
from sorna.curve_keys import AuthorisedKeys, load_or_make
from tests.cluster.scripted import ScriptedOperations


def main(keys: str, authorised: str, port: str) -> None:
    reactor: Any = global_reactor
    operations = ScriptedOperations()
    operations.script["execute"] = Deferred
    server = LinkServer(
        reactor, operations, load_or_make(Path(keys)), AuthorisedKeys(reactor, Path(authorised)), port=int(port)
    )
    server.startService()
    sys.stdout.write(f"{server.endpoint}\n")
    sys.stdout.flush()
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
