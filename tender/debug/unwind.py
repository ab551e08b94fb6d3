"""Unwinds stacks by the call frame information of an ELF file: .eh_frame and .debug_frame.

`FrameTable` finds the entry (FDE) of an address and computes the caller's registers. It keeps an index of where the entries
begin; an entry is read when a frame needs it. Source: DWARF 5, section 6.4; LSB 5.0 core, chapter 10.6 (.eh_frame).

A file may be hostile. Every number is checked, and each loop consumes bytes of the file or counts to a limit.
"""

import bisect
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

Read = Callable[[int, int], bytes]

RSP, RIP = 7, 16
MASK = (1 << 64) - 1

_REGISTERS_MAX = 128
_STATES_MAX = 64
_STEPS_MAX = 10_000
_STACK_MAX = 256
_INSTRUCTIONS_MAX = 100_000
_ENTRIES_MAX = 1_000_000


class Broken(Exception):
    """The bytes are not what the format says, or use a part of it that no compiler does."""


class Cursor:
    """Reads numbers from bytes. Raises Broken at the end."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else min(end, len(data))

    def number(self, size: int, *, signed: bool = False) -> int:
        at, self.at = self.at, self.at + size
        if at < 0 or self.at > self.end:
            raise Broken
        return int.from_bytes(self.data[at : self.at], "little", signed=signed)

    def uleb(self) -> int:
        value = shift = 0
        data, at, end = self.data, self.at, self.end
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self.at = at
                return value & MASK
            shift += 7
        raise Broken

    def sleb(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.number(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - (1 << shift) if byte & 64 else value
        raise Broken

    def take(self, length: int) -> bytes:
        at, self.at = self.at, self.at + length
        if length < 0 or self.at > self.end:
            raise Broken
        return self.data[at : self.at]

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            raise Broken
        at, self.at = self.at, end + 1
        return self.data[at:end]


@dataclass(frozen=True)
class Step:
    """A step to a caller.

    Attributes:
        registers: The caller's, by their DWARF numbers; rip is missing in the outermost frame.
        cfa: The canonical frame address of the frame that was left.
        is_signal: Whether the tables say that the caller's rip is not behind a call.
        is_interruption: Whether that frame was made by an exception: also its stack pointer was saved in memory. OCaml's
            runtime marks its changes of stacks (caml_c_call) as signal frames too, and they are none.
    """

    registers: dict[int, int]
    cfa: int
    is_signal: bool
    is_interruption: bool = False


@dataclass(frozen=True)
class _Cie:
    code_align: int
    data_align: int
    return_register: int
    encoding: int
    has_data: bool
    is_signal: bool
    start: int
    end: int


@dataclass
class _Rules:
    """How to find the caller's registers: (kind, argument) for each, and the CFA as (register, offset) or an expression."""

    cfa: tuple[int, int] | bytes | None = None
    registers: dict[int, tuple[str, int | bytes]] = field(default_factory=dict)

    def copy(self) -> "_Rules":
        return _Rules(self.cfa, dict(self.registers))


