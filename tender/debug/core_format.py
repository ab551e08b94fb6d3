"""The layout of a core: an ELF file of a guest's state, which stock tools read and which a snapshot can be restored from.

    0x00000  ELF header, program headers       all within the 64 KiB at which no guest has memory
             notes                             from the next page on
    0x10000  guest memory                      file offset = guest address; what was never touched is a hole of the file

It packs and unpacks; core.py reads and writes files. docs/core-format.md describes the format for others, and the numbers
here must stay those: old cores have them. Sources: elf(5), Linux's <linux/elfcore.h> and <sys/procfs.h>.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from tender.debug.cpu_parts import (
    DEBUG_BYTES,
    MSRS_BYTES,
    STRUCTURE_BYTES,
    SYSTEM_BYTES,
    CpuParts,
    Unfinished,
)
from tender.debug.registers import Registers
from tender.debug.target import Mapping

PAGE = 4096
MEMORY_START = 0x10000
"""Below it no guest of the hvt ABI has memory: header and notes lie there."""
MEMORY_END = 1 << 32

ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE_HEADER = struct.Struct("<III")
ET_CORE, EM_X86_64 = 4, 62
PT_LOAD, PT_NOTE = 1, 4
HEADERS_MAX = 400
NOTES_MAX = 128

NT_PRSTATUS, NT_FPREGSET, NT_PRPSINFO, NT_X86_XSTATE, NT_FILE = 1, 2, 3, 0x202, 0x46494C45

OWNER = "Tender"


def _own(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


TNS1 = _own("TNS1")
"""The processor: version, size, struct cpu_state (bindings/arch/x86_64/cpu_state.h), whose `known` says what it has."""
TNSD = _own("TNSD")
"""JSON: the devices."""
TNSI = _own("TNSI")
"""JSON: the image, and the guest's memory with its rights."""
TNSR = _own("TNSR")
"""JSON: the hypercall that was not finished."""
TNSC = _own("TNSC")
"""JSON: the counters."""
TNSF = _own("TNSF")
"""JSON: further facts: version, backend, how the run ended, times, the last hypercalls."""

CPU_VERSION = 1
CPU_GENERAL, CPU_SYSTEM, CPU_MSRS, CPU_DEBUG, CPU_FPU = 1, 2, 4, 8, 16
CPU_STATE_BYTES = 4656
_CPU_HEADER = struct.Struct("<II")
_CPU_GENERAL = struct.Struct("<I4x18Q")
_CPU_SYSTEM_OFFSET, _CPU_MSRS_OFFSET, _CPU_DEBUG_OFFSET, _CPU_FPU_OFFSET = 152, 432, 504, 552
_CPU_PARTS = (
    ("system", CPU_SYSTEM, _CPU_SYSTEM_OFFSET, SYSTEM_BYTES),
    ("msrs", CPU_MSRS, _CPU_MSRS_OFFSET, MSRS_BYTES),
    ("debug", CPU_DEBUG, _CPU_DEBUG_OFFSET, DEBUG_BYTES),
)
"""Fields of CpuParts, their bits in `known`, and their places."""
XSAVE_BYTES = 4096
_CPU_ORDER = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)

_USER_ORDER = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "", "", "", ""),
)
"""struct user_regs_struct; without a name: orig_rax and the data segments, which a guest does not have."""
_USER_CS, _USER_SS = 0x33, 0x2B
"""Selectors of Linux for 64-bit code: with others gdb takes the code for 32-bit code."""
_PRSTATUS = struct.Struct("<3ihxx2Q4i8Q27Qi4x")
_PRPSINFO = struct.Struct("<bcbb4xQIIiiii16s80s")
WORD_MAX = (1 << 64) - 1
"""Also orig_rax outside of a system call."""

XCR0_OFFSET = 464
"""Where Linux writes XCR0 in NT_X86_XSTATE."""
FXSAVE_BYTES = 512
_XSTATE_BV = 512
_XSAVE_SSE, _XSAVE_AVX, _XSAVE_AVX512 = 576, 832, 2688
_AMD_AVX512 = ((832, 1088, 64), (896, 1152, 512), (1408, 1664, 1024))
"""k0 to k7, the upper halves of zmm0 to zmm15, and zmm16 to zmm31: place on AMD's processors, on Intel's, and size. Source:
CPUID leaf 0xd on Zen 4 and on Ice Lake."""
_AMD_AVX512_END = 2432


@dataclass(frozen=True)
class Note:
    """A note of an ELF file."""

    owner: str
    kind: int
    data: bytes


@dataclass(frozen=True)
class Header:
    """A program header."""

    kind: int
    flags: int
    offset: int
    address: int
    file_bytes: int
    mem_bytes: int


def pack_notes(notes: Sequence[Note]) -> bytes:
    """Returns notes as an ELF file contains them."""
    packed = bytearray()
    for note in notes:
        owner = note.owner.encode() + b"\0"
        packed += NOTE_HEADER.pack(len(owner), len(note.data), note.kind)
        for part in (owner, note.data):
            packed += part + bytes(-len(part) % 4)
    return bytes(packed)


