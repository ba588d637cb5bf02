"""The GPUs of this host: which there are, who has which, and how a kernel learns of its own.

Knows device nodes as paths, whatever driver is behind them; may not know kernels, runtimes or how nodes get into a sandbox. The
directory with the nodes is ``/dev`` on a real host.

Note [Which number is which]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~
``NVIDIA_VISIBLE_DEVICES`` has the numbers of the device nodes, as they are on the host. ``CUDA_VISIBLE_DEVICES`` counts what the
process can see: where a kernel sees the nodes of its own devices alone, these are 0, 1 and so on; where it sees all of them,
they are the host's numbers, and an empty text keeps the others' devices from kernels that asked for none.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen
from twisted.logger import Logger

from sorna.errors import NoAgentAvailable

_NODE = re.compile(r"nvidia(\d{1,3})", re.ASCII)
#: Nodes that belong to the driver and not to one device: every kernel with a device needs those that are there.
_SHARED = ("nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools")


@frozen
class Allotment:
    """The devices of one kernel.

    :ivar numbers: of the devices, as they are on the host.
    :ivar nodes: paths of the device nodes that it may see, the driver's own among them.
    """

    numbers: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()


class Devices:
    """The devices of this host, and which are free.

    :param directory: where the device nodes are; whatever there is no character device is passed over.
    :param hidden: whether a kernel sees no device nodes but its own.
    """

    _log = Logger()

    def __init__(self, directory: Path, *, hidden: bool) -> None:
        self._hidden = hidden
        self._nodes = {number: str(path) for number, path in _find(directory)}
        self._shared = tuple(str(directory / name) for name in _SHARED if _is_device(directory / name))
        self._free = set(self._nodes)
        if self._nodes:
            self._log.info("GPUs offered: {numbers}", numbers=", ".join(map(str, sorted(self._nodes))))

    def __len__(self) -> int:
        """Tell how many devices there are."""
        return len(self._nodes)

    def take(self, count: int) -> Allotment:
        """Take so many devices, those with the lowest numbers.

        :raises NoAgentAvailable: there are not as many free; none is taken.
        """
        if count > len(self._free):
            raise NoAgentAvailable(f"{len(self._free)} of {len(self._nodes)} GPUs of this agent are free, not {count}.")
        if count <= 0:
            return Allotment()
        numbers = tuple(sorted(self._free)[:count])
        self._free.difference_update(numbers)
        return Allotment(numbers, (*(self._nodes[number] for number in numbers), *self._shared))

    def keep(self, numbers: Iterable[int]) -> Allotment:
        """Take it that a kernel of the program before this one has these devices; those that are gone are left out."""
        kept = tuple(number for number in numbers if number in self._nodes)
        self._free.difference_update(kept)
        return Allotment(kept, (*(self._nodes[number] for number in kept), *self._shared))

    def give_back(self, allotment: Allotment) -> None:
        """Let others have a kernel's devices; nothing of the kernel may be left."""
        self._free.update(allotment.numbers)

    def environ(self, allotment: Allotment) -> Mapping[str, str]:
        """Give the variables by which a kernel finds its devices; see Note [Which number is which]."""
        if not allotment.numbers:
            return (
                {}
                if self._hidden or not self._nodes
                else {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
            )
        seen: Iterable[int] = range(len(allotment.numbers)) if self._hidden else allotment.numbers
        return {
            # The order of the nodes' numbers; by default CUDA puts the fastest first.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, seen)),
            "NVIDIA_VISIBLE_DEVICES": ",".join(map(str, allotment.numbers)),
        }


def _find(directory: Path) -> Iterable[tuple[int, Path]]:
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return
    for path in paths:
        match = _NODE.fullmatch(path.name)
        if match is not None and _is_device(path):
            yield int(match[1]), path


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.lstat().st_mode)
    except OSError:
        return False
