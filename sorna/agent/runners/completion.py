"""Completes names in the live namespace of the REPL without evaluating anything of the user's on the way.

Standard library only. Knows objects and text; may not know runs or sockets. Only names and attributes are followed, and
only where they can be read without running user code: no calls, no properties, no ``__getattr__``. What an object lists
in ``__dir__`` is asked for; the caller limits the time.
"""

import builtins
import inspect
import keyword
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

_TOKEN = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*\.?$|$")
_IMPORT = re.compile(r"^\s*(?:import|from)\s+([\w.]*)$")
_MOST = 1000
_MISSING = object()
# Descriptors of C: reading them runs no code of the user's.
_HARMLESS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def text_before_cursor(code: str, options: Mapping[str, Any]) -> str:
    """Find what stands before the cursor: ``line``, else what ``row`` and ``col`` point at, else all of the code."""
    line, row, column = (options.get(name) for name in ("line", "row", "col"))
    if isinstance(line, str) and line:
        return line
    lines = code.split("\n")
    if isinstance(row, int) and isinstance(column, int) and 0 <= row < len(lines) and column >= 0:
        return lines[row][:column]
    return code


def completions(text: str, namespace: Mapping[str, Any]) -> list[str]:
    """Give what the last word of the text may become: whole words, in order, functions with a parenthesis."""
    importing = _IMPORT.match(text.rpartition("\n")[2])
    if importing:
        return _modules(importing.group(1))
    found = _TOKEN.search(text)
    token = found.group() if found else ""
    if "." in token:
        return _attributes(token, namespace)
    return _names(token, namespace) if token else []


def _modules(start: str) -> list[str]:
    names = {name for name in (*sys.stdlib_module_names, *sys.modules) if "." not in name or "." in start}
    return sorted(name for name in names if name.startswith(start) and name.startswith("_") <= start.startswith("_"))[
        :_MOST
    ]


def _names(start: str, namespace: Mapping[str, Any]) -> list[str]:
    found: dict[str, str] = {}
    for word in (*keyword.kwlist, *keyword.softkwlist):
        if word.startswith(start) and word != "_":
            suffix = ":" if word in {"finally", "try"} else ""
            bare = {"False", "None", "True", "break", "continue", "pass", "else", "_"}
            found[word] = word + (suffix or ("" if word in bare else " "))
    for names in (namespace, vars(builtins)):
        for name, value in list(names.items()):
            if isinstance(name, str) and name.startswith(start) and name not in found:
                found[name] = name + _suffix(value)
    return list(found.values())[:_MOST]


def _attributes(token: str, namespace: Mapping[str, Any]) -> list[str]:
    path, _dot, start = token.rpartition(".")
    first, *rest = path.split(".")
    value = namespace.get(first, vars(builtins).get(first, _MISSING))
    for name in rest:
        value = _read(value, name)
    if value is _MISSING:
        return []
    words = []
    for name in _listed(value, start):
        attribute = _read(value, name)
        words.append(f"{path}.{name}" + ("" if attribute is _MISSING else _suffix(attribute)))
    return words


def _listed(value: Any, start: str) -> Iterable[str]:
    try:
        names = {name for name in dir(value) if isinstance(name, str) and name.startswith(start)}
    except Exception:  # noqa: BLE001 - __dir__ is user code
        return []
    # As people expect it: private names only when they are asked for.
    if not start:
        names = {name for name in names if not name.startswith("_")} or names
    elif start == "_":
        names = {name for name in names if not name.startswith("__")} or names
    return sorted(names)[:_MOST]


def _read(value: Any, name: str) -> Any:
    """Read an attribute where that runs no user code."""
    if value is _MISSING:
        return _MISSING
    try:
        attribute = inspect.getattr_static(value, name)
    except (AttributeError, TypeError, ValueError):
        return _MISSING
    if isinstance(attribute, (staticmethod, classmethod)):
        attribute = attribute.__func__
    elif isinstance(attribute, _HARMLESS):
        try:
            attribute = getattr(value, name)
        except Exception:  # noqa: BLE001 - C code, but of whatever library
            attribute = _MISSING
    elif not isinstance(value, (type, types.ModuleType)) and not callable(attribute) and _is_computed(attribute):
        attribute = _MISSING
    return attribute


def _is_computed(attribute: Any) -> bool:
    """Whether reading an attribute of an instance would run code: a property or the like."""
    return isinstance(attribute, (property, types.DynamicClassAttribute)) or hasattr(type(attribute), "__get__")


def _suffix(value: Any) -> str:
    """Give what follows the name of something that can be called."""
    plain = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, types.MethodDescriptorType)
    return "(" if isinstance(value, (*plain, types.WrapperDescriptorType, types.MethodWrapperType)) else ""