class FrameTable:
    """The call frame information of one section."""

    def __init__(self, data: bytes, address: int, *, is_eh: bool) -> None:
        self._data = data
        self._address = address
        self._is_eh = is_eh
        self._cies: dict[int, _Cie | None] = {}
        entries = sorted(self._scan())
        self._starts = [start for start, _, _, _, _, _ in entries]
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def step(self, registers: dict[int, int], read: Read, *, is_return: bool) -> Step | None:
        """Returns the step to the caller; None if no entry knows it."""
        pc = registers.get(RIP, 0) - is_return
        index = bisect.bisect_right(self._starts, pc) - 1
        # Entries of length 0 may share a start with the one that counts: the longest is the last.
        if index < 0 or not pc < self._entries[index][1]:
            return None
        start, _, cie_at, at, end, _ = self._entries[index]
        try:
            return self._apply(start, cie_at, at, end, pc, registers, read)
        except (Broken, struct.error, IndexError, OverflowError):
            return None

    def _scan(self) -> list[tuple[int, int, int, int, int, int]]:
        """The entries: start and end of the function, place of the CIE, of the instructions and of their end, and of all.

        It reads the heads only.
        """
        data, base, is_eh = self._data, self._address, self._is_eh
        found: list[tuple[int, int, int, int, int, int]] = []
        at, size = 0, len(data)
        word = struct.Struct("<I").unpack_from
        two = struct.Struct("<iI").unpack_from
        while at + 8 <= size and len(found) < _ENTRIES_MAX:
            (length,) = word(data, at)
            body, width = at + 4, 4
            if length == 0xFFFFFFFF:
                if at + 20 > size:
                    break
                length, body, width = int.from_bytes(data[at + 4 : at + 12], "little"), at + 12, 8
            if length == 0:
                at += 4
                continue
            end = body + length
            if end > size or length < width:
                break
            ident = int.from_bytes(data[body : body + width], "little")
            is_cie = ident == 0 if is_eh else ident == (1 << 8 * width) - 1
            if not is_cie:
                cie_at = body - ident if is_eh else ident
                cie = self._cie(cie_at)
                try:
                    if cie is None:
                        pass
                    elif (
                        cie.encoding == 0x1B and end - body >= width + 8
                    ):  # pcrel | sdata4: all of gcc's and OCaml's
                        offset, extent = two(data, body + width)
                        start = base + body + width + offset & MASK
                        found.append((start, start + extent, cie_at, body + width + 8, end, at))
                    else:
                        cursor = Cursor(data, body + width, end)
                        start = _encoded(cursor, cie.encoding, base)
                        extent = _encoded(cursor, cie.encoding & 0x0F, 0)
                        found.append((start, start + extent, cie_at, cursor.at, end, at))
                except Broken:
                    pass
            at = end
        return [it for it in found if it[0] < it[1]]

    def _cie(self, at: int) -> _Cie | None:
        if at not in self._cies:
            try:
                self._cies[at] = self._read_cie(at)
            except Broken:
                self._cies[at] = None
        return self._cies[at]

    def _read_cie(self, at: int) -> _Cie:
        cursor = Cursor(self._data, at)
        length, width = cursor.number(4), 4
        if length == 0xFFFFFFFF:
            length, width = cursor.number(8), 8
        cursor.end = min(cursor.end, cursor.at + length)
        ident = cursor.number(width)
        version = cursor.number(1)
        if ident != (0 if self._is_eh else (1 << 8 * width) - 1) or version not in (1, 3, 4):
            raise Broken
        letters = cursor.text()
        if version == 4 and (cursor.number(1), cursor.number(1)) != (8, 0):
            raise Broken
        code_align, data_align = cursor.uleb(), cursor.sleb()
        return_register = cursor.number(1) if version == 1 else cursor.uleb()
        encoding, is_signal, after = 0, False, None
        if letters[:1] == b"z":
            length = cursor.uleb()
            after = cursor.at + length
            for letter in letters[1:].decode("latin-1"):
                if letter == "R":
                    encoding = cursor.number(1)
                elif letter == "L":
                    cursor.number(1)
                elif letter == "P":
                    _encoded(cursor, cursor.number(1) & 0x7F, 0)
                elif letter == "S":
                    is_signal = True
                elif letter != "B":
                    break
        elif letters == b"S":  # in .debug_frame
            is_signal = True
        elif letters:
            raise Broken
        return _Cie(
            code_align,
            data_align,
            return_register,
            encoding,
            after is not None,
            is_signal,
            cursor.at if after is None else after,
            cursor.end,
        )

    def _apply(
        self, start: int, cie_at: int, at: int, end: int, pc: int, registers: dict[int, int], read: Read
    ) -> Step | None:
        cie = self._cie(cie_at)
        if cie is None:
            return None
        first = _Rules()
        _execute(Cursor(self._data, cie.start, cie.end), cie, first, None, start, pc, self._address)
        cursor = Cursor(self._data, at, end)
        if cie.has_data:
            length = cursor.uleb()
            cursor.take(length)
        rules = first.copy()
        rules = _execute(cursor, cie, rules, first, start, pc, self._address)
        if isinstance(rules.cfa, bytes):
            cfa = evaluate(rules.cfa, registers, read)
        elif rules.cfa is not None and rules.cfa[0] in registers:
            cfa = registers[rules.cfa[0]] + rules.cfa[1] & MASK
        else:
            return None
        # What no rule names stays. For registers that a call may change this is a guess; no rule of a compiler reads those.
        caller = {**registers, RSP: cfa}
        for register, (kind, argument) in rules.registers.items():
            if kind == "undefined":
                caller.pop(register, None)
            elif kind == "same":
                if register in registers:
                    caller[register] = registers[register]
            elif kind == "register":
                if argument not in registers:
                    return None
                caller[register] = registers[int(argument)]
            elif isinstance(argument, bytes):
                value = evaluate(argument, registers, read, cfa)
                caller[register] = value if kind == "value" else _word(read, value)
            else:
                place = cfa + argument & MASK
                caller[register] = place if kind == "value" else _word(read, place)
        if cie.return_register != RIP:
            caller[RIP] = caller.pop(cie.return_register, 0)
        elif rules.registers.get(RIP, ("same", 0))[0] == "same":
            caller.pop(RIP, None)  # no rule: there is no caller
        return Step(caller, cfa, cie.is_signal, cie.is_signal and RSP in rules.registers)


