"""The walls between the rooms: imports go down only, and what is to be in one place is in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import sorna
from sorna.testing.unit import UnitTestCase

ROOT = Path(sorna.__file__).parent
PROJECT = ROOT.parent
LONGEST = 500
# Room -> rooms it may import besides itself.  "top" is every module directly below the package.
ALLOWED = {
    "model": set[str](),
    "errors": set[str](),
    "store": {
        "model",
        "errors",
        "manager.interfaces",
        "manager.folder_interfaces",
        "manager.audit_interfaces",
        "manager.enrolment_interfaces",
    },
    "live": {"model", "errors", "manager.interfaces", "manager.audit_interfaces"},
    "cluster": {"model", "errors", "manager.interfaces", "manager.enrolment_interfaces", "curve_keys", "zeromq"},
    "manager": {"model", "errors", "sealing"},
    "gateway": {"model", "errors", "manager.interfaces", "manager.requests", "observability"}
    | {
        # Classes of ours on stores and storages that have memory implementations themselves.
        "manager.folders",
        "manager.folder_interfaces",
        "manager.transfers",
        "manager.enrolments",
    },
    "agent": {"model", "errors", "beneath", "cluster.messages", "curve_keys", "zeromq"},
    "agent.runners": {"beneath"},
    "beneath": set[str](),
    "folders": {"model", "errors", "beneath", "manager.folder_interfaces"},
    "embedded": {"errors", "store.address"},
    "legacy": {"model", "errors", "manager.interfaces", "manager.requests", "curve_keys", "zeromq"},
    "client": {"model", "errors", "curve_keys", "sealing"},
}
# Modules directly below the package that every room may be built on, once its own row says so.
GROUND = {
    "__init__", "boot", "config", "curve_keys", "lifecycle", "observability", "parent_watch", "sealing",
    "settings", "shared_port", "stages", "zeromq",
}  # fmt: skip
# Kept apart: they wire rooms together, start processes, or exist for tests.
COMPOSITION = {
    "assembly",
    "agent_assembly",
    "legacy_assembly",
    "local_agent_assembly",
    "upkeep_assembly",
    "workers",
    "worker",
    "worker_tap",
    "tap",
    "agent_tap",
    "first_start",
    "freed_memory",
    "command",
    "doctor",
    "testing",
}

WALL_TIME = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
PASSING_TIME = {"time.sleep", "time.monotonic", "time.monotonic_ns", "time.perf_counter"}
# Processes of their own, without a reactor and with nobody to hand a clock in.
WITHOUT_REACTOR = ("agent.runners", "agent.sandbox", "testing")


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Give every module of the package with its name below ``sorna``."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Give the full name of everything a module imports when it runs."""
    skipped = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and isinstance(outer.test, ast.Name) and outer.test.id == "TYPE_CHECKING"
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(tree: ast.Module) -> Iterator[str]:
    """Give the last two parts of the dotted name of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:])


def within(name: str, room: str) -> bool:
    """Tell whether a dotted name lies in a room."""
    return name == room or name.startswith(f"{room}.")


class LayerTests(UnitTestCase):
    """Who may import whom."""

    def test_imports_go_down_only(self) -> None:
        """A room imports itself and the rooms it is allowed to, nothing else of ours."""
        wrong = []
        for name, _path, tree in modules():
            room = max((room for room in ALLOWED if within(name, room)), key=len, default=None)
            if room is None:
                continue
            for full in imported(tree):
                if not full.startswith("sorna.") or full == "sorna.__version__":
                    continue
                target = full.removeprefix("sorna.")
                if not any(within(target, allowed) for allowed in (room, *ALLOWED[room])):
                    wrong.append(f"{name} imports {target}")
        self.assertEqual(wrong, [])

    def test_only_composition_imports_composition(self) -> None:
        """Nothing but the entry points reaches for the modules that wire everything."""
        for name, _path, tree in modules():
            if name.split(".")[0] in COMPOSITION:
                continue
            for full in imported(tree):
                self.assertNotIn(full.removeprefix("sorna.").split(".")[0], COMPOSITION - {"testing"}, name)

    def test_klein_is_known_by_the_router_alone(self) -> None:
        """One module imports Klein."""
        users = {name for name, _path, tree in modules() if any(within(full, "klein") for full in imported(tree))}
        self.assertEqual(users, {"gateway.router"})

    def test_the_reactor_is_an_argument(self) -> None:
        """Only the entry points import the reactor."""
        users = {name for name, _, tree in modules() if "twisted.internet.reactor" in set(imported(tree))}
        self.assertTrue(users <= {"tap", "agent_tap", "worker_tap", "client.cli"}, users)

    def test_every_room_has_its_row(self) -> None:
        """A new room is put into the table before it is used."""
        rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
        self.assertEqual(rooms - set(ALLOWED) - COMPOSITION - GROUND, set())

    def test_nobody_asks_the_machine_for_the_time(self) -> None:
        """Time comes from a clock that was handed in; only processes without a reactor may ask how much of it passed."""
        wrong = []
        for name, _path, tree in modules():
            free = any(within(name, room) for room in WITHOUT_REACTOR)
            banned = WALL_TIME if free else WALL_TIME | PASSING_TIME
            wrong += [f"{name} uses {used}" for used in (*called(tree), *imported(tree)) if used in banned]
        self.assertEqual(wrong, [])

    def test_plugins_import_nothing_of_ours(self) -> None:
        """Listing plugins stays cheap, and no file makes the folder a package that would hide Twisted's own."""
        folder = PROJECT / "twisted" / "plugins"
        if not folder.is_dir():
            raise SkipTest("these are the tests of a checkout")
        self.assertEqual([path.name for path in folder.glob("*.py")], ["sorna_plugin.py"])
        self.assertFalse((folder.parent / "__init__.py").exists())
        names = imported(ast.parse((folder / "sorna_plugin.py").read_text(encoding="utf-8")))
        self.assertEqual([name for name in names if not within(name, "twisted")], [])

    def test_files_stay_small(self) -> None:
        """No file is longer than 500 lines, those of the tests included."""
        paths = [path for folder in ("sorna", "tests", "bench", "stubs") for path in (PROJECT / folder).rglob("*.py*")]
        sources = [path for path in paths if path.suffix in {".py", ".pyi"}]
        long = [path.name for path in sources if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST]
        self.assertEqual(long, [])

    def test_every_module_says_what_it_is_for(self) -> None:
        """Every module opens with a docstring."""
        self.assertEqual([name for name, _path, tree in modules() if not ast.get_docstring(tree)], [])

    def test_runners_need_the_standard_library_only(self) -> None:
        """What runs inside a kernel imports nothing that a kernel's interpreter might lack."""
        foreign = ("twisted", "attrs", "msgpack", "zmq", "zope", "click", "klein")
        for name, _path, tree in modules():
            if within(name, "agent.runners") or within(name, "beneath"):
                self.assertEqual([full for full in imported(tree) if full.split(".")[0] in foreign], [], name)
