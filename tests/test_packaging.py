"""What an installation brings: the plugins that ``twistd`` lists, the ``sorna`` command, and every file of the package.

Each way of installing is tried in a fresh virtual environment and looked at from another folder, because Twisted looks for
plugins along ``sys.path`` and finds them by accident when it runs in the project's own folder.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

import sorna
from sorna.testing.unit import UnitTestCase

PROJECT = Path(sorna.__file__).parents[1]
PARTS = ("setup.py", "pyproject.toml", "README.rst", "sorna", "twisted")
TIMEOUT = 240.0
UNREACHABLE = ("NewConnectionError", "Temporary failure in name resolution", "No matching distribution found")


class InstallationTestCase(UnitTestCase):
    """An installation in an environment of its own, which borrows the libraries of the one that runs the tests."""

    options: ClassVar[tuple[str, ...]] = ()

    def setUp(self) -> None:
        """Copy the project, make an environment, and install the copy there."""
        self.folder = Path(self.mktemp()).resolve()
        self.source = self.folder / "source"
        self.source.mkdir(parents=True)
        for part in PARTS:
            origin, copy = PROJECT / part, self.source / part
            if origin.is_dir():
                shutil.copytree(origin, copy, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
            else:
                shutil.copy(origin, copy)
        self.environment = self.folder / "environment"
        self.program(sys.executable, "-m", "venv", "--without-pip", str(self.environment))
        self.packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(self.environment), "platbase": str(self.environment)})
        )
        # Folders named by a .pth file are searched, but .pth files in them are not read: an editable installation of
        # the project in the lending environment stays out of sight.
        (self.packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
        self.install()

    def install(self) -> None:
        """Install with the lending environment's pip; only the build tools come from the registry."""
        command = ["-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-deps", *self.options, "."]
        done = self.run_program(sys.executable, *command, cwd=self.source)
        if done.returncode and any(text in done.stderr for text in UNREACHABLE):
            raise SkipTest(f"the registry is not reachable: {done.stderr.strip().splitlines()[-1]}")
        self.assertEqual(done.returncode, 0, done.stderr)

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.environment / "bin" / "python"

    @staticmethod
    def run_program(*command: str, cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
        """Run a program without what could make the project's own folder visible."""
        environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        return subprocess.run(
            command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )

    def program(self, *command: str) -> str:
        """Run a program that must succeed and give what it printed."""
        done = self.run_program(*command)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def twistd(self, *arguments: str) -> str:
        """Run the environment's ``twistd`` from the root folder."""
        code = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
        return self.program(str(self.python), "-c", code, *arguments)

    def check(self) -> None:
        """Look at what every way of installing must bring."""
        listed = {line.split()[0] for line in self.twistd("--help").splitlines() if line.startswith("    ")}
        self.assertLessEqual({"sorna", "sorna-agent"}, listed)
        self.assertIn("--service-port", self.twistd("sorna", "--help"))
        self.assertIn("sorna", self.program(str(self.environment / "bin" / "sorna"), "--version"))


class OrdinaryTests(InstallationTestCase):
    """``pip install .``."""

    def test_plugins_and_files(self) -> None:
        """The plugins are listed, and no file of the package was left behind."""
        self.check()
        where = self.program(str(self.python), "-c", "import sorna; print(sorna.__file__)").strip()
        self.assertEqual(Path(where).resolve(), self.packages / "sorna" / "__init__.py")
        self.assertEqual(self.files(self.packages / "sorna"), self.files(PROJECT / "sorna"))

    @staticmethod
    def files(folder: Path) -> set[str]:
        """List what is no product of running the code."""
        return {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


class EditableTests(InstallationTestCase):
    """``pip install -e .``, what ``make run`` does."""

    options = ("--editable",)

    def test_plugins(self) -> None:
        """The plugins are listed from another folder too, and the code is the copy's own."""
        self.check()
        where = self.program(str(self.python), "-c", "import sorna; print(sorna.__file__)").strip()
        self.assertEqual(Path(where).resolve(), self.source / "sorna" / "__init__.py")
