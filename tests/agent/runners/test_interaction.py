"""Typed input, interrupts, forked children and completions of the Python session."""

from __future__ import annotations

import time

from sorna.agent.runners import frames
from tests.agent.runners.driver import Kernel, KernelTestCase


class InputTests(KernelTestCase):
    def answered(self, kernel: Kernel, code: str, *lines: str) -> str:
        """Run code that asks for these lines and give all of its stdout."""
        identity = kernel.begin(code)
        for line in lines:
            message = kernel.wait(frames.WAITING_INPUT, frames.FINISHED)
            self.assertEqual((message["kind"], message["run"]), (frames.WAITING_INPUT, identity), kernel.texts())
            kernel.type(identity, line)
        finished = kernel.wait(frames.FINISHED, frames.WAITING_INPUT)
        self.assertEqual((finished["kind"], finished.get("exit_code")), (frames.FINISHED, 0), kernel.texts())
        return kernel.stream("stdout")

    def test_prompt_comes_before_the_question(self) -> None:
        """The prompt of ``input`` has arrived when the run says that it waits."""
        kernel = self.kernel()
        identity = kernel.begin("name = input('name? ')\nprint('hello', name)")
        waiting = kernel.wait(frames.WAITING_INPUT)
        self.assertEqual((waiting["run"], waiting["is_password"]), (identity, False))
        self.assertEqual(kernel.stream("stdout"), "name? ")
        kernel.type(identity, "Zoë 한")
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.stream("stdout"), "name? hello Zoë 한\n")

    def test_input_in_a_loop(self) -> None:
        """Each ``input`` asks once."""
        kernel = self.kernel()
        numbers = [str(number) for number in range(50)]
        text = self.answered(kernel, "print(sum(int(input()) for i in range(50)))", *numbers)
        self.assertEqual(text, "1225\n")

    def test_other_ways_to_read(self) -> None:
        """``sys.stdin`` can be read by line, by size, by iteration and as bytes."""
        kernel = self.kernel()
        self.assertEqual(self.answered(kernel, "import sys; print(repr(sys.stdin.readline()))", "a b"), "'a b\\n'\n")
        code = "for line in sys.stdin:\n    print(line, end='')\n    if line == 'end\\n': break"
        self.assertEqual(self.answered(kernel, code, "one", "end"), "one\nend\n")
        self.assertEqual(self.answered(kernel, "sys.stdin.read(3)", "abcdef"), "'abc'\n")
        self.assertEqual(self.answered(kernel, "sys.stdin.buffer.readline()", "ü"), "b'\\xc3\\xbc\\n'\n")
        self.assertEqual(
            self.answered(kernel, "input()", "rest of an earlier run is gone"), "'rest of an earlier run is gone'\n"
        )

    def test_password(self) -> None:
        """``getpass`` asks without echo, with its prompt on stdout."""
        kernel = self.kernel()
        identity = kernel.begin("import getpass\nprint(len(getpass.getpass('secret: ')))")
        self.assertIs(kernel.wait(frames.WAITING_INPUT)["is_password"], True)
        self.assertEqual(kernel.stream("stdout"), "secret: ")
        kernel.type(identity, "hunter2")
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.texts(), [["stdout", "secret: 7\n"]])

    def test_typed_ahead(self) -> None:
        """Lines that come before they are asked for are kept, for this run only."""
        kernel = self.kernel()
        identity = kernel.begin("import time; time.sleep(.2); print(input(), input())")
        for line in ("one", "two", "three"):
            kernel.type(identity, line)
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.stream("stdout"), "one two\n")
        identity = kernel.begin("input()")
        kernel.wait(frames.WAITING_INPUT)
        kernel.type("another-run", "nonsense")
        kernel.type(identity, "fresh")
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.stream("stdout"), "'fresh'\n")

    def test_thread_that_asks_too_late(self) -> None:
        """Who asks between two runs gets the end of input, and so does who waits when a run ends."""
        kernel = self.kernel()
        kernel.run("import threading, time\ndef f():\n    try: input()\n    except EOFError: print('eof')")
        kernel.run("t = threading.Timer(.05, f); t.start()")
        kernel.hear("eof")
        identity = kernel.begin(
            "try:\n    t = threading.Thread(target=f); t.start(); time.sleep(30)\nexcept KeyboardInterrupt: pass"
        )
        # The timer's question may have been asked before its run was over.
        while kernel.wait(frames.WAITING_INPUT)["run"] != identity:
            pass
        kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        kernel.hear("eof")
        self.assertEqual(self.answered(kernel, "t.join(); input()", "mine"), "'mine'\n")

    def test_interrupted_question(self) -> None:
        """An interrupt ends the waiting, and the next question works."""
        kernel = self.kernel()
        kernel.begin("try:\n    input('? ')\nexcept KeyboardInterrupt:\n    print('no')\nprint(input())")
        kernel.wait(frames.WAITING_INPUT)
        kernel.interrupt()
        kernel.hear("no")
        kernel.type("1", "yes")
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "? no\nyes\n")

    def test_interrupted_question_is_not_answered_later(self) -> None:
        """What answers a question whose asker was interrupted, and the end of its run, are no answers to the next one."""
        kernel = self.kernel()
        for attempt in range(5):
            kernel.begin("input('? ')")
            kernel.wait(frames.WAITING_INPUT)
            kernel.interrupt()
            self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 1)
            self.assertEqual(self.answered(kernel, "input()", f"line {attempt}"), f"'line {attempt}'\n")

    def test_typed_after_an_interrupted_question(self) -> None:
        """A line that comes between an interrupted question and the next one is kept for that."""
        kernel = self.kernel()
        identity = kernel.begin(
            "import time\ntry:\n    input()\nexcept KeyboardInterrupt:\n    print('no'); time.sleep(.2)\nprint(input())"
        )
        kernel.wait(frames.WAITING_INPUT)
        kernel.interrupt()
        kernel.hear("no")
        kernel.type(identity, "yes")
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "no\nyes\n")


