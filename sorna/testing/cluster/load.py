"""The load of a chaos run: sessions that use a cluster as clients do, through any manager, and check every answer.

Knows the published interface; knows nothing of who breaks what meanwhile. A session goes on at the other manager when one does
not answer, as a client behind a load balancer does. What ended with a reason is no loss; a gap in acknowledged output is.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from attrs import define, field

from sorna.testing.cluster.client import Client, Progress, RequestRefused
from sorna.testing.cluster.websocket import WebSocket

T = TypeVar("T")

LINES = 60
PAUSE = 0.02
PATIENCE = 30.0  # seconds within which an operation must get an answer that is no "try again"
AGAIN = 0.2
REFUSED_FOR_GOOD = 500


class SessionEnded(Exception):
    """The session's kernel is gone, and the answer said why."""


class NoAnswer(Exception):
    """Nobody answered within :data:`PATIENCE`."""


@define
class Tally:
    """What the sessions count together."""

    operations: Counter[str] = field(factory=Counter)
    errors: Counter[str] = field(factory=Counter)
    ended: Counter[str] = field(factory=Counter)
    lost: list[str] = field(factory=list)
    doubled: list[str] = field(factory=list)
    unanswered: list[str] = field(factory=list)
    wrong: list[str] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def did(self, what: str) -> None:
        """Count an operation that succeeded."""
        with self._lock:
            self.operations[what] += 1

    def failed(self, why: str) -> None:
        """Count an attempt that did not."""
        with self._lock:
            self.errors[why] += 1

    def kernel_ended(self, why: str) -> None:
        """Count a kernel that ended under its session."""
        with self._lock:
            self.ended[why] += 1

    def note(self, where: list[str], what: str) -> None:
        """Write down what must not happen."""
        with self._lock:
            where.append(what)


def numbered(lines: int) -> str:
    """Give the code that prints numbered lines, slowly."""
    return f"import time\nfor n in range({lines}):\n    print(n, flush=True)\n    time.sleep({PAUSE})"


def expected(lines: int) -> str:
    """Give what it prints."""
    return "".join(f"{number}\n" for number in range(lines))


