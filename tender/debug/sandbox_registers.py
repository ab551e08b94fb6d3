"""The guest's registers while its thread is inside the program of the sandbox.

The program has unwind tables for each of its instructions, and its entries look like functions that the guest has called
(entry_x86_64.S). So the registers are found as a debugger finds those of any caller, from the thread's registers outwards
until the guest is reached. A signal's handler leads through the frame that the kernel has made; vector registers lie in it
too, since a handler begins with fresh ones.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from os import stat
from typing import Any

from tender.debug import ptrace
from tender.debug.elf_file import ElfFile
from tender.debug.find import Guest
from tender.debug.registers import DWARF, GENERAL, Registers
from tender.debug.unfinished import Call, is_answer_of_interrupted, was_interrupted
from tender.debug.unwind import FrameTable
from tender.errors import ImageError
from tender.native import ffi

_GUEST_END = 1 << 32
_FRAMES_MAX = 64
_RAX, _RDX, _RSP, _RIP, _FLAGS = 0, 1, 7, 16, 49  # System V ABI for AMD64, figure 3.36
_FLAGS_OF_CALL = 2
_PORTS_END = 1 << 16
_OUT = b"\xef"
# struct ucontext of asm/ucontext.h and struct _fpx_sw_bytes of asm/sigcontext.h
_UC_RIP, _UC_FLAGS, _UC_FPSTATE, _FP_SOFTWARE, _FP_MAGIC = 168, 176, 224, 464, 0x46505853
_SIGNAL_INFO = 304  # struct rt_sigframe of asm/sigframe.h: siginfo_t is behind the context
_XSAVE_MIN, _XSAVE_MAX = 576, 16384


@dataclass(frozen=True)
class Entered:
    """What is known about a guest inside the program.

    Attributes:
        registers: Its registers. FS and GS bases are those of the thread, and so not here.
        certain: Whether all of them are known. If not, rip and rsp are.
        by_signal: Whether the outermost frame is a signal's handler: the guest's instruction was emulated, or faulted.
        contexts: Where the frames of the signals lie whose handlers run, the innermost first.
        xsave: Its vector registers if the thread does not have them, else empty.
        signals: How many handlers of signals are on the stack.
        call: The hypercall that it is in, if it is in one.
    """

    registers: Registers
    certain: bool = True
    by_signal: bool = False
    xsave: bytes = b""
    signals: int = 0
    call: Call | None = None
    contexts: tuple[int, ...] = ()


@dataclass(frozen=True)
class SignalFrame:
    """What the kernel has stored of a signal whose handler runs: where the handler returns to, and the signal's code."""

    pid: int
    context: int
    code: int
    rip: int
    rflags: int

    def put(self, rip: int, rflags: int) -> None:
        """Has the handler return to another place."""
        ptrace.write_memory(self.pid, self.context + _UC_RIP, struct.pack("<2Q", rip, rflags))


