"""``python -m bench``: the whole table, or parts of it."""

from __future__ import annotations

from bench import creating, executing, printing
from bench.parts import run_alone

PARTS = {**creating.PARTS, **executing.PARTS, **printing.PARTS}

if __name__ == "__main__":
    run_alone(PARTS)
