"""Sorna: a self-hosted server that runs other people's code safely and answers at once.

The package's rooms and what each may know are drawn in ``docs/architecture.rst``.
"""

__version__ = "0.1.0.dev0"
