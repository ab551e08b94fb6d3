"""Classic BPF as far as seccomp filters of ours use it: what a compiled filter says to a call, and by which way."""

import struct
from typing import NamedTuple

X86_64 = 0xC000003E  # linux/audit.h
SITE = 0x7F12_3456_789A  # some address of an instruction


class Call(NamedTuple):
    """What the kernel shows to a filter: struct seccomp_data."""

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
    """Classic BPF as far as the filter uses it; anything else, and a jump out of it, is an error."""
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
