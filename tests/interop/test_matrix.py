"""Every command of every published client that ``matrix.py`` has, as published, against one server."""

from __future__ import annotations

import functools
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar, TypeVar
from unittest import SkipTest

from sorna.model.kernel import parse_kernel_id
from sorna.testing.server import RunningServer
from sorna.testing.unit import UnitTestCase
from tests.interop.matrix import DIALECTS, FOLDERS, PAGE, UNMADE, Dialect, page
from tests.interop.setting import MAIN_C, TIMEOUT, InteropTestCase, Said

T = TypeVar("T")
_WANTED = "wanted_command"
_COMMAND = re.compile(r"^ {2,4}(?:\{)?([a-z][a-z-]+)", re.MULTILINE)


@functools.cache
def second_user(server: RunningServer) -> tuple[str, str, str]:
    """Make a keypair of somebody else; gives the user, the access key and the secret key."""
    user = f"{secrets.token_hex(6)}@example.com"
    done = subprocess.run(
        [sys.executable, "-m", "sorna.client.cli", "admin", "keypair", "add", user],
        env={
            "SORNA_ENDPOINT": server.endpoint,
            "SORNA_ACCESS_KEY": server.access_key,
            "SORNA_SECRET_KEY": server.secret_key,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    access_key, secret_key = (line.rpartition(" ")[2] for line in done.stdout.splitlines()[:2])
    return user, access_key, secret_key


def wants(command: str) -> Callable[[T], T]:
    """Mark a test of clients that have a command about folders; that others do not have it is for another test."""

    def mark(test: T) -> T:
        setattr(test, _WANTED, command)
        return test

    return mark


class MatrixTestCase(InteropTestCase):
    """A client and its dialect; a class without one holds no tests of its own."""

    dialect: ClassVar[Dialect]

    def command(self, *arguments: str, typed: str = "") -> Said:
        """Run a command of the client."""
        if self.client.name.startswith("sorna"):
            return self.run_program("python", "-W", "ignore", "-m", "sorna.cli", *arguments, typed=typed)
        return self.run_program("backend.ai", *arguments, typed=typed)

    def run_and_remove(self, *arguments: str, typed: str = "") -> Said:
        """Run in a session that ends with the run."""
        return self.command("run", *self.dialect.removes, *arguments, typed=typed)

    def vfolder(self, name: str, *arguments: str, typed: str = "") -> Said:
        """Run a command about folders that the client must have."""
        self.assertIn(name, self.dialect.folders)
        return self.command("vfolder", name, *arguments, typed=typed)

    def folder_of(self, *options: str) -> str:
        """Make a folder that goes after the test."""
        name = f"vf-{secrets.token_hex(6)}"
        self.says(self.vfolder("create", name, *self.dialect.create, *options))
        self.gone_after(name)
        return name

    def gone_after(self, name: str) -> None:
        """Remove a folder after the test, if it is there still."""
        keys = self.access_key, self.secret_key

        def remove() -> None:
            self.access_key, self.secret_key = keys
            self.vfolder("delete", name)

        self.addCleanup(remove)


class SessionTests(MatrixTestCase):
    """What is done with sessions."""

    def test_snippet(self) -> None:
        """A snippet runs."""
        self.says(self.run_and_remove("python3", "-c", "print(6 * 7)"), "42\n")

    def test_batch(self) -> None:
        """A C program is uploaded, built and run by the client's own commands."""
        self.need("gcc")
        self.write("main.c", MAIN_C)
        build, execute = self.dialect.options
        said = self.run_and_remove(build, "gcc -o m main.c", execute, "./m && echo and more", "c", "main.c")
        self.says(said, "hello from C\nand more\n")

    def test_input(self) -> None:
        """A typed line reaches input()."""
        said = self.run_and_remove("python3", "-c", "print('hi', input('name? '))", typed="sorna\n")
        self.says(said, "name? ", "hi sorna\n")

    def test_session(self) -> None:
        """A session is made, completes code, is listed, and is ended."""
        name = f"interop-{secrets.token_hex(6)}"
        make = self.dialect.make.format(name=name)
        close = "session.close()\n" if "session = " in make else ""
        completed = f"print({self.dialect.complete}['completions'], getattr(k, 'kernel_id', ''))"
        (line,) = self.library(f"{make}try:\n    {completed}\nfinally:\n    {close or 'pass'}\n")
        completions, _space, kernel_id = line.partition("] ")
        self.assertEqual(completions, "['print('")
        if self.dialect.lists:
            # The first release lists sessions by their kernels' ids.
            shown = (name, str(parse_kernel_id(kernel_id)))
            self.assertTrue(any(one in self.command("ps").text for one in shown), shown)
        if self.dialect.ends:
            self.says(self.command(*self.dialect.ends, name))
        else:
            self.library(f"{make}k.destroy()\n{close}")
        if self.dialect.lists:
            self.assertNotIn(name, self.command("ps").text)


class FolderTests(MatrixTestCase):
    """What is done with folders."""

    def test_what_it_has(self) -> None:
        """The client has the commands of the table and no others; those that it lacks are told."""
        said = self.command("vfolder", "--help")
        listed = said.out[said.out.lower().find("commands:") :]
        first = re.search(r"\{([^}]*)\}", listed)
        found = set(first.group(1).split(",")) if first else set(_COMMAND.findall(listed))
        known = {*FOLDERS, *UNMADE, "delete-file"}
        self.assertEqual(found & set(FOLDERS), self.dialect.folders)
        if self.dialect.folders:
            self.assertEqual(found - known, set())
        missing = [name for name in FOLDERS if name not in self.dialect.folders]
        sys.stdout.write(f"[{self.dialect.name} has no command vfolder {', '.join(missing) or '(none is missing)'}] ")

    @wants("create")
    def test_life(self) -> None:
        """A folder is made, listed, described, filled, seen by a kernel and removed."""
        name = self.folder_of()
        self.says(self.vfolder("list"), name)
        self.write("a.txt", "from the client\n")
        self.says(self.vfolder("upload", name, "a.txt"))
        code = f"print(open('{name}/a.txt').read()); open('{name}/b.txt', 'w').write('kept')"
        self.says(self.run_and_remove("-m", name, "python3", "-c", code), "from the client\n")
        self.says(self.vfolder("info", name), name, "2")
        self.says(self.vfolder("delete", name))
        self.assertNotIn(name, self.vfolder("list").text)

    @wants("mkdir")
    def test_files(self) -> None:
        """Directories are made, files listed, fetched and removed."""
        name = self.folder_of()
        self.write("a.txt", "hello\n")
        self.says(self.vfolder("upload", name, "a.txt"))
        self.says(self.vfolder("mkdir", name, "dir1"))
        self.says(self.vfolder("ls", name), "a.txt", "dir1", "-rw-r--r--")
        (self.folder / "a.txt").unlink()
        self.says(self.vfolder("download", name, "a.txt"))
        self.assertEqual((self.folder / "a.txt").read_text(), "hello\n")
        self.says(self.vfolder("rm", name, "a.txt", typed="y\n"))
        self.assertNotIn("a.txt", self.vfolder("ls", name).text)

    @wants("rename")
    def test_places(self) -> None:
        """Storages are told; folders and files get other names, and files other places."""
        name, renamed = self.folder_of(), f"vf-{secrets.token_hex(6)}"
        self.says(self.vfolder("list-hosts"), "local")
        self.says(self.vfolder("list-allowed-types"), "user")
        self.says(self.vfolder("rename", name, renamed))
        self.gone_after(renamed)
        self.write("a.txt", "hello\n")
        self.says(self.vfolder("upload", renamed, "a.txt"))
        self.says(self.vfolder("rename-file", renamed, "a.txt", "b.txt"))
        self.assertIn("b.txt", self.vfolder("ls", renamed).text)
        if "request-download" in self.dialect.fails:
            self.assertIn("no attribute", self.vfolder("request-download", renamed, "b.txt").text)
        elif "request-download" in self.dialect.folders:
            self.says(self.vfolder("request-download", renamed, "b.txt"), "oken: ")
        if "mv" in self.dialect.folders:
            self.says(self.vfolder("mkdir", renamed, "d"))
            self.says(self.vfolder("mv", renamed, "b.txt", "d"))
            self.assertIn("b.txt", self.vfolder("ls", renamed, "d").text)

    @wants("clone")
    def test_cloning(self) -> None:
        """A folder that may be cloned is, with what is in it."""
        name, copy = self.folder_of(), f"vf-{secrets.token_hex(6)}"
        self.write("a.txt", "hello\n")
        self.says(self.vfolder("upload", name, "a.txt"))
        self.says(self.vfolder("clone", name, copy, "local"), "not allowed")
        self.says(self.vfolder("update-options", name, "--set-cloneable", "true"), "pdated.")
        self.says(self.vfolder("clone", name, copy, "local"))
        self.gone_after(copy)
        self.assertIn("a.txt", self.vfolder("ls", copy).text)

    @wants("invite")
    def test_inviting(self) -> None:
        """Somebody is invited and accepts, is invited and refuses; who accepted sees the folder, and may leave it."""
        mine = self.access_key, self.secret_key
        user, *theirs = second_user(self.server)
        accepted, refused = self.folder_of(), self.folder_of()
        for name, action in ((accepted, "a"), (refused, "r")):
            self.access_key, self.secret_key = mine
            self.says(self.vfolder("invite", name, user, "-p", "ro"), user)
            self.access_key, self.secret_key = theirs
            self.says(self.vfolder("invitations", typed=f"1\n{action}\n"), mine[0], "read-only", name)
        seen = self.vfolder("list").text if "leave" not in self.dialect.folders else self.vfolder("info", accepted).text
        self.assertIn(accepted, seen)
        self.assertNotIn(refused, seen)
        self.says(self.vfolder("ls", accepted))
        if "leave" in self.dialect.folders:
            self.says(self.vfolder("leave", accepted), "Left")
            self.assertIn("404", self.vfolder("info", accepted).text)

    @wants("share")
    def test_sharing(self) -> None:
        """A folder is shared without asking, and taken away again."""
        mine = self.access_key, self.secret_key
        user, *theirs = second_user(self.server)
        name = self.folder_of()
        self.says(self.vfolder("share", name, user, "-p", "ro"), "Shared with ro", user)
        self.access_key, self.secret_key = theirs
        self.says(self.vfolder("info", name), "Owner: False", "Permission: ro")
        self.access_key, self.secret_key = mine
        self.says(self.vfolder("unshare", name, user), "Unshared", user)
        self.access_key, self.secret_key = theirs
        self.assertIn("404", self.vfolder("info", name).text)

    @wants("list-own")
    def test_lists(self) -> None:
        """One's own folders, those of others and those of projects are listed apart."""
        mine = self.access_key, self.secret_key
        user, *theirs = second_user(self.server)
        name = self.folder_of()
        self.says(self.vfolder("list-own"), name)
        self.says(self.vfolder("share", name, user))
        self.access_key, self.secret_key = theirs
        self.says(self.vfolder("list-invited"), name)
        self.assertNotIn(name, self.vfolder("list-own").text)
        self.assertNotIn(name, self.vfolder("list-project").text)
        self.access_key, self.secret_key = mine


class TableTests(UnitTestCase):
    def test_the_page_is_current(self) -> None:
        """The committed table is what the clients have."""
        if not PAGE.parent.is_dir():
            raise SkipTest("these are the tests of a checkout")
        self.assertEqual(PAGE.read_text("utf-8"), page(), "python -m tests.interop.matrix writes it anew")


def _classes() -> None:
    """Give each client a class of each kind, with the tests of what it has."""
    for kind in (SessionTests, FolderTests):
        for dialect in DIALECTS:
            name = f"{kind.__name__}_{re.sub(r'[^0-9A-Za-z]+', '_', dialect.name)}"
            members = {"dialect": dialect, "client": dialect.client, "__module__": __name__, "__doc__": kind.__doc__}
            tests = {key: one for key, one in vars(kind).items() if key.startswith("test_")}
            had = {key: one for key, one in tests.items() if {getattr(one, _WANTED, None)} <= {None, *dialect.folders}}
            globals()[name] = type(name, (MatrixTestCase,), members | had)
    del globals()["SessionTests"], globals()["FolderTests"]


_classes()
