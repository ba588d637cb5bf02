"""The rows of the language table against the real tools of this host, and detection of those tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from attrs import field, frozen
from twisted.internet import defer, utils
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.trial.unittest import SkipTest, TestCase

from sorna.agent.detection import DetectedRuntime, Detection, detect
from sorna.agent.languages import RUNTIMES


def the_reactor() -> Any:
    """Give the reactor trial runs on; tests with real processes cannot have another."""
    from twisted.internet import reactor  # noqa: PLC0415, TID251

    return reactor


def fresh_path(test: TestCase) -> Path:
    """Give an absolute path below trial's directory where nothing is yet."""
    return Path(test.mktemp()).absolute()


@frozen
class Program:
    """A program that prints ``42`` from query mode and ``batch 42`` from batch mode."""

    query: str
    files: Mapping[str, str] = field(factory=dict)


_SH = "echo {}\n"
PROGRAMS: Mapping[str, Program] = {
    "python2": Program("print 6 * 7", {"main.py": "print 'batch', 6 * 7"}),
    "c": Program(
        '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); return 0; }',
        {
            "main.c": '#include "lib/answer.h"\n#include <stdio.h>\nint main(void) { printf("batch %d\\n", answer()); }',
            "lib/answer.h": "int answer(void);",
            "lib/answer.c": "int answer(void) { return 42; }",
        },
    ),
    "cpp": Program(
        "#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }",
        {"main.cpp": '#include <cstdio>\nint main() { std::puts("batch 42"); }'},
    ),
    "java": Program(
        "import java.util.*;\npublic class Answer {\n  public static void main(String[] args) {\n"
        "    System.out.println(6 * 7);\n  }\n}\nclass Other {}\n",
        {
            "main/Main.java": "package main;\npublic class Main { public static void main(String[] a) "
            '{ System.out.println("batch " + new Answer().get()); } }',
            "main/Answer.java": "package main;\nclass Answer { int get() { return 42; } }",
        },
    ),
    "go": Program(
        'package main\nimport "fmt"\nfunc main() { fmt.Println(6 * 7) }\n',
        {
            "main.go": 'package main\nimport "fmt"\nfunc main() { fmt.Println("batch", answer()) }\n',
            "answer.go": "package main\nfunc answer() int { return 42 }\n",
            "answer_test.go": "package main\nthis is not compiled\n",
        },
    ),
    "rust": Program('fn main() { println!("{}", 6 * 7); }', {"main.rs": 'fn main() { println!("batch {}", 6 * 7); }'}),
    "nodejs6": Program(
        "const answer = require('./answer'); console.log(answer)",
        {"answer.js": "module.exports = 42", "main.js": "console.log('batch', require('./answer'))"},
    ),
    "php7": Program("echo 6 * 7, PHP_EOL;", {"main.php": "<?php echo 'batch ', 6 * 7, PHP_EOL;"}),
    "r3": Program("cat(6 * 7, '\\n')", {"main.R": "cat('batch', 6 * 7, '\\n')"}),
    "lua5": Program("print(6 * 7)", {"main.lua": "print('batch', 6 * 7)"}),
    "ruby": Program("puts 6 * 7", {"main.rb": "puts 'batch 42'"}),
    "julia": Program("println(6 * 7)", {"main.jl": 'println("batch ", 6 * 7)'}),
    "haskell": Program("main = print (6 * 7)", {"main.hs": 'main = putStrLn ("batch " ++ show (6 * 7))'}),
    "octave4": Program("disp(6 * 7)", {"main.m": "printf('batch %d\\n', 6 * 7)"}),
    "git": Program("git --version >/dev/null && echo $((6 * 7))", {"main.sh": "echo batch $((6 * 7))"}),
}
for _name in ("python3", "python3-torch", "python3-tensorflow"):
    PROGRAMS = {**PROGRAMS, _name: Program("", {"main.py": "print('batch', 6 * 7)"})}