class InterruptTests(KernelTestCase):
    def test_interrupts_what_runs(self) -> None:
        """Loops, sleeps, locks, questions, subprocesses and slow representations are interrupted."""
        kernel = self.kernel()
        kernel.run("class Slow:\n    def __repr__(self):\n        while True: pass")
        for code in (
            "print('go')\nwhile True: pass",
            "import time; print('go'); time.sleep(30)",
            "import threading; l = threading.Lock(); l.acquire(); print('go'); l.acquire()",
            "import subprocess; print('go'); subprocess.run(['sleep', '30'])",
            "print('go'); Slow()",
            "import asyncio\nprint('go')\nawait asyncio.sleep(30)",
            "import asyncio\nprint('go')\nasyncio.run(asyncio.sleep(30))",
            "print('go')\nraise ValueError(Slow())",
            "print('go')\nfor i in range(10**9): print(i)",
            "import re; print('go'); re.match(r'(a+)+$', 'a' * 40 + 'b')",
        ):
            kernel.begin(code)
            kernel.hear("go")
            time.sleep(0.02)
            begun = time.monotonic()
            kernel.interrupt()
            finished = kernel.wait(frames.FINISHED)
            self.assertLess(time.monotonic() - begun, 2.0, code)
            self.assertEqual((finished["exit_code"], finished["reset"]), (1, False), code)
            self.assertNotIn("sorna", kernel.stream("stderr"), code)
        kernel.run("1")
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])

    def test_interrupt_between_runs_does_nothing(self) -> None:
        """Nothing runs, so nothing is interrupted, now or later."""
        kernel = self.kernel()
        for _attempt in range(20):
            kernel.interrupt()
            self.assertEqual(kernel.run("1")["exit_code"], 0)

    def test_interrupt_races_with_the_end_of_a_run(self) -> None:
        """Whenever the signal comes, the run ends in order and the next one is not hit by it."""
        kernel = self.kernel()
        kernel.run("import time")
        interrupted = 0
        for attempt in range(200):
            kernel.begin("time.sleep(.0005); 1+1")
            time.sleep((attempt % 20) * 0.0001)
            kernel.interrupt()
            finished = kernel.wait(frames.FINISHED)
            interrupted += finished["exit_code"]
            self.assertIs(finished["reset"], False)
            self.assertEqual(kernel.run("2+2")["exit_code"], 0, attempt)
            self.assertEqual(kernel.texts(), [["stdout", "4\n"]], attempt)
        self.assertGreater(interrupted, 0)

    def test_handler_of_the_user(self) -> None:
        """A handler that user code sets is used while its code runs, and only then."""
        kernel = self.kernel()
        kernel.run("import signal, time\nsignal.signal(signal.SIGINT, lambda n, f: print('mine'))")
        kernel.interrupt()
        kernel.begin("print('go'); time.sleep(.3)")
        kernel.hear("go")
        kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "go\nmine\n")

    def test_program_that_catches_interrupts(self) -> None:
        """User code may catch an interrupt and go on until the next."""
        kernel = self.kernel()
        kernel.begin(
            "for i in range(2):\n    try:\n        print('go')\n        while True: pass\n    except KeyboardInterrupt: print('caught')"
        )
        for number in (1, 2):
            kernel.hear("go", number)
            time.sleep(0.02)
            kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "go\ncaught\n" * 2)


