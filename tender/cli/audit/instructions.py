"""Finds instructions of interest in x86-64 code: those that ask for time or randomness, or that need ring 0.

A search for bytes alone finds constants and the middle of other instructions too. So code is read instruction by
instruction from the starts that the symbols give. What no symbol covers is only searched for bytes, and the result says
"at most": a `Count` keeps the two apart.

    functions by symbol   |--instruction--|--instruction--| rdtsc |--...     sites, each with its address
    bytes between them    ....0f 31....                                      at most

The reading is a regular expression of one instruction, repeated: its engine is fifty times as fast as a loop here. It
knows lengths and nothing else. Source: Intel's manual, volume 2, chapter 2 and appendix A.

An image that jumps into the middle of its own instructions can do what is not found here. The result describes images
that compilers made; it is no proof about a hostile one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

SITES_MAX = 1 << 18  # instructions of interest in one image; a hostile file may consist of nothing else


@dataclass
class Count:
    """How often an instruction occurs.

    Attributes:
        sites: The addresses where it was decoded from the start of a function.
        unsure: How often its bytes occur where no function is known to begin.
    """

    sites: list[int] = field(default_factory=list)
    unsure: int = 0


def _set(*ranges: int | tuple[int, int]) -> bytes:
    """Returns a class of the regular expression: single bytes and ranges."""
    pairs = [(r, r) if isinstance(r, int) else r for r in ranges]
    return b"[" + b"".join(b"\\x%02x-\\x%02x" % pair for pair in pairs) + b"]"


def _modrm(low: Iterable[int], mods: Iterable[int], digits: Iterable[int] = range(8)) -> bytes:
    found = [mod << 6 | digit << 3 | rm for mod in mods for digit in digits for rm in low]
    return b"[" + b"".join(b"\\x%02x" % byte for byte in found) + b"]"


_PLAIN = (0, 1, 2, 3, 6, 7)  # r/m without SIB or displacement


def _operand(digits: Iterable[int] = range(8)) -> bytes:
    """Returns ModRM, SIB and displacement; `digits` are the values of the middle field."""
    digits = tuple(digits)
    sib_plain = b"[" + b"".join(b"\\x%02x" % b for b in range(256) if b & 7 != 5) + b"]"
    sib_disp = b"[" + b"".join(b"\\x%02x" % b for b in range(256) if b & 7 == 5) + b"]"
    forms = (
        _modrm(range(8), (3,), digits),
        _modrm(_PLAIN, (0,), digits),
        _modrm((0, 1, 2, 3, 5, 6, 7), (1,), digits) + b".",
        _modrm((4,), (1,), digits) + b"..",
        _modrm((5,), (0,), digits) + b".{4}",
        _modrm((0, 1, 2, 3, 5, 6, 7), (2,), digits) + b".{4}",
        _modrm((4,), (0,), digits) + b"(?:" + sib_plain + b"|" + sib_disp + b".{4})",
        _modrm((4,), (2,), digits) + b".{5}",
    )
    return b"(?:" + b"|".join(forms) + b")"


_EA = _operand()
_WITH_OPERAND = _set(
    *((base, base + 3) for base in range(0, 0x40, 8)), 0x63, (0x84, 0x8E), (0xD0, 0xD3), (0xD8, 0xDF), (0xFE, 0xFF)
)  # fmt: skip
_ALONE = _set((0x50, 0x5F), (0x90, 0x99), (0x9B, 0x9F), (0xA4, 0xA7), (0xAA, 0xAF), 0xC3, 0xC9, 0xCB, 0xCC,
              0xCF, 0xD7, 0xF1, 0xF5, 0xF8, 0xF9, 0xFC, 0xFD)  # fmt: skip
_BYTE = _set(*range(0x04, 0x40, 8), 0x6A, (0x70, 0x7F), 0xA8, (0xB0, 0xB7), (0xE0, 0xE3), 0xEB)
_TWO_WITH_OPERAND = _set(0x02, 0x03, 0x0D, (0x10, 0x1F), (0x28, 0x2F), (0x40, 0x6F), (0x74, 0x76), (0x78, 0x7F),
                         (0x90, 0x9F), 0xA3, 0xA5, 0xAB, 0xAD, 0xAE, 0xAF, (0xB0, 0xB9), (0xBB, 0xC1), 0xC3,
                         (0xD0, 0xFF))  # fmt: skip
_TWO_WITH_BYTE = _set(0x0F, (0x70, 0x73), 0xA4, 0xAC, 0xBA, 0xC2, (0xC4, 0xC6))
_TWO_ALONE = _set(0x0B, 0x0E, 0x37, 0x77, (0xA0, 0xA1), (0xA8, 0xAA), (0xC8, 0xCF))
_VECTOR_BYTE = _set((0x70, 0x73), 0xC2, (0xC4, 0xC6))
_VECTOR_PLAIN = _set((0x00, 0x6F), (0x74, 0x76), (0x78, 0xC1), 0xC3, (0xC7, 0xFF))

# Instructions of interest: those that only ring 0 may execute, and some that anyone may.
_RARE_ALONE = _set((0x6C, 0x6F), (0xEC, 0xEF), 0xF4, 0xFA, 0xFB)
_RARE_BYTE = _set(0xCD, (0xE4, 0xE7))
_RARE_TWO_ALONE = _set((0x05, 0x09), (0x30, 0x35), 0xA2)
_RARE_TWO_OPERAND = _set(0x00, 0x01, 0xC7)
_CONTROL_REGISTERS = _set((0x20, 0x23)) + b"."  # ModRM always names two registers


def _opcodes(word: bytes, quad: bytes, *, rare: bool) -> bytes:
    """Returns the opcodes with what follows them. `word` is an immediate that 66 shortens, `quad` that of B8."""
    common = (
        _WITH_OPERAND + _EA,
        _ALONE,
        _BYTE + b".",
        b"\\x0f(?:" + b"|".join((
            _TWO_WITH_OPERAND + _EA,
            _set((0x80, 0x8F)) + b".{4}",
            _TWO_WITH_BYTE + _EA + b".",
            _TWO_ALONE,
            b"\\x38[^\\x80-\\x82]" + _EA,
            b"\\x3a." + _EA + b".",
            *((_RARE_TWO_ALONE, _CONTROL_REGISTERS, _RARE_TWO_OPERAND + _EA, b"\\x38[\\x80-\\x82]" + _EA) if rare else ()),
        )) + b")",
        _set(0xE8, 0xE9) + b".{4}",
        _set(0x80, 0x83, 0xC0, 0xC1, 0xC6, 0x6B) + _EA + b".",
        _set(0x81, 0xC7, 0x69) + _EA + word,
        _set(*range(0x05, 0x40, 8), 0x68, 0xA9) + word,
        _set((0xB8, 0xBF)) + quad,
        b"\\x8f" + _operand((0,)),
        b"\\xf6(?:" + _operand((0, 1)) + b".|" + _operand(range(2, 8)) + b")",
        b"\\xf7(?:" + _operand((0, 1)) + word + b"|" + _operand(range(2, 8)) + b")",
        b"[\\xc2\\xca]..",
        b"\\xc8...",
        _set((0xA0, 0xA3)) + b".{8}",
        *((_RARE_ALONE, _RARE_BYTE + b".") if rare else ()),
    )  # fmt: skip
    return b"(?:" + b"|".join(common) + b")"


def _instruction(*, rare: bool) -> bytes:
    """Returns the regular expression of one instruction. `rare`: with those of interest."""
    prefix = b"[\\x26\\x2e\\x36\\x3e\\x64\\x65\\x67\\xf0\\xf2\\xf3]"
    any_prefix = b"[\\x26\\x2e\\x36\\x3e\\x64-\\x67\\xf0\\xf2\\xf3]"
    narrow = prefix + b"{0,8}\\x66" + any_prefix + b"{0,8}"
    wide, small = b"[\\x48-\\x4f]", b"[\\x40-\\x47]?"
    dword, qword, word = b".{4}", b".{8}", b".."
    vector = (
        b"\\x8f(?:[\\x08\\x28\\x48\\x68\\x88\\xa8\\xc8\\xe8].." + _EA
        + b".|[\\x09\\x29\\x49\\x69\\x89\\xa9\\xc9\\xe9].." + _EA + b")",
        b"\\xc5.(?:\\x77|" + _VECTOR_PLAIN + _EA + b"|" + _VECTOR_BYTE + _EA + b".)",
        b"\\xc4(?:[\\x01\\x21\\x41\\x61\\x81\\xa1\\xc1\\xe1].(?:\\x77|" + _VECTOR_PLAIN + _EA + b"|"
        + _VECTOR_BYTE + _EA + b".)"
        + b"|[\\x02\\x22\\x42\\x62\\x82\\xa2\\xc2\\xe2].." + _EA
        + b"|[\\x03\\x23\\x43\\x63\\x83\\xa3\\xc3\\xe3].." + _EA + b".)",
        b"\\x62(?:" + _of_map(1) + b"..(?:" + _VECTOR_PLAIN + _EA + b"|" + _VECTOR_BYTE + _EA + b".)"
        + b"|" + _of_map(2, 5, 6) + b"..." + _EA + b"|" + _of_map(3) + b"..." + _EA + b".)",
    )  # fmt: skip
    forms = (
        wide + _opcodes(dword, qword, rare=rare),
        small + _opcodes(dword, dword, rare=rare),
        *vector,
        prefix + b"{1,8}(?:" + wide + _opcodes(dword, qword, rare=rare) + b"|" + small
        + _opcodes(dword, dword, rare=rare) + b")",
        narrow + b"(?:" + wide + _opcodes(dword, qword, rare=rare) + b"|" + small
        + _opcodes(word, word, rare=rare) + b")",
        prefix + b"{1,8}(?:" + b"|".join(vector) + b")",
    )  # fmt: skip
    return b"(?:" + b"|".join(forms) + b")"


def _of_map(*maps: int) -> bytes:
    """Returns the first byte behind EVEX's 62 for these opcode maps."""
    return b"[" + b"".join(b"\\x%02x" % b for b in range(256) if b & 7 in maps) + b"]"


