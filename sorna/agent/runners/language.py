"""One row of the language table as it travels into a kernel; standard library only.

How each field is used in query and batch mode is decided by ``commands.py``; the rows are in ``agent/languages.py``.
"""

from typing import Any, NamedTuple


class Language(NamedTuple):
    """How one runtime queries, builds and executes. The scripts are for bash, in ``/home/work``, inside the sandbox.

    :ivar name: canonical runtime name.
    :ivar repl: whether a resident runner keeps state between runs (``python3``); ``query`` is then unused.
    :ivar source: file name that query mode writes the code to, in a fresh directory; its path is ``$SORNA_SOURCE`` and
        its directory ``$SORNA_SOURCE_DIR``.
    :ivar query: script that compiles where needed and runs ``$SORNA_SOURCE``; its exit code is the run's.
    :ivar build: script for the build command ``*``.
    :ivar exec: script for the exec command ``*``.
    """

    name: str
    repl: bool
    source: str
    query: str
    build: str
    exec: str


def language_from_json(row: Any) -> Language:
    """Read a row as :meth:`Language._asdict` wrote it.

    :raises ValueError: something is missing or of another type.
    """
    try:
        language = Language(**row)
    except TypeError as error:
        message = f"not a row of the language table: {error}"
        raise ValueError(message) from error
    for name, value in language._asdict().items():
        if not isinstance(value, bool if name == "repl" else str):
            message = f"{name} has a value of the wrong type"
            raise ValueError(message)  # noqa: TRY004
    return language