class ChildTests(KernelTestCase):
    def test_forked_child_ends_by_itself(self) -> None:
        """A child that comes to the end of the code exits like a program, and only the parent goes on."""
        kernel = self.kernel()
        kernel.run(
            "import os, sys, atexit\n"
            "print('before', end=' ')\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    atexit.register(lambda: print('at exit'))\n"
            "    print('child', end=' ')\n"
            "else:\n"
            "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
        )
        self.assertEqual(kernel.stream("stdout"), "before child at exit\n0\n")
        kernel.run("pid = os.fork()\nif pid == 0: 1/0\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))")
        self.assertEqual(kernel.stream("stdout"), "1\n")
        self.assertEqual(kernel.stream("stderr").count("ZeroDivisionError"), 1)
        kernel.run("pid = os.fork()\nif pid == 0: sys.exit(5)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))")
        self.assertEqual(kernel.stream("stdout"), "5\n")
        kernel.run(
            "pid = os.fork()\nif pid == 0:\n    try: input()\n    except EOFError: print('eof')\n    sys.exit()\nr = os.waitpid(pid, 0)"
        )
        self.assertEqual(kernel.stream("stdout"), "eof\n")

    def test_fork_without_waiting(self) -> None:
        """The parent's run does not wait for a child, whose output still comes."""
        kernel = self.kernel()
        kernel.run("import os, time\nif os.fork() == 0:\n    time.sleep(.2)\n    print('from the child')")
        kernel.run("'parent'")
        self.assertEqual(kernel.stream("stdout"), "'parent'\n")
        kernel.hear("from the child")

    def test_multiprocessing(self) -> None:
        """A pool works with functions of the session, and its workers' output is heard."""
        kernel = self.kernel()
        kernel.run(
            "import multiprocessing as m\n"
            "m.set_start_method('fork')\n"
            "def f(x):\n    print('w', flush=True)\n    return x * x\n"
            "with m.Pool(2) as pool: r = pool.map(f, range(6))\n"
            "r",
            timeout=40,
        )
        self.assertTrue(kernel.stream("stdout").endswith("[0, 1, 4, 9, 16, 25]\n"), kernel.texts())
        self.assertEqual(kernel.stream("stdout").count("w\n"), 6)
        self.assertEqual(kernel.stream("stderr"), "")

    def test_fork_gives_no_warning_about_threads(self) -> None:
        """What flushes unfinished lines is no thread when the process is forked."""
        kernel = self.kernel()
        for _attempt in range(10):
            kernel.run("import os, time\nprint('x', end='')\nif os.fork() == 0: os._exit(0)\nx = os.wait()")
            self.assertEqual(kernel.texts(), [["stdout", "x"]])


class CompletionTests(KernelTestCase):
    def completions(self, kernel: Kernel, code: str, **options: object) -> list[str]:
        kernel.send(frames.COMPLETE, {"request": 9, "code": code, **options})
        words = kernel.wait(frames.REPLY)["result"]
        self.assertIsInstance(words, list)
        return [str(word) for word in words]

    def test_names_and_attributes(self) -> None:
        """Names, keywords and attributes are completed to whole words."""
        kernel = self.kernel()
        kernel.run("import os\nvariable_one = {'a': 1}\ndef variable_call(): pass")
        self.assertEqual(sorted(self.completions(kernel, "variable_")), ["variable_call(", "variable_one"])
        self.assertIn("print(", self.completions(kernel, "x = pri"))
        self.assertIn("while ", self.completions(kernel, "whi"))
        self.assertEqual(self.completions(kernel, "variable_one.ite"), ["variable_one.items("])
        self.assertEqual(self.completions(kernel, "y = os.path.joi"), ["os.path.join("])
        self.assertIn("os.path", self.completions(kernel, "os.pa"))
        self.assertEqual(self.completions(kernel, "import zipf"), ["zipfile"])
        for nothing in ("", "foo().", "nonsense.attr", "1 + ", "'text"):
            self.assertEqual(self.completions(kernel, nothing), [])

    def test_cursor(self) -> None:
        """The line before the cursor counts, or the row and column."""
        kernel = self.kernel()
        self.assertEqual(self.completions(kernel, "ignored", line="x = sor", post=""), ["sorted("])
        self.assertEqual(self.completions(kernel, "a = 1\nsorte(3)", row=1, col=5), ["sorted("])

    def test_nothing_of_the_user_is_evaluated(self) -> None:
        """Properties and ``__getattr__`` are not run, and a ``__dir__`` that hangs costs a second and no session."""
        kernel = self.kernel()
        kernel.run(
            "class A:\n    @property\n    def p(self): print('evaluated'); return 'x'\n"
            "    def __getattr__(self, name): print('evaluated', name); raise AttributeError(name)\n    value = 'text'\n"
            "class B:\n    def __dir__(self):\n        while True: pass\n"
            "a = A(); b = B()"
        )
        self.assertEqual(self.completions(kernel, "a.p"), ["a.p"])
        self.assertEqual(self.completions(kernel, "a.p.up"), [])
        self.assertEqual(self.completions(kernel, "a.q.up"), [])
        self.assertEqual(self.completions(kernel, "a.value.upp"), ["a.value.upper("])
        self.assertEqual(self.completions(kernel, "b.x"), [])
        self.assertEqual(kernel.run("1")["exit_code"], 0)
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])

    def test_busy_session_has_none(self) -> None:
        """While code runs the answer comes at once and is empty."""
        kernel = self.kernel()
        kernel.begin("import time; time.sleep(5)")
        self.assertEqual(self.completions(kernel, "pri"), [])
        kernel.interrupt()
        kernel.wait(frames.FINISHED)
