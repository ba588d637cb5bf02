"""Throws frames at the codec for as long as one says: ``python -m tests.legacy.fuzz_codec --seconds 60 --seed 1``.

Every frame must be a request or malformed, in little time, and every request must be answerable with JSON. The seed makes the
frames; the first that breaks a rule is printed with it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from hypothesis import strategies as st

from sorna.legacy.codec import MalformedRequest, decode, encode, pong
from sorna.testing.legacy import CHEAP_REQUESTS, garbage

# Seconds that reading and answering one frame may take; a frame that seems slow is tried again, as machines have pauses.
SLOW = 0.1
REQUESTS = (
    *CHEAP_REQUESTS,
    b'{"action": 2, "user_id": "u", "entry_id": "e", "lang": "python3"}',
    b'{"action": 1, "entry_id": "e", "kernel_id": "Otgl63IRSZimXCBfwvXsWw", "cell_id": "1", "code": "print(1)"}',
)


def frame_of(generator: random.Random) -> bytes:
    """Make a frame."""
    return garbage(generator, REQUESTS, 4 * 1024 * 1024)


def frames() -> st.SearchStrategy[bytes]:
    """Give such frames to property tests."""
    return st.randoms(use_true_random=False).map(frame_of)


def check(frame: bytes) -> None:
    """Read and answer one frame. :raises AssertionError: a rule is broken."""
    try:
        request = decode(frame)
    except MalformedRequest:
        return
    assert isinstance(request, dict)
    assert "action" in request
    reply = json.loads(encode(pong(request)).decode("utf-8"))
    assert reply["reply"] in {0, 500}, reply


def _seconds_for(frame: bytes) -> float:
    started = time.perf_counter()
    check(frame)
    return time.perf_counter() - started


def main() -> int:
    """Fuzz; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=20161025)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    end = time.monotonic() + arguments.seconds
    count = 0
    while time.monotonic() < end:
        frame = frame_of(generator)
        count += 1
        try:
            assert _seconds_for(frame) < SLOW or _seconds_for(frame) < SLOW, "it took too long"
        except Exception as error:  # noqa: BLE001 - whatever is wrong is what is looked for
            sys.stdout.write(f"frame {count} of seed {arguments.seed}: {error!r}\n{frame[:2000]!r}\n")
            return 1
    sys.stdout.write(f"{count} frames of seed {arguments.seed}: none broke a rule\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
