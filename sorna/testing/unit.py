"""Base classes of tests; know trial, nothing of Sorna."""

from __future__ import annotations

import inspect
from typing import Any

from twisted.trial.unittest import SynchronousTestCase


class UnitTestCase(SynchronousTestCase):
    """A synchronous test case that refuses coroutine tests: trial would pass them here without running them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check every test and ``setUp`` of the new class."""
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if (name.startswith("test") or name == "setUp") and inspect.iscoroutinefunction(value):
                message = f"{cls.__qualname__}.{name} is a coroutine function; use twisted.trial.unittest.TestCase"
                raise TypeError(message)