def _word(read: Read, address: int) -> int:
    data = read(address, 8)
    if len(data) != 8:
        raise Broken
    return int.from_bytes(data, "little")


def _encoded(cursor: Cursor, encoding: int, base: int) -> int:
    """A pointer by its DW_EH_PE encoding; `base` is the address of the section."""
    place = base + cursor.at
    kind = encoding & 0x0F
    if kind == 1:
        value = cursor.uleb()
    elif kind == 9:
        value = cursor.sleb()
    elif kind & 7 in (0, 2, 3, 4):
        value = cursor.number({0: 8, 2: 2, 3: 4, 4: 8}[kind & 7], signed=bool(kind & 8))
    else:
        raise Broken
    application = encoding & 0xF0
    if application == 0x10:
        value += place
    elif (
        application
    ):  # relative to a register, or indirect: no compiler for x86-64 writes these for functions
        raise Broken
    return value & MASK


def _execute(
    cursor: Cursor, cie: _Cie, rules: _Rules, first: _Rules | None, start: int, pc: int, base: int
) -> _Rules:
    """Runs the instructions up to the row of `pc`, and returns the rules. `first` is what the CIE says."""
    place = start
    states: list[_Rules] = []
    align = cie.data_align

    def register() -> int:
        number = cursor.uleb()
        if number >= _REGISTERS_MAX:
            raise Broken
        return number

    def restore(number: int) -> None:
        if first is not None and number in first.registers:
            rules.registers[number] = first.registers[number]
        else:
            rules.registers.pop(number, None)

    def cfa_register() -> int:
        if not isinstance(rules.cfa, tuple):
            raise Broken
        return rules.cfa[0]

    for _ in range(_INSTRUCTIONS_MAX):
        if cursor.at >= cursor.end:
            break
        code = cursor.number(1)
        high, low = code & 0xC0, code & 0x3F
        if high == 0x40:
            place += low * cie.code_align
        elif high == 0x80:
            rules.registers[low] = ("offset", cursor.uleb() * align)
        elif high == 0xC0:
            restore(low)
        elif code in (0x00, 0x2D):  # nop, GNU_window_save
            pass
        elif code == 0x01:  # set_loc
            place = _encoded(cursor, cie.encoding, base)
        elif code in (0x02, 0x03, 0x04):  # advance_loc1, 2, 4
            place += cursor.number(1 << code - 2) * cie.code_align
        elif code == 0x05:  # offset_extended
            number = register()
            rules.registers[number] = ("offset", cursor.uleb() * align)
        elif code == 0x06:
            restore(register())
        elif code == 0x07:
            rules.registers[register()] = ("undefined", 0)
        elif code == 0x08:
            rules.registers[register()] = ("same", 0)
        elif code == 0x09:
            number = register()
            rules.registers[number] = ("register", register())
        elif code == 0x0A:  # remember_state
            if len(states) >= _STATES_MAX:
                raise Broken
            states.append(rules.copy())
        elif code == 0x0B:  # restore_state
            if not states:
                raise Broken
            rules = states.pop()
        elif code == 0x0C:  # def_cfa
            number = register()
            rules.cfa = (number, cursor.uleb())
        elif code == 0x0D:
            offset = rules.cfa[1] if isinstance(rules.cfa, tuple) else 0
            rules.cfa = (register(), offset)
        elif code == 0x0E:
            rules.cfa = (cfa_register(), cursor.uleb())
        elif code == 0x0F:
            rules.cfa = cursor.take(cursor.uleb())
        elif code in (0x10, 0x16):  # expression, val_expression
            number = register()
            rules.registers[number] = ("offset" if code == 0x10 else "value", cursor.take(cursor.uleb()))
        elif code == 0x11:
            number = register()
            rules.registers[number] = ("offset", cursor.sleb() * align)
        elif code == 0x12:
            number = register()
            rules.cfa = (number, cursor.sleb() * align)
        elif code == 0x13:
            rules.cfa = (cfa_register(), cursor.sleb() * align)
        elif code in (0x14, 0x15):
            number = register()
            rules.registers[number] = ("value", (cursor.sleb() if code == 0x15 else cursor.uleb()) * align)
        elif code == 0x2E:  # GNU_args_size
            cursor.uleb()
        elif code == 0x2F:  # GNU_negative_offset_extended
            number = register()
            rules.registers[number] = ("offset", -cursor.uleb() * align)
        else:
            raise Broken
        if place > pc:
            break
    return rules


