"""The calls of Linux that Python does not offer, through ctypes: prctl, seccomp and how full a pipe is.

Standard library only; knows numbers and structures, and nothing of kernels, runs or frames.
"""

import ctypes
import fcntl
import os
import platform
import termios

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3

_NOTHING = bytes(4)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def prctl(option: int, value: int) -> None:
    """Change a property of this process. :raises OSError: Linux refused."""
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    _checked(_libc.prctl(option, *arguments), "prctl")


def install_listening_filter(program: bytes) -> int:
    """Put a seccomp filter on this process for ever and give the descriptor that hears its notifications.

    :raises OSError: this Linux cannot, or another filter of this process has a listener already.
    """
    number = _SECCOMP_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, os.strerror(38), "seccomp")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    filter_ = _Program(len(program) // 8, program)
    result = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_NEW_LISTENER),
        ctypes.byref(filter_),
    )
    return _checked(result, "seccomp")


def bytes_waiting(pipe: int) -> int:
    """Tell how many bytes are in a pipe; either end may ask. :raises OSError: the descriptor is closed."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, _NOTHING), "little")
