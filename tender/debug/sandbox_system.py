"""What a core has of a guest in the sandbox besides its registers: the shadows of the system registers, and the hypercall
that it is in.

Ring 3 has no system registers. trap.c of the program keeps what the guest has written to them (struct system_state of
bindings/arch/x86_64/cpu.h), and the debug note says where. Segments have no hidden parts there: they are flat, as at the
start of a guest (bindings/guest_abi/hvt/start_state.c).
"""

import struct
from collections.abc import Callable

from tender.debug import ptrace
from tender.debug.cpu_parts import CONTROL, SEGMENT, TABLE, CpuParts, Unfinished
from tender.debug.find import Guest
from tender.debug.registers import Registers
from tender.debug.sandbox_registers import Entered
from tender.debug.unfinished import unfinished_of
from tender.native import CData, ffi, lib

_IF = 0x200
_CODE, _DATA, _TSS, _LDT = 9, 3, 11, 2  # Intel SDM volume 3, 3.4.5.1 and 3.5
_FS, _GS, _CS = 4, 5, 1
_TABLE_REGISTER = struct.Struct("<QH6x")  # struct table_register
_SYSTEM_SEGMENT = struct.Struct("<HxxIQ")  # struct system_segment
_SELECTORS = struct.Struct("<6H")
_CR, _DR = struct.Struct("<5Q"), struct.Struct("<6Q")


class SystemState:
    """The shadows of a guest's system registers, in the memory of its process."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._at = guest.base + guest.note["system_state"] if "system_state" in guest.note else 0

    def flags(self, rflags: int) -> int:
        """Returns RFLAGS with the guest's own IF: the processor's is always set in ring 3."""
        own = self._read("system_interrupts", 1)
        return rflags if not own else rflags & ~_IF | (_IF if own != b"\0" else 0)

    def parts(self, registers: Registers) -> CpuParts:
        """Returns the parts of the processor's state."""
        selectors, cr = self._words(_SELECTORS, "system_selector"), self._words(_CR, "system_cr0")
        dr, efer = self._words(_DR, "system_dr"), self._read("system_efer", 8)
        tables = self._read("system_gdtr", 2 * _TABLE_REGISTER.size)
        own = self._read("system_tr", 2 * _SYSTEM_SEGMENT.size)
        if not (
            selectors
            and cr
            and dr
            and efer
            and len(tables) == 2 * TABLE.size
            and len(own) == 2 * _SYSTEM_SEGMENT.size
        ):
            return CpuParts()
        bases = {_FS: registers.fs_base, _GS: registers.gs_base}
        segments = [_flat(it, is_code=i == _CS, base=bases.get(i, 0)) for i, it in enumerate(selectors)]
        segments += [
            _of_system(_SYSTEM_SEGMENT.unpack_from(own), _TSS, is_usable=True),
            _of_system(_SYSTEM_SEGMENT.unpack_from(own, _SYSTEM_SEGMENT.size), _LDT, is_usable=False),
        ]
        pairs = [TABLE.pack(*_TABLE_REGISTER.unpack_from(tables, i * TABLE.size)) for i in (0, 1)]
        control = CONTROL.pack(*cr, int.from_bytes(efer, "little"), 0)
        kernel_gs = self._read("system_kernel_gs_base", 8)
        return CpuParts(
            system=b"".join((*segments, *pairs, control)),
            msrs=bytes(7 * 8) + kernel_gs + bytes(8) if kernel_gs else b"",
            debug=_DR.pack(*dr),
        )

    def _words(self, form: struct.Struct, name: str) -> tuple[int, ...]:
        data = self._read(name, form.size)
        return form.unpack(data) if data else ()

    def _read(self, name: str, length: int) -> bytes:
        """Returns a field, or nothing if the program does not have it."""
        if not self._at or name not in self._guest.note:
            return b""
        data = ptrace.read_memory(self._guest.pid, self._at + self._guest.note[name], length)
        return data if len(data) == length else b""


def _flat(selector: int, *, is_code: bool, base: int) -> bytes:
    kind, long = (_CODE, 1) if is_code else (_DATA, 0)
    return SEGMENT.pack(base, 0xFFFFFFFF, selector, kind, 1, 0, 1 - long, 1, long, 1, 0, 0)


def _of_system(fields: tuple[int, ...], kind: int, *, is_usable: bool) -> bytes:
    selector, limit, base = fields
    is_there = is_usable or selector & ~3 != 0
    return SEGMENT.pack(
        base, limit, selector, kind if is_there else 0, int(is_there), 0, 0, 0, 0, 0, 0, int(not is_there)
    )


def before_start(guest: Guest, shared: bytes) -> Registers | None:
    """Returns the registers that a guest begins with, if it has not begun."""
    words = _shared(shared)
    if words.timeline.first_run or words.event.kind or "config_rip" not in guest.note:
        return None
    data = ptrace.read_memory(
        guest.pid, guest.shared_hva + guest.note["config"] + guest.note["config_rip"], 24
    )
    rip, rsp, rdi = struct.unpack("<3Q", data.ljust(24, b"\0"))
    return Registers(rip=rip, rsp=rsp, rdi=rdi)


def _shared(shared: bytes) -> CData:
    words = ffi.new("struct vm_shared *")
    ffi.memmove(words, shared, min(len(shared), ffi.sizeof("struct vm_shared")))
    return words


def unfinished(
    guest: Guest, entered: Entered | None, shared: bytes, read: Callable[[int, int], bytes]
) -> Unfinished | None:
    """Returns the hypercall that is not finished.

    Args:
        guest: The guest.
        entered: What is known of the guest in the program. None: it is at an instruction of its own.
        shared: The bytes of `struct vm_shared`.
        read: Reads the guest's memory.
    """
    words = _shared(shared)
    event, call = words.event, entered.call if entered else None
    if event.kind not in (
        lib.EVENT_NONE,
        lib.EVENT_STOPPED,
        lib.EVENT_INTERRUPTED,
        lib.EVENT_CONSOLE,
        lib.EVENT_NETWORK,
    ):
        return None  # it has ended by itself
    # A stop that interrupts the guest before an `out` leaves a signal's frame, as an `out` that has trapped does.
    if call and entered and entered.by_signal and entered.signals == 1 and event.kind == lib.EVENT_STOPPED:
        call = call if event.rip == entered.registers.rip else None
    vm = guest.base + guest.note["the_vm"]
    return unfinished_of(guest, vm, call, lambda at, size: ptrace.read_memory(guest.pid, at, size), read)
