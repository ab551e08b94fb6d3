"""A guest that stands still in this process: for tests of what is made of a guest's state."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.registers import Registers
from tender.debug.target import Facts, Mapping, Where

MIB = 1 << 20


@dataclass
class FakeGuest:
    """A GuestState over a dictionary of pages; other pages are zeros."""

    known: Facts = field(default_factory=Facts)
    stands: Where = Where.GUEST
    state: Registers = field(default_factory=Registers)
    memory: Sequence[Mapping] = (Mapping(0x100000, 4 * MIB, 6),)
    pages: dict[int, bytes] = field(default_factory=dict)
    parts: CpuParts = field(default_factory=CpuParts)
    call: Unfinished | None = None

    def facts(self) -> Facts:
        return self.known

    def where(self) -> Where:
        return self.stands

    def registers(self) -> Registers:
        return self.state

    def read(self, gpa: int, length: int) -> bytes:
        found = bytearray()
        for at in range(gpa // 4096 * 4096, gpa + length, 4096):
            if not any(it.start <= at < it.end for it in self.memory):
                break
            found += self.pages.get(at, bytes(4096)).ljust(4096, b"\0")
        return bytes(found[gpa % 4096 :][:length])

    def mappings(self) -> Sequence[Mapping]:
        return self.memory

    def touched(self) -> Sequence[tuple[int, int]]:
        return [(at, at + 4096) for at in sorted(self.pages)]

    def cpu_parts(self) -> CpuParts:
        return self.parts

    def unfinished(self) -> Unfinished | None:
        return self.call


def guest_of_elf(path: Path, function: str, **facts: object) -> FakeGuest:
    """A guest whose memory is that of an ELF file, with 16 MiB, that is about to execute `function`."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    pages: dict[int, bytes] = {}
    memory = []
    with path.open("rb") as file:
        elf = ELFFile(file)
        for segment in elf.iter_segments("PT_LOAD"):
            start, data = segment["p_vaddr"], segment.data()
            low = start // 4096 * 4096
            data = bytes(start - low) + data
            for at in range(0, len(data), 4096):
                pages[low + at] = data[at : at + 4096]
            memory.append(Mapping(low, -(-(start + segment["p_memsz"]) // 4096) * 4096, segment["p_flags"]))
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = table.get_symbol_by_name(function)
        assert found
        rip = found[0]["st_value"]
    memory.append(Mapping(memory[-1].end, 16 * MIB, 6))
    stack = 16 * MIB - 64
    pages[16 * MIB - 4096] = bytes(4096)
    xsave = bytearray(2696)
    xsave[0:2], xsave[24:28] = (0x37F).to_bytes(2, "little"), (0x1F80).to_bytes(4, "little")
    xsave[160:168] = (0x1122334455667788).to_bytes(8, "little")
    xsave[464:472], xsave[512:520] = (0x2E7).to_bytes(8, "little"), (0x207).to_bytes(8, "little")
    return FakeGuest(
        known=Facts(image=str(path), pid=4711, mem_bytes=16 * MIB, backend="sandbox", **facts),  # type: ignore[arg-type]
        state=Registers(
            rip=rip, rsp=stack, rbp=0x55, rax=7, rflags=0x246, fs_base=0x1234, xsave=bytes(xsave)
        ),
        memory=memory,
        pages=pages,
    )
