"""Resource policies: what all live kernels of one keypair may take together, and the rule that says whether one more fits.

Pure. Whether a kernel fits is decided by the store, in the statement that takes its place; what is here gives the store its
numbers and the refused client its reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve, frozen

from sorna.model.limits import LEAST_MEMORY, MIB, Limits


@frozen
class ResourcePolicy:
    """A named set of bounds; None is no bound. Sizes in bytes, times in seconds.

    :ivar max_kernels: live kernels at once; a keypair's own ``concurrency_limit`` holds beside it.
    :ivar cpu_cores: of all live kernels together; likewise ``memory`` and ``gpus``.
    :ivar max_folders: virtual folders that a keypair may own, and ``max_folder_size`` the size of each.
    :ivar runtimes: canonical names of the runtimes that may be used.
    :ivar lifetime: how long a kernel may live, and ``idle_timeout`` how long it may sit idle.
    """

    name: str
    max_kernels: int | None = None
    cpu_cores: float | None = None
    memory: int | None = None
    gpus: int | None = None
    max_folders: int | None = None
    max_folder_size: int | None = None
    runtimes: frozenset[str] | None = None
    lifetime: float | None = None
    idle_timeout: float | None = None

    def allows(self, runtime: str) -> bool:
        """Tell whether a runtime, given by its canonical name, may be used."""
        return self.runtimes is None or runtime in self.runtimes


@frozen
class Slots:
    """What kernels take, or have taken, of what is bounded.

    :ivar cpu_millis: thousandths of a processor: sums of fractions must come back to zero.
    """

    kernels: int = 0
    memory: int = 0
    cpu_millis: int = 0
    gpus: int = 0

    def __add__(self, other: Slots) -> Slots:
        return Slots(
            self.kernels + other.kernels,
            self.memory + other.memory,
            self.cpu_millis + other.cpu_millis,
            self.gpus + other.gpus,
        )

    def __sub__(self, other: Slots) -> Slots:
        return Slots(
            self.kernels - other.kernels,
            self.memory - other.memory,
            self.cpu_millis - other.cpu_millis,
            self.gpus - other.gpus,
        )


def within(limits: Limits, policy: ResourcePolicy | None) -> Limits:
    """Bring one kernel's limits within its owner's policy.

    No kernel asks for more than all of the owner's together may have, and the policy's times, being nearer to the case,
    replace those of the installation. Where a bound is too small for any kernel the limit stays, and the store refuses it.
    """
    if policy is None:
        return limits
    memory = limits.memory if policy.memory is None else min(limits.memory, max(policy.memory, LEAST_MEMORY))
    return evolve(
        limits,
        memory=memory,
        cpu_cores=min(limits.cpu_cores, policy.cpu_cores) if policy.cpu_cores else limits.cpu_cores,
        idle_timeout=limits.idle_timeout if policy.idle_timeout is None else policy.idle_timeout,
        lifetime=limits.lifetime if policy.lifetime is None else policy.lifetime,
    )


def slots_of(runtime: str, limits: Limits) -> Slots:
    """Give what one kernel takes: its limits, and one GPU at least for a runtime that is made for them."""
    gpus = max(limits.gpus, int(runtime.endswith("-gpu")))
    return Slots(1, limits.memory, round(limits.cpu_cores * 1000), gpus)


def shortages(taken: Slots, wanted: Slots, concurrency_limit: int, policy: ResourcePolicy | None) -> Iterator[str]:
    """Say of everything that has no room for ``wanted`` how much of it is in use; nothing when it fits."""
    allowed = policy if policy is not None else ResourcePolicy("")
    kernels = concurrency_limit if allowed.max_kernels is None else min(concurrency_limit, allowed.max_kernels)
    if taken.kernels + wanted.kernels > kernels:
        yield f"concurrent kernels: {taken.kernels} of {kernels} in use"
    if allowed.memory is not None and taken.memory + wanted.memory > allowed.memory:
        yield (
            f"memory: {taken.memory // MIB} of {allowed.memory // MIB} MiB in use, {wanted.memory // MIB} MiB more asked for"
        )
    millis = None if allowed.cpu_cores is None else round(allowed.cpu_cores * 1000)
    if millis is not None and taken.cpu_millis + wanted.cpu_millis > millis:
        yield (
            f"processors: {taken.cpu_millis / 1000:g} of {millis / 1000:g} in use,"
            f" {wanted.cpu_millis / 1000:g} more asked for"
        )
    if allowed.gpus is not None and taken.gpus + wanted.gpus > allowed.gpus:
        yield f"GPUs: {taken.gpus} of {allowed.gpus} in use, {wanted.gpus} more asked for"