class DetectedRuntimesTests(TestCase):
    """Each row builds and runs; a row whose tool is not here is skipped."""

    timeout = 60
    detection: ClassVar[Detection | None] = None

    async def found(self, name: str) -> DetectedRuntime:
        cls = type(self)
        if cls.detection is None:
            reactor = the_reactor()
            cls.detection = await detect(
                cast("IReactorTime", reactor), cast("IReactorProcess", reactor), sys.executable, os.environ
            )
        runtime = cls.detection.runtimes.get(name)
        if runtime is None:
            raise SkipTest(f"{name} is not offered here: {cls.detection.missing[name]}")
        return runtime

    async def bash(self, detected: DetectedRuntime, script: str, work: Path, **more: str) -> tuple[str, str, int]:
        """Run a script as ``runners/commands.py`` will, and give stdout, stderr and the exit code."""
        environ = {
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
            "HOME": str(work),
            "SORNA_MEMORY_MIB": "1024",
            **detected.environ,
            **more,
        }
        result = await utils.getProcessOutputAndValue(
            "/bin/bash", ["-c", script], env=environ, path=str(work), reactor=the_reactor()
        )
        out, err, code = cast("tuple[bytes, bytes, int]", result)
        return out.decode(), err.decode(), code

    async def query(self, detected: DetectedRuntime, code: str, work: Path) -> tuple[str, str, int]:
        language = detected.runtime.language
        source = fresh_path(self) / language.source
        source.parent.mkdir()
        source.write_text(code)
        return await self.bash(
            detected, language.query, work, SORNA_SOURCE=str(source), SORNA_SOURCE_DIR=str(source.parent)
        )

    def work(self, files: Mapping[str, str] | None = None) -> Path:
        work = fresh_path(self)
        work.mkdir()
        for name, content in (files or {}).items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(content)
        return work

    async def check(self, name: str) -> None:
        detected = await self.found(name)
        program = PROGRAMS[name]
        work = self.work(program.files)
        if not detected.runtime.language.repl:
            out, err, code = await self.query(detected, program.query, work)
            self.assertEqual((out.strip(), code), ("42", 0), err)
        out, err, code = await self.bash(detected, detected.runtime.language.build, work)
        self.assertEqual(code, 0, err)
        out, err, code = await self.bash(detected, detected.runtime.language.exec, work)
        self.assertEqual((out.split(), code), (["batch", "42"], 0), err)

    async def test_classic_c(self) -> None:
        """A program that leaves types out compiles, as the command line of the time sends it."""
        out, err, code = await self.query(await self.found("c"), "main(){}", self.work())
        self.assertEqual((out, code), ("", 0), err)

    async def test_compile_error(self) -> None:
        """The compiler's message names the file without its temporary directory, and nothing runs."""
        detected = await self.found("c")
        out, err, code = await self.query(detected, "int main(void) { return x; }", self.work())
        self.assertEqual((out, code), ("", 1))
        self.assertTrue(err.startswith("main.c: In function"), err)

    async def test_exit_code(self) -> None:
        """A compiled query's exit code is the program's."""
        _out, err, code = await self.query(await self.found("c"), "int main(void) { return 7; }", self.work())
        self.assertEqual((err, code), ("", 7))

    async def test_makefile(self) -> None:
        """A Makefile is preferred."""
        work = self.work(
            {
                "Makefile": "all:\n\tgcc -o main other.txt -x c\n".replace("other.txt -x c", "-x c other.txt"),
                "other.txt": "int main(void) { return 3; }",
            }
        )
        detected = await self.found("c")
        _out, err, code = await self.bash(detected, detected.runtime.language.build, work)
        self.assertEqual(code, 0, err)
        _out, err, code = await self.bash(detected, detected.runtime.language.exec, work)
        self.assertEqual(code, 3, err)

    async def test_nothing_to_build_or_run(self) -> None:
        """A missing file is a sentence and a failure."""
        for name in ("c", "java", "go", "nodejs6", "lua5", "python3"):
            try:
                detected = await self.found(name)
            except SkipTest:
                continue
            _out, err, code = await self.bash(detected, detected.runtime.language.exec, self.work())
            self.assertEqual((code, err.startswith("There is no ")), (127, True), err)

    async def test_java_class_names(self) -> None:
        """The class is found whatever its name, its package and its place in the file."""
        detected = await self.found("java")
        for code in (
            (
                "class A { static int f() { return 42; } }\nclass B { public static void main(String[] x)"
                " { System.out.println(A.f()); } }"
            ),
            (
                "package a.b;\n// public class No\nabstract class A {}\npublic final class Main extends A {\n"
                '  static public void main(String... x) { System.out.println("42"); } }'
            ),
        ):
            out, err, status = await self.query(detected, code, self.work())
            self.assertEqual((out.strip(), status), ("42", 0), err)

    async def test_java_without_a_class(self) -> None:
        """Code without a class is told what is missing."""
        _out, err, status = await self.query(await self.found("java"), "int x = 1;", self.work())
        self.assertEqual((err, status), ("There is no class with a main method in the code.\n", 1))

    async def test_java_default_package(self) -> None:
        """A class Main without a package is found too."""
        detected = await self.found("java")
        work = self.work(
            {"Main.java": 'class Main { public static void main(String[] a) { System.out.println("x"); } }'}
        )
        _out, err, code = await self.bash(detected, detected.runtime.language.build, work)
        self.assertEqual(code, 0, err)
        out, err, code = await self.bash(detected, detected.runtime.language.exec, work)
        self.assertEqual((out, code), ("x\n", 0), err)

    async def test_module_query_in_node(self) -> None:
        """Static imports make the code a module."""
        code = "import fs from 'fs';\nconsole.log(typeof fs.readFileSync)"
        out, err, status = await self.query(await self.found("nodejs6"), code, self.work())
        self.assertEqual((out, status), ("function\n", 0), err)

    async def test_php_with_tags(self) -> None:
        """PHP may come with its tags, and errors go to stderr."""
        detected = await self.found("php7")
        out, err, _status = await self.query(detected, "<b><?php echo 1; ?></b>", self.work())
        self.assertEqual((out, err), ("<b>1</b>", ""))
        out, err, status = await self.query(detected, "nosuch();", self.work())
        self.assertEqual((out.strip(), status), ("", 255))
        self.assertIn("nosuch", err)

    async def test_cargo_project(self) -> None:
        """A Cargo project is built offline."""
        detected = await self.found("rust")
        work = self.work(
            {
                "Cargo.toml": '[package]\nname = "answer"\nversion = "0.1.0"\nedition = "2021"\n',
                "src/main.rs": 'fn main() { println!("cargo"); }',
            }
        )
        _out, err, code = await self.bash(detected, detected.runtime.language.build, work)
        if "cargo: command not found" in err:
            raise SkipTest("there is no cargo beside rustc")
        self.assertEqual(code, 0, err)
        out, err, code = await self.bash(detected, detected.runtime.language.exec, work)
        self.assertEqual((out, code), ("cargo\n", 0), err)

    async def test_python_setup(self) -> None:
        """A setup.py is built, whether or not the interpreter has a place for the user's packages."""
        detected = await self.found("python3")
        _out, _err, absent = await self.bash(detected, '"$SORNA_TOOL" -c "import setuptools"', self.work())
        if absent:
            raise SkipTest("the interpreter has no setuptools")
        work = self.work(
            {
                "setup.py": "from setuptools import setup\nsetup(name='answer', version='1', py_modules=['answer'])",
                "answer.py": "ANSWER = 42",
                "main.py": "import answer\nprint(answer.ANSWER)",
            }
        )
        _out, err, code = await self.bash(detected, detected.runtime.language.build, work)
        self.assertEqual(code, 0, err)
        out, err, code = await self.bash(detected, detected.runtime.language.exec, work)
        self.assertEqual((out, code), ("42\n", 0), err)