def evaluate(code: bytes, registers: dict[int, int], read: Read, *start: int) -> int:
    """Evaluates a DWARF expression of call frame information. Raises Broken. Source: DWARF 5, section 2.5."""
    cursor, stack = Cursor(code), list(start)

    def pop() -> int:
        if not stack:
            raise Broken
        return stack.pop()

    for _ in range(_STEPS_MAX):
        if cursor.at >= cursor.end:
            return pop() & MASK
        if len(stack) > _STACK_MAX:
            raise Broken
        op = cursor.number(1)
        if 0x30 <= op <= 0x4F:  # lit0..lit31
            stack.append(op - 0x30)
        elif 0x70 <= op <= 0x8F or op == 0x92:  # breg0..breg31, bregx
            number = op - 0x70 if op != 0x92 else cursor.uleb()
            if number not in registers:
                raise Broken
            stack.append(registers[number] + cursor.sleb() & MASK)
        elif 0x08 <= op <= 0x0F or op == 0x03:  # const1u .. const8s, addr
            size = 8 if op == 0x03 else 1 << (op - 0x08 >> 1)
            stack.append(cursor.number(size, signed=op != 0x03 and bool(op & 1)) & MASK)
        elif op in (0x10, 0x11):
            stack.append((cursor.uleb() if op == 0x10 else cursor.sleb()) & MASK)
        elif op in (0x06, 0x94):  # deref, deref_size
            size = 8 if op == 0x06 else cursor.number(1)
            if size not in (1, 2, 4, 8):
                raise Broken
            data = read(pop(), size)
            if len(data) != size:
                raise Broken
            stack.append(int.from_bytes(data, "little"))
        elif op in (0x12, 0x14, 0x15):  # dup, over, pick
            depth = {0x12: 0, 0x14: 1}.get(op)
            depth = cursor.number(1) if depth is None else depth
            if depth >= len(stack):
                raise Broken
            stack.append(stack[-1 - depth])
        elif op == 0x13:
            pop()
        elif op == 0x16:  # swap
            one, two = pop(), pop()
            stack += [one, two]
        elif op == 0x23:  # plus_uconst
            stack.append(pop() + cursor.uleb() & MASK)
        elif op in (0x19, 0x1F, 0x20):  # abs, neg, not
            value = pop()
            stack.append({0x19: abs(_signed(value)), 0x1F: -value, 0x20: ~value}[op] & MASK)
        elif op in _BINARY:
            right, left = pop(), pop()
            stack.append(_BINARY[op](left, right) & MASK)
        elif op in (0x28, 0x2F):  # bra, skip
            distance = cursor.number(2, signed=True)
            if op == 0x2F or pop():
                cursor.at += distance
                if not 0 <= cursor.at <= cursor.end:
                    raise Broken
        elif op != 0x96:  # nop
            raise Broken
    raise Broken


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b if b < 64 else 0,
    0x26: lambda a, b: _signed(a) >> min(b, 63),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}
