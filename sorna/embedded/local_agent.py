"""The agent that the embedded mode runs as a child, which may be drained and then waits until it is wanted again.

Knows how to run ``python -m sorna.agent``, and nothing of what an agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.python.failure import Failure

from sorna.embedded.child import Child, write_options


class LocalAgent(Child):
    """Keeps one agent process running.

    :param options: the agent's options, written to ``<state_dir>/agent.toml``.
    :param refused: called once, with the agent's last words, when it says that it can never start.
    :param waiting: whether it waits for :meth:`resume` instead of starting with the service.
    """

    def __init__(
        self,
        reactor: IReactorProcess,
        clock: IReactorTime,
        state_dir: Path,
        options: Mapping[str, str | float | bool],
        refused: Callable[[str], None],
        *,
        waiting: bool = False,
    ) -> None:
        self._path = state_dir / "agent.toml"
        self._options = options
        self._waiting = waiting
        arguments = ["sorna.agent", "--config", str(self._path), "--exit-with-parent"]
        super().__init__(reactor, clock, "local agent", arguments, refused)

    def startService(self) -> None:
        """Start the agent."""
        write_options(self._path, self._options)
        super().startService()

    def spawn(self) -> None:
        """Start the process, if it is not to wait."""
        if not self._waiting:
            super().spawn()

    def resume(self) -> None:
        """Start an agent that waits, or that has ended by itself because its work was done; harmless for any other."""
        if self.running and self._waiting:
            self._waiting = False
            self.spawn()

    def is_done(self, reason: Failure) -> bool:
        """Tell whether it has been drained: it stops by itself then, and for nothing else."""
        if reason.check(ProcessDone) is None:
            return False
        self._waiting = True
        self._log.info("the local agent has stopped; it is started again when it is not drained any more")
        return True
