"""One run as init sees it: what was typed for it, which files it found, and what is told of its end.

Standard library only. Knows the frames' shapes and the directory of files; may not know processes, pipes or who executes it.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from sorna.agent.runners.commands import Commands
from sorna.agent.runners.output_files import Fingerprints, changed, fingerprints

# Most typed-ahead text that is kept for a run.
MOST_TYPED = 1024 * 1024
# Seconds by which the clock of files may be behind.
_COARSE = time.clock_getres(5)  # CLOCK_REALTIME_COARSE, whose name Python leaves out


class Run:
    """One run. ``commands`` is None when the REPL executes it.

    :param files: of the directory before it began.
    :ivar found: the files that the REPL found new, when the run came over a lane; see ``frames.py``.
    """

    def __init__(self, identity: str, files: Fingerprints, unattended: bool) -> None:
        self.identity = identity
        self.unattended = unattended
        self.commands: Commands | None = None
        self.typed: deque[str] = deque()
        self.asked = 0
        self.inputs = 0
        self.wants_line = False
        self.ending = False
        self.found: Sequence[str] | None = None
        self._files = files
        self._typed_size = 0

    def keep(self, text: str) -> bool:
        """Keep a line until it is asked for; False when there are too many."""
        if self._typed_size + len(text) > MOST_TYPED:
            return False
        self.typed.append(text)
        self._typed_size += len(text) + 1
        return True

    def began(self, work: str, since: float) -> None:
        """Take for what was there before the run what was written before this moment, in seconds of the epoch."""
        oldest = (since - _COARSE) * 1e9
        self._files = {name: mark for name, mark in fingerprints(work).items() if mark[0] < oldest}

    def new_files(self, work: str) -> Sequence[str]:
        """Name the files that are new or different."""
        if self.found is not None:
            return self.found
        if self._files or os.path.lexists(f"{work}/.output"):
            return changed(self._files, fingerprints(work))
        return []


def outcome(identity: str, exit_code: int) -> dict[str, Any]:
    """Give what FINISHED says of a run that was nothing special."""
    return {"run": identity, "exit_code": exit_code, "exceptions": [], "files": [], "reset": False}