def unpack_notes(data: bytes) -> Iterator[Note]:
    """Returns the notes in `data`, at most NOTES_MAX. Raises ValueError for a note that does not lie in it."""
    at = 0
    for _ in range(NOTES_MAX):
        if at + NOTE_HEADER.size > len(data):
            return
        owner_bytes, data_bytes, kind = NOTE_HEADER.unpack_from(data, at)
        at += NOTE_HEADER.size
        data_at = at + owner_bytes + -owner_bytes % 4
        if data_at + data_bytes > len(data):
            raise ValueError("a note is longer than the notes")
        owner = data[at : at + owner_bytes].rstrip(b"\0").decode("ascii", "replace")
        yield Note(owner, kind, data[data_at : data_at + data_bytes])
        at = data_at + data_bytes + -data_bytes % 4


def pack_head(notes: bytes, mappings: Sequence[Mapping]) -> bytes:
    """Returns what lies in front of guest memory. Raises ValueError if it does not fit there."""
    count = 1 + len(mappings)
    notes_at = -(-(ELF_HEADER.size + count * PROGRAM_HEADER.size) // PAGE) * PAGE
    if count > HEADERS_MAX or notes_at + len(notes) > MEMORY_START:
        raise ValueError("header and notes do not fit in front of guest memory")
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = ELF_HEADER.pack(
        *(
            ident,
            ET_CORE,
            EM_X86_64,
            1,
            0,
            ELF_HEADER.size,
            0,
            0,
            ELF_HEADER.size,
            PROGRAM_HEADER.size,
            count,
        ),
        *(0, 0, 0),
    )
    head += PROGRAM_HEADER.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4)
    for it in mappings:
        size = it.end - it.start
        head += PROGRAM_HEADER.pack(PT_LOAD, it.flags, it.start, it.start, it.start, size, size, PAGE)
    return head + bytes(notes_at - len(head)) + notes


def unpack_headers(head: bytes) -> list[Header]:
    """Returns the program headers. Raises ValueError for a file that is no core of x86-64."""
    if len(head) < ELF_HEADER.size:
        raise ValueError("the file is too short for an ELF file")
    ident, kind, machine, _, _, at, _, _, _, size, count, *_ = ELF_HEADER.unpack_from(head)
    if ident[:6] != b"\x7fELF\2\1":
        raise ValueError("not an ELF file of 64 bits")
    if kind != ET_CORE or machine != EM_X86_64:
        raise ValueError("an ELF file, but not a core of x86-64")
    if size != PROGRAM_HEADER.size or count > HEADERS_MAX or at + count * size > len(head):
        raise ValueError("its program headers are wrong")
    found = []
    for i in range(count):
        kind, flags, offset, address, _, file_bytes, mem_bytes, _ = PROGRAM_HEADER.unpack_from(
            head, at + i * size
        )
        found.append(Header(kind, flags, offset, address, file_bytes, mem_bytes))
    return found


def prstatus(registers: Registers, *, thread: int, signal: int) -> bytes:
    """Returns NT_PRSTATUS: general registers and the signal."""
    values = {name: getattr(registers, name) for name in _USER_ORDER if name and name not in ("cs", "ss")}
    values |= {"cs": _USER_CS, "ss": _USER_SS, "": 0}
    words = [values[name] & WORD_MAX for name in _USER_ORDER]
    words[_USER_ORDER.index("")] = WORD_MAX  # not in a system call
    return _PRSTATUS.pack(signal, 0, 0, signal, 0, 0, thread, 1, thread, 1, *(0,) * 8, *words, 1)


def registers_of_prstatus(data: bytes) -> Registers:
    """Returns the registers of NT_PRSTATUS. Raises ValueError for another size."""
    if len(data) != _PRSTATUS.size:
        raise ValueError("NT_PRSTATUS has the wrong size")
    words = _PRSTATUS.unpack(data)[18:45]
    named = {
        name: word for name, word in zip(_USER_ORDER, words, strict=True) if name and name not in ("cs", "ss")
    }
    return Registers(**named)


def signal_of_prstatus(data: bytes) -> int:
    """Returns the signal of NT_PRSTATUS, which has the right size."""
    return int(_PRSTATUS.unpack(data)[3])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def prpsinfo(name: str, command_line: str, pid: int) -> bytes:
    """Returns NT_PRPSINFO: the names of the program."""
    words = (_bytes(name)[:15], _bytes(command_line)[:79])
    return _PRPSINFO.pack(0, b"R", 0, 0, 0, 0, 0, pid & 0x7FFFFFFF, 1, 1, 1, *words)


