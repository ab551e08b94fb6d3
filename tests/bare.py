"""Bare unikernels, which a test writes in machine code: a hypercall with exactly these bytes, an access to exactly that
address.

    guest = Bare()
    call = guest.call(POLL, "<QQi4x", 0, 7, 7)      places the structure in data and emits the `out` that names it
    guest.halt(3)
    ran = guest.run()                               ran.result is a VmResult; ran.at(call) == (0, 0, 0)

    0x100000  text   execute only      straight-line code, in the order of the calls
    0x140000  data   read and write    what was placed; it is read back after the guest has ended, for whatever reason
    0x1c0000         heap and stack: 2 MiB are enough for everything

There is no compiler, no library and no stack frame: the first instruction is the test's. A guest that needs loops or the
frame of a trap is a separate guest in tests/guests.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from elf_builder import (
    LOAD_ADDRESS,
    PF_R,
    PF_W,
    PF_X,
    RESERVED_ENTRY,
    MftEntry,
    Note,
    Segment,
    abi_note,
    build_elf,
    device_entry,
    manifest_bytes,
    raw_manifest_note,
)

from tender import CAPTURE, Image, Vm, VmConfig, VmResult

WALLTIME, PUTS, POLL, BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ, HALT = range(1, 9)
OK, AGAIN, EINVAL, EUNSPEC = range(4)
PORT = 0x500

TEXT, DATA, HEAP = LOAD_ADDRESS, 0x140000, 0x1C0000
MIB = 1 << 20

# The structures of the hypercalls, with their padding written out.
L_WALLTIME, L_PUTS, L_POLL, L_HALT = "<Q", "<QQ", "<QQi4x", "<Qi4x"
L_BLOCK, L_NET = "<QQQQi4x", "<QQQi4x"


@dataclass(frozen=True)
class Placed:
    """A structure in the guest's data: its address, and the layout to read it with."""

    gpa: int
    layout: str


@dataclass(frozen=True)
class Ran:
    """A guest that has ended, and the contents of its data at that time."""

    result: VmResult
    data: bytes

    def at(self, placed: Placed) -> tuple[int, ...]:
        """Returns the values of a structure as the guest left them."""
        return struct.unpack_from(placed.layout, self.data, placed.gpa - DATA)

    def raw(self, gpa: int, length: int) -> bytes:
        return self.data[gpa - DATA : gpa - DATA + length]

    @property
    def console(self) -> bytes:
        assert self.result.console is not None
        return self.result.console


@dataclass(frozen=True)
class Caught:
    """What a handler of `catch` stores for one exception."""

    error_code: Placed
    cr2: Placed