@define(eq=False)
class Session:
    """One client with a keypair of its own, which works until it is told to stop.

    :ivar clients: one for each manager, all with this session's keypair.
    """

    name: str
    clients: Sequence[Client]
    tally: Tally
    dice: random.Random
    stop: threading.Event
    tokens: list[str] = field(factory=list)

    def work(self) -> None:
        """Make a kernel, use it in every way, end it, and begin anew."""
        while not self.stop.is_set():
            try:
                self._life()
            except SessionEnded as error:
                self.tally.kernel_ended(str(error))
            except NoAnswer as error:
                self.tally.note(self.tally.unanswered, f"{self.name}: {error}")

    def _life(self) -> None:
        token = f"chaos-{secrets.token_hex(8)}"
        self.tokens.append(token)
        kernel = self._ask("create", lambda client: client.create(token))
        self.tally.did("create")
        for use in self.dice.sample((self._poll, self._follow, self._upload, self._terminal), 3):
            use(kernel)
        self._ask("destroy", lambda client: _destroy(client, kernel))
        self.tally.did("destroy")

    def _ask(self, what: str, call: Callable[[Client], T]) -> T:
        """Make a call at some manager, and at another whenever there is no answer or one that asks to try again.

        :raises SessionEnded: the answer is that the kernel is gone. :raises NoAnswer: it takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        clients = self.dice.sample(list(self.clients), len(self.clients))
        while True:
            clients = [*clients[1:], clients[0]]
            try:
                return call(clients[0])
            except RequestRefused as error:
                answer = error.answer
                self.tally.failed(f"{what}: {answer.status} {answer.problem.partition(':')[0]}")
                why = answer.problem
                if answer.status == 404:
                    raise SessionEnded(_reason(why)) from error
                if answer.status < REFUSED_FOR_GOOD and answer.status != 429:
                    self.tally.note(self.tally.wrong, f"{self.name}: {what}: {answer.status} {why}")
                    raise SessionEnded("refused") from error
            except (OSError, http.client.HTTPException) as error:
                why = type(error).__name__
                self.tally.failed(f"{what}: {why}")
            if time.monotonic() > deadline:
                raise NoAnswer(f"{what}: {why}")
            time.sleep(AGAIN)

    # Ways of using a kernel.

    def _poll(self, kernel: str) -> None:
        """Run code by asking again and again; whoever answers, every line comes once."""
        run, said = secrets.token_hex(8), []
        code = numbered(LINES)
        progress = self._ask("execute", lambda client: client.execute(kernel, run, code))
        said.append(progress.text)
        while progress.status != "finished":
            progress = self._ask("continue", lambda client: client.execute(kernel, run, mode="continue"))
            said.append(progress.text)
        self._check("polled", run, kernel, "".join(said), progress)

    def _follow(self, kernel: str) -> None:
        """Run code and read its output by numbers; then read it all again."""
        run = secrets.token_hex(8)
        self._ask("execute", lambda client: client.execute(kernel, run, numbered(LINES)))
        for way in ("followed", "read again"):
            said, seq, over = [], 0, False
            while not over:
                target = f"/v2/kernel/{kernel}/runs/{run}/output?from={seq}&wait=2"
                result = self._ask("read output", partial(_get, target))["result"]
                if result["missing"]:
                    self.tally.note(self.tally.lost, f"{self.name}: {run}: {result['missing']} bytes are not kept")
                said += [text for _stream, text in result["console"]]
                seq, over = result["next"], result["end"]
            self._check(way, run, kernel, "".join(said), Progress("finished", "", result["exitCode"]))

    def _check(self, way: str, run: str, kernel: str, said: str, progress: Progress) -> None:
        wanted = expected(LINES)
        if said == wanted and progress.exit_code == 0:
            self.tally.did(way)
        elif progress.exit_code != 0 and wanted.startswith(said.partition("The kernel")[0].partition("\nsorna:")[0]):
            self.tally.kernel_ended(f"while {way}: exit code {progress.exit_code}")
        else:
            lines = Counter(said.split())
            doubled = [line for line, count in lines.items() if count > 1]
            where = self.tally.doubled if doubled else self.tally.lost
            missing = [line for line in wanted.split() if line not in lines]
            self.tally.note(
                where,
                f"{self.name}: {way} {run} of {kernel}: missing {missing[:5]}..., doubled {doubled[:5]}, "
                f"exit code {progress.exit_code}, said {said[-80:]!r}",
            )

    def _upload(self, kernel: str) -> None:
        """Write a file, and let the kernel say what is in it."""
        content = self.dice.randbytes(50_000)
        self._ask("upload", lambda client: client.upload(kernel, "chaos.bin", content))
        run = secrets.token_hex(8)
        code = "import hashlib\nprint(hashlib.sha256(open('chaos.bin', 'rb').read()).hexdigest())"
        progress, said = self._ask("execute", lambda client: client.execute(kernel, run, code)), ""
        said += progress.text
        while progress.status != "finished":
            progress = self._ask("continue", lambda client: client.execute(kernel, run, mode="continue"))
            said += progress.text
        if said.strip() == hashlib.sha256(content).hexdigest():
            self.tally.did("upload")
        elif progress.exit_code == 0:
            self.tally.note(self.tally.lost, f"{self.name}: an uploaded file reads {said!r}")
        else:
            self.tally.kernel_ended(f"while uploading: exit code {progress.exit_code}")

    def _terminal(self, kernel: str) -> None:
        """Type into a terminal, at another manager when the connection is lost."""
        self._ask("terminal", lambda client: _typed(client, kernel))
        self.tally.did("terminal")


def _typed(client: Client, kernel: str) -> None:
    target = f"/v2/stream/kernel/{kernel}/pty"
    terminal = WebSocket(client.address, client.port, target, client.headers("GET", target))
    try:
        line = base64.b64encode(b"echo chaos-$((6*7))\n").decode()
        terminal.send(json.dumps({"type": "stdin", "chars": line}))
        said = b""
        while b"chaos-42" not in said:
            message = json.loads(terminal.receive())
            if message.get("type") == "out":
                said += base64.b64decode(message["data"])
    finally:
        terminal.close()


def _get(target: str, client: Client) -> Any:
    return client.call("GET", target)


def _destroy(client: Client, kernel: str) -> None:
    """End a kernel; when an earlier attempt did it without our hearing of it, that is as good."""
    try:
        client.destroy(kernel)
    except RequestRefused as error:
        if error.answer.status != 404:
            raise


def _reason(problem: str) -> str:
    """Give the reason in the brackets of a problem's title."""
    return problem.partition("(")[2].rstrip(")") or problem