@cache
def _patterns() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Returns the expressions of a run of instructions without those of interest, and of any single one."""
    run = b"(?:" + _instruction(rare=False) + b"){1,256}+"
    return re.compile(run, re.DOTALL), re.compile(_instruction(rare=True), re.DOTALL)


_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3") | frozenset(range(0x40, 0x50))
_MOV_EDX = 0xBA
_ALIGNMENT = 16  # a smaller gap between functions fills the space up to the next multiple

# Opcodes of one byte, of two (behind 0F), and of 0F 01 with a register form.
_ONE_BYTE = {0x6C: "ins", 0x6D: "ins", 0x6E: "outs", 0x6F: "outs", 0xCD: "int", 0xE4: "in", 0xE5: "in", 0xE6: "out",
             0xE7: "out", 0xEC: "in", 0xED: "in", 0xEE: "out", 0xEF: "out", 0xF4: "hlt", 0xFA: "cli",
             0xFB: "sti"}  # fmt: skip
_TWO_BYTES = {0x05: "syscall", 0x06: "clts", 0x07: "sysret", 0x08: "invd", 0x09: "wbinvd", 0x20: "mov-cr",
              0x21: "mov-dr", 0x22: "mov-cr", 0x23: "mov-dr", 0x30: "wrmsr", 0x31: "rdtsc", 0x32: "rdmsr",
              0x33: "rdpmc", 0x34: "sysenter", 0x35: "sysexit", 0xA2: "cpuid"}  # fmt: skip
_SYSTEM = {0xC1: "vmx", 0xC2: "vmx", 0xC3: "vmx", 0xC4: "vmx", 0xC8: "monitor", 0xC9: "mwait", 0xCA: "clac",
           0xCB: "stac", 0xD1: "xsetbv", 0xF8: "swapgs", 0xF9: "rdtscp", 0xFA: "monitor", 0xFB: "mwait",
           **dict.fromkeys(range(0xD8, 0xE0), "svm")}  # fmt: skip
_SYSTEM_TABLES = {2: "lgdt", 3: "lidt", 6: "lmsw", 7: "invlpg"}

# What is looked for as bytes where no function is known. Opcodes of one byte occur everywhere, and are not.
_BYTES = {
    "rdtsc": rb"\x0f\x31",
    "rdtscp": rb"\x0f\x01\xf9",
    "rdrand": rb"\x0f\xc7[\xf0-\xf7]",
    "rdseed": rb"(?<!\xf3)(?<!\xf3[\x40-\x4f])\x0f\xc7[\xf8-\xff]",
    "cpuid": rb"\x0f\xa2",
    "syscall": rb"\x0f\x05",
    "sysenter": rb"\x0f\x34",
}
CLOCK, RANDOM, SYSTEM_CALLS = ("rdtsc", "rdtscp"), ("rdrand", "rdseed"), ("syscall", "sysenter", "int")
ENDS_SANDBOX = (
    *(
        "hlt",
        "in",
        "out",
        "ins",
        "outs",
        "sysret",
        "sysexit",
        "clac",
        "stac",
        "monitor",
        "mwait",
        "invpcid",
        "xsaves",
    ),
    *("xrstors", "vmx", "svm", *SYSTEM_CALLS),
)
"""Those that end a run in the sandbox (docs/sandbox.md). KVM executes some of them."""


def name_of(code: bytes) -> str:
    """Returns the name of an instruction of interest; empty for any other."""
    at, repeat = 0, False
    while at < len(code) and code[at] in _PREFIXES:
        repeat = repeat or code[at] == 0xF3
        at += 1
    first, second, third = (*code[at : at + 3], 0, 0, 0)[:3]
    if first != 0x0F:
        return _ONE_BYTE.get(first, "")
    digit, register = third >> 3 & 7, third >= 0xC0
    if second == 0x00:
        return {2: "lldt", 3: "ltr"}.get(digit, "")
    if second == 0x01:
        is_table = not register or digit == 6
        return _SYSTEM_TABLES.get(digit, "") if is_table else _SYSTEM.get(third, "")
    if second == 0xC7:
        if register:
            return {6: "" if repeat else "rdrand", 7: "" if repeat else "rdseed"}.get(digit, "")
        return {3: "xrstors", 5: "xsaves", 6: "vmx", 7: "vmx"}.get(digit, "")
    if second == 0x38:
        return "invpcid" if third == 0x82 else "vmx"
    return _TWO_BYTES.get(second, "")


@dataclass
class Findings:
    """What is in the code of an image.

    Attributes:
        counts: By the names of instructions. A name that is not there does not occur.
        ports: Addresses of `in` and `out`, by the name and the port; -1: the port is not a constant in front of it.
        code_bytes: The size of all code that was read.
        decoded_bytes: How much of it was decoded, or fills the space between functions.
        complete: Whether nothing was left out because of a bound.
    """

    counts: dict[str, Count] = field(default_factory=dict)
    ports: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    code_bytes: int = 0
    decoded_bytes: int = 0
    complete: bool = True
    _sites_left: int = SITES_MAX


def look_through(code: bytes, start: int, functions: list[tuple[int, int]], found: Findings) -> None:
    """Adds to `found` what is in the code of one segment.

    Args:
        code: The bytes of the segment.
        start: The address of the first.
        functions: Address and size of each function, in ascending order. A size of 0 reaches to the next function.
        found: What to add to.
    """
    decoded_to, end = start, start + len(code)
    found.code_bytes += len(code)
    for first, last in _regions(functions, start, end):
        if first < decoded_to or found._sites_left <= 0:
            continue  # it begins inside of another function
        gap = first - decoded_to
        _search(code, decoded_to - start, first - start, found)
        found.decoded_bytes += gap if gap < _ALIGNMENT else 0
        decoded_to = start + _decode(code, first - start, last - start, start, found)
        found.decoded_bytes += decoded_to - first
    _search(code, decoded_to - start, end - start, found)


def _regions(functions: list[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    inside = [(at, size) for at, size in functions if start <= at < end]
    ends = [*(at for at, _ in inside[1:]), end]
    for (at, size), following in zip(inside, ends, strict=False):
        yield at, min(at + size, end) if size else following


def _decode(code: bytes, at: int, end: int, start: int, found: Findings) -> int:
    """Decodes code[at:end], and returns where that ended: earlier if no instruction is there."""
    common, one = _patterns()
    while at < end:
        run = common.match(code, at, end)
        if run:
            at = run.end()
            continue
        single = one.match(code, at, end)
        if not single:
            return at
        name = name_of(single[0])
        if name:
            if found._sites_left <= 0:
                found.complete = False
                return at
            found._sites_left -= 1
            found.counts.setdefault(name, Count()).sites.append(start + at)
            if name in ("in", "out", "ins", "outs"):
                found.ports.setdefault((name, _port(code, at, single[0])), []).append(start + at)
        at = single.end()
    return end


def _port(code: bytes, at: int, instruction: bytes) -> int:
    """Returns the port of an `in` or `out`, if it is in the instruction or is moved into EDX right before it."""
    if instruction[-2:-1] in (b"\xe4", b"\xe5", b"\xe6", b"\xe7"):
        return instruction[-1]
    if at >= 5 and code[at - 5] == _MOV_EDX:
        return int.from_bytes(code[at - 4 : at - 2], "little")
    return -1


def _search(code: bytes, at: int, end: int, found: Findings) -> None:
    """Counts bytes that may be instructions in code[at:end], where no start of a function is known."""
    if at >= end:
        return
    for name, pattern in _BYTES.items():
        unsure = sum(1 for _ in re.compile(pattern, re.DOTALL).finditer(code, at, end))
        if unsure:
            found.counts.setdefault(name, Count()).unsure += unsure
