"""Order, completeness and promptness of what the Python session prints."""

from __future__ import annotations

import json
import os
import time

from sorna.agent.runners import frames
from sorna.agent.runners.poller import Poller
from sorna.agent.runners.pump import Pump, incomplete_tail
from sorna.testing.unit import UnitTestCase
from tests.agent.runners.driver import KernelTestCase


class IncompleteTailTests(UnitTestCase):
    def test_cut_characters(self) -> None:
        """Only the beginning of a character that may still be completed counts."""
        for character in ("é", "한", "🐍"):
            encoded = character.encode()
            for cut in range(1, len(encoded)):
                self.assertEqual(incomplete_tail(b"abc" + encoded[:cut]), cut)
            self.assertEqual(incomplete_tail(b"abc" + encoded), 0)
        for broken in (b"\xff", b"\x80\x80\x80", b"\xc0", b"", b"a", b"\xf5"):
            self.assertEqual(incomplete_tail(broken), 0)


class Sent:
    """A link that is never congested."""

    congested = False

    def __init__(self) -> None:
        self.size = 0

    def send(self, kind: int, payload: bytes) -> None:
        self.size += len(payload)


class PumpTests(UnitTestCase):
    def test_little_credit_is_not_little_output(self) -> None:
        """A chunk that is small because of the credit is no reason to leave the pipes alone for a moment."""
        poller = Poller()
        pump = Pump(poller)
        link = Sent()
        pump.attach(link)
        os.write(pump.write_ends[0], b"x" * 50_000)
        for turn in range(1, 4):
            pump.add_credit(1000)
            poller.once()
            self.assertEqual(link.size, 1000 * turn)
        pump.discard()


class OrderTests(KernelTestCase):
    def test_streams_alternate(self) -> None:
        """Lines and parts of lines on both streams arrive in the order in which they were written."""
        kernel = self.kernel()
        kernel.run(
            "import sys\nfor i in range(300):\n    print('o', i, end='\\n' if i % 2 else '')\n    print('e', i, file=sys.stderr)"
        )
        expected: list[list[str]] = []
        for number in range(300):
            expected += [["stdout", f"o {number}" + ("\n" if number % 2 else "")], ["stderr", f"e {number}\n"]]
        self.assertEqual(kernel.texts(), expected)

    def test_children_and_text_alternate(self) -> None:
        """The output of processes stands where they ran, on whichever stream."""
        kernel = self.kernel()
        kernel.run(
            "import os, subprocess, sys\n"
            "for i in range(20):\n"
            "    print('a', i, end='')\n"
            "    subprocess.run(['sh', '-c', 'echo b >&2'])\n"
            "    print('c', file=sys.stderr if i % 2 else sys.stdout)\n"
            "    os.system('echo d')\n"
        )
        expected: list[list[str]] = []
        for number in range(20):
            after = (
                [["stderr", "b\nc\n"], ["stdout", "d\n"]] if number % 2 else [["stderr", "b\n"], ["stdout", "c\nd\n"]]
            )
            lead = [["stdout", f"a {number}"]]
            if expected and expected[-1][0] == "stdout":
                expected[-1][1] += lead.pop()[1]
            expected += lead + after
        self.assertEqual(kernel.texts(), expected)

    def test_binary_and_text_share_an_order(self) -> None:
        """``sys.stdout.buffer`` and text do not overtake each other."""
        kernel = self.kernel()
        kernel.run(
            "import sys\nfor i in range(50):\n    sys.stdout.write(f't{i} ')\n    sys.stdout.buffer.write(b'b ')"
        )
        self.assertEqual(kernel.stream("stdout"), "".join(f"t{number} b " for number in range(50)))

    def test_lines_travel_in_batches(self) -> None:
        """A program that prints line by line costs a frame every few milliseconds, and neither loses nor reorders any."""
        kernel = self.kernel()
        kernel.run("for number in range(20_000):\n    print(number)")
        self.assertEqual(kernel.stream("stdout"), "".join(f"{number}\n" for number in range(20_000)))
        self.assertLess(kernel.outputs, 1_000)

    def test_lines_far_apart_are_not_gathered(self) -> None:
        """Each line that comes alone is a frame of its own, soon after it was printed."""
        kernel = self.kernel()
        kernel.run("import time\nfor number in range(5):\n    print(number)\n    time.sleep(0.05)")
        self.assertEqual(kernel.outputs, 5)

    def test_beginning_of_a_line_is_shown_soon(self) -> None:
        """A prompt or progress dot does not wait for its line to end."""
        kernel = self.kernel()
        kernel.begin("import time\nprint('...', end='')\ntime.sleep(3)")
        begun = time.monotonic()
        while not kernel.stream("stdout"):
            self.assertTrue(kernel.receive())
        self.assertLess(time.monotonic() - begun, 1.0)
        kernel.interrupt()
        kernel.wait(frames.FINISHED)

    def test_output_after_the_run(self) -> None:
        """Threads and processes that go on after a run are heard, too."""
        kernel = self.kernel()
        kernel.run(
            "import threading, time, subprocess\n"
            "def f():\n    time.sleep(.2); print('late')\n"
            "threading.Thread(target=f, daemon=True).start()\n"
            "p = subprocess.Popen(['sh', '-c', 'sleep .3; echo later'])"
        )
        self.assertEqual(kernel.stream("stdout"), "")
        kernel.hear("later")
        self.assertEqual(kernel.stream("stdout"), "late\nlater\n")

    def test_no_thread_can_be_made(self) -> None:
        """Where the kernel is full of processes, printing and forking still work."""
        kernel = self.kernel()
        code = (
            "import _thread, os\ndef none(*_): raise RuntimeError('full')\n_thread.start_new_thread = none\n"
            "print('a', end='')\npid = os.fork()\nif pid == 0: os._exit(0)\nx = os.waitpid(pid, 0)\nprint('b', 'c')"
        )
        self.assertEqual(kernel.run(code)["exit_code"], 0, kernel.texts())
        self.assertEqual(kernel.stream("stdout"), "ab c\n")

    def test_threads(self) -> None:
        """Many threads print whole lines."""
        kernel = self.kernel()
        kernel.run(
            "import threading\n"
            "def f(n):\n    for i in range(200): print(f'{n}:{i}\\n', end='')\n"
            "ts = [threading.Thread(target=f, args=(n,)) for n in range(8)]\n"
            "for t in ts: t.start()\nfor t in ts: t.join()"
        )
        lines = kernel.stream("stdout").splitlines()
        self.assertEqual(sorted(lines), sorted(f"{n}:{i}" for n in range(8) for i in range(200)))


