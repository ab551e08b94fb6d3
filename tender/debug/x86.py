"""Facts of the processor: its debug registers, and which instructions the sandbox emulates.

Those fault in ring 3, and a debugger must not take that for the guest's fault. Source: bindings/arch/x86_64/emulate.c, whose
dispatch() has the same list; the opcodes are those of the Intel SDM, volume 2.
"""

from tender.debug.target import Watch

TRAP_FLAG = 0x100
"""The flag by which the processor executes one instruction; Intel SDM volume 1, 3.4.3.3."""
DEBUG_ADDRESSES = 4
"""How many addresses the debug registers hold."""
WATCH_LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
"""The LEN field of DR7 for a number of bytes."""
DR7_LOCAL, DR7_GLOBAL = 1, 2
"""The enable bits of DR7 for one address. The kernel's ptrace takes the first, KVM the second."""

_RW = {Watch.HARDWARE: 0, Watch.WRITE: 1, Watch.READ: 3, Watch.ACCESS: 3}

_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3))
_ONE = frozenset(
    (
        *range(0x6C, 0x70),
        *range(0xE4, 0xE8),
        *range(0xEC, 0xF0),
        0x8E,
        0xCA,
        0xCB,
        0xCD,
        0xCF,
        0xF4,
        0xFA,
        0xFB,
    )
)
"""Ports, MOV to a segment register, far returns, INT, IRET, HLT, CLI, STI."""
_TWO = frozenset(
    (
        0x06,
        0x07,
        0x08,
        0x09,
        *range(0x20, 0x24),
        0x30,
        0x31,
        0x32,
        0x33,
        0x34,
        0x35,
        0x78,
        0x79,
        0xA1,
        0xA9,
        0xAA,
    )
)
"""After 0F: CLTS, SYSRET, INVD, WBINVD, control and debug registers, MSRs, RDTSC, SYSENTER, VMREAD, POP FS and GS, RSM."""
_FAR_POINTERS = frozenset((0xB2, 0xB4, 0xB5))
_OF_0F01 = frozenset((0xD1, 0xF8, *range(0xC1, 0xC5), 0xC8, 0xC9, 0xCA, 0xCB, *range(0xD8, 0xE0), 0xFA, 0xFB))
_LOCK = 0xF0


def is_emulated(code: bytes) -> bool:
    """Returns whether the sandbox emulates the instruction that these bytes begin with, or ends the run at it."""
    at = 0
    while at < len(code) and (code[at] in _PREFIXES or code[at] == _LOCK):
        if code[at] == _LOCK:
            return False
        at += 1
    if at < len(code) and code[at] & 0xF0 == 0x40:  # REX
        at += 1
    rest = code[at : at + 3] + bytes(3)
    opcode, second, third = rest[0], rest[1], rest[2]
    if opcode != 0x0F:
        return opcode in _ONE or (opcode == 0xFF and _digit(second) in (3, 5))
    if second == 0x00:
        return _digit(third) < 4
    if second == 0x01:
        return third in _OF_0F01 if third >= 0xC0 and _digit(third) not in (4, 6) else _digit(third) != 5
    if second == 0xC7:
        return third < 0xC0 and (_digit(third) == 3 or _digit(third) >= 5)
    if second in _FAR_POINTERS:
        return third < 0xC0
    return second in _TWO or (second == 0x38 and third in (0x80, 0x81, 0x82))


def dr7(number: int, kind: Watch, length: int, enable: int) -> int:
    """Returns the bits of DR7 for debug register `number`. Source: Intel SDM volume 3, 18.2.4.

    The processor cannot watch reads alone: a watchpoint for them is hit by writes too.
    """
    return enable << 2 * number | (_RW[kind] | WATCH_LENGTHS[length] << 2) << 16 + 4 * number


def _digit(modrm: int) -> int:
    return modrm >> 3 & 7
