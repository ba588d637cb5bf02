"""Echoes the last expression and shows rich objects and figures; the display hook of the REPL.

Standard library only, and it imports nothing but that on its own: matplotlib is used when user code has imported it.
Knows objects and media; may not know runs or sockets.
"""

import base64
import builtins
import importlib.machinery
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

Emit = Callable[[list[Any]], bool]
Hold = Callable[[str], bool]

# The richest first; the first that an object has is shown.
_METHODS = (
    ("text/html", "_repr_html_"),
    ("text/markdown", "_repr_markdown_"),
    ("text/latex", "_repr_latex_"),
    ("image/svg+xml", "_repr_svg_"),
    ("image/png", "_repr_png_"),
    ("image/jpeg", "_repr_jpeg_"),
    ("image/gif", "_repr_gif_"),
    ("application/json", "_repr_json_"),
)
_KINDS = tuple(kind for kind, _method in _METHODS)


class Display:
    """What shows values.

    :param emit: sends one record and is False when it was too large.
    :param hold: prints the text of a value that nothing will follow, or is False when that must be written.
    """

    def __init__(self, emit: Emit, hold: Hold) -> None:
        self._emit = emit
        self._hold = hold
        self._last = False
        self._media: list[Any] = []
        self._pyplot: ModuleType | None = None

    def install(self) -> None:
        """Set the display hook, the names that older material expects in ``builtins``, and wait for matplotlib."""
        sys.displayhook = self.echo
        # The first name is used by material of 2016, the second by that of 2017.
        vars(builtins).update(_sorna_media=self._media, _sorna_emit=self.record)
        os.environ.setdefault("MPLBACKEND", "agg")
        matplotlib = sys.modules.get("matplotlib")
        if matplotlib is not None:
            # Imported before this process was made: what the variable would have done. A plain ``use`` costs imports.
            with suppress(Exception):
                dict.__setitem__(matplotlib.rcParams, "backend", "agg")
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            sys.meta_path.insert(0, _PyplotFinder(self.adopt))
        else:
            self.adopt(pyplot)

    def adopt(self, pyplot: ModuleType) -> None:
        """Make ``pyplot.show`` show."""
        self._pyplot = pyplot

        def show(*_arguments: Any, **_options: Any) -> None:
            """Display all open figures."""
            self.figures()

        show.__module__ = "matplotlib.pyplot"
        show.__qualname__ = "show"
        pyplot.show = show  # type: ignore[attr-defined]  # it is there, in a module that is not imported here

    def echo_last(self, value: Any) -> None:
        """Let the display hook, which user code may have replaced, show a value that nothing will be printed after."""
        self._last = True
        try:
            sys.displayhook(value)
        finally:
            self._last = False

    def echo(self, value: Any) -> None:
        """Print a value as the interactive interpreter does, and show it richly when it can be."""
        last, self._last = self._last, False
        if value is None:
            return
        builtins._ = None  # type: ignore[attr-defined]  # as sys.displayhook does, so that repr cannot see it
        text = repr(value)
        plain = type(value).__module__ == "builtins" or isinstance(value, type)
        if not (last and plain and not self._leaves_media and text.isascii() and self._hold(text + "\n")):
            _write(text)
        builtins._ = value  # type: ignore[attr-defined]
        if not plain:
            self.rich(value)

    def rich(self, value: Any) -> None:
        """Send the richest form that an object has."""
        found = _richest(value)
        if found is not None:
            self.send(*found)

    @property
    def _leaves_media(self) -> bool:
        """Whether the end of the run shows something, which may take long."""
        return bool(self._media) or (self._pyplot is not None and bool(self._pyplot.get_fignums()))

    def send(self, kind: str, content: Any) -> None:
        """Send one medium."""
        record = _record(kind, content)
        if record is not None:
            self._send(record)

    def record(self, record: Any) -> None:
        """Send a record of the kinds that kernels have always had: a medium, a page, or a line of a log."""
        self._send(_known_record(record))

    def end_run(self) -> None:
        """Show what the run left to be shown."""
        if self._media:
            media, self._media[:] = list(self._media), []
            for item in media:
                self.record(item)
        if self._pyplot is not None:
            self.figures()

    def figures(self) -> None:
        """Show every open figure and close it."""
        pyplot = self._pyplot
        if pyplot is None:
            return
        numbers = pyplot.get_fignums()
        for number in numbers:
            figure = pyplot.figure(number)
            try:
                content = io.BytesIO()
                figure.savefig(content, format="png", bbox_inches="tight")
            finally:
                pyplot.close(figure)
            self.send("image/png", content.getvalue())

    def _send(self, record: list[Any]) -> None:
        if not self._emit(record):
            sys.stderr.write("A result is not shown because it is larger than 8 MiB.\n")


