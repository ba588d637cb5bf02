"""What a client is told about limits and about ends that its code did not choose: exit codes and sentences, all of them pure.

Knows no timer and no channel. Exit codes are those a shell would show: 124 as ``timeout`` gives it, 128 and the signal.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from attrs import frozen

from sorna.agent.interfaces import KernelExit, LimitHits
from sorna.agent.run import Ending
from sorna.model.limits import MIB, Limits

LIMIT_PASSED = 124
INTERRUPTED = 130
KILLED = 137
SIGKILL = 9


@frozen
class Verdict:
    """Why the agent ends a run: the exit code it gets, the sentence on its stderr, and whether time was the reason."""

    exit_code: int
    sentence: str
    timed_out: bool = False


def execution_timeout(limits: Limits) -> Verdict:
    """Tell a run that it computed for too long."""
    sentence = f"The run was ended: it took longer than its limit of {limits.execution_timeout:g} seconds.\n"
    return Verdict(LIMIT_PASSED, sentence, timed_out=True)


def output_size(limits: Limits) -> Verdict:
    """Tell a run that it printed too much."""
    return Verdict(LIMIT_PASSED, f"The run was ended: it printed more than its limit of {_size(limits.output_size)}.\n")


def restarted() -> Verdict:
    """Tell a run that its kernel is being restarted."""
    return Verdict(INTERRUPTED, "The run was ended: the kernel was restarted.\n")


def destroyed(reason: str) -> Verdict:
    """Tell a run that its kernel goes away."""
    return Verdict(INTERRUPTED, f"The run was ended: the kernel was destroyed ({reason}).\n")


def stuck() -> Verdict:
    """Tell a run that its kernel did not do what it was told."""
    return Verdict(KILLED, "The run was ended: the kernel did not obey and was destroyed.\n")


def died(end: KernelExit, limits: Limits) -> tuple[str, Verdict]:
    """Give the reason of an end that nobody asked for, and what the kernel's runs are told."""
    if end.out_of_memory:
        sentence = f"The kernel was ended: it used more than its limit of {_size(limits.memory)} of memory.\n"
        return "out-of-memory", Verdict(KILLED, sentence)
    exit_code = KILLED if end.status == -SIGKILL else INTERRUPTED
    how = f"signal {-end.status}" if end.status < 0 else f"exit status {end.status}"
    return "crashed", Verdict(exit_code, f"The kernel ended unexpectedly ({how}).\n")


def state_lost(reason: str) -> str:
    """Say that the kernel lost what it had in memory between two runs."""
    return f"The kernel lost its in-memory state: {reason}\n"


def limit_sentences(before: LimitHits, after: LimitHits, limits: Limits) -> Sequence[str]:
    """Name the limits that were hit in between."""
    sentences: list[str] = []
    if _more(before.out_of_memory, after.out_of_memory):
        sentences.append(f"The kernel ran out of memory: its limit is {_size(limits.memory)}.\n")
    if _more(before.processes, after.processes):
        sentences.append(f"The kernel ran out of processes: its limit is {limits.processes}.\n")
    return sentences


def judge(
    ending: Ending, verdict: Verdict | None, before: LimitHits, after: LimitHits, limits: Limits
) -> tuple[Ending, Sequence[str]]:
    """Tell how a run is reported that ended as ``ending``, and which sentences go to its stderr.

    A run whose process was killed for want of memory has 137; one that lost a child and went on keeps its own exit code.

    :param before, after: how often limits had been hit when the run started and when it ended.
    """
    if verdict is None and before == after:
        return ending, ()
    sentences = limit_sentences(before, after, limits)
    exit_code = ending.exit_code
    killed = ending.reset or ending.signal == SIGKILL or exit_code in {None, KILLED}
    if killed and _more(before.out_of_memory, after.out_of_memory):
        exit_code = KILLED
    if verdict is not None:
        sentences = (*sentences, verdict.sentence)
        exit_code = verdict.exit_code
        ending = attrs.evolve(ending, timed_out=verdict.timed_out)
    return attrs.evolve(ending, exit_code=exit_code), sentences


def _more(before: int, after: int) -> bool:
    return after > max(before, 0)


def _size(amount: int) -> str:
    if amount >= MIB and amount % MIB == 0:
        return f"{amount // MIB} MiB"
    return f"{amount} bytes"
