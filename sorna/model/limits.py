"""The limits of one kernel and how a client's wishes are brought within what the operator allows."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, frozen

KIB = 1024
MIB = 1024 * KIB


@frozen
class Limits:
    """What one kernel may use. Sizes in bytes, times in seconds.

    :ivar memory: all memory of the kernel, its scratch space included.
    :ivar processes: processes and threads at once.
    :ivar cpu_cores: processor time per second of wall time.
    :ivar execution_timeout: longest single run, time spent waiting for input not counted.
    :ivar idle_timeout: how long a kernel may sit without a run or a request.
    :ivar lifetime: how long a kernel may live at all; 0 for no bound.
    :ivar output_size: bytes that one run may print.
    :ivar file_size: largest single file.
    :ivar scratch_size: everything below the working directory and ``/tmp`` together.
    :ivar open_files: open descriptors per process.
    :ivar gpus: whole devices that nobody else has meanwhile.
    """

    memory: int = 512 * MIB
    processes: int = 128
    cpu_cores: float = 1.0
    execution_timeout: float = 180.0
    idle_timeout: float = 600.0
    lifetime: float = 0.0
    output_size: int = 256 * MIB
    file_size: int = 128 * MIB
    scratch_size: int = 256 * MIB
    open_files: int = 1024
    gpus: int = 0


@frozen
class OutputBounds:
    """How long an agent keeps the output of runs that are over.

    :ivar size: bytes of output of all kernels that have ended, together.
    :ivar retention: seconds after a run's end.
    """

    size: int = 64 * MIB
    retention: float = 300.0


# Compilers and virtual machines that cannot start within the ordinary default; bytes of memory and processes.
_HEAVY: Mapping[str, tuple[int, int]] = {
    "java": (1024 * MIB, 256),
    "haskell": (1024 * MIB, 128),
    "rust": (1024 * MIB, 128),
    "cpp": (768 * MIB, 128),
    "go": (1024 * MIB, 256),
    "octave4": (1024 * MIB, 128),
    "python3-torch": (2048 * MIB, 256),
    "python3-torch-gpu": (2048 * MIB, 256),
    "python3-tensorflow": (2048 * MIB, 256),
    "python3-tensorflow-gpu": (2048 * MIB, 256),
}
# Below this no interpreter starts; a smaller wish (clients of 2016 count in KiB and get it wrong) is raised to it.
LEAST_MEMORY = 48 * MIB
LEAST_EXECUTION_TIMEOUT = 0.1


@frozen
class LimitPolicy:
    """What a kernel gets when its client says nothing, and the most it may ask for.

    :ivar default: for every runtime that is not heavy.
    :ivar most_memory: bytes.
    :ivar most_execution_timeout: seconds.
    :ivar most_cpu_cores: processor time per second.
    """

    default: Limits = Limits()
    most_memory: int = 2048 * MIB
    most_execution_timeout: float = 180.0
    most_cpu_cores: float = 2.0

    def limits_for(
        self,
        runtime: str,
        memory: int = 0,
        execution_timeout: float = 0.0,
        cpu_cores: float = 0.0,
        gpus: int = 0,
    ) -> Limits:
        """Bring a client's wishes (0 or less for none) within what is allowed.

        Only of devices nobody gets fewer than were asked for: code that counts on two does not run with one.
        """
        base_memory, base_processes = _HEAVY.get(runtime, (0, 0))
        chosen_memory = memory if memory > 0 else max(base_memory, self.default.memory)
        chosen_timeout = execution_timeout if execution_timeout > 0 else self.default.execution_timeout
        return evolve(
            self.default,
            memory=max(LEAST_MEMORY, min(chosen_memory, self.most_memory)),
            processes=max(base_processes, self.default.processes),
            execution_timeout=max(LEAST_EXECUTION_TIMEOUT, min(chosen_timeout, self.most_execution_timeout)),
            cpu_cores=min(cpu_cores if cpu_cores > 0 else self.default.cpu_cores, self.most_cpu_cores),
            gpus=max(0, gpus),
        )
