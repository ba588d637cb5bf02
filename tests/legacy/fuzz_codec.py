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

# Seconds that reading and answering one frame may take; a frame that seems slow is tried again, as machines have pauses.
SLOW = 0.1
SEEDS = (
    b'{"action": 0, "body": "hello"}',
    b'{"action": 2, "user_id": "u", "entry_id": "e", "lang": "python3"}',
    b'{"action": 1, "entry_id": "e", "kernel_id": "Otgl63IRSZimXCBfwvXsWw", "cell_id": "1", "code": "print(1)"}',
    '{"action": 0, "body": {"x": [1, null, "한"]}}'.encode(),
    b'{"action": 0.0, "body": [1e308, -0, 1E-400, true, "\\ud800\\n"]}',
)
TOKENS: tuple[bytes, ...] = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b" " * 5000),
    *(b"NaN", b"Infinity", b"1e999", b"-", b"0", b"null", b"9" * 4301),
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"[" * 2000, b'{"a":' * 2000, b'"x",' * 999),
)


def mutated(generator: random.Random) -> bytes:
    """Make a frame: a request with pieces cut, doubled, moved or replaced, or noise."""
    if generator.random() < 0.1:
        return generator.randbytes(generator.randrange(200))
    frame = bytearray(generator.choice(SEEDS))
    for _ in range(generator.randrange(1, 8)):
        place = generator.randrange(len(frame) + 1)
        until = min(len(frame), place + generator.randrange(1, 12))
        match generator.randrange(5):
            case 0:
                del frame[place:until]
            case 1:
                frame[place:place] = generator.choice(TOKENS)
            case 2:
                frame[place:place] = bytes(frame[place:until]) * generator.choice((1, 2, 2000))
            case 3:
                frame[place:until] = generator.randbytes(until - place)
            case 4:
                other = generator.choice(SEEDS)
                frame[place:] = other[generator.randrange(len(other)) :]
    return bytes(frame[: 4 * 1024 * 1024])


def frames() -> st.SearchStrategy[bytes]:
    """Give such frames to property tests."""
    return st.randoms(use_true_random=False).map(mutated)


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
        frame = mutated(generator)
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
