"""Installed either way, ``twistd`` shows both plugins from any folder, and every way to start it answers ``--help``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest import SkipTest

import sorna
from sorna.settings import AGENT_SETTINGS, SERVER_SETTINGS
from sorna.testing.unit import UnitTestCase

PROJECT = Path(sorna.__file__).parent.parent
COPIED = ("sorna", "twisted", "setup.py", "pyproject.toml", "README.rst", "sorna.tac")
# What pip says when it cannot fetch the build tools.
UNREACHABLE = ("NewConnectionError", "Temporary failure in name resolution", "No matching distribution found")


class PackagingTests(UnitTestCase):
    """Real installations into fresh virtual environments that see this one's libraries."""

    def install(self, *how: str) -> tuple[Path, Path]:
        """Install a copy of the project and give the environment's ``bin`` and the copy."""
        base = Path(self.mktemp()).absolute()
        source, venv = base / "source", base / "venv"
        source.mkdir(parents=True)
        ignore = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")
        for name in COPIED:
            place = PROJECT / name
            if place.is_dir():
                shutil.copytree(place, source / name, ignore=ignore)
            else:
                shutil.copy(place, source / name)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True)
        libraries = next((venv / "lib").glob("python*/site-packages"))
        (libraries / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [
            str(venv / "bin" / "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-deps",
        ]
        completed = subprocess.run([*pip, *how, str(source)], capture_output=True, text=True, check=False)
        if completed.returncode and any(text in completed.stderr for text in UNREACHABLE):
            raise SkipTest(f"the registry is not reachable: {completed.stderr.strip().splitlines()[-1]}")
        self.assertEqual(completed.returncode, 0, completed.stderr)
        return venv / "bin", source

    def run_from_root(self, *arguments: str) -> str:
        """Run a program from ``/`` without any of our variables, and give what it printed."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SORNA_", "PYTHONPATH"))}
        completed = subprocess.run(
            list(arguments), cwd="/", env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        self.assertEqual(completed.returncode, 0, completed.stderr)
        return completed.stdout

    def check(self, binaries: Path) -> None:
        """Check what an installation offers."""
        python = str(binaries / "python")
        twistd = (python, "-c", "from twisted.scripts.twistd import run; run()")
        plugins = self.run_from_root(*twistd, "--help")
        self.assertRegex(plugins, r"\n\s+sorna\s")
        self.assertRegex(plugins, r"\n\s+sorna-agent\s")
        found = self.run_from_root(python, "-c", "import sorna; print(sorna.__file__)").strip()
        self.assertTrue(Path(found).is_relative_to(binaries.parent.parent), found)
        for program, settings in (("sorna", SERVER_SETTINGS), ("sorna-agent", AGENT_SETTINGS)):
            shown = "".join(self.run_from_root(*twistd, program, "--help").split())
            for setting in settings:
                self.assertIn(f"--{setting.name}", shown)
                self.assertIn("".join(setting.described.split()), shown)
        self.assertIn("--service-port", self.run_from_root(python, "-m", "sorna.gateway.server", "--help"))
        self.assertIn("run", self.run_from_root(str(binaries / "sorna"), "--help"))

    def test_install(self) -> None:
        """``pip install .`` brings the plugins and every file of the package, the migrations included."""
        binaries, source = self.install()
        self.check(binaries)
        packages = next((binaries.parent / "lib").glob("python*/site-packages"))
        self.assertEqual(self.files(packages / "sorna"), self.files(source / "sorna"))

    @staticmethod
    def files(folder: Path) -> set[str]:
        """List what is no product of running the code."""
        paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder).as_posix() for path in paths}

    def test_editable(self) -> None:
        """``pip install -e .`` shows the plugins too."""
        binaries, _source = self.install("--editable")
        self.check(binaries)
