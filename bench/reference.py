"""What the short bench compares with: loops whose cost depends on the machine and on libraries, and on nothing of ours.

A resource of bare twisted.web that answers every request with a constant, in a process of its own, and forks of this process
that compute a little.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from attrs import frozen
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Site

from sorna.testing.server import PROJECT

ANSWER = b'{"result": {"status": "finished", "console": [["stdout", "2\\n"]]}}'
_AMOUNT = 100_000


class Constant(Resource):
    """Answers every request alike."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        """Read the body and answer."""
        request.content.read()
        return ANSWER


def serve(reactor: Any) -> Deferred[None]:
    """Serve :class:`Constant` on a free port until the process is ended."""
    port = reactor.listenTCP(0, Site(Constant(), parsePOSTFormSubmission=False), interface="127.0.0.1")
    sys.stdout.write(f"{port.getHost().port}\n")
    sys.stdout.flush()
    return Deferred()


@frozen
class Reference:
    """The server of constants."""

    endpoint: str
    pid: int


@contextlib.contextmanager
def running() -> Iterator[Reference]:
    """Run :func:`serve` in a process of its own."""
    command = [sys.executable, "-m", "bench.reference"]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Reference(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
        finally:
            process.terminate()


def fork_and_compute() -> None:
    """Fork, let the child compute a fixed amount, and wait for its end.

    :raises ChildProcessError: the child did not come to its end.
    """
    child = os.fork()
    if child == 0:
        sum(number * number for number in range(_AMOUNT))
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    if status != 0:
        raise ChildProcessError(f"a child ended with status {status}")


if __name__ == "__main__":
    task.react(serve)
