"""A machine for classic BPF, as far as our seccomp filters use it: runs a compiled filter on a call, and returns its
verdict and the instructions that it executed."""

import struct
from typing import NamedTuple

X86_64 = 0xC000003E  # linux/audit.h
SITE = 0x7F12_3456_789A  # an arbitrary address of the `syscall` instruction


class Call(NamedTuple):
    """What the kernel passes to a filter: struct seccomp_data."""

    nr: int
    arch: int = X86_64
    ip: int = SITE
    args: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)


class Filter(NamedTuple):
    code: list[tuple[int, int, int, int]]
    numbers: dict[str, int]


class Answer(NamedTuple):
    verdict: int
    path: list[int]  # the instructions executed


def run(built: Filter, call: Call) -> Answer:
    """Runs the filter. An instruction that our filters do not use is an error, and so is a jump out of the filter."""
    data = struct.pack("<iIQ6Q", call.nr, call.arch, call.ip, *call.args)
    at = accumulator = 0
    path = []
    while True:
        code, if_true, if_false, k = built.code[at]
        path.append(at)
        at += 1
        if code == 0x20:  # LD W ABS
            assert k % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x15:  # JMP JEQ K
            at += if_true if accumulator == k else if_false
        elif code == 0x35:  # JMP JGE K
            at += if_true if accumulator >= k else if_false
        elif code == 0x06:  # RET K
            return Answer(k, path)
        else:
            raise AssertionError(f"instruction {at - 1}: code {code:#x}")
