"""The folder commands of published clients, as published: what one release can do, and what later ones add."""

from __future__ import annotations

import secrets
from typing import ClassVar

from tests.interop.environments import BACKEND, BACKEND_1_1_11, BACKEND_1_4_2
from tests.interop.setting import InteropTestCase, Said


class FolderTestCase(InteropTestCase):
    """Ways to run a client, and a folder that goes with the test."""

    removes: ClassVar[tuple[str, ...]] = ("--rm",)

    def backend(self, *arguments: str, typed: str = "") -> Said:
        """Run a command."""
        return self.run_program("backend.ai", *arguments, typed=typed)

    def vfolder(self, *arguments: str, typed: str = "") -> Said:
        """Run a command about folders."""
        return self.backend("vfolder", *arguments, typed=typed)

    def name(self) -> str:
        """Give a folder's name, and see that it is gone after the test."""
        name = f"vf-{secrets.token_hex(6)}"
        self.addCleanup(self.vfolder, "delete", name)
        return name


class Release11Tests(FolderTestCase):
    """Release 1.1.11: make, list, describe, upload, mount, remove."""

    client = BACKEND_1_1_11

    def test_life(self) -> None:
        """A file that was uploaded is seen by a kernel, what the kernel writes stays, and the folder goes when it is to."""
        name = self.name()
        self.says(self.vfolder("create", name), name)
        self.write("a.txt", "from the client\n")
        self.says(self.vfolder("upload", name, "a.txt"), "201")
        self.says(self.vfolder("list"), name)
        code = f"print(open('{name}/a.txt').read()); open('{name}/b.txt', 'w').write('kept')"
        self.says(self.backend("run", *self.removes, "-m", name, "python3", "-c", code), "from the client\n")
        code = f"print(open('{name}/b.txt').read())"
        self.says(self.backend("run", *self.removes, "-m", name, "python3", "-c", code), "kept\n")
        self.says(self.vfolder("info", name), name, "numFiles")
        self.says(self.vfolder("delete", name))
        self.assertNotIn(name, self.vfolder("list").text)

    def test_an_unknown_folder(self) -> None:
        """A run with a folder that is not there fails with the server's reason."""
        said = self.backend("run", *self.removes, "-m", "nothing-here", "python3", "-c", "1")
        self.assertIn("404", said.text)


class Release14Tests(FolderTestCase):
    """Release 1.4.2: directories, listing, downloading and invitations besides; later releases run the same tests."""

    client = BACKEND_1_4_2
    create: ClassVar[tuple[str, ...]] = ()
    mkdir_says: ClassVar[str] = "Done."

    def test_files(self) -> None:
        """Files are uploaded, listed, fetched and removed."""
        name = self.name()
        self.says(self.vfolder("create", name, *self.create), f'Virtual folder "{name}" is created.')
        self.write("a.txt", "hello\n")
        self.write("d/big.txt", "0123456789abcdef" * 20_000)
        self.says(self.vfolder("upload", name, "a.txt"), "Done.")
        self.says(self.vfolder("mkdir", name, "dir1"), self.mkdir_says)
        self.says(self.vfolder("ls", name), "a.txt", "dir1", "-rw-r--r--")
        (self.folder / "a.txt").unlink()
        self.says(self.vfolder("download", name, "a.txt"), "Done.")
        self.assertEqual((self.folder / "a.txt").read_text(), "hello\n")
        self.says(self.vfolder("info", name), f'Virtual folder "{name}"', "- Owner: True", "- Number of files: 2")
        self.says(self.vfolder("list"), name)
        self.says(self.vfolder("rm", name, "a.txt", typed="y\n"), "Done.")
        self.assertNotIn("a.txt", self.vfolder("ls", name).text)
        self.says(self.vfolder("delete", name))

    def test_large_files(self) -> None:
        """A file of many pieces arrives whole and comes back whole."""
        name = self.name()
        self.vfolder("create", name, *self.create)
        self.write("big.txt", secrets.token_hex(8) * 50_000)
        content = (self.folder / "big.txt").read_bytes()
        self.says(self.vfolder("upload", name, "big.txt"), "Done.")
        (self.folder / "big.txt").unlink()
        self.says(self.vfolder("download", name, "big.txt"), "Done.")
        self.assertEqual((self.folder / "big.txt").read_bytes(), content)

    def test_sharing(self) -> None:
        """Nobody can be invited who is not there, and nobody is invited."""
        name = self.name()
        self.vfolder("create", name, *self.create)
        self.says(self.vfolder("invite", name, "nobody@example.com"), "No users found. Invitation was not sent.")
        self.says(self.vfolder("invitations"), "No invitations.")

    def test_mounts(self) -> None:
        """What a kernel writes into a folder stays."""
        name = self.name()
        self.vfolder("create", name, *self.create)
        code = f"import os; os.mkdir('{name}/made'); open('{name}/made/x', 'w').write('1')"
        self.says(self.backend("run", *self.removes, "-m", name, "python3", "-c", code))
        self.says(self.vfolder("ls", name), "made", "drwxr-xr-x")


class Release1812Tests(Release14Tests):
    """Release 18.12.3, which may name a storage."""

    client = BACKEND["18.12.3"]
    create = ("local",)


class Release2009Tests(Release14Tests):
    """Release 20.09.9, which sends and fetches files with tokens."""

    client = BACKEND["20.9.9"]
    create = ("local",)

    def test_other_commands(self) -> None:
        """Storages are listed, folders and files renamed."""
        name, other = self.name(), self.name()
        self.says(self.vfolder("list-hosts"), "Default vfolder host: local", "Usable hosts: local")
        self.vfolder("create", name, "local")
        self.says(self.vfolder("rename", name, other))
        self.write("a.txt", "hello\n")
        self.says(self.vfolder("upload", other, "a.txt"), "Done.")
        self.says(self.vfolder("rename-file", other, "a.txt", "b.txt"), "Renamed.")
        # Where it wants a folder, this client only tells servers of later versions than it finds here.
        code = f"print(open('{other}/b.txt').read())"
        self.says(self.backend("run", *self.removes, "-m", other, "python3", "-c", code), "hello\n")
