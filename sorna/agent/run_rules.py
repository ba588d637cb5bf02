"""Which call does what: the pure rules by which a call to execute starts, continues or feeds a run.

Knows only the two runs that a call can mean, and changes nothing.

Note [Which run a call means]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
Clients of ten years talk to the same session. Those before run ids repeat their call with empty code (or the same batch)
until the run is over, and send a typed line as the code of such a call; later ones say ``continue`` or ``input`` and name
the run. So a call without a run id means the oldest run whose end was not delivered, and what its code is depends on what
the client was told: after ``waiting-input`` it is the line, be it empty; else empty code continues. Code that cannot
belong to the outstanding run starts a new one behind it. Code is never dropped silently: where a named run can take it
neither as a line nor as a repetition of its own code, the call is refused.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from sorna.agent.run import Run, RunState
from sorna.errors import InvalidRequest
from sorna.model.run import RunMode, RunRequest, RunStatus


class Action(Enum):
    """What a call does before it waits for its answer."""

    START = "start"
    CONTINUE = "continue"
    FEED = "feed"


@frozen
class Decision:
    """An action and the run it is about; None for START."""

    action: Action
    run: Run | None = None


_START = Decision(Action.START)


def decide(request: RunRequest, outstanding: Run | None, named: Run | None) -> Decision:
    """Tell what a call does.

    :param outstanding: the oldest run whose end was not delivered and that nobody gave up.
    :param named: the latest run with the call's run id, if it is still known.
    :raises InvalidRequest: there is nothing to continue or to feed, or the code cannot be placed.
    """
    run = outstanding if request.run_id is None else named
    match request.mode:
        case RunMode.CONTINUE:
            return Decision(Action.CONTINUE, _known(run, request))
        case RunMode.INPUT:
            run = _known(run, request)
            if run.delivered:
                raise InvalidRequest("The run is over: nothing waits for input.")
            return _feed(run)
    if run is None or run.delivered:
        return _START
    if run.told is RunStatus.WAITING_INPUT and not _other_batch(request, run):
        return _feed(run)
    if request.run_id is None:
        return _unnamed(request, run)
    return _named(request, run)


def _known(run: Run | None, request: RunRequest) -> Run:
    if run is not None:
        return run
    if request.run_id is None:
        raise InvalidRequest("No run is outstanding in this session.")
    raise InvalidRequest("No run of this session has this run id.")


def _feed(run: Run) -> Decision:
    """Give a line to a run; one that has ended meanwhile tells its end instead, as a terminal would."""
    return Decision(Action.CONTINUE if run.state is RunState.FINISHED else Action.FEED, run)


def _unnamed(request: RunRequest, run: Run) -> Decision:
    if _other_batch(request, run):
        return _START
    if not request.code:
        return Decision(Action.CONTINUE, run)
    if run.state is RunState.WAITING:
        return Decision(Action.FEED, run)
    return _START if request.mode is RunMode.QUERY else Decision(Action.CONTINUE, run)


def _named(request: RunRequest, run: Run) -> Decision:
    if _other_batch(request, run):
        raise InvalidRequest("The run with this id is another batch; use another run id for a new one.")
    if not request.code or request.code == run.request.code:
        return Decision(Action.CONTINUE, run)
    if run.state is RunState.WAITING:
        return Decision(Action.FEED, run)
    raise InvalidRequest("The run with this id does not wait for input; use another run id for new code.")


def _other_batch(request: RunRequest, run: Run) -> bool:
    """Tell whether a call carries build or execution commands that the run was not started with."""
    if request.mode is not RunMode.BATCH or not (request.build or request.exec):
        return False
    first = run.request
    return first.mode is not RunMode.BATCH or (
        (request.build or "", request.exec or "") != (first.build or "", first.exec or "")
    )
