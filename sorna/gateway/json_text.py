"""Writes JSON of which most is a program's output, several times as fast as the library does where that is plain text.

Pure. A text comes out as ``json.dumps`` would write it, to the byte: in ASCII, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from sorna.gateway.call import encode_json

#: Text that is shorter is not worth looking at first.
SHORT = 1024
# Where every eighth character has to be written otherwise, the library is as fast.
_SPARSE = 8
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_ESCAPED = {
    bytes([byte]): encode_basestring_ascii(chr(byte))[1:-1].encode("ascii")
    for byte in (0x5C, *(other for other in range(0x80) if other != 0x5C))
    if byte not in _PLAIN
}


def encode_text(text: str) -> str:
    """Write one text, with its quotation marks.

    The library goes through a text character by character; searching and replacing bytes is what processors are fast at.
    """
    if len(text) < SHORT or not text.isascii():
        return encode_basestring_ascii(text)
    raw = text.encode("ascii")
    special = raw.translate(None, _PLAIN)
    if len(special) * _SPARSE > len(raw):
        return encode_basestring_ascii(text)
    # The backslash is the first of the table: those that come with the others stay as they are.
    for byte, escaped in _ESCAPED.items():
        if byte in special:
            raw = raw.replace(byte, escaped)
    return f'"{raw.decode("ascii")}"'


def encode_output(content: Mapping[str, Any]) -> str:
    """Write an object whose ``console`` has a run's output: pairs of a kind and what is mostly text; that field comes last."""
    console: Sequence[Sequence[Any]] = content["console"]
    if sum(len(piece) for _kind, piece in console if isinstance(piece, str)) < SHORT:
        return encode_json(content).decode("ascii")
    others = {name: value for name, value in content.items() if name != "console"}
    pieces = ", ".join(
        f'["{kind}", {encode_text(piece) if isinstance(piece, str) else encode_json(piece).decode("ascii")}]'
        for kind, piece in console
    )
    return f'{encode_json(others).decode("ascii")[:-1]}, "console": [{pieces}]}}'