def _add_row_tests() -> None:
    for name in RUNTIMES:
        if name not in PROGRAMS:
            continue

        async def test(self: DetectedRuntimesTests, name: str = name) -> None:
            await self.check(name)

        test.__doc__ = f"{name} answers in query and in batch mode."
        setattr(DetectedRuntimesTests, f"test_row_{name.replace('-', '_')}", test)


_add_row_tests()


class ShimTests(TestCase):
    """Tools behind shims, tools that hang, and tools where kernels may not look."""

    timeout = 30

    def tool(self, directory: Path, name: str, script: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    async def detect(self, home: Path, *directories: Path) -> Detection:
        reactor = the_reactor()
        environ = {"HOME": str(home), "PATH": ":".join([*map(str, directories), "/usr/bin", "/bin"])}
        rows = {name: RUNTIMES[name] for name in ("rust", "lua5", "git", "python3-caffe", "python3-torch-gpu")}
        return await detect(reactor, reactor, "/usr/bin/python3", environ, rows)

    async def test_real_place_behind_a_shim(self) -> None:
        """The real installation is bound and put on the path, not the shim."""
        home = fresh_path(self)
        real = home / "toolchains" / "stable"
        self.tool(real / "bin", "rustc", "exit 0")
        self.tool(home / "shims", "rustc", f"echo {real}")
        found = (await self.detect(home, home / "shims")).runtimes["rust"]
        self.assertEqual(found.read_only, (str(real),))
        self.assertEqual(found.environ["SORNA_TOOL"], f"{real}/bin/rustc")
        self.assertTrue(found.environ["PATH"].startswith(f"{real}/bin:/usr/local/bin"))

    async def test_home_is_never_shown(self) -> None:
        """A tool directly below a home directory is not offered: its prefix would show the home."""
        home = fresh_path(self)
        for name in ("lua5.4", "lua5.3", "lua"):
            self.tool(home / "bin", name, "exit 0")
        detection = await self.detect(home, home / "bin")
        found = detection.runtimes.get("lua5")
        self.assertEqual(() if found is None else found.read_only, ())
        self.assertEqual(detection.read_only, ())

    async def test_missing_says_why(self) -> None:
        """What is not offered says why."""
        detection = await self.detect(fresh_path(self))
        self.assertIn("caffe", detection.missing["python3-caffe"])

    async def test_hanging_tool(self) -> None:
        """A tool that hangs costs only its own runtime, and a bounded time."""
        from twisted.internet.task import Clock  # noqa: PLC0415

        home = fresh_path(self)
        self.tool(home / "shims", "rustc", "sleep 600 & wait")
        environ = {"HOME": str(home), "PATH": f"{home}/shims:/bin"}
        clock = Clock()
        detecting = defer.Deferred.fromCoroutine(
            detect(clock, the_reactor(), sys.executable, environ, {"rust": RUNTIMES["rust"]})
        )
        clock.advance(6)
        detection = await detecting
        self.assertEqual(detection.runtimes, {})
        self.assertIn("does not work", detection.missing["rust"])

    async def test_applications(self) -> None:
        """An application is offered where its modules are, or its tool of the system: one from elsewhere is not taken."""
        home = fresh_path(self)
        modules = "jupyter_server ipykernel torch"
        self.tool(home / "python" / "bin", "python3", f'echo "{modules}"')
        self.tool(home / "tools", "git", "exit 0")
        python = str(home / "python" / "bin" / "python3")
        reactor = the_reactor()
        rows = {name: RUNTIMES[name] for name in ("python3", "c")}
        environ = {"HOME": str(home), "PATH": f"{home}/tools:/usr/bin:/bin"}
        detected = (await detect(reactor, reactor, python, environ, rows)).runtimes["python3"]
        offered = {one.application.name: one.environ["SORNA_APP_TOOL"] for one in detected.applications}
        self.assertEqual((offered["files"], offered["jupyter"]), (python, python))
        self.assertTrue(offered.get("git", "/usr/bin/git").startswith("/usr/"))
        modules = "ipykernel"
        self.tool(home / "python" / "bin", "python3", f'echo "{modules}"')
        detected = (await detect(reactor, reactor, python, environ, rows)).runtimes["python3"]
        self.assertNotIn("jupyter", {one.application.name for one in detected.applications})