class BulkTests(KernelTestCase):
    def test_fifty_megabytes_with_little_credit(self) -> None:
        """Nothing is lost or changed when the reader is slow."""
        kernel = self.kernel(window=20_000)
        code = "import sys\nline = 'x' * 9_999 + '\\n'\nfor i in range(5_000): sys.stdout.write(line)"
        finished = kernel.run(code, timeout=100)
        self.assertEqual(finished["exit_code"], 0)
        text = kernel.stream("stdout")
        self.assertEqual((len(text), text.count("\n"), text.count("x")), (50_000_000, 5_000, 49_995_000))

    def test_without_credit_the_program_waits(self) -> None:
        """No more than the credit is sent, and what controls the kernel still passes."""
        kernel = self.kernel(window=50_000)
        kernel.automatic = False
        identity = kernel.begin("while True: print('y' * 999)")
        while kernel.receive(0.5):
            pass
        self.assertEqual(kernel.taken, 50_000)
        kernel.send(frames.COMPLETE, {"request": 1, "code": "pri"})
        self.assertEqual(kernel.wait(frames.REPLY)["result"], [])
        kernel.interrupt()
        self.assertFalse(kernel.receive(0.3))
        kernel.send(frames.KILL_RUN, {"run": identity, "message": "enough"})
        self.assertIs(kernel.wait(frames.FINISHED)["reset"], True)
        self.assertEqual(kernel.taken, 50_000)

    def test_huge_line(self) -> None:
        """One line of many megabytes arrives whole."""
        kernel = self.kernel()
        kernel.run("print('z' * 8_000_000)")
        self.assertEqual(len(kernel.stream("stdout")), 8_000_001)

    def test_characters_are_not_cut(self) -> None:
        """Every frame of a stream is whole characters, whatever the size of the writes."""
        kernel = self.kernel(window=1_001)
        kernel.run(
            "import os\ndata = ('한🐍é' * 3000).encode()\nfor i in range(0, len(data), 7): os.write(1, data[i:i+7])"
        )
        pieces = [piece for name, value in kernel.console if name == "stdout" for piece in value]
        self.assertEqual("".join(piece.decode() for piece in pieces), "한🐍é" * 3000)
        kernel.run("import os; x = os.write(1, b'\\xed\\x95')")
        self.assertEqual(b"".join(kernel.console[0][1]), b"\xed\x95")


