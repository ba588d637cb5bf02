"""The names of runtimes: one canonical name each, and every alias a published client uses.

How a runtime builds and executes is the agent's business (``sorna/agent/languages.py``); the manager only resolves names,
so that ``python`` and ``python3`` find the same session.
"""

from __future__ import annotations

from collections.abc import Mapping

# Canonical name -> aliases.  The names and the misspelt "ocatve" are those of the published interface.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "python3": ("python", "python34", "python35", "python36"),
    "python2": ("python26", "python27"),
    "python3-torch": (),
    "python3-torch-gpu": (),
    "python3-tensorflow": ("python3-deeplearning", "tensorflow-python3"),
    "python3-tensorflow-gpu": ("tensorflow-python3-gpu", "tensorflow-gpu-python3"),
    "python3-caffe": ("caffe-python3",),
    "python3-theano": ("theano-python3",),
    "r3": ("r", "R", "Rscript"),
    "php5": (),
    "php7": ("php",),
    "nodejs6": ("node", "nodejs", "js", "javascript", "nodejs4"),
    "git": ("git-shell", "shell"),
    "julia": (),
    "lua5": ("lua",),
    "haskell": (),
    "octave4": ("octave", "ocatve"),
    "cpp": ("c++",),
    "c": (),
    "java": (),
    "go": ("golang",),
    "rust": (),
    "ruby": ("ruby3", "rb"),
}

_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}


def resolve_runtime(name: str) -> str | None:
    """Give the canonical name for a name or alias, or None when nobody knows it.

    A version tag as later clients write it (``python:latest``) is ignored: a host has one version of each runtime.
    """
    base, _, _tag = name.partition(":")
    return _CANONICAL.get(base)
