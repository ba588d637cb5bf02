from typing import Any

class UnpackException(Exception): ...

def packb(o: Any, *, use_bin_type: bool = ...) -> bytes: ...
def unpackb(
    packed: bytes | memoryview,
    *,
    raw: bool = ...,
    strict_map_key: bool = ...,
    max_array_len: int = ...,
    max_map_len: int = ...,
) -> Any: ...
