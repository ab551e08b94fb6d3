"""What addresses of an image mean: symbols, source lines, inlined functions, and stacks."""

import bisect
import struct
from collections.abc import Callable, Sequence
from typing import Self

from tender.debug.demangle import demangle
from tender.debug.dwarf import Dwarf
from tender.debug.elf_file import ElfFile, c_text
from tender.debug.registers import DWARF, Registers
from tender.debug.unwind import MASK, RIP, RSP, FrameTable, Step
from tender.values import Value, value

_SYMBOL = struct.Struct("<IBBHQQ")
_NO_TYPE, _OBJECT, _FUNC, _IFUNC = 0, 1, 2, 10
_SYMBOLS_MAX = 4_000_000
_BACK_MAX = 64
_SPELLINGS_MAX = 500_000
_SEARCH_BYTES = 16 << 10
_CHAIN_BYTES = 1 << 20
_RBP = 6
_FRAMES_MAX = 100_000


@value
class Symbol(Value):
    """A name in an ELF file: a function or data.

    Attributes:
        name: The name as in the file.
        shown: The name as people read it (demangled).
        address: The guest-physical address.
        size: The size in bytes, 0 if the file does not say it.
        is_function: Whether it is a function.
    """

    name: str
    shown: str
    address: int
    size: int
    is_function: bool


@value
class Frame(Value):
    """A frame of a stack.

    Functions that the compiler inlined have frames of their own with the same `pc` and `cfa`.

    Attributes:
        pc: The address of the instruction; for a caller, the address that it returns to.
        cfa: The canonical frame address; 0 if it is not known.
        function: The name as people read it, or "".
        offset: The distance of `pc` from the function's start.
        file: The source file, or "".
        line: The line in it, or 0.
        inlined: Whether the compiler inlined this function into that of the next frame.
        certain: False for a frame that was found by searching the stack, for lack of unwind tables.
    """

    pc: int
    cfa: int = 0
    function: str = ""
    offset: int = 0
    file: str = ""
    line: int = 0
    inlined: bool = False
    certain: bool = True


Read = Callable[[int, int], bytes]
"""read(address, length): the bytes there, fewer if they end."""


