"""The names of sessions as ZeroMQ clients give them: what becomes of ``user_id:entry_id:lang``; pure.

Note [Names of any kind]
------------------------
Clients of 2016 send any JSON value as a name, of any length. The session token is what Redis and PostgreSQL index, so it must
be printable and short; and it must keep apart what is apart: ``a:b`` with ``c`` is another session than ``a`` with ``b:c``,
which the historic key could not tell. So each name is percent-encoded, ordinary ones staying as they are, and one that is long
becomes its hash behind a ``%`` that no encoding produces. The runtime is the canonical one, because ``python`` and
``python3`` are the same.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any
from urllib.parse import quote

LONGEST_NAME = 128
_ORDINARY = re.compile(r"[A-Za-z0-9_.@+=~-]{0,128}", re.ASCII)


def session_token(user_id: Any, entry_id: Any, runtime: str) -> str:
    """Give the token of a session, at most 300 characters; see Note [Names of any kind].

    :param runtime: canonical name.
    :raises RecursionError: a name is nested too deeply to be spelt.
    """
    return f"{_encoded(str(user_id))}:{_encoded(str(entry_id))}:{runtime}"


def fresh_token(runtime: str) -> str:
    """Give the token of a kernel that belongs to no session; no names give it."""
    return f"%kernel:{secrets.token_urlsafe(16)}:{runtime}"


def _encoded(name: str) -> str:
    if _ORDINARY.fullmatch(name):
        return name
    if len(name) <= LONGEST_NAME:
        encoded = quote(name, safe="@+=", errors="surrogatepass")
        if len(encoded) <= LONGEST_NAME:
            return encoded
    return "%sha256-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