def _write(text: str) -> None:
    output = sys.stdout
    try:
        output.write(text + "\n")
    except UnicodeEncodeError:
        encoding = output.encoding or "utf-8"
        output.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _richest(value: Any) -> tuple[str, Any] | None:
    bundle = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(bundle, tuple) and bundle:
        bundle = bundle[0]
    if isinstance(bundle, dict):
        for kind in _KINDS:
            if bundle.get(kind) is not None:
                return kind, bundle[kind]
    for kind, method in _METHODS:
        content = _call(value, method)
        if isinstance(content, tuple) and len(content) == 2:
            content = content[0]
        if content is not None:
            return kind, content
    return None


def _call(value: Any, name: str, **options: Any) -> Any:
    """Call a display method when the object's class has it; an object that merely answers to every name does not count."""
    if not any(name in vars(base) for base in type(value).__mro__) and name not in getattr(value, "__dict__", ()):
        return None
    method = getattr(value, name, None)
    return method(**options) if callable(method) else None


def _record(kind: str, content: Any) -> list[Any] | None:
    if kind == "text/html":
        return ["html", str(content)]
    if kind == "application/json":
        import json  # noqa: PLC0415 - seldom needed

        return ["media", [kind, content if isinstance(content, str) else json.dumps(content, default=repr)]]
    if isinstance(content, (bytes, bytearray, memoryview)):
        if kind.endswith("xml"):
            return ["media", [kind, bytes(content).decode("utf-8", "replace")]]
        return ["media", [kind, f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"]]
    text = str(content)
    if kind.startswith("image/") and not kind.endswith("xml") and not text.startswith("data:"):
        text = f"data:{kind};base64,{''.join(text.split())}"
    return ["media", [kind, text]]


def _known_record(record: Any) -> list[Any]:
    """Bring a record into the form that is sent. :raises TypeError: it is none of the known kinds."""
    if hasattr(record, "html"):
        return ["html", str(record.html)]
    if hasattr(record, "level") and hasattr(record, "message"):
        fields = [getattr(record, name, "") for name in ("level", "timestamp", "logger", "message")]
        return ["log", [str(field) for field in fields]]
    if hasattr(record, "type") and hasattr(record, "data"):
        record = (record.type, record.data)
    if isinstance(record, Sequence) and not isinstance(record, str) and len(record) == 2:
        kind, content = record
        if kind == "html":
            return ["html", str(content)]
        if kind == "log" and isinstance(content, Sequence) and len(content) == 4:
            return ["log", [str(field) for field in content]]
        if kind == "media" and isinstance(content, Sequence) and len(content) == 2:
            kind, content = content
        if isinstance(kind, str) and "/" in kind:
            medium = _record(kind, content) if kind != "text/html" else ["media", [kind, str(content)]]
            if medium is not None:
                return medium
    message = (
        "a record is ('media', (type, data)), ('html', text), ('log', (level, time, logger, text)) or (type, data)"
    )
    raise TypeError(message)


class _PyplotFinder:
    """Waits for ``matplotlib.pyplot`` to be imported, and is gone after that."""

    def __init__(self, adopt: Callable[[ModuleType], None]) -> None:
        self._adopt = adopt

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """Find what the other finders find, and note when it was executed."""
        if name != "matplotlib.pyplot":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._adopt(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]  # this one loader object only
        return spec