class Unwinder:
    """The tables of the program that runs a guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._table: FrameTable | None = None

    def guest(self, raw: dict[str, int]) -> Entered:
        """Returns the guest's registers from those of its thread, as PTRACE_GETREGS gives them."""
        registers = {number: raw[name] for number, name in enumerate(DWARF)}
        registers[_FLAGS] = raw["eflags"]
        is_return, xsave, signals = False, b"", 0
        waits = was_interrupted(raw)
        contexts: list[int] = []
        table = self._tables()
        for _ in range(_FRAMES_MAX):
            pc = registers[_RIP]
            here = {**registers, _RIP: pc - self._guest.base}
            step = table.step(here, self._read, is_return=is_return) if table else None
            if step is None:
                break
            caller = step.registers
            place = self._part_of(pc)
            if place == "signal" and is_return:
                contexts.append(registers[_RSP])
            if place == "signal" and not xsave and pc != self._place("signal_return_leaves"):
                xsave = self._vectors(registers[_RSP])
            if place == "entry_patched" and _RIP not in caller:
                caller[_RIP] = self._word(self._place("guest_rip"))
            if place == "entry_gate":
                caller[_FLAGS] = _FLAGS_OF_CALL
            signals += place == "signal"
            if caller.get(_RIP, _GUEST_END) < _GUEST_END:
                if place:
                    found = _registers(caller)
                    call = self._call(place, pc, registers, found, is_in=is_return, waits=waits)
                    return Entered(found, True, place == "signal", xsave, signals, call, tuple(contexts))
                break
            if place == "signal":
                at_call = caller.get(_RIP) == self._place("system_call_return")
                waits = at_call and is_answer_of_interrupted(caller.get(_RAX, 0))
            if _RIP not in caller:
                break
            registers, is_return = caller, not step.is_signal
        rip, rsp = self._word(self._place("guest_rip")), self._word(self._place("guest_rsp"))
        if 0 < rip < _PORTS_END:  # it has come by the gate
            rip, rsp = self._word(rsp), rsp + 8 & (1 << 64) - 1
        return Entered(Registers(rip=rip, rsp=rsp), False, contexts=tuple(contexts))

    def _call(
        self, place: str, pc: int, here: dict[int, int], guest: Registers, *, is_in: bool, waits: bool
    ) -> Call | None:
        """Returns the hypercall of a thread that has come in by this place. is_in: a handler is on the stack."""
        if place == "signal":
            is_out = is_in and self._read(guest.rip, 1) == _OUT
            return Call(guest.rdx & 0xFFFF, guest.rax & 0xFFFFFFFF, waits) if is_out else None
        if not is_in and pc >= self._place(f"{place}_back"):
            return None  # it is finished
        if place == "entry_patched":
            return Call(guest.rdx & 0xFFFF, guest.rax & 0xFFFFFFFF, waits, is_in)
        if not is_in:
            return Call(here[_RDX] & 0xFFFF, here[_RAX] & 0xFFFFFFFF, waits, False)
        gpa = int.from_bytes(self._read(self._place("guest_gpa"), 4), "little")
        return Call(self._word(self._place("guest_rip")) & 0xFFFF, gpa, waits)

    def handled(self, raw: dict[str, int], number: int) -> SignalFrame | None:
        """Returns the innermost frame of a signal, if a handler of it runs."""
        if raw["rip"] < _GUEST_END:
            return None
        for at in self.guest(raw).contexts:
            found, code = struct.unpack("<i4xi", self._read(at + _SIGNAL_INFO, 12).ljust(12, b"\0"))
            if found == number:
                return SignalFrame(
                    self._guest.pid, at, code, self._word(at + _UC_RIP), self._word(at + _UC_FLAGS)
                )
        return None

    def at_end(self, shared: bytes) -> Registers | None:
        """Returns the registers that the program has left in its last event, if it has."""
        words = ffi.new("struct vm_shared *")
        ffi.memmove(words, shared, min(len(shared), ffi.sizeof("struct vm_shared")))
        event = words.event
        if not event.registers_valid:
            return None
        names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *GENERAL[8:])
        values: dict[str, Any] = {name: int(event.registers.gpr[i]) for i, name in enumerate(names)}
        values.update((name, int(getattr(event.registers, name))) for name in ("rip", "rflags", "fs_base"))
        return Registers(**values)

    def _part_of(self, pc: int) -> str:
        """Which way out of the program an address belongs to."""
        for name in ("entry_patched", "entry_gate"):
            if self._place(name) <= pc < self._place(f"{name}_end"):
                return name
        if self._place("signal_return") <= pc <= self._place("signal_return_leaves"):
            return "signal"
        return ""

    def _vectors(self, context: int) -> bytes:
        """Returns the vector registers in a signal's frame in the form of NT_X86_XSTATE."""
        area = self._word(context + _UC_FPSTATE)
        head = self._read(area + _FP_SOFTWARE, 48) if area else b""
        if len(head) < 48:
            return b""
        magic, _, features, size = struct.unpack_from("<IIQI", head)
        if magic != _FP_MAGIC or not _XSAVE_MIN <= size <= _XSAVE_MAX:
            return b""
        data = bytearray(self._read(area, size))
        if len(data) < size:
            return b""
        data[_FP_SOFTWARE:512] = struct.pack("<Q", features).ljust(512 - _FP_SOFTWARE, b"\0")
        return bytes(data)

    def _tables(self) -> FrameTable | None:
        if self._table is None:
            path = f"/proc/{self._guest.pid}/exe"
            try:
                about = stat(path)
                self._table = _table_of(path, about.st_dev, about.st_ino, about.st_mtime_ns)
            except (OSError, ImageError):
                return None
        return self._table

    def _read(self, address: int, length: int) -> bytes:
        return ptrace.read_memory(self._guest.pid, address, length)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _place(self, name: str) -> int:
        return self._guest.base + self._guest.note[name]


def _registers(found: dict[int, int]) -> Registers:
    values: dict[str, Any] = {name: found.get(number, 0) for number, name in enumerate(DWARF)}
    return Registers(**values, rflags=found.get(_FLAGS, _FLAGS_OF_CALL))


@lru_cache(maxsize=4)
def _table_of(path: str, device: int, inode: int, time_ns: int) -> FrameTable | None:
    elf = ElfFile.open(path)
    try:
        section = elf.sections.get(".eh_frame") or elf.sections.get(".debug_frame")
        if section is None:
            return None
        return FrameTable(elf.data(section.name), section.address, is_eh=section.name == ".eh_frame")
    finally:
        elf.close()
