"""A program of October 2016, written from the interface's description alone; runs on Python 3.6 with pyzmq 16.

``python client_of_2016.py tcp://HOST:5001`` opens a session, runs snippets with every kind of result, uses the session's terminal
and leaves. It prints one line per step and ends with ``left``; whatever is not as described is an AssertionError.
"""

import json
import sys
import time
import uuid
from typing import Any, Dict, Optional, Tuple

import zmq

PING, GET_OR_CREATE, DESTROY = 0, 2, 3
EXECUTE, RESTART_KERNEL = 1, 4
PONG, SUCCESS, INVALID_INPUT, FAILURE = 0, 200, 400, 500
RESULT = ["stdout", "stderr", "media", "options", "exceptions", "files"]


class Peer:
    """A REQ socket to one address."""

    def __init__(self, context: Any, address: str) -> None:
        self.socket = context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.LINGER, 50)
        self.socket.setsockopt(zmq.RCVTIMEO, 30000)
        self.socket.connect(address)

    def ask(self, action: int, **fields: Any) -> Dict[str, Any]:
        """Send a request and give the reply."""
        request = {"action": action}
        request.update(fields)
        self.socket.send_multipart([json.dumps(request, ensure_ascii=False).encode("utf-8")])
        frames = self.socket.recv_multipart()
        assert len(frames) == 1, frames
        return dict(json.loads(frames[0].decode("utf-8")))


class Session:
    """A kernel of one user's entry."""

    def __init__(self, context: Any, manager: Peer, lang: str, user: str) -> None:
        self.lang = lang
        self.user = user
        self.manager = manager
        reply = manager.ask(GET_OR_CREATE, user_id=user, entry_id="entry", lang=lang)
        assert list(reply) == ["reply", "kernel_id", "kernel_addr", "stdin_addr", "stdout_addr"], reply
        assert reply["reply"] == SUCCESS, reply
        self.kernel_id = reply["kernel_id"]
        self.addresses = (reply["stdin_addr"], reply["stdout_addr"])
        self.agent = Peer(context, reply["kernel_addr"])
        self.cell = 0

    def execute(self, code: str, match: Optional[Dict[str, str]] = None) -> Dict[str, Any]:
        """Run code and give the whole reply."""
        self.cell += 1
        fields = {"entry_id": "entry", "kernel_id": self.kernel_id, "cell_id": str(self.cell), "code": code}
        if match is not None:
            return self.agent.ask(EXECUTE, match=match, **fields)
        return self.agent.ask(EXECUTE, **fields)

    def result(self, code: str) -> Dict[str, Any]:
        """Run code that can be run."""
        reply = self.execute(code)
        assert list(reply) == ["reply", "result"] and reply["reply"] == SUCCESS, reply
        result = reply["result"]  # type: Dict[str, Any]
        assert list(result) == RESULT, result
        return result

    def leave(self) -> None:
        """End the kernel, and see that it is gone."""
        assert self.manager.ask(DESTROY, kernel_id=self.kernel_id) == {"reply": SUCCESS}
        gone = self.manager.ask(DESTROY, kernel_id=self.kernel_id)
        assert gone == {"reply": INVALID_INPUT, "cause": "No such kernel."}, gone
        gone = self.execute("1")
        assert gone == {"reply": INVALID_INPUT, "cause": "Could not find such kernel."}, gone


