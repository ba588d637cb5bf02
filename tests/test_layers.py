<<<<<<< HEAD
"""The walls between the rooms: imports go down only, and what is to be in one place is in one place."""
=======
"""The walls of the house: who may import whom, where the outside world is reached for, and how large a file may grow."""
>>>>>>> client

from __future__ import annotations

import ast
<<<<<<< HEAD
from collections.abc import Iterator
=======
import functools
from collections.abc import Iterator, Mapping
>>>>>>> client
from pathlib import Path

import sorna
from sorna.testing.unit import UnitTestCase

<<<<<<< HEAD
ROOT = Path(sorna.__file__).parent
# Room -> rooms it may import besides itself.  "top" is every module directly below the package.
ALLOWED = {
    "model": set[str](),
    "errors": set[str](),
    "store": {"model", "errors", "manager.interfaces"},
    "live": {"model", "errors", "manager.interfaces"},
    "cluster": {"model", "errors", "manager.interfaces", "curve_keys", "zeromq"},
    "manager": {"model", "errors"},
    "gateway": {"model", "errors", "manager.interfaces", "manager.requests", "observability"},
    "agent": {"model", "errors", "cluster.messages", "curve_keys", "zeromq"},
    "agent.runners": set[str](),
    "embedded": {"errors", "store.address"},
    "client": {"model", "errors"},
}
# Kept apart: they wire rooms together, start processes, or exist for tests.
COMPOSITION = {"assembly", "agent_assembly", "tap", "agent_tap", "first_start", "testing"}


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
        self.assertTrue(users <= {"tap", "agent_tap", "client.cli"}, users)

    def test_files_stay_small(self) -> None:
        """No file is longer than 500 lines."""
        long = {name for name, path, _ in modules() if len(path.read_text(encoding="utf-8").splitlines()) > 500}
        self.assertEqual(long, set())

    def test_every_module_says_what_it_is_for(self) -> None:
        """Every module opens with a docstring."""
        self.assertEqual([name for name, _path, tree in modules() if not ast.get_docstring(tree)], [])

    def test_runners_need_the_standard_library_only(self) -> None:
        """What runs inside a kernel imports nothing that a kernel's interpreter might lack."""
        foreign = ("twisted", "attrs", "msgpack", "zmq", "zope", "click", "klein")
        for name, _path, tree in modules():
            if within(name, "agent.runners"):
                self.assertEqual([full for full in imported(tree) if full.split(".")[0] in foreign], [], name)
=======
PACKAGE = Path(sorna.__file__).parent
PROJECT = PACKAGE.parent
LONGEST = 500

# What every room stands on, and what each may use besides itself.  Protocols live with the one who needs them, so a room
# beneath the manager names ``manager.interfaces``, and nothing else of it.
GROUND = {"sorna", "sorna.errors", "sorna.model"}
CONTRACT = {"sorna.manager.interfaces", "sorna.manager.requests"}
LINK = {"sorna.curve_keys", "sorna.zeromq"}
MAY_USE: Mapping[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "config": GROUND,
    "curve_keys": GROUND,
    "lifecycle": GROUND,
    "observability": GROUND,
    "boot": GROUND,
    "zeromq": GROUND | {"sorna.curve_keys"},
    "manager": GROUND,
    "store": GROUND | CONTRACT,
    "live": GROUND | CONTRACT,
    "cluster": GROUND | CONTRACT | LINK,
    "agent": GROUND | LINK | {"sorna.cluster.messages"},
    "gateway": GROUND | CONTRACT,
    "legacy": GROUND | CONTRACT,
    "embedded": GROUND | {"sorna.store.address"},
    "client": GROUND,
    "first_start": GROUND | CONTRACT | {"sorna.config"},
}
# The link's stand-in in memory joins both ends, so it names the agent's end too.
EXCEPTIONS: Mapping[str, set[str]] = {"sorna/cluster/memory.py": {"sorna.agent.interfaces"}}
# Where everything is wired, and what exists for tests.
MAY_USE_ALL = {"__init__", "assembly", "agent_assembly", "tap", "agent_tap", "testing"}

# Processes of their own, without a reactor and with nothing to inject a clock into.
WITHOUT_REACTOR = ("sorna/agent/runners/", "sorna/agent/sandbox/", "sorna/testing/")
WALL_TIME = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
OTHER_TIME = {"time.sleep", "time.monotonic", "time.monotonic_ns", "time.perf_counter"}


def name_of(path: Path) -> str:
    """Give a file's name as messages show it."""
    return path.relative_to(PROJECT).as_posix()


def room_of(path: Path) -> str:
    """Give the package or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module, path: Path) -> Iterator[str]:
    """Give the dotted names that a file imports, wherever in the file it does, relative ones resolved."""
    package = [*path.relative_to(PROJECT).with_suffix("").parts][:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield from (f"{start}{node.module or ''}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[str]:
    """Give the last two parts of the dotted name of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:])


def allowed(name: str, permitted: set[str]) -> bool:
    """Tell whether an imported name is, or lies in, one of the permitted ones; the root alone permits no room."""
    room = PACKAGE / name.split(".")[1] if "." in name else PACKAGE
    if not (room.exists() or room.with_suffix(".py").exists()):
        return True  # an attribute of the root package, such as its version
    return any(name == each or (each != "sorna" and name.startswith(f"{each}.")) for each in permitted)


