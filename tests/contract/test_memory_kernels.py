"""The contract of kernels, for the fake that the tests of the doors use."""

from __future__ import annotations

from twisted.internet.task import Clock

from sorna.testing.kernels import MemoryKernels
from tests.contract import kernels


class MemoryKernelsTests(kernels.KernelsContract):
    """Kernels in memory."""

    def setUp(self) -> None:
        self.kernels = MemoryKernels(Clock(), concurrency_limit=2)
