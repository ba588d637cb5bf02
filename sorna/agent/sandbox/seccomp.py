"""Which system calls user code may make: a filter in classic BPF, assembled here because libseccomp may be absent.

Standard library only: it is loaded in zygotes. Knows the policy and how to write it as a program for Linux's seccomp;
may not know kernels, agents or namespaces. :func:`filter_program` is pure; :func:`install` puts a program on the
calling thread, for ever and for all its children.

The filter is an allowlist with fallbacks: what programs ask for without need answers "no such call" or "not permitted"
and never kills, except for calls in a foreign numbering (32 bits, x32), which would pass any list by number. A kernel's
own runner may add filters later, so ``seccomp`` and ``prctl`` are allowed: a later filter can only take away.
"""

import ctypes
import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

from sorna.agent.sandbox.namespaces import checked, machine, prctl, syscall
from sorna.agent.sandbox.syscalls import TABLES, CallTable

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16

RETURN_ALLOW = 0x7FFF0000
RETURN_KILL_PROCESS = 0x80000000
_RETURN_ERRNO = 0x00050000

_X32_BIT = 0x40000000

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; unshare(2) also takes NEWTIME, whose bit means
# a signal number in clone(2).
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_NEW_TIME_NAMESPACE = 0x00000080

# Types into a terminal as if its user had (TIOCSTI, TIOCLINUX), or makes Linux load a module (TIOCSETD).
_REFUSED_IOCTLS = (0x5412, 0x541C, 0x5423)
_ALLOWED_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_FAMILY_NETLINK = 16
_NETLINK_ROUTE = 0  # what getifaddrs(3) asks
# Query, Linux's default, and the two harmless flags that old binaries and 32-bit uname emulation use.
_ALLOWED_PERSONALITIES = (0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)


class Instruction(NamedTuple):
    """One classic BPF instruction: ``jt`` and ``jf`` count the instructions to skip."""

    code: int
    jt: int
    jf: int
    k: int


def _refuse(number: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, _RETURN_ERRNO | number)


_ALLOW = Instruction(_RETURN, 0, 0, RETURN_ALLOW)
_NOT_PERMITTED = _refuse(errno.EPERM)
_NO_SUCH_CALL = _refuse(errno.ENOSYS)
_KILL = Instruction(_RETURN, 0, 0, RETURN_KILL_PROCESS)


def _load_argument(index: int) -> Instruction:
    """Load the low half of an argument: Linux looks at no more of the arguments that we judge (little endian)."""
    return Instruction(_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * index)


def _one_of(argument: int, values: Iterable[int], found: Instruction, other: Instruction) -> list[Instruction]:
    values = list(values)
    tests = [Instruction(_JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_load_argument(argument), *tests, other, found]


def _without_bits(argument: int, bits: int) -> list[Instruction]:
    return [_load_argument(argument), Instruction(_JUMP_ANY_BIT, 0, 1, bits), _NOT_PERMITTED, _ALLOW]


def _judge_socket() -> list[Instruction]:
    refusal = _refuse(errno.EAFNOSUPPORT)
    netlink = _one_of(2, (_NETLINK_ROUTE,), _ALLOW, refusal)
    tests = [
        Instruction(_JUMP_EQUAL, len(_ALLOWED_FAMILIES) + 1 - place, 0, family)
        for place, family in enumerate(_ALLOWED_FAMILIES)
    ]
    return [
        _load_argument(0),
        *tests,
        Instruction(_JUMP_EQUAL, 2, 0, _FAMILY_NETLINK),
        refusal,
        _ALLOW,
        *netlink,
    ]


def _judgements(table: CallTable) -> list[tuple[int, list[Instruction]]]:
    blocks = {
        "clone": _without_bits(0, _NEW_NAMESPACES),
        "unshare": _without_bits(0, _NEW_NAMESPACES | _NEW_TIME_NAMESPACE),
        "socket": _judge_socket(),
        "ioctl": _one_of(1, _REFUSED_IOCTLS, _NOT_PERMITTED, _ALLOW),
        "personality": _one_of(0, _ALLOWED_PERSONALITIES, _ALLOW, _NOT_PERMITTED),
    }
    return [(table.judged[name], block) for name, block in blocks.items()]


def _by_number(table: CallTable) -> list[Instruction]:
    """Decide by number alone, as a chain over runs of neighbours with the same verdict.

    Linux remembers per number that a filter always allows it, so the length of the chain is paid once (5.11 and newer).
    """
    verdicts = dict.fromkeys(table.denied.values(), _NOT_PERMITTED)
    verdicts.update(dict.fromkeys(table.allowed.values(), _ALLOW))
    chain: list[Instruction] = []
    verdict = verdicts.get(0, _NO_SUCH_CALL)
    for number in range(1, max(verdicts) + 2):
        following = verdicts.get(number, _NO_SUCH_CALL)
        if following != verdict:
            chain += [Instruction(_JUMP_AT_LEAST, 1, 0, number), verdict]
            verdict = following
    return [*chain, _NO_SUCH_CALL]


def filter_instructions(architecture: str) -> list[Instruction]:
    """Write the policy as instructions.

    :raises KeyError: there is no table for the architecture.
    """
    table = TABLES[architecture]
    program = [
        Instruction(_LOAD, 0, 0, _OFFSET_ARCH),
        Instruction(_JUMP_EQUAL, 1, 0, table.audit_arch),
        _KILL,
        Instruction(_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    if architecture == "x86_64":
        program += [Instruction(_JUMP_AT_LEAST, 0, 1, _X32_BIT), _KILL]
    for number, block in _judgements(table):
        program += [Instruction(_JUMP_EQUAL, 0, len(block), number), *block]
    return program + _by_number(table)


def filter_program(architecture: str | None = None) -> bytes:
    """Give the filter as Linux wants it: 8 bytes per instruction, in this machine's byte order.

    :raises OSError: there is no table for this machine.
    """
    architecture = architecture or machine()
    if architecture not in TABLES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {architecture}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in filter_instructions(architecture))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_SET_MODE_FILTER = 1


def install(program: bytes) -> None:
    """Put the filter on the calling thread; ``no_new_privs`` must be set.

    :raises OSError: this Linux has no seccomp filters.
    """
    fprog = _Program(len(program) // 8, program)
    address = ctypes.addressof(fprog)
    if syscall("seccomp", _SET_MODE_FILTER, 0, address) < 0:
        checked(prctl(_PR_SET_SECCOMP, _MODE_FILTER, address), "seccomp")
