"""Query and batch mode by commands, their standard input, and what stays of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from sorna.agent.runners import frames
from sorna.agent.runners.language import Language
from sorna.agent.runners.stdin_notify import filter_program
from sorna.testing.unit import UnitTestCase
from tests.agent.runners.driver import PYTHON, Kernel, KernelTestCase

SHELL = Language("git", False, "main.sh", 'bash "$SORNA_SOURCE"', "echo built", "echo executed")
C = Language(
    "c", False, "main.c", 'gcc -o "$SORNA_SOURCE_DIR/main" "$SORNA_SOURCE" && "$SORNA_SOURCE_DIR/main"', "", ""
)

JAVA = """public class Main { public static void main(String[] a) {
java.util.Scanner s = new java.util.Scanner(System.in); System.out.print("n? ");
System.out.println("got " + s.nextLine()); } }"""

READERS = {
    "gcc": (C, '#include <stdio.h>\nint main(){char s[9]; printf("n? "); scanf("%8s", s); printf("got %s\\n", s);}'),
    "bash": (SHELL, 'echo -n "n? "; read x; echo got $x'),
    "python3": (Language("python", False, "m.py", 'python3 "$SORNA_SOURCE"', "", ""), 'print("got", input("n? "))'),
    "node": (
        Language("nodejs", False, "m.js", 'node "$SORNA_SOURCE"', "", ""),
        # Without exit() node itself goes on reading a pipe that is still open, whatever the program closes.
        """const r = require('readline').createInterface({input: process.stdin, output: process.stdout});
        r.question('n? ', x => { console.log('got ' + x); process.exit(); });""",
    ),
    "php": (
        Language("php", False, "m.php", 'php "$SORNA_SOURCE"', "", ""),
        '<?php echo "n? "; echo "got ".fgets(STDIN);',
    ),
    "lua": (
        Language("lua", False, "m.lua", 'lua "$SORNA_SOURCE"', "", ""),
        'io.write("n? ") print("got " .. io.read())',
    ),
    "ruby": (
        Language("ruby", False, "m.rb", 'ruby "$SORNA_SOURCE"', "", ""),
        '$stdout.sync = true; print "n? "; puts "got " + gets',
    ),
    "java": (Language("java", False, "Main.java", 'java "$SORNA_SOURCE"', "", ""), JAVA),
}


class FilterTests(UnitTestCase):
    def test_program(self) -> None:
        """The filter is whole instructions whose jumps stay inside, on both architectures."""
        for machine in ("x86_64", "aarch64"):
            program = filter_program(machine)
            self.assertEqual(len(program) % 8, 0)
            count = len(program) // 8
            for place in range(count):
                code, yes, no = program[place * 8], program[place * 8 + 2], program[place * 8 + 3]
                if code == 0x15:
                    self.assertLess(place + 1 + max(yes, no), count)
        self.assertRaises(KeyError, filter_program, "sparc")


class QueryTests(KernelTestCase):
    def test_code_in_a_file(self) -> None:
        """The code is run from a file outside the working directory, which is gone after the run."""
        kernel = self.kernel(SHELL)
        finished = kernel.run(
            'echo "$SORNA_SOURCE"; echo "$SORNA_SOURCE_DIR"; pwd; ls -A; touch "$SORNA_SOURCE_DIR/x"; exit 3'
        )
        self.assertEqual((finished["exit_code"], finished["reset"]), (3, False))
        source, directory, work = kernel.stream("stdout").splitlines()
        self.assertEqual(source, f"{directory}/main.sh")
        self.assertEqual(work, kernel.work)
        self.assertFalse(Path(directory).exists())

    def test_environment(self) -> None:
        """Programs find the documented environment and what was configured, and nothing else."""
        kernel = self.kernel(SHELL, environ={"COLOUR": "a'b\"; $x"})
        kernel.run(
            'echo $TERM $LANG $SHELL $USER; [ "$HOME" = "$PWD" ] && echo home; echo "$COLOUR"; echo "$PYTHONPATH"'
        )
        self.assertEqual(kernel.stream("stdout"), "xterm C.UTF-8 /bin/bash work\nhome\na'b\"; $x\n\n")

    def test_signals(self) -> None:
        """A program ended by a signal gives 128 and its number, and the kernel lives on."""
        kernel = self.kernel(SHELL._replace(query='exec bash "$SORNA_SOURCE"'))
        finished = kernel.run("kill -SEGV $$")
        self.assertEqual((finished["exit_code"], finished["signal"], finished["reset"]), (139, 11, False))
        self.assertEqual(kernel.stream("stderr"), "Segmentation fault\n")
        self.assertEqual(kernel.run("(exit 4)")["exit_code"], 4)

    def test_interrupt(self) -> None:
        """An interrupt reaches the whole process group."""
        kernel = self.kernel(SHELL)
        kernel.begin("echo go; sleep 30; echo not here")
        kernel.hear("go")
        time.sleep(0.05)
        kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 130)
        self.assertEqual(kernel.stream("stdout"), "go\n")

    def test_kill_run(self) -> None:
        """A killed run leaves no process, whatever session it hides in."""
        kernel = self.kernel(SHELL)
        identity = kernel.begin("setsid sleep 50 & (setsid bash -c 'sleep 60 & sleep 70' &) ; echo go; sleep 80")
        kernel.hear("go")
        kernel.send(frames.KILL_RUN, {"run": identity, "message": "Over."})
        self.assertIs(kernel.wait(frames.FINISHED)["reset"], True)
        self.assertEqual(kernel.stream("stderr"), "Over.\n")
        self.assertEqual(kernel.processes(), set())

    def test_background_goes_on(self) -> None:
        """What a command leaves in the background goes on, reads its end of input, and is heard."""
        kernel = self.kernel(SHELL)
        code = "exec 3<&0; (sleep .3; cat <&3; python3 -c 'import select; e = select.epoll(); print(e.poll(.01))'; echo late) &"
        self.assertEqual(kernel.run(code)["exit_code"], 0)
        kernel.hear("late")
        self.assertEqual(kernel.texts(), [["stdout", "[]\nlate\n"]])

    def test_output_in_order_and_whole(self) -> None:
        """Much output of a program arrives whole with little credit."""
        kernel = self.kernel(SHELL, window=30_000)
        kernel.run("head -c 5000000 /dev/zero | tr '\\0' x; echo; echo done >&2", timeout=60)
        self.assertEqual(kernel.stream("stdout"), "x" * 5_000_000 + "\n")
        self.assertEqual(kernel.stream("stderr"), "done\n")


class BatchTests(KernelTestCase):
    def test_build_and_exec(self) -> None:
        """Both steps run in order with a word between, and ``*`` means the language's own."""
        kernel = self.kernel(SHELL)
        kernel.begin(mode="batch", build="*", exec="*", build_log=True)
        self.assertEqual(kernel.wait(frames.BUILD_FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "built\nexecuted\n")

    def test_skipped_steps(self) -> None:
        """A step that is null or empty is skipped."""
        kernel = self.kernel(SHELL)
        self.assertEqual(kernel.run(mode="batch", build=None, exec="exit 6")["exit_code"], 6)
        self.assertEqual(kernel.run(mode="batch", build="exit 5", exec="")["exit_code"], 5)
        self.assertEqual(kernel.run(mode="batch", build="", exec=None)["exit_code"], 0)
        self.assertEqual(kernel.seen, [])

    def test_cleaning(self) -> None:
        """What cleans runs first, silently unless it fails, and whatever becomes of it the build follows."""
        kernel = self.kernel(SHELL)
        kernel.run(mode="batch", clean="echo cleaning; touch cleaned", build="ls", exec="echo done", build_log=True)
        self.assertEqual(kernel.stream("stdout"), "cleaned\ndone\n")
        self.assertEqual(
            kernel.run(mode="batch", clean="echo why >&2; exit 3", build="true", exec="exit 6")["exit_code"], 6
        )
        self.assertEqual(kernel.stream("stderr"), "why\n")

    def test_log_of_the_build(self) -> None:
        """Without ``build_log`` the build's output is shown only when the build fails, in order."""
        kernel = self.kernel(SHELL)
        kernel.run(mode="batch", build="echo a; echo b >&2", exec="echo c")
        self.assertEqual(kernel.texts(), [["stdout", "c\n"]])
        kernel.seen.clear()
        kernel.begin(mode="batch", build="echo a; sleep .05; echo b >&2; exit 2", exec="echo c")
        self.assertEqual(kernel.wait(frames.BUILD_FINISHED)["exit_code"], 2)
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 127)
        self.assertEqual(kernel.texts(), [["stdout", "a\n"], ["stderr", "b\n"]])

    def test_batch_beside_a_session(self) -> None:
        """A batch of the python runtime leaves the session's state alone, even when it is killed."""
        kernel = self.kernel(PYTHON)
        kernel.run("x = 5; import subprocess; p = subprocess.Popen(['sleep', '100'])")
        Path(kernel.work, "main.py").write_text("print('batch')\n", encoding="ascii")
        self.assertEqual(kernel.run(mode="batch", exec="*")["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "batch\n")
        identity = kernel.begin(mode="batch", exec="echo go; setsid -w sleep 100")
        kernel.hear("go")
        kernel.send(frames.KILL_RUN, {"run": identity, "message": "Over."})
        kernel.wait(frames.FINISHED)
        kernel.run("x, p.poll()")
        self.assertEqual(kernel.stream("stdout"), "(5, None)\n")
        self.assertEqual(len(kernel.processes()), 2)


class StdinTests(KernelTestCase):
    def ask(self, kernel: Kernel, code: str, timeout: float = 30.0) -> str:
        """Run code up to its first question and give the run's id."""
        identity = kernel.begin(code)
        message = kernel.wait(frames.WAITING_INPUT, frames.FINISHED, timeout=timeout)
        self.assertEqual(message["kind"], frames.WAITING_INPUT, kernel.texts())
        self.assertIs(message["is_password"], False)
        return identity

    def check_reader(self, tool: str) -> None:
        if shutil.which(tool) is None:
            self.skipTest(f"{tool} is not installed")
        language, code = READERS[tool]
        kernel = self.kernel(language)
        identity = self.ask(kernel, code)
        self.assertEqual(kernel.stream("stdout"), "n? ", "the prompt comes before the question")
        self.assertFalse(kernel.receive(0.05))
        kernel.type(identity, "42")
        message = kernel.wait(frames.FINISHED, frames.WAITING_INPUT, timeout=30)
        self.assertEqual(message["kind"], frames.FINISHED, kernel.texts())
        self.assertEqual(message["exit_code"], 0, kernel.texts())
        self.assertEqual(kernel.stream("stdout").rstrip(), "n? got 42")

    def test_c(self) -> None:
        """``scanf`` asks after its prompt."""
        self.check_reader("gcc")

    def test_bash(self) -> None:
        """``read`` asks."""
        self.check_reader("bash")

    def test_python(self) -> None:
        """``input`` of a Python program asks."""
        self.check_reader("python3")

    def test_node(self) -> None:
        """An event loop asks when it waits."""
        self.check_reader("node")

    def test_php(self) -> None:
        """``fgets`` asks."""
        self.check_reader("php")

    def test_lua(self) -> None:
        """``io.read`` asks after its prompt."""
        self.check_reader("lua")

    def test_ruby(self) -> None:
        """``gets`` asks."""
        self.check_reader("ruby")

    def test_java(self) -> None:
        """A ``Scanner`` asks."""
        self.check_reader("java")

    def test_node_reading_synchronously(self) -> None:
        """``readSync`` of descriptor 0 asks, too."""
        if shutil.which("node") is None:
            self.skipTest("node is not installed")
        kernel = self.kernel(READERS["node"][0])
        identity = self.ask(
            kernel, "const b = Buffer.alloc(9); const n = require('fs').readSync(0, b); console.log(n);"
        )
        kernel.type(identity, "abc")
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "4\n")

    def test_node_asks_again(self) -> None:
        """Every time an event loop waits for the next line, it asks."""
        if shutil.which("node") is None:
            self.skipTest("node is not installed")
        kernel = self.kernel(READERS["node"][0])
        code = "let n = 0; require('readline').createInterface({input: process.stdin}).on('line', x => { console.log(x); if (++n == 3) process.exit(7); });"
        identity = self.ask(kernel, code)
        for number in range(3):
            kernel.type(identity, str(number))
            message = kernel.wait(frames.WAITING_INPUT, frames.FINISHED)
            self.assertEqual(message["kind"], frames.FINISHED if number == 2 else frames.WAITING_INPUT)
        self.assertEqual(kernel.stream("stdout"), "0\n1\n2\n")

    def test_other_input_is_not_mistaken(self) -> None:
        """Programs whose descriptor 0 is a pipe, a file or nothing of ours do not ask."""
        kernel = self.kernel(SHELL)
        finished = kernel.run(
            "(sleep .1; echo x) | cat; cat < /dev/null; cat <<< here; sleep .1 | cat; exec 0<&-; cat || true"
        )
        self.assertEqual(finished["exit_code"], 0)
        self.assertEqual(kernel.stream("stdout"), "x\nhere\n")
        self.assertEqual(kernel.seen, [])

    def test_several_lines(self) -> None:
        """Lines typed ahead are read without asking; after them it asks again."""
        kernel = self.kernel(SHELL)
        identity = kernel.begin("sleep .2; read a; read b; echo $a $b; read c; echo $c")
        kernel.type(identity, "one")
        kernel.type(identity, "two")
        kernel.wait(frames.WAITING_INPUT)
        self.assertEqual(kernel.stream("stdout"), "one two\n")
        kernel.type(identity, "three")
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.stream("stdout"), "one two\nthree\n")

    def test_two_readers(self) -> None:
        """Programs that read at once are asked for until each has its line."""
        kernel = self.kernel(SHELL)
        code = "exec 3<&0; for i in 1 2 3; do (head -n 1 <&3 >/dev/null; echo got) & done; wait; echo end"
        identity = self.ask(kernel, code)
        for _number in range(30):
            kernel.type(identity, "line")
            message = kernel.wait(frames.WAITING_INPUT, frames.FINISHED)
            if message["kind"] == frames.FINISHED:
                break
        self.assertEqual(kernel.stream("stdout"), "got\ngot\ngot\nend\n")

    def test_reader_that_dies(self) -> None:
        """A reader that is killed while it waits does not take the line of the next."""
        kernel = self.kernel(SHELL)
        identity = self.ask(kernel, "exec 3<&0; bash -c 'read x' <&3 & sleep .2; kill -9 $!; wait; read y; echo $y")
        time.sleep(0.4)
        kernel.type(identity, "survivor")
        kernel.wait(frames.FINISHED)
        self.assertIn("survivor\n", kernel.stream("stdout"))

    def test_interrupt_while_waiting(self) -> None:
        """An interrupt ends a program that waits for input."""
        kernel = self.kernel(SHELL._replace(query='exec bash "$SORNA_SOURCE"'))
        self.ask(kernel, "read x")
        kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["exit_code"], 130)

    def test_kill_while_waiting(self) -> None:
        """A run that waits for input can be killed, and the next one asks again."""
        kernel = self.kernel(SHELL)
        for _attempt in range(2):
            identity = self.ask(kernel, "read x")
            kernel.send(frames.KILL_RUN, {"run": identity, "message": ""})
            kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.processes(), set())