def file_note(path: str, parts: Sequence[tuple[int, int, int]]) -> bytes:
    """Returns NT_FILE: `parts` are addresses [start, end) and offsets in the file `path`, multiples of a page."""
    data = struct.pack("<QQ", len(parts), PAGE)
    for start, end, offset in parts:
        data += struct.pack("<QQQ", start, end, offset // PAGE)
    return data + (_bytes(path) + b"\0") * len(parts)


def xstate_for_gdb(xsave: bytes, *, amd: bool) -> bytes:
    """Returns NT_X86_XSTATE in a size that gdb takes without a warning, or an empty text: it is not known.

    gdb up to 13 computes the one size that it takes from XCR0, by the places of Intel's processors. It knows neither AMX
    nor a size without PKRU where XCR0 has it. So AVX-512's registers are moved to Intel's places if the processor is AMD's,
    the state is cut behind them, and XCR0 is masked to what is left.
    """
    if len(xsave) < _XSAVE_SSE:
        return b""
    xcr0 = int.from_bytes(xsave[XCR0_OFFSET : XCR0_OFFSET + 8], "little")
    state = bytearray(xsave)
    if xcr0 & 0xE0 == 0xE0 and len(xsave) >= (_AMD_AVX512_END if amd else _XSAVE_AVX512):
        size, xcr0 = _XSAVE_AVX512, 0xE7
        if amd:
            state = state[:_XSAVE_AVX] + bytes(size - _XSAVE_AVX)
            for there, here, count in _AMD_AVX512:
                state[here : here + count] = xsave[there : there + count]
    elif xcr0 & 4 and len(xsave) >= _XSAVE_AVX:
        size, xcr0 = _XSAVE_AVX, 7
    else:
        size, xcr0 = _XSAVE_SSE, 3
    del state[size:]
    state[XCR0_OFFSET : XCR0_OFFSET + 8] = xcr0.to_bytes(8, "little")
    in_use = int.from_bytes(state[_XSTATE_BV : _XSTATE_BV + 8], "little") & xcr0
    state[_XSTATE_BV : _XSTATE_BV + 16] = in_use.to_bytes(8, "little") + bytes(8)
    return bytes(state)


def cpu_note(registers: Registers, parts: CpuParts) -> bytes:
    """Returns TNS1: general registers, and what else is known."""
    state = bytearray(CPU_STATE_BYTES)
    known = CPU_GENERAL
    if registers.xsave:
        known |= CPU_FPU
        state[_CPU_FPU_OFFSET : _CPU_FPU_OFFSET + 8] = registers.xsave[XCR0_OFFSET : XCR0_OFFSET + 8].ljust(
            8, b"\0"
        )
        state[_CPU_FPU_OFFSET + 8 :] = registers.xsave[:XSAVE_BYTES].ljust(XSAVE_BYTES, b"\0")
    for name, part, at, size in _CPU_PARTS:
        if len(data := getattr(parts, name)) == size:
            known |= part
            state[at : at + size] = data
    _CPU_GENERAL.pack_into(state, 0, known, *(getattr(registers, name) for name in _CPU_ORDER))
    return _CPU_HEADER.pack(CPU_VERSION, len(state)) + bytes(state)


def unpack_cpu_note(data: bytes) -> tuple[bytes, CpuParts]:
    """Returns the FPU's state in TNS1 with XCR0 in its place, or an empty text, and the other parts.

    Raises ValueError for another version.
    """
    if len(data) < _CPU_HEADER.size:
        raise ValueError("its TNS1 is too short")
    version, size = _CPU_HEADER.unpack_from(data)
    if version != CPU_VERSION or size != CPU_STATE_BYTES or len(data) != _CPU_HEADER.size + size:
        raise ValueError(f"its TNS1 has version {version} and {size} bytes, which this Tender does not know")
    state = data[_CPU_HEADER.size :]
    known = int.from_bytes(state[:4], "little")
    parts = CpuParts(**{name: state[at : at + size] for name, part, at, size in _CPU_PARTS if known & part})
    if not known & CPU_FPU:
        return b"", parts
    xcr0, xsave = state[_CPU_FPU_OFFSET : _CPU_FPU_OFFSET + 8], bytearray(state[_CPU_FPU_OFFSET + 8 :])
    xsave[XCR0_OFFSET : XCR0_OFFSET + 8] = xcr0
    return bytes(xsave), parts


def resume_note(call: Unfinished) -> dict[str, object]:
    """Returns TNSR, which is JSON."""
    return {"version": 1, **asdict(call), "structure": call.structure.hex()}


def unfinished_of_note(value: object) -> Unfinished | None:
    """Returns the hypercall in TNSR. None: there is none, or what stands there cannot be one."""
    if not isinstance(value, dict) or value.get("version") != 1:
        return None
    words = {name: value.get(name) for name in ("number", "gpa", "bytes_done", "batch_done")}
    left, name, text = value.get("time_left_ns"), value.get("name"), value.get("structure")
    if not all(
        type(it) is int and 0 <= it <= WORD_MAX for it in (*words.values(), 0 if left is None else left)
    ):
        return None
    if not isinstance(name, str) or not isinstance(text, str) or len(text) > 2 * STRUCTURE_BYTES:
        return None
    try:
        structure = bytes.fromhex(text)
    except ValueError:
        return None
    return Unfinished(
        **words,  # type: ignore[arg-type]
        name=name,
        structure=structure,
        time_left_ns=left,
        exact=value.get("exact") is True,
    )