class AbusedStreamTests(KernelTestCase):
    def test_real_text_streams(self) -> None:
        """The streams are what programs expect of them."""
        kernel = self.kernel()
        kernel.run(
            "import sys, json\n"
            "print(json.dumps([sys.stdout.fileno(), sys.stderr.fileno(), sys.stdin.fileno(), sys.stdout.encoding,"
            " sys.stdout.errors, sys.stderr.errors, sys.stdout.isatty(), sys.stdout.name, sys.stdout.mode,"
            " sys.stdout is sys.__stdout__, sys.stdout.buffer.fileno()]))"
        )
        self.assertEqual(
            json.loads(kernel.stream("stdout")),
            [1, 2, 0, "utf-8", "surrogateescape", "backslashreplace", False, "<stdout>", "w", True, 1],
        )

    def test_replaced_stdout(self) -> None:
        """A replaced stdout is used for echo and prints, and goes back by being put back."""
        kernel = self.kernel()
        kernel.run("import sys, io; sys.stdout = io.StringIO()")
        kernel.run("print('hidden'); 5")
        self.assertEqual(kernel.texts(), [])
        kernel.run("v = sys.stdout.getvalue(); sys.stdout = sys.__stdout__; print(repr(v))")
        self.assertEqual(kernel.stream("stdout"), "'hidden\\n5\\n'\n")

    def test_stderr_replaced_by_nonsense(self) -> None:
        """Tracebacks find their way when ``sys.stderr`` does not work."""
        kernel = self.kernel()
        finished = kernel.run("import sys; sys.stderr = None; 1/0")
        self.assertEqual(finished["exit_code"], 1)
        self.assertIn("ZeroDivisionError", kernel.stream("stderr"))

    def test_closed_descriptors_and_streams(self) -> None:
        """A run that closes its output loses its own output only."""
        kernel = self.kernel()
        for code in (
            "import os; os.close(1)",
            "os.close(2)",
            "import sys; sys.stdout.close()",
            "sys.stderr.close()",
            "sys.stdin.close()",
            "sys.stdout.detach()",
            "os.closerange(0, 3)",
        ):
            kernel.run(code)
            kernel.run("print('alive')")
            self.assertEqual(kernel.texts(), [["stdout", "alive\n"]], code)

    def test_pipe_made_non_blocking(self) -> None:
        """A program that makes the shared pipe non-blocking does not break the others."""
        kernel = self.kernel(window=100_000)
        kernel.run("import os; os.set_blocking(1, False)\nfor i in range(300): print('n' * 4000)", timeout=30)
        self.assertEqual(len(kernel.stream("stdout")), 300 * 4001)
        self.assertEqual(kernel.stream("stderr"), "")

    def test_our_sockets_closed(self) -> None:
        """User code that closes everything loses its session, and gets a new one."""
        kernel = self.kernel()
        finished = kernel.run("import os; os.closerange(3, 1100)")
        self.assertIs(finished["reset"], True)
        kernel.run("1")
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])


class LastWordsTests(KernelTestCase):
    """What is printed last goes with the news of the end; see Note [Last words]."""

    def test_comes_last(self) -> None:
        """It stands behind everything that was printed before, whoever printed it on whichever stream."""
        kernel = self.kernel()
        kernel.run("import os, sys\nprint('a', end='')\nsys.stderr.write('e')\n_ = os.write(1, b'raw')\n7")
        self.assertEqual(kernel.texts(), [["stdout", "araw"], ["stderr", "e"], ["stdout", "7\n"]])
        kernel.run("_ = os.system('echo b; echo c >&2')\n8")
        self.assertEqual(kernel.texts(), [["stdout", "b\n"], ["stderr", "c\n"], ["stdout", "8\n"]])
        kernel.run("print('x')\nprint('y', end='')")
        self.assertEqual(kernel.texts(), [["stdout", "x\ny"]])

    def test_completes_no_character(self) -> None:
        """The beginning of a character that the pipe held stays in front of it."""
        kernel = self.kernel()
        kernel.run("import os\n_ = os.write(1, b'\\xe2\\x82')\n8")
        self.assertEqual(kernel.stream("stdout"), "\N{REPLACEMENT CHARACTER}8\n")

    def test_one_frame(self) -> None:
        """It costs no frame of its own where it is all there is."""
        kernel = self.kernel()
        for code, text in (("1+1", "2\n"), ("print('a', end='')", "a")):
            kernel.outputs = 0
            kernel.run(code)
            self.assertEqual((kernel.texts(), kernel.outputs), ([["stdout", text]], 1))

    def test_is_small_and_plain(self) -> None:
        """Long texts and others than ASCII are written like all other text, and a traceback behind the echo stays there."""
        kernel = self.kernel()
        kernel.run("'x' * 100_000")
        self.assertEqual(len(kernel.stream("stdout")), 100_003)
        kernel.run("'한글'")
        self.assertEqual(kernel.texts(), [["stdout", "'한글'\n"]])
        kernel.run("_sorna_media.append(3)\n4")
        self.assertEqual([kind for kind, _text in kernel.texts()], ["stdout", "stderr"])

    def test_only_the_last_expression(self) -> None:
        """What user code shows by the display hook while it goes on is on its way at once."""
        kernel = self.kernel()
        kernel.outputs = 0
        kernel.run("import sys, time\nsys.displayhook(5)\ntime.sleep(0.05)\nsys.displayhook(6)\ntime.sleep(0.05)")
        self.assertEqual((kernel.stream("stdout"), kernel.outputs), ("5\n6\n", 2))

    def test_streams_of_user_code(self) -> None:
        """A stream that user code put in the place of ours gets the echo, and what a forked child echoes is not lost."""
        kernel = self.kernel()
        kernel.run("import io, sys\nours, sys.stdout = sys.stdout, io.StringIO()\n5")
        self.assertEqual(kernel.texts(), [])
        kernel.run("taken, sys.stdout = sys.stdout.getvalue(), ours\ntaken")
        self.assertEqual(kernel.texts(), [["stdout", "'5\\n'\n"]])
        kernel.run("import os\nif os.fork():\n    _ = os.wait()\n3")
        self.assertEqual(kernel.texts(), [["stdout", "3\n3\n"]])
