"""From a ``multipart/form-data`` body to files; pure, and paths stay as they came: the manager judges them.

Source: section 2.7 of the REST interface's specification. Each part is one file, whatever its field is called; the
``filename`` is the destination. HTTP libraries of the time escape it in several ways: RFC 5987's ``filename*`` wins over
``filename``, which may then be percent-encoded altogether.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from multipart import MultipartError, MultipartSegment, PushMultipartParser, content_disposition_unquote

from sorna.errors import InvalidRequest
from sorna.manager.interfaces import UploadFile
from sorna.model.limits import MIB

MAX_FILES = 20
MAX_FILE_SIZE = MIB
_MAX_PATH = 4096

_TYPE = re.compile(
    rb'multipart/form-data\s*;.*?\bboundary=(?:"([^"\r\n]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE | re.DOTALL
)
# A parameter of a header.  Unquoted values may hold what RFC 2045 forbids, such as slashes: a path cut short at the first of
# them would be another path.
_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"\s]*)\s*', re.ASCII)
_CHARSETS = frozenset({"utf-8", "us-ascii", "iso-8859-1"})


def read_files(content_type: bytes, body: bytes) -> Sequence[UploadFile]:
    """Take a body apart.

    :raises InvalidRequest: it is no form, or has too many files or too large ones.
    """
    boundary = _TYPE.match(content_type.strip())
    if boundary is None:
        raise InvalidRequest("The body must be multipart/form-data with a boundary")
    try:
        return _parse(boundary[1] or boundary[2], body)
    except MultipartError as error:
        raise InvalidRequest(f"Malformed multipart body: {error.args[0] if error.args else 'unreadable'}") from None


def _parse(boundary: bytes, body: bytes) -> Sequence[UploadFile]:
    parser = PushMultipartParser(boundary, max_header_size=2 * _MAX_PATH + 256)
    files: list[UploadFile] = []
    path = ""
    content = bytearray()
    for event in parser.parse(body):
        if isinstance(event, MultipartSegment):
            if len(files) == MAX_FILES:
                raise InvalidRequest("Too many files")
            path, content = destination(event.header("Content-Disposition") or ""), bytearray()
        elif event is None:
            files.append(UploadFile(path, bytes(content)))
        elif len(content) + len(event) > MAX_FILE_SIZE:
            raise InvalidRequest("Too large file")
        else:
            content += event
    parser.close()
    if not files:
        raise InvalidRequest("No files")
    return files


def destination(disposition: str) -> str:
    """Give the path in a ``Content-Disposition`` header.

    :raises InvalidRequest: there is none, or it cannot be read.
    """
    named: dict[str, str] = {}
    position = len(disposition) if ";" not in disposition else disposition.index(";")
    while position < len(disposition):
        parameter = _PARAMETER.match(disposition, position)
        if parameter is None:
            if disposition[position:].strip("; \t"):
                raise InvalidRequest("Malformed Content-Disposition header of a file")
            break
        named.setdefault(parameter[1].lower(), parameter[2])
        position = parameter.end()
    if "filename*" in named:
        path = _extended(named["filename*"])
    elif "filename" in named:
        path = content_disposition_unquote(named["filename"])
    else:
        raise InvalidRequest("A file has no filename")
    if not path or len(path) > _MAX_PATH:
        raise InvalidRequest(f"A filename must be 1 to {_MAX_PATH} characters long")
    return path


def _extended(value: str) -> str:
    charset, quote, rest = value.strip('"').partition("'")
    _language, second_quote, escaped = rest.partition("'")
    if not quote or not second_quote or charset.lower() not in _CHARSETS:
        raise InvalidRequest("Malformed filename* of a file")
    try:
        return unquote_to_bytes(escaped).decode(charset)
    except UnicodeDecodeError:
        raise InvalidRequest("Malformed filename* of a file") from None
