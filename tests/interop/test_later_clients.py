"""One release of backend.ai-client for each generation between 1.0 and 23.03, as published, through its command line.

The clients up to 20.09 repeat requests until a run is over; those from 21.09 on run over WebSockets.
"""

from __future__ import annotations

import secrets
from typing import ClassVar

from tests.interop.environments import BACKEND
from tests.interop.setting import READS_DATA, InteropTestCase, Said


class Release121Tests(InteropTestCase):
    """Release 1.2.1; the others run the same tests, as they spell things.

    :cvar removes: options after which a run ends its session.
    :cvar group: words before what concerns one session; None for a release that has nothing of the kind.
    :cvar end: the command that ends a session.
    """

    client = BACKEND["1.2.1"]
    removes: ClassVar[tuple[str, ...]] = ("--rm",)
    group: ClassVar[tuple[str, ...] | None] = ()
    end: ClassVar[str] = "terminate"

    def backend(self, *arguments: str, typed: str = "") -> Said:
        """Run a command."""
        return self.run_program("backend.ai", *arguments, typed=typed)

    def test_session(self) -> None:
        """Code that asks for a line is run in a named session, which is listed, has a log, and is ended."""
        code = "print('hi', input('name? '))"
        if self.group is None:
            self.says(self.backend("run", *self.removes, "python3", "-c", code, typed="sorna\n"), "hi sorna\n")
            return
        token = f"interop-{secrets.token_hex(6)}"
        said = self.backend("run", "-t", token, "python3", "-c", code, typed="sorna\n")
        self.says(said, " is ready", "name? ", "hi sorna\n", "inished. (exit code = 0)")
        self.says(self.backend("ps"), token, "RUNNING")
        self.says(self.backend(*self.group, "logs", token), "hi sorna", "End of logs.")
        self.says(self.backend(*self.group, self.end, token), "Done.")

    def test_program(self) -> None:
        """A program is uploaded with its data, built and run, and its session ended."""
        self.write("main.py", READS_DATA)
        self.write("data.txt", "forty-two\n")
        said = self.backend("run", *self.removes, "python3", "main.py", "data.txt")
        self.says(said, "ploading done.", "read: forty-two\n", "leaned up the ")


class Release106Tests(Release121Tests):
    """Release 1.0.6: a session ends with its run, and has no name that could be given."""

    client = BACKEND["1.0.6"]
    removes = ()
    group = None


class Release137Tests(Release121Tests):
    """Release 1.3.7."""

    client = BACKEND["1.3.7"]


class Release151Tests(Release121Tests):
    """Release 1.5.1, the first that signs no body and uses paths without a version."""

    client = BACKEND["1.5.1"]


class Release1812Tests(Release121Tests):
    """Release 18.12.3; those whose files are tested too run the same tests."""

    client = BACKEND["18.12.3"]

    def test_files(self) -> None:
        """Files that code wrote are listed and come back whole."""
        token = f"interop-{secrets.token_hex(6)}"
        code = "for name in 'ab': open(name + '.txt', 'w').write(name * 100_000)"
        self.says(self.backend("run", "-q", "-t", token, "python3", "-c", code))
        self.says(self.backend(*(self.group or ()), "ls", token), "a.txt", "-rw-r--r--")
        self.says(self.backend(*(self.group or ()), "download", token, "a.txt", "b.txt"), "Downloaded")
        for name in "ab":
            self.assertEqual((self.folder / f"{name}.txt").read_text(), name * 100_000)
        self.says(self.backend(*(self.group or ()), self.end, token), "Done.")


class Release1903Tests(Release121Tests):
    """Release 19.3.2."""

    client = BACKEND["19.3.2"]


class Release1909Tests(Release121Tests):
    """Release 19.9.10."""

    client = BACKEND["19.9.10"]


class Release2003Tests(Release121Tests):
    """Release 20.3.10."""

    client = BACKEND["20.3.10"]


LIBRARY = """
import asyncio, warnings
warnings.simplefilter("ignore")
from ai.backend.client.session import AsyncSession

async def listen(session, ready):
    async with session.stream_events() as stream:
        ready.set()
        async for event in stream:
            print(event.event)

async def main():
    async with AsyncSession() as api:
        session = await api.ComputeSession.get_or_create("python3", name={name!r}, envs={{"COLOUR": "red"}})
        ready = asyncio.Event()
        listening = asyncio.ensure_future(listen(session, ready))
        await ready.wait()
        async with session.stream_execute("import os; print(os.environ['COLOUR'], input())") as stream:
            async for message in stream:
                answer = message.json()
                for kind, text in answer["console"]:
                    print(kind, text.strip())
                if answer["status"] == "waiting-input":
                    await stream.send_str("typed")
        print((await session.complete("prin", {{"line": "prin", "col": 4}}))["result"]["completions"])
        await session.interrupt()
        await session.restart()
        print((await session.get_info())["lang"])
        print(sorted(await session.destroy()))
        await asyncio.wait_for(listening, 20)

asyncio.get_event_loop_policy().get_event_loop().run_until_complete(main())
"""


class Release2009Tests(Release1812Tests):
    """Release 20.9.9, its asynchronous library too."""

    client = BACKEND["20.9.9"]

    def test_library(self) -> None:
        """A run over a WebSocket with input, completion, restart, and the events of a session until its end."""
        token = f"interop-{secrets.token_hex(6)}"
        lines = self.library(LIBRARY.format(name=token))
        self.assertEqual(
            sorted(lines),
            sorted(
                [
                    "stdout red typed",
                    "['print(']",
                    "python3",
                    "session_restarted",
                    "['stats']",
                    "session_terminated",
                    "server_close",
                ]
            ),
        )


class Release2109Tests(Release121Tests):
    """Release 21.9.5, the first that runs over WebSockets alone."""

    client = BACKEND["21.9.5"]
    group = ("session",)
    end = "destroy"


class Release2203Tests(Release2109Tests):
    """Release 22.3.2."""

    client = BACKEND["22.3.2"]


class Release2209Tests(Release2109Tests):
    """Release 22.9.0."""

    client = BACKEND["22.9.0"]


class Release2303Tests(Release2009Tests):
    """Release 23.3.0."""

    client = BACKEND["23.3.0"]
    group = ("session",)
    end = "destroy"
