"""A process that searches one text for one regular expression; started as a file, alone, with the standard library only.

On its standard input: 8 bytes with the length of the pattern, the pattern, the text, both UTF-8. On its standard output one
JSON value: whether it was found, or the message of a pattern that is none. User-made patterns can take for ever, and
memory without bound: the limits below and whoever started it see to that.
"""

import json
import re
import resource
import sys
import warnings

_MOST_MEMORY = 512 * 1024 * 1024
_MOST_SECONDS = 5


def main() -> None:
    """Answer one question."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    content = sys.stdin.buffer.read()
    end = 8 + int.from_bytes(content[:8], "big")
    pattern, text = (piece.decode("utf-8", "surrogatepass") for piece in (content[8:end], content[end:]))
    try:
        answer: bool | str = re.search(pattern, text) is not None
    except re.error as error:
        answer = str(error)
    except (RecursionError, OverflowError, MemoryError) as error:
        answer = f"{type(error).__name__}: the pattern is too large"
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
