"""Code, state, tracebacks and exit codes of the Python session."""

from __future__ import annotations

import time
from pathlib import Path

from sorna.agent.runners import frames
from tests.agent.runners.driver import KernelTestCase


class ReplTests(KernelTestCase):
    def test_state_is_kept_and_the_last_expression_echoed(self) -> None:
        """Names survive from run to run, and only a last expression is shown."""
        kernel = self.kernel()
        self.assertEqual(kernel.run("x = 20\nx + 1\nx + 2")["exit_code"], 0)
        self.assertEqual(kernel.texts(), [["stdout", "22\n"]])
        kernel.run("_ + x")
        self.assertEqual(kernel.texts(), [["stdout", "42\n"]])
        kernel.run("None")
        self.assertEqual(kernel.texts(), [])

    def test_blank_code_finishes_at_once(self) -> None:
        """Code without a statement is a run like any other."""
        kernel = self.kernel()
        for code in ("", " \n\t", "# nothing"):
            self.assertEqual(kernel.run(code)["exit_code"], 0)
            self.assertEqual(kernel.texts(), [])

    def test_namespace_is_a_clean_main(self) -> None:
        """User code finds itself in ``__main__`` with nothing of ours, and its classes can be pickled."""
        kernel = self.kernel()
        kernel.run("print(sorted(n for n in dir() if n != '__builtins__'), __name__)")
        self.assertEqual(
            kernel.stream("stdout"),
            "['__annotations__', '__doc__', '__loader__', '__name__', '__package__', '__spec__'] __main__\n",
        )
        kernel.run("class A: pass\nimport pickle, sys\nprint(type(pickle.loads(pickle.dumps(A()))) is A)")
        self.assertEqual(kernel.stream("stdout"), "True\n")
        kernel.run("print(any(n.startswith('sorna') for n in sys.modules), sys.argv, sys.modules['__main__'].A is A)")
        self.assertEqual(kernel.stream("stdout"), "False [''] True\n")

    def test_rehearsal_leaves_no_trace(self) -> None:
        """What ran before a kernel was ready printed nothing, counted as nothing, and left no value behind."""
        kernel = self.kernel()
        self.assertEqual((kernel.texts(), kernel.seen, kernel.taken), ([], [], 0))
        kernel.run("import builtins, sys\nprint(hasattr(builtins, '_'), sys._getframe().f_code.co_filename)")
        self.assertEqual(kernel.stream("stdout"), "False <input-1>\n")

    def test_rehearsal_copies_memory_before_the_first_code(self) -> None:
        """The first code touches hardly more memory for the first time than the second does."""
        kernel = self.kernel()

        def faults() -> int:
            return int(Path(f"/proc/{kernel.pid}/stat").read_text().rpartition(")")[2].split()[7])

        before = faults()
        kernel.run("1 + 1")
        self.assertLess(faults() - before, 60)

    def test_traceback_has_no_frame_of_ours(self) -> None:
        """A traceback begins in user code, shows its source, and that of functions of earlier runs."""
        kernel = self.kernel()
        kernel.run("def f(n):\n    return 1 / n")
        finished = kernel.run("f(0)")
        text = kernel.stream("stderr")
        self.assertTrue(
            text.startswith('Traceback (most recent call last):\n  File "<input-2>", line 1, in <module>\n')
        )
        self.assertIn("return 1 / n", text)
        self.assertNotIn("sorna", text)
        self.assertEqual(finished["exit_code"], 1)
        record = finished["exceptions"][0]
        self.assertEqual((record["name"], record["args"]), ("ZeroDivisionError", ["division by zero"]))
        self.assertIs(record["before_exec"], False)
        self.assertEqual(record["traceback"], text)

    def test_chains_and_groups(self) -> None:
        """Causes, contexts and groups are shown whole and clean."""
        kernel = self.kernel()
        kernel.run("try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise ValueError('outer') from e")
        self.assertIn("direct cause", kernel.stream("stderr"))
        self.assertNotIn("sorna", kernel.stream("stderr"))
        kernel.run("raise ExceptionGroup('many', [ValueError(1), TypeError(2)])")
        self.assertIn("TypeError: 2", kernel.stream("stderr"))
        self.assertNotIn("sorna", kernel.stream("stderr"))

    def test_syntax_error(self) -> None:
        """A syntax error is shown as Python does and recorded as raised before the code ran."""
        kernel = self.kernel()
        finished = kernel.run("a + ")
        record = finished["exceptions"][0]
        self.assertEqual(record["name"], "SyntaxError")
        self.assertEqual(record["args"][0], "invalid syntax")
        self.assertEqual(record["args"][1][:2], ["<input>", 1])
        self.assertEqual(record["args"][1][3].rstrip(), "a +")
        self.assertEqual((record["before_exec"], record["traceback"]), (True, None))
        self.assertTrue(kernel.stream("stderr").startswith('  File "<input-1>", line 1\n'))
        for code in ("x = '\0'", "def f(:", "  indented\nnot"):
            self.assertEqual(kernel.run(code)["exit_code"], 1)

    def test_arguments_that_json_cannot_carry(self) -> None:
        """Arguments of exceptions travel as they are, or as their repr."""
        kernel = self.kernel()
        code = "class E(Exception):\n    pass\nraise E('a', 3, [None, 1.5], object, float('nan'), b'x', '\\ud800')"
        record = kernel.run(code)["exceptions"][0]
        self.assertEqual(record["args"], ["a", 3, [None, 1.5], "<class 'object'>", "nan", "b'x'", "?"])

    def test_exceptions_that_cannot_be_shown(self) -> None:
        """An exception whose text fails is still reported, and the session survives."""
        kernel = self.kernel()
        finished = kernel.run(
            "class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\nraise E(E())"
        )
        self.assertEqual(finished["exceptions"][0]["name"], "E")
        self.assertIn("E", kernel.stream("stderr"))
        kernel.run("1")
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])

    def test_deep_recursion(self) -> None:
        """Endless recursion ends in a short traceback."""
        kernel = self.kernel()
        finished = kernel.run("def f(): f()\nf()")
        self.assertEqual(finished["exceptions"][0]["name"], "RecursionError")
        self.assertIn("[Previous line repeated", kernel.stream("stderr"))
        self.assertLess(len(kernel.stream("stderr")), 2000)

    def test_sys_exit(self) -> None:
        """``sys.exit`` ends the run with its code and leaves the session as it is."""
        kernel = self.kernel()
        for code, expected, text in (
            ("import sys; x = 5; sys.exit(7)", 7, ""),
            ("sys.exit()", 0, ""),
            ("sys.exit('bye')", 1, "bye\n"),
            ("exit(2)", 2, ""),
            ("raise SystemExit(-1)", 255, ""),
        ):
            finished = kernel.run(code)
            self.assertEqual((finished["exit_code"], finished["exceptions"]), (expected, []))
            self.assertEqual(kernel.stream("stderr"), text)
        kernel.run("x")
        self.assertEqual(kernel.stream("stdout"), "5\n")
        identity = kernel.begin("input()")
        kernel.wait(frames.WAITING_INPUT)
        kernel.type(identity, "still works after exit() closed stdin")
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)

    def test_process_that_ends_itself(self) -> None:
        """``os._exit`` and crashes are reported with all output before them, and a fresh session follows."""
        kernel = self.kernel()
        finished = kernel.run("import os; y = 1; print('last words'); os._exit(3)")
        self.assertEqual((finished["exit_code"], finished["reset"]), (3, True))
        self.assertNotIn("signal", finished)
        self.assertEqual(kernel.stream("stdout"), "last words\n")
        self.assertIn("exit code 3", kernel.stream("stderr"))
        finished = kernel.run("import ctypes; print('down'); ctypes.string_at(0)")
        self.assertEqual((finished["exit_code"], finished["signal"], finished["reset"]), (139, 11, True))
        self.assertEqual(kernel.stream("stderr").count("\n"), 1)
        finished = kernel.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        self.assertEqual((finished["exit_code"], finished["signal"], finished["reset"]), (137, 9, True))
        kernel.run("y")
        self.assertIn("NameError", kernel.stream("stderr"))

    def test_process_replaced_by_exec(self) -> None:
        """A session that becomes another program ends with it."""
        kernel = self.kernel()
        finished = kernel.run("import os; os.execvp('sh', ['sh', '-c', 'echo other; exit 4'])")
        self.assertEqual((finished["exit_code"], finished["reset"]), (4, True))
        self.assertEqual(kernel.stream("stdout"), "other\n")

    def test_death_between_runs(self) -> None:
        """A session that dies between two runs is started again and the agent is told."""
        kernel = self.kernel()
        kernel.run(
            "import threading, time, os\ndef f():\n    time.sleep(.1)\n    os._exit(9)\nthreading.Thread(target=f).start()"
        )
        self.assertIn("exit code 9", kernel.wait(frames.RESTARTED)["reason"])
        kernel.run("1")
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])

    def test_hooks_of_the_user_are_respected(self) -> None:
        """A display hook and an except hook that user code sets are used."""
        kernel = self.kernel()
        kernel.run(
            "import sys\nsys.displayhook = lambda v: print('<', v, '>')\nsys.excepthook = lambda t, v, b: print('hook', t.__name__)"
        )
        kernel.run("3")
        self.assertEqual(kernel.texts(), [["stdout", "< 3 >\n"]])
        finished = kernel.run("1/0")
        self.assertEqual(kernel.texts(), [["stdout", "hook ZeroDivisionError\n"]])
        self.assertEqual(finished["exceptions"][0]["name"], "ZeroDivisionError")

    def test_top_level_await(self) -> None:
        """Code may await at its top level, tasks live on between runs, and tracebacks stay clean."""
        kernel = self.kernel()
        kernel.run(
            "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 7\nx = await f()\nawait f() + x"
        )
        self.assertEqual(kernel.stream("stdout"), "14\n")
        kernel.run(
            "async def g():\n    await asyncio.sleep(.01)\n    print('task')\nt = asyncio.get_event_loop().create_task(g())"
        )
        kernel.run("await t")
        self.assertEqual(kernel.stream("stdout"), "task\n")
        kernel.run("async def h(): 1/0\nawait h()")
        self.assertTrue(kernel.stream("stderr").startswith('Traceback (most recent call last):\n  File "<input-4>"'))
        self.assertNotIn("asyncio", kernel.stream("stderr"))
        kernel.run("asyncio.run(f())")
        self.assertEqual(kernel.stream("stdout"), "7\n")

    def test_future_statements_last(self) -> None:
        """``from __future__`` holds for later runs, as in the interactive interpreter."""
        kernel = self.kernel()
        kernel.run("from __future__ import annotations")
        kernel.run("def f(x: undefined): pass\nf.__annotations__")
        self.assertEqual(kernel.stream("stdout"), "{'x': 'undefined'}\n")

    def test_environment(self) -> None:
        """The session has the kernel's environment and nothing of the agent's."""
        kernel = self.kernel(environ={"COLOUR": "blue"})
        kernel.run(
            "import os; print(os.environ['COLOUR'], os.environ['HOME'] == os.getcwd(), os.environ['LANG'], 'PYTHONPATH' in os.environ)"
        )
        self.assertEqual(kernel.stream("stdout"), "blue True C.UTF-8 False\n")

    def test_no_descriptor_of_ours_is_inherited(self) -> None:
        """Processes of the session get the three standard descriptors and no socket of ours."""
        kernel = self.kernel()
        kernel.run(
            "import subprocess; print(subprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True, close_fds=False).stdout)"
        )
        self.assertEqual(kernel.stream("stdout").split(), ["0", "1", "2", "3"])

    def test_restart(self) -> None:
        """A restart loses the state, keeps the files and ends every process."""
        kernel = self.kernel()
        kernel.run("x = 1; open('kept', 'w').close(); import subprocess; p = subprocess.Popen(['sleep', '100'])")
        before = kernel.processes()
        kernel.send(frames.RESTART, {"request": 5})
        self.assertEqual(kernel.wait(frames.REPLY), {"kind": frames.REPLY, "request": 5, "error": None, "result": None})
        self.assertFalse(before & kernel.processes())
        kernel.run("import os; print('x' in globals(), os.path.exists('kept'))")
        self.assertEqual(kernel.stream("stdout"), "False True\n")

    def test_restart_during_a_run(self) -> None:
        """A run that is cut off by a restart is finished first."""
        kernel = self.kernel()
        kernel.begin("while True: pass")
        kernel.send(frames.RESTART, {"request": 1})
        finished = kernel.wait(frames.FINISHED)
        self.assertIs(finished["reset"], True)
        kernel.wait(frames.REPLY)

    def test_kill_run(self) -> None:
        """Killing a run says why, ends all its processes and leaves a fresh session."""
        kernel = self.kernel()
        identity = kernel.begin(
            "import subprocess\np = subprocess.Popen(['sleep', '99'], start_new_session=True)\nprint(1)\nwhile 1: pass"
        )
        kernel.hear("1")
        begun = time.monotonic()
        kernel.send(frames.KILL_RUN, {"run": identity, "message": "Too long."})
        finished = kernel.wait(frames.FINISHED)
        self.assertLess(time.monotonic() - begun, 2.0)
        self.assertIs(finished["reset"], True)
        self.assertEqual(kernel.stream("stderr"), "Too long.\n")
        kernel.run("1")
        self.assertEqual(len(kernel.processes()), 1)

    def test_kill_a_fork_bomb(self) -> None:
        """Processes that multiply are all ended."""
        kernel = self.kernel()
        code = "import os, time\nfor i in range(6): os.fork()\nprint('.')\nwhile True: time.sleep(.01)"
        identity = kernel.begin(code)
        kernel.hear(".", 64)
        kernel.send(frames.KILL_RUN, {"run": identity, "message": ""})
        kernel.wait(frames.FINISHED)
        self.assertLessEqual(len(kernel.processes()), 1)

    def test_output_files(self) -> None:
        """Files below ``.output`` that a run made or changed are named, hidden ones are not."""
        kernel = self.kernel()
        self.assertEqual(kernel.run("1")["files"], [])
        code = (
            "import os; os.makedirs('.output/sub')\nfor n in ('b.txt', 'sub/a.txt', '.hidden'): open('.output/'+n, 'w').close()\n"
            "os.symlink('/etc/passwd', '.output/link')"
        )
        self.assertEqual(kernel.run(code)["files"], ["b.txt", "sub/a.txt"])
        self.assertEqual(kernel.run("2")["files"], [])
        self.assertEqual(kernel.run("open('.output/b.txt', 'w').write('x')")["files"], ["b.txt"])


class RuleTests(KernelTestCase):
    """What an agent must not do."""

    def test_second_run_at_once_is_refused(self) -> None:
        """A run that the agent should have queued is finished with an error and disturbs nothing."""
        kernel = self.kernel()
        first = kernel.begin("import time; time.sleep(.2); print('fine')")
        second = kernel.begin("print('no')")
        self.assertEqual(kernel.wait(frames.FINISHED)["run"], second)
        self.assertEqual(kernel.wait(frames.FINISHED)["run"], first)
        self.assertEqual(kernel.stream("stdout"), "fine\n")