@functools.cache
def package_trees() -> Mapping[Path, ast.Module]:
    """Read every file of the package, once."""
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


class LayerTests(UnitTestCase):
    """Facts about every file of the package, read from its syntax."""

    def setUp(self) -> None:
        """Read the package."""
        self.trees = package_trees()
        self.assertGreater(len(self.trees), 50)

    def test_every_room_has_its_place(self) -> None:
        """A new room is put into the table above before it is used."""
        rooms = {room_of(path) for path in self.trees}
        self.assertEqual(rooms - set(MAY_USE) - MAY_USE_ALL, set())

    def test_imports_go_down(self) -> None:
        """No room imports what stands above or beside it."""
        wrong = []
        for path, tree in self.trees.items():
            room = room_of(path)
            if room in MAY_USE_ALL:
                continue
            permitted = MAY_USE[room] | {f"sorna.{room}"} | EXCEPTIONS.get(name_of(path), set())
            wrong += [
                f"{name_of(path)} imports {name}"
                for name in imports(tree, path)
                if name.split(".")[0] == "sorna" and not allowed(name, permitted)
            ]
        self.assertEqual(wrong, [])

    def test_only_the_router_knows_klein(self) -> None:
        """Klein has one user."""
        users = [name_of(path) for path, tree in self.trees.items() if self.uses(tree, path, "klein")]
        self.assertEqual(users, ["sorna/gateway/router.py"])

    def test_only_the_entry_points_reach_for_the_reactor(self) -> None:
        """Everybody else is handed one."""
        users = {
            name_of(path) for path, tree in self.trees.items() if self.uses(tree, path, "twisted.internet.reactor")
        }
        self.assertEqual(users - {"sorna/tap.py", "sorna/agent_tap.py"}, set())

    def test_nobody_asks_the_machine_for_the_time(self) -> None:
        """Time comes from a clock that was handed in; only processes without a reactor may ask how much of it passed."""
        wrong = []
        for path, tree in self.trees.items():
            banned = WALL_TIME if name_of(path).startswith(WITHOUT_REACTOR) else WALL_TIME | OTHER_TIME
            wrong += [f"{name_of(path)} calls {call}" for call in calls(tree) if call in banned]
            wrong += [f"{name_of(path)} imports {name}" for name in imports(tree, path) if name in banned]
        self.assertEqual(wrong, [])

    def test_plugins_import_nothing_of_ours(self) -> None:
        """Listing plugins stays cheap, and no file makes the folder a package that would hide Twisted's own."""
        folder = PROJECT / "twisted" / "plugins"
        self.assertEqual([path.name for path in folder.glob("*.py")], ["sorna_plugin.py"])
        self.assertFalse((folder.parent / "__init__.py").exists())
        path = folder / "sorna_plugin.py"
        names = list(imports(ast.parse(path.read_text("utf-8")), path))
        self.assertEqual([name for name in names if not name.startswith("twisted.")], [])

    def test_no_file_is_too_long(self) -> None:
        """When a file wants more, the design wants another room."""
        long = []
        for folder in (PACKAGE, PROJECT / "tests", PROJECT / "bench", PROJECT / "stubs"):
            for path in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:
                lines = path.read_text("utf-8").count("\n")
                if lines > LONGEST:
                    long.append(f"{name_of(path)}: {lines} lines")
        self.assertEqual(long, [])

    @staticmethod
    def uses(tree: ast.Module, path: Path, name: str) -> bool:
        """Tell whether a file imports a name or something in it."""
        return any(each == name or each.startswith(f"{name}.") for each in imports(tree, path))


class RuleTests(UnitTestCase):
    """The rules find what they are for."""

    def test_a_breach_is_found(self) -> None:
        """An import upwards or beside is not allowed, one downwards is."""
        permitted = MAY_USE["store"] | {"sorna.store"}
        for name in (
            "sorna.gateway",
            "sorna.manager.registry.Registry",
            "sorna.live.memory",
            "sorna.manager",
            "sorna.tap",
        ):
            self.assertFalse(allowed(name, permitted), name)
        for name in (
            "sorna.errors.Unavailable",
            "sorna.store.pool",
            "sorna.manager.interfaces.KernelStore",
            "sorna.__version__",
        ):
            self.assertTrue(allowed(name, permitted), name)

    def test_imports_inside_functions_and_relative_ones_count(self) -> None:
        """Hiding an import in a function or behind dots does not help."""
        code = "def f():\n    from twisted.internet import reactor\nfrom ..gateway import router\nimport time as t"
        found = list(imports(ast.parse(code), PACKAGE / "store" / "pool.py"))
        self.assertEqual(sorted(found), ["sorna.gateway.router", "time", "twisted.internet.reactor"])

    def test_calls_are_found(self) -> None:
        """However the module was reached."""
        found = list(calls(ast.parse("time.time()\ndatetime.datetime.now(UTC)\nself.clock.seconds()")))
        self.assertEqual(found, ["time.time", "datetime.now", "clock.seconds"])
>>>>>>> client
