from collections.abc import Callable
from datetime import datetime, tzinfo

class ParserError(ValueError): ...

def parse(
    timestr: str,
    *,
    default: datetime | None = ...,
    tzinfos: Callable[[str | None, int | None], tzinfo | int | None] | None = ...,
) -> datetime: ...