def say(text: str) -> None:
    """Tell how far we are."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def snippets(session: Session) -> None:
    """Run ten snippets, each with another kind of result."""
    result = session.result('a = 1\nprint("hi", a)\nprint("한글")')
    assert result == {
        "stdout": "hi 1\n한글\n",
        "stderr": "",
        "media": [],
        "options": None,
        "exceptions": [],
        "files": [],
    }, result
    say("1 text")
    result = session.result("import sys\nsys.stderr.write('warning')\nprint(a + 1)")
    assert (result["stdout"], result["stderr"]) == ("2\n", "warning"), result
    say("2 state, and both streams")
    result = session.result("a +")
    [[name, arguments, before, traceback]] = result["exceptions"]
    assert (name, before, traceback, result["stderr"]) == ("SyntaxError", True, None, ""), result
    assert arguments[0] == "invalid syntax" and arguments[1][0] == "<input>", result
    say("3 what cannot be run")
    result = session.result("def f(): raise ValueError('boo', 3)\nprint('before')\nf()")
    assert result["exceptions"] == [["ValueError", ["boo", 3], False, None]], result
    assert (result["stdout"], result["stderr"]) == ("before\n", ""), result
    say("4 an exception")
    result = session.result("raise KeyError(object(), b'x')")
    [[name, arguments, before, traceback]] = result["exceptions"]
    assert name == "KeyError" and arguments[0].startswith("<object object"), result
    say("5 an exception with arguments that are no JSON")
    result = session.result("class P:\n    def _repr_svg_(self): return '<svg></svg>'\nP()")
    assert result["media"] == [["image/svg+xml", "<svg></svg>"]], result
    say("6 media")
    result = session.result("class H:\n    def _repr_html_(self): return '<b>x</b>'\nH()")
    assert result["media"] == [["text/html", "<b>x</b>"]], result
    say("7 a page")
    result = session.result(
        "import os\nos.makedirs('.output', exist_ok=True)\nopen('.output/table.csv', 'w').write('1,2')"
    )
    assert result["files"] == ["table.csv"], result
    say("8 a file")
    result = session.result("name = input('name? ')")
    assert result["stdout"] == "name? " and result["exceptions"][0][0] == "EOFError", result
    say("9 a question that nobody can answer")
    reply = session.execute("print('x' * 100000)", {"op": "regex", "target": "stdout", "value": "^x+$"})
    assert list(reply) == ["match_result", "reply", "result"] and reply["match_result"] is True, reply
    reply = session.execute("1 / 0", {"op": "equal", "target": "exception", "value": "ZeroDivisionError"})
    assert reply["match_result"] is True, reply
    reply = session.execute("print(1)", {"op": "contains", "target": "stderr", "value": "1"})
    assert reply["match_result"] is False, reply
    reply = session.execute("b = 7", {"op": "bogus", "target": "stdout", "value": "1"})
    assert reply == {"reply": FAILURE, "cause": "AssertionError: Invalid match operator."}, reply
    reply = session.execute("print(b)", {"op": "equal", "target": "stdout", "value": "7\n"})
    assert reply["match_result"] is True, reply
    say("10 matches")


class Screen:
    """The terminal of a kernel: raw bytes in on one socket, out on the other."""

    def __init__(self, context: Any, addresses: Tuple[str, str]) -> None:
        self.stdout = context.socket(zmq.SUB)
        self.stdout.setsockopt(zmq.SUBSCRIBE, b"")
        self.stdin = context.socket(zmq.PUB)
        for socket, address in ((self.stdin, addresses[0]), (self.stdout, addresses[1])):
            socket.setsockopt(zmq.LINGER, 50)
            socket.connect(address)
        self.seen = b""
        time.sleep(0.5)  # a PUB socket drops what is sent before it is connected

    def wait_for(self, text: bytes) -> None:
        """Read until something is seen."""
        until = time.monotonic() + 20
        while text not in self.seen:
            assert self.stdout.poll(max(0.0, until - time.monotonic()) * 1000), self.seen[-500:]
            frames = self.stdout.recv_multipart()
            assert len(frames) == 1, frames
            self.seen += frames[0]

    def type(self, line: bytes) -> None:
        """Type a line."""
        self.seen = b""
        self.stdin.send(line + b"\r")


def terminal(context: Any, session: Session) -> None:
    """Use the terminal of a kernel whose runtime is one."""
    control = session.result("%ping")
    assert (control["stdout"], control["options"]) == ("pong!", {"upload_output_files": False}), control
    control = session.result("%nonsense")
    assert control["stderr"] == "Invalid command.", control
    screen = Screen(context, session.addresses)
    screen.type(b"echo $((6 * 7))-answer")
    screen.wait_for(b"42-answer")
    control = session.result("%resize 30 100")
    assert control["stdout"] == "OK; terminal resized to 30 rows and 100 cols", control
    screen.type(b"stty size")
    screen.wait_for(b"30 100")
    screen.type(b"printf '\\377\\000\\033[1mraw\\033[0m'")
    screen.wait_for(b"\xff\x00\x1b[1mraw\x1b[0m")
    screen.type(b"seq 1 20000 | tail -c 20000000; echo do''ne")
    screen.wait_for(b"\r\n20000\r\ndone\r\n")
    numbers = b"".join(b"%d\r\n" % number for number in range(1, 20001))
    assert numbers in screen.seen, (len(screen.seen), screen.seen[:200])
    screen.stdin.close()
    screen.stdout.close()


def main(address: str) -> None:
    """Do it all."""
    context = zmq.Context()
    try:
        manager = Peer(context, address)
        assert manager.ask(PING, body={"x": [1, None, "한"]}) == {"reply": PONG, "body": {"x": [1, None, "한"]}}
        say("pong")
        user = uuid.uuid4().hex
        session = Session(context, manager, "python34", user)
        assert Session(context, manager, "python3", user).kernel_id == session.kernel_id
        say("session")
        snippets(session)
        restarted = session.agent.ask(RESTART_KERNEL, kernel_id=session.kernel_id)
        assert list(restarted) == ["reply", "stdin_port", "stdout_port"], restarted
        assert session.result("print(a)")["exceptions"][0][0] == "NameError"
        say("restarted")
        shell = Session(context, manager, "git", user)
        terminal(context, shell)
        say("terminal")
        shell.leave()
        session.leave()
        say("left")
    finally:
        context.destroy(linger=50)


if __name__ == "__main__":
    main(sys.argv[1])