class Bare:
    """Code and data of one unikernel; methods append to them. `devices` are (name, "net" or "block" or a type's number)."""

    def __init__(self, devices: Iterable[tuple[str, str | int]] = ()) -> None:
        self.entries: list[MftEntry] = [RESERVED_ENTRY, *(device_entry(name, kind) for name, kind in devices)]
        self._code = bytearray()
        self._data = bytearray()

    # ---- data

    def place(self, data: bytes, align: int = 8) -> int:
        """Appends bytes to data; returns their address."""
        self._data.extend(bytes(-len(self._data) % align))
        gpa = DATA + len(self._data)
        self._data.extend(data)
        assert DATA + len(self._data) <= HEAP
        return gpa

    def structure(self, layout: str, *values: int) -> Placed:
        return Placed(self.place(struct.pack(layout, *values)), layout)

    # ---- code

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return TEXT + len(self._code)

    def code(self, text: str | bytes) -> None:
        """Adds instructions: bytes, or hexadecimal digits."""
        self._code.extend(bytes.fromhex(text) if isinstance(text, str) else text)
        assert self.here <= DATA

    def out(self, port: int, eax: int, *, site: bool = True) -> None:
        """Appends a 32-bit `out`. The sandbox patches it if it is a call site. With `site` false the two loads are in the
        other order: that is not a call site, and the instruction traps."""
        load_edx, load_eax = struct.pack("<BI", 0xBA, port), struct.pack("<BI", 0xB8, eax)
        self.code((load_eax + load_edx if site else load_edx + load_eax) + b"\xef")

    def call(self, number: int, layout: str, *values: int, site: bool = True) -> Placed:
        """Appends a hypercall whose structure holds these values."""
        placed = self.structure(layout, *values)
        self.out(PORT + number, placed.gpa, site=site)
        return placed

    def write(self, text: bytes) -> None:
        """Appends the hypercall puts."""
        self.call(PUTS, L_PUTS, self.place(text), len(text))

    def load(self, gpa: int) -> Placed:
        """Appends a read of the 8 bytes at a 64-bit address; the guest stores them in data."""
        into = self.structure("<Q", 0xEEEEEEEEEEEEEEEE)
        self.code(b"\x48\xa1" + struct.pack("<Q", gpa))  # movabs gpa, %rax
        self.code(b"\x48\xa3" + struct.pack("<Q", into.gpa))  # movabs %rax, into
        return into

    def store(self, gpa: int, value: int) -> None:
        """Appends a write of 8 bytes to a 64-bit address."""
        self.code(b"\x48\xb8" + struct.pack("<Q", value))  # movabs $value, %rax
        self.code(b"\x48\xa3" + struct.pack("<Q", gpa))  # movabs %rax, gpa

    def halt(self, status: int = 0, cookie: int = 0) -> None:
        self.call(HALT, L_HALT, cookie, status)

    def tables(self, mapped: int) -> int:
        """Places page tables in data: an identity mapping of `mapped` bytes from 0, all writable, in pages of 2 MiB.
        Returns the value for CR3."""
        directories = -(-mapped // (1 << 30))
        top = self.place(bytes(4096), align=4096)
        self.place(bytes(4096 * (1 + directories)))
        entries = {top: top + 4096 | 3}
        entries |= {top + 4096 + 8 * i: top + 4096 * (2 + i) | 3 for i in range(directories)}
        entries |= {top + 8192 + 8 * i: i << 21 | 0x83 for i in range(mapped >> 21)}
        for gpa, entry in entries.items():
            struct.pack_into("<Q", self._data, gpa - DATA, entry)
        return top

    def cr3(self, top: int) -> None:
        """Loads CR3: these page tables are in force from here on. KVM only; the sandbox has no page tables."""
        self.code(b"\xb8" + struct.pack("<I", top) + b"\x0f\x22\xd8")  # mov $top, %eax; mov %rax, %cr3

    def catch(self, *vectors: int) -> "Caught":
        """Loads a GDT and an IDT of the guest's own. Each of these exceptions ends the guest with status 100 + vector and
        stores its error code and CR2. Only for vectors that have an error code."""
        caught = Caught(self.structure("<Q", 0), self.structure("<Q", 0))
        gates: dict[int, int] = {}
        self.code(b"\xe9" + bytes(4))  # jmp over the handlers
        begin = self.here
        for vector in vectors:
            gates[vector] = self.here
            self.code(b"\x8f\x04\x25" + struct.pack("<I", caught.error_code.gpa))  # pop error_code
            self.code("0f20d0")  # mov %cr2, %rax
            self.code(b"\x48\xa3" + struct.pack("<Q", caught.cr2.gpa))  # movabs %rax, cr2
            self.halt(100 + vector)
        struct.pack_into("<I", self._code, begin - TEXT - 4, self.here - begin)
        gdt = self.place(struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        idt = self.place(bytes(16 * 32))
        for vector, handler in gates.items():  # an interrupt gate of privilege 0 through selector 8
            gate = struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0)
            self._data[idt - DATA + 16 * vector : idt - DATA + 16 * (vector + 1)] = gate
        for opcode, at, length in (("0f011425", gdt, 24), ("0f011c25", idt, 16 * 32)):  # lgdt, lidt
            self.code(
                bytes.fromhex(opcode) + struct.pack("<I", self.place(struct.pack("<HQ", length - 1, at)))
            )
        return caught

    # ---- the file, and a run of it

    def segments(self) -> list[Segment]:
        """Returns text and data as they are so far."""
        return [
            Segment(data=bytes(self._code), flags=PF_X, vaddr=TEXT),
            Segment(data=bytes(self._data) or bytes(8), flags=PF_R | PF_W, vaddr=DATA),
        ]

    def notes(self) -> list[Note]:
        return [abi_note(), raw_manifest_note(manifest_bytes(self.entries))]

    def elf(self) -> bytes:
        return build_elf(segments=self.segments(), notes=self.notes())

    def run(self, elf: bytes = b"", *, mem: int = 2, timeout: float = 60, **config: Any) -> Ran:
        """Boots this unikernel, or `elf`, whose data must be at the same place; `config` are more fields of VmConfig."""
        with Image.from_bytes(elf or self.elf()) as image:
            settings = VmConfig(mem=mem, **config)
            with Vm(image, settings, console=CAPTURE) as vm:
                result = vm.run(timeout=timeout)
                return Ran(result, vm.memory(DATA, len(self._data) or 8))