class Symbols:
    """An ELF file, of which the file's parts are read when they are needed. Any file is accepted; what is broken in it
    is left out."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._dwarf = Dwarf(elf)
        self._tables: list[FrameTable] | None = None
        self._rows: list[tuple[int, int, int, int]] | None = None
        self._starts: list[int] = []
        self._names = b""
        self._frames: dict[tuple[int, bool], Sequence[Frame]] = {}

    @classmethod
    def open(cls, path: str) -> Self:
        """Opens a file. Raises ImageError if it is no ELF file."""
        return cls(ElfFile.open(path))

    @property
    def entry(self) -> int:
        """The address of the first instruction."""
        return self._elf.entry

    @property
    def elf(self) -> ElfFile:
        """The file."""
        return self._elf

    def close(self) -> None:
        """Closes the file."""
        self._elf.close()

    # ---- symbols

    def find(self, name: str) -> Symbol | None:
        """Returns the symbol with this name, by either spelling."""
        rows = self._symbols()
        raw = name.encode("utf-8", "surrogateescape") + b"\0"
        places: set[int] = set()
        at = self._names.find(raw)
        while at >= 0 and len(places) < 1000:
            places.add(at)
            at = self._names.find(raw, at + 1)
        found = next((row for row in reversed(rows) if row[3] in places), None)
        if found is not None:
            return self._symbol(found)
        for row in rows[:_SPELLINGS_MAX]:
            mangled = self._names[row[3] : row[3] + 4]
            if mangled.startswith((b"caml", b"_Z", b"_R")):
                symbol = self._symbol(row)
                if symbol.shown == name or symbol.shown.partition("(")[0] == name:
                    return symbol
        return None

    def at(self, address: int) -> Symbol | None:
        """Returns the symbol that the address lies in."""
        rows = self._symbols()
        last = bisect.bisect_right(self._starts, address) - 1
        for index in range(last, max(-1, last - _BACK_MAX), -1):
            start, _, size, _ = rows[index]
            if size and start <= address < start + size:
                return self._symbol(rows[index])
        # Assembly labels have no size: each reaches to the next symbol, in its part of the file.
        if last >= 0 and not rows[last][2]:
            segment = self._elf.segment_at(address)
            if segment is not None and segment.holds(rows[last][0]):
                return self._symbol(rows[last])
        return None

    def _symbols(self) -> list[tuple[int, int, int, int]]:
        """Rows of address, rank, size and place of the name, in the order of addresses, the best name last."""
        if self._rows is None:
            section = self._elf.sections.get(".symtab") or self._elf.sections.get(".dynsym")
            rows = []
            if section is not None:
                data = self._elf.data(section.name)[: _SYMBOLS_MAX * _SYMBOL.size]
                self._names = self._elf.linked(section)
                for name, info, _, index, address, size in _SYMBOL.iter_unpack(
                    data[: len(data) // _SYMBOL.size * _SYMBOL.size]
                ):
                    kind = info & 15
                    if name and 0 < index < 0xFF00 and kind in (_NO_TYPE, _OBJECT, _FUNC, _IFUNC):
                        rank = (
                            (size > 0) * 8
                            + (kind in (_FUNC, _IFUNC)) * 4
                            + (kind == _OBJECT) * 2
                            + (info >> 4 == 1)
                        )
                        rows.append((address, rank, size, name))
            rows.sort()
            self._rows = rows
            self._starts = [row[0] for row in rows]
        return self._rows

    def _symbol(self, row: tuple[int, int, int, int]) -> Symbol:
        address, rank, size, place = row
        name = c_text(self._names, place)
        is_function = bool(rank & 4) or (not rank & 2 and self._elf.is_text(address))
        return Symbol(name=name, shown=demangle(name), address=address, size=size, is_function=is_function)

    # ---- lines

    def frames(self, pc: int, *, is_return: bool = False) -> Sequence[Frame]:
        """Returns the functions at `pc`, the innermost first: one, and those that it was inlined into.

        For an address that a call returns to, the line is that of the call.
        """
        found = self._frames.get((pc, is_return))
        if found is None:
            found = self._looked_up(pc, is_return)
            if len(self._frames) < _FRAMES_MAX:
                self._frames[pc, is_return] = found
        return found

    def _looked_up(self, pc: int, is_return: bool) -> Sequence[Frame]:
        inside = pc - 1 if is_return else pc
        symbol = self.at(inside)
        start = symbol.address if symbol else 0
        found = []
        for place in self._dwarf.places(inside):
            name = demangle(place.function)
            begin = place.start if place.inlined or not symbol else start
            if not place.inlined and symbol and (not name or symbol.name != symbol.shown):
                name = symbol.shown
            found.append(
                Frame(
                    pc=pc,
                    function=name,
                    offset=max(0, pc - begin),
                    file=place.file,
                    line=place.line,
                    inlined=place.inlined,
                )
            )
        if found:
            return found
        return [Frame(pc=pc, function=symbol.shown, offset=pc - start) if symbol else Frame(pc=pc)]

    # ---- stacks

    def caller(self, registers: dict[int, int], read: Read, *, is_return: bool) -> dict[int, int] | None:
        """Returns the caller's registers by their DWARF numbers (16: rip), by the unwind tables of the file.

        None: there are none for this address, or it is the outermost frame. `is_return`: rip is an address that a
        call returns to.
        """
        step = self.step(registers, read, is_return=is_return)
        return step.registers if step is not None and step.registers.get(RIP) else None

    def step(self, registers: dict[int, int], read: Read, *, is_return: bool) -> Step | None:
        """Returns the step to the caller, by the unwind tables; None: there are none for this address.

        In the outermost frame the caller has no rip.
        """
        if self._tables is None:
            self._tables = []
            for name, is_eh in ((".eh_frame", True), (".debug_frame", False)):
                section = self._elf.sections.get(name)
                data = self._elf.data(name)
                if section is not None and data:
                    self._tables.append(FrameTable(data, section.address, is_eh=is_eh))
        for table in self._tables:
            step = table.step(registers, read, is_return=is_return)
            if step is not None:
                return step
        return None

    def backtrace(self, registers: Registers, read: Read, limit: int = 64) -> Sequence[Frame]:
        """Returns the stack, the innermost frame first, at most `limit` frames that are not inlined."""
        found: list[Frame] = []
        current, is_return, certain = registers.by_dwarf(), False, True
        seen = set()
        for _ in range(limit):
            pc = current[RIP]
            step = self.step(current, read, is_return=is_return)
            by_table = step is not None
            if step is None:
                step = self._guess(current, read, is_return=is_return)
            cfa = step.cfa if step is not None else 0
            for frame in self.frames(pc, is_return=is_return):
                found.append(frame._with(cfa=cfa, certain=certain))
            key = (pc, current.get(RSP))
            if step is None or not step.registers.get(RIP) or key in seen:
                break
            seen.add(key)
            in_text = self._elf.is_text(pc - is_return)
            certain = by_table or not in_text
            current, is_return = step.registers, not step.is_signal
            if not self._elf.is_text(current[RIP] - is_return) and not by_table:
                break
        return found

    def interrupted(self, registers: Registers, read: Read, limit: int = 64) -> Registers | None:
        """Returns the registers of the code that an exception interrupted, if these are of its handler, else None."""
        current, is_return = registers.by_dwarf(), False
        for _ in range(limit):
            step = self.step(current, read, is_return=is_return)
            if step is None or not step.registers.get(RIP):
                return None
            current, is_return = step.registers, not step.is_signal
            if step.is_interruption:
                named = {name: current[number] for number, name in enumerate(DWARF) if number in current}
                return registers._with(**named)
        return None

    def _guess(self, registers: dict[int, int], read: Read, *, is_return: bool) -> Step | None:
        """A step without tables: by the call that leads here, by the chain of frame pointers, by any call."""
        pc, rsp = registers[RIP], registers.get(RSP, 0)
        if not self._elf.is_text(pc - is_return):
            # A call to a wild address: it has pushed where it came from.
            word = _word(read, rsp)
            return self._made(registers, word, rsp + 8) if word and self._is_behind_call(word) else None
        symbol = self.at(pc - is_return)
        if symbol is not None and symbol.address <= self._elf.entry < symbol.address + max(1, symbol.size):
            return None
        stack = read(rsp, _SEARCH_BYTES)
        words = struct.unpack_from(f"<{len(stack) // 8}Q", stack)
        behind = [
            (n, word)
            for n, word in enumerate(words)
            if self._elf.is_text(word) and self._is_behind_call(word)
        ]
        if symbol is not None:
            for n, word in behind:
                if self._call_target(word) == symbol.address:
                    return self._made(registers, word, rsp + 8 * n + 8)
        rbp = registers.get(_RBP, 0)
        if rsp <= rbp < rsp + _CHAIN_BYTES and not rbp % 8:
            word, saved = _word(read, rbp + 8), _word(read, rbp)
            if word and self._is_behind_call(word):
                return self._made({**registers, _RBP: saved or 0}, word, rbp + 16)
        if behind:
            n, word = behind[0]
            return self._made(registers, word, rsp + 8 * n + 8)
        return None

    def _made(self, registers: dict[int, int], pc: int, rsp: int) -> Step:
        return Step({**registers, RIP: pc, RSP: rsp & MASK}, rsp & MASK, is_signal=False)

    def _is_behind_call(self, address: int) -> bool:
        """Whether the bytes before an address of text are a call: e8 and a displacement, or ff /2."""
        if not self._elf.is_text(address - 1):
            return False
        if self._call_target(address) is not None:
            return True
        for length in (2, 3, 4, 6, 7, 8):
            code = self._elf.text(address - length, length)
            if len(code) == length and _is_indirect_call(code):
                return True
        return False

    def _call_target(self, address: int) -> int | None:
        code = self._elf.text(address - 5, 5)
        if len(code) < 5 or code[0] != 0xE8:
            return None
        target = address + int.from_bytes(code[1:], "little", signed=True) & MASK
        return target if self._elf.is_text(target) else None


def _is_indirect_call(code: bytes) -> bool:
    """Whether these bytes are one `call *...`: REX prefix, ff, ModRM with /2, SIB, displacement."""
    rest = code[1:] if code[0] & 0xF0 == 0x40 or code[0] == 0x3E else code
    if len(rest) < 2 or rest[0] != 0xFF or rest[1] >> 3 & 7 != 2:
        return False
    mode, low = rest[1] >> 6, rest[1] & 7
    size = 2
    if mode != 3 and low == 4:
        size += 1
        if mode == 0 and len(rest) > 2 and rest[2] & 7 == 5:
            size += 4
    elif mode == 0 and low == 5:
        size += 4
    size += {0: 0, 1: 1, 2: 4, 3: 0}[mode]
    return len(rest) == size


def _word(read: Read, address: int) -> int | None:
    data = read(address & MASK, 8)
    return int.from_bytes(data, "little") if len(data) == 8 else None
