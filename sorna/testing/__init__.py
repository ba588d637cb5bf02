"""Public fakes, builders and base classes for tests of Sorna and of programs around it."""
