"""Source lines and inlined functions of an ELF file: DWARF 2 to 5.

A unit is read when an address in it is asked for: the unit is found by .debug_aranges, or by the ranges of each unit's first
entry. Source: DWARF 5, sections 6.1.2, 6.2, 7.4 to 7.6, 2.17.3.

A file may be hostile. Each loop goes forward in the bytes of a section, or counts to a limit.
"""

import bisect
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from tender.debug.elf_file import ElfFile, c_text
from tender.debug.unwind import MASK, Broken, Cursor
from tender.printable import printable

_UNITS_MAX = 100_000
_RANGES_MAX = 200_000
_ROWS_MAX = 2_000_000
_FILES_MAX = 100_000
_ABBREVIATIONS_MAX = 100_000
_CHAIN_MAX = 64
_HOPS_MAX = 8
_ATTRIBUTES_MAX = 1000
_LINE_PROGRAM_MAX = 16 << 20
_WORK_MAX = 2_000_000
"""Entries, rows, ranges and attributes that are read of one file in all: a file can name a long list many times."""

_SUBPROGRAM, _INLINED, _BLOCK = 0x2E, 0x1D, 0x0B
_SKIPPED = frozenset((0x01, 0x04, 0x15, 0x17, _SUBPROGRAM))
"""Entries whose children are not looked at for functions: array, enumeration, subroutine type, union, function."""

_SIBLING, _NAME, _STMT_LIST, _LOW, _HIGH, _COMP_DIR = 0x01, 0x03, 0x10, 0x11, 0x12, 0x1B
_ORIGIN, _SPECIFICATION, _RANGES, _CALL_FILE, _CALL_LINE = 0x31, 0x47, 0x55, 0x58, 0x59
_LINKAGE, _STR_BASE, _ADDR_BASE, _RNG_BASE, _MIPS_LINKAGE = 0x6E, 0x72, 0x73, 0x74, 0x2007

_FIXED = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0},
    **{0x1C: 4, 0x1E: 16, 0x20: 8, 0x21: 0, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4},
    **{0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4},
}
"""The forms of one size."""
_OFFSETS = frozenset((0x0E, 0x10, 0x17, 0x1D, 0x1F, 0x1F20, 0x1F21))
"""The forms whose size is that of an offset in the unit: 4 or 8."""
_ULEBS = frozenset((0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23, 0x1F01, 0x1F02))
_STRING_INDEXES = frozenset((0x1A, 0x25, 0x26, 0x27, 0x28, 0x1F02))
_ADDRESS_INDEXES = frozenset((0x1B, 0x29, 0x2A, 0x2B, 0x2C, 0x1F01))
_CONSTANTS = frozenset((0x05, 0x06, 0x07, 0x0B, 0x0D, 0x0F, 0x21))

Value = tuple[int, int | bytes]
"""A form and what was read."""


@dataclass(frozen=True)
class _Abbreviation:
    tag: int
    has_children: bool
    attributes: tuple[tuple[int, int, int], ...]
    size: int | None
    """Of all attributes, if it is the same for each entry."""


@dataclass
class _Entry:
    """An entry (DIE) of a unit, with the attributes that matter here."""

    at: int
    tag: int
    has_children: bool
    values: dict[int, Value]
    next: int


@dataclass
class Unit:
    """A unit of .debug_info. What is in its first entry is read later."""

    at: int
    first: int
    end: int
    version: int
    width: int
    abbreviations: dict[int, _Abbreviation]
    root: _Entry | None = None
    functions: list[tuple[int, int, _Entry]] | None = None
    lines: "_Lines | None" = None


@dataclass
class _Lines:
    starts: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, int, bool]] = field(default_factory=list)
    files: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A function at an address: its linkage name or name, its start, and the line there."""

    function: str
    start: int
    file: str
    line: int
    inlined: bool


class Dwarf:
    """The debug information of a file."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._sections: dict[str, bytes] = {}
        self._tables: dict[int, dict[int, _Abbreviation]] = {}
        self._units: dict[int, Unit] | None = None
        self._offsets: list[int] = []
        self._near: list[tuple[int, int, int]] | None = None
        self._far: list[tuple[int, int, int]] | None = None
        self._work = 0

    def _works(self, count: int = 1) -> None:
        """Counts what is read. Raises Broken if it is too much: what was found so far counts."""
        self._work += count
        if self._work > _WORK_MAX:
            raise Broken

    def places(self, pc: int) -> list[Place]:
        """Returns the functions at an address, the innermost first; none if the file does not know."""
        try:
            unit = self._unit_at(pc)
            return self._places(unit, pc) if unit else []
        except (Broken, RecursionError, OverflowError, MemoryError):
            return []

    # ---- units

    def _section(self, name: str) -> bytes:
        if name not in self._sections:
            self._sections[name] = self._elf.data(f".debug_{name}")
        return self._sections[name]

    def _all_units(self) -> dict[int, Unit]:
        if self._units is None:
            self._units = {}
            info = self._section("info")
            cursor = Cursor(info)
            while cursor.at < len(info) and len(self._units) < _UNITS_MAX:
                try:
                    at = cursor.at
                    length, width = _length(cursor)
                    end = cursor.at + length
                    if end > len(info):
                        break
                    unit = self._head(Cursor(info, cursor.at, end), at, end, width)
                except Broken:
                    break
                if unit:
                    self._units[at] = unit
                cursor.at = end
            self._offsets = sorted(self._units)
        return self._units

    def _head(self, cursor: Cursor, at: int, end: int, width: int) -> Unit | None:
        version = cursor.number(2)
        if not 2 <= version <= 5:
            return None
        kind = 1
        if version == 5:
            kind, address_size, table = cursor.number(1), cursor.number(1), cursor.number(width)
        else:
            table, address_size = cursor.number(width), cursor.number(1)
        if address_size != 8:
            return None
        if kind in (4, 5):  # skeleton, split
            cursor.number(8)
        elif kind in (2, 6):  # type units
            cursor.number(8 + width)
        return Unit(at, cursor.at, end, version, width, self._table(table, width))

    def _table(self, at: int, width: int) -> dict[int, _Abbreviation]:
        key = at << 1 | (width == 8)
        table = self._tables.get(key)
        if table is not None:
            return table
        self._tables[key] = table = {}
        cursor = Cursor(self._section("abbrev"), at)
        try:
            while len(table) < _ABBREVIATIONS_MAX and (code := cursor.uleb()):
                tag, has_children = cursor.uleb(), cursor.number(1) == 1
                attributes: list[tuple[int, int, int]] = []
                size: int | None = 0
                while True:
                    attribute, form = cursor.uleb(), cursor.uleb()
                    constant = cursor.sleb() if form == 0x21 else 0
                    self._works()
                    if not attribute and not form:
                        break
                    if len(attributes) >= _ATTRIBUTES_MAX:
                        raise Broken
                    attributes.append((attribute, form, constant))
                    fixed = width if form in _OFFSETS else _FIXED.get(form)
                    size = None if fixed is None or size is None else size + fixed
                table.setdefault(code, _Abbreviation(tag, has_children, tuple(attributes), size))
        except Broken:
            pass
        return table

    def _root(self, unit: Unit) -> _Entry:
        if unit.root is None:
            found = self._entry(unit, unit.first, wanted=True)
            if found is None:
                raise Broken
            unit.root = found
        return unit.root

    def _unit_at(self, pc: int) -> Unit | None:
        units = self._all_units()
        if self._near is None:
            self._near = sorted(self._aranges())
        found = _covering(self._near, pc)
        if found is None or found not in units:
            if self._far is None:
                known = {at for _, _, at in self._near}
                self._far = sorted(self._unit_ranges(unit for unit in units.values() if unit.at not in known))
            found = _covering(self._far, pc)
        return units.get(found) if found is not None else None

    def _aranges(self) -> Iterator[tuple[int, int, int]]:
        data = self._section("aranges")
        cursor = Cursor(data)
        count = 0
        try:
            while cursor.at < len(data):
                begin = cursor.at
                length, width = _length(cursor)
                end = cursor.at + length
                if end > len(data):
                    return
                version, unit = cursor.number(2), cursor.number(width)
                sizes = cursor.number(2)
                if version == 2 and sizes == 8:
                    cursor.at += (begin - cursor.at) % 16
                    while cursor.at + 16 <= end and count < _RANGES_MAX:
                        low, size = cursor.number(8), cursor.number(8)
                        count += 1
                        if low and size:
                            yield low, low + size, unit
                cursor.at = end
        except Broken:
            return

    def _unit_ranges(self, units: Iterator[Unit]) -> Iterator[tuple[int, int, int]]:
        count = 0
        for unit in units:
            try:
                for low, high in self._ranges(unit, self._root(unit)):
                    yield low, high, unit.at
                    count += 1
                    if count >= _RANGES_MAX:
                        return
            except Broken:
                continue

    # ---- entries

    def _entry(self, unit: Unit, at: int, *, wanted: bool | None = None) -> _Entry | None:
        """The entry at a place; None: it ends a list of children. `wanted` False: without its attributes.

        None: with them, if it is a function or a block.
        """
        self._works()
        cursor = Cursor(self._section("info"), at, unit.end)
        code = cursor.uleb()
        if not code:
            return None
        kind = unit.abbreviations.get(code)
        if kind is None:
            raise Broken
        if wanted is None:
            wanted = kind.tag in (_SUBPROGRAM, _INLINED, _BLOCK)
        values: dict[int, Value] = {}
        if not wanted and kind.size is not None and not kind.has_children:
            cursor.take(kind.size)
        else:
            for attribute, form, constant in kind.attributes:
                value = self._value(unit, cursor, form, constant)
                if wanted or attribute == _SIBLING:
                    values[attribute] = value
        return _Entry(at, kind.tag, kind.has_children, values, cursor.at)

    def _value(self, unit: Unit, cursor: Cursor, form: int, constant: int) -> Value:
        for _ in range(_HOPS_MAX):
            if form != 0x16:  # indirect
                break
            form = cursor.uleb()
        if form == 0x21:
            return form, constant
        size = _FIXED.get(form)
        if size is not None:
            return form, cursor.number(size)
        if form in _OFFSETS:
            return form, cursor.number(8 if form == 0x10 and unit.version == 2 else unit.width)
        if form in _ULEBS:
            return form, cursor.uleb()
        if form == 0x0D:
            return form, cursor.sleb()
        if form == 0x08:
            return form, cursor.text()
        if form in (0x09, 0x18):
            return form, cursor.take(cursor.uleb())
        if form in (0x0A, 0x03, 0x04):
            return form, cursor.take(cursor.number({0x0A: 1, 0x03: 2, 0x04: 4}[form]))
        raise Broken

    def _text(self, unit: Unit, value: Value | None) -> str:
        if value is None:
            return ""
        form, it = value
        if isinstance(it, bytes):
            return printable(it[:4096].decode("utf-8", "replace")) if form == 0x08 else ""
        if form == 0x0E:
            return c_text(self._section("str"), it)
        if form == 0x1F:
            return c_text(self._section("line_str"), it)
        if form in _STRING_INDEXES:
            base = _constant(self._root(unit).values.get(_STR_BASE)) or (8 if unit.version >= 5 else 0)
            cursor = Cursor(self._section("str_offsets"), base + it * unit.width)
            return c_text(self._section("str"), cursor.number(unit.width))
        return ""

    def _address(self, unit: Unit, value: Value) -> int | None:
        form, it = value
        if isinstance(it, bytes):
            return None
        if form == 0x01:
            return it
        if form in _ADDRESS_INDEXES:
            base = _constant(self._root(unit).values.get(_ADDR_BASE)) or 8
            return Cursor(self._section("addr"), base + it * 8).number(8)
        return None

    def _ranges(self, unit: Unit, entry: _Entry) -> list[tuple[int, int]]:
        low = entry.values.get(_LOW)
        start = self._address(unit, low) if low else None
        high = entry.values.get(_HIGH)
        if start is not None and high is not None and not isinstance(high[1], bytes):
            end = start + high[1] if high[0] in _CONSTANTS else self._address(unit, high)
            return [(start, end)] if end is not None and start < end else []
        where = entry.values.get(_RANGES)
        if where is None or isinstance(where[1], bytes):
            return []
        root = self._root(unit) if entry.at != unit.first else entry
        base_value = root.values.get(_LOW)
        base = (self._address(unit, base_value) if base_value else 0) or 0
        if unit.version < 5:
            return list(self._old_ranges(Cursor(self._section("ranges"), where[1]), base))
        at = where[1]
        if where[0] == 0x23:  # rnglistx
            table = _constant(root.values.get(_RNG_BASE)) or 12
            at = table + Cursor(self._section("rnglists"), table + at * unit.width).number(unit.width)
        return list(self._new_ranges(unit, Cursor(self._section("rnglists"), at), base))

    def _old_ranges(self, cursor: Cursor, base: int) -> Iterator[tuple[int, int]]:
        for _ in range(_RANGES_MAX):
            self._works()
            low, high = cursor.number(8), cursor.number(8)
            if low == MASK:
                base = high
            elif not low and not high:
                return
            elif low < high:
                yield base + low, base + high

    def _new_ranges(self, unit: Unit, cursor: Cursor, base: int) -> Iterator[tuple[int, int]]:
        def indexed() -> int:
            return self._address(unit, (0x1B, cursor.uleb())) or 0

        for _ in range(_RANGES_MAX):
            self._works()
            kind = cursor.number(1)
            if kind == 0:
                return
            if kind == 1:
                base = indexed()
                continue
            if kind == 5:
                base = cursor.number(8)
                continue
            if kind == 2:
                low, high = indexed(), indexed()
            elif kind == 3:
                low = indexed()
                high = low + cursor.uleb()
            elif kind == 4:
                low, high = base + cursor.uleb(), base + cursor.uleb()
            elif kind == 6:
                low, high = cursor.number(8), cursor.number(8)
            elif kind == 7:
                low = cursor.number(8)
                high = low + cursor.uleb()
            else:
                raise Broken
            if low < high:
                yield low, high

    # ---- functions

    def _functions(self, unit: Unit) -> list[tuple[int, int, _Entry]]:
        if unit.functions is None:
            unit.functions = []
            with contextlib.suppress(Broken):  # those before the broken place count
                self._read_functions(unit, unit.functions)
            unit.functions.sort(key=lambda it: it[0])
        return unit.functions

    def _read_functions(self, unit: Unit, found: list[tuple[int, int, _Entry]]) -> None:
        at = self._root(unit).next
        while at < unit.end:
            entry = self._entry(unit, at)
            if entry is None:
                at += 1
                continue
            at = entry.next
            if entry.tag == _SUBPROGRAM:
                ranges = self._ranges(unit, entry)
                found += [(low, high, entry) for low, high in ranges]
            if entry.has_children and entry.tag in _SKIPPED:
                at = self._behind(unit, entry)

    def _behind(self, unit: Unit, entry: _Entry) -> int:
        """The place behind an entry and its children, if the entry says where; that is always ahead."""
        form, place = entry.values.get(_SIBLING, (0, 0))
        if isinstance(place, bytes) or form not in (0x11, 0x12, 0x13, 0x14, 0x15):
            return entry.next
        return unit.at + place if entry.next <= unit.at + place <= unit.end else entry.next

    def _chain(self, unit: Unit, function: _Entry, pc: int) -> list[tuple[_Entry, int]]:
        """The function and those inlined into it that hold the address, outermost first, with their starts."""
        chain = [(function, 0)]
        at, depth, inside = function.next, 1, 1
        if not function.has_children:
            return chain
        while at < unit.end and depth >= inside and len(chain) < _CHAIN_MAX:
            entry = self._entry(unit, at)
            if entry is None:
                at, depth = at + 1, depth - 1
                continue
            at = entry.next
            skip = entry.has_children
            if entry.tag in (_INLINED, _BLOCK):
                ranges = self._ranges(unit, entry)
                holds = next((low for low, high in ranges if low <= pc < high), None)
                if holds is not None and entry.tag == _INLINED:
                    chain.append((entry, holds))
                    if not entry.has_children:
                        break
                    inside = depth + 1
                skip = entry.has_children and holds is None and bool(ranges)
            if entry.has_children:
                behind = self._behind(unit, entry) if skip else entry.next
                if behind != entry.next:
                    at = behind
                else:
                    depth += 1
        return chain

    def _places(self, unit: Unit, pc: int) -> list[Place]:
        functions = self._functions(unit)
        index = bisect.bisect_right(functions, pc, key=lambda it: it[0]) - 1
        lines = self._lines(unit)
        file, line = _row(lines, pc)
        while index >= 0 and not pc < functions[index][1] and pc - functions[index][0] < 1 << 24:
            index -= 1
        if index < 0 or not functions[index][0] <= pc < functions[index][1]:
            return [Place("", 0, file, line, False)] if file else []
        start, _, function = functions[index]
        try:
            chain = self._chain(unit, function, pc)
        except Broken:
            chain = [(function, 0)]
        found = []
        for entry, low in reversed(chain):
            inlined = entry.tag == _INLINED
            found.append(Place(self._function_name(unit, entry), low or start, file, line, inlined))
            if inlined:
                file = lines.files.get(_constant(entry.values.get(_CALL_FILE)), "")
                line = _constant(entry.values.get(_CALL_LINE))
        return found

    def _function_name(self, unit: Unit, entry: _Entry) -> str:
        name = ""
        for _ in range(_HOPS_MAX):
            for attribute in (_LINKAGE, _MIPS_LINKAGE):
                if text := self._text(unit, entry.values.get(attribute)):
                    return text
            name = name or self._text(unit, entry.values.get(_NAME))
            link = entry.values.get(_ORIGIN) or entry.values.get(_SPECIFICATION)
            if link is None or isinstance(link[1], bytes):
                break
            target = link[1] if link[0] == 0x10 else unit.at + link[1]
            owner = self._owner(target)
            if owner is None:
                break
            try:
                found = self._entry(owner, target, wanted=True)
            except Broken:
                break
            if found is None:
                break
            unit, entry = owner, found
        return name

    def _owner(self, at: int) -> Unit | None:
        units = self._all_units()
        index = bisect.bisect_right(self._offsets, at) - 1
        unit = units[self._offsets[index]] if index >= 0 else None
        return unit if unit and unit.first <= at < unit.end else None

    # ---- lines

    def _lines(self, unit: Unit) -> _Lines:
        if unit.lines is None:
            unit.lines = _Lines()
            root = self._root(unit)
            where = root.values.get(_STMT_LIST)
            if where is not None and not isinstance(where[1], bytes):
                directory = self._text(unit, root.values.get(_COMP_DIR))
                with contextlib.suppress(Broken):  # the rows before the broken place count
                    self._read_lines(unit, unit.lines, where[1], directory)
                unit.lines.rows.sort(key=lambda row: (row[0], not row[3]))
                unit.lines.starts = [row[0] for row in unit.lines.rows]
        return unit.lines

    def _read_lines(self, unit: Unit, lines: _Lines, at: int, directory: str) -> None:
        data = self._section("line")
        cursor = Cursor(data, at)
        length, width = _length(cursor)
        cursor.end = min(cursor.end, cursor.at + length)
        version = cursor.number(2)
        if not 2 <= version <= 5:
            raise Broken
        if version == 5:
            cursor.number(2)
        head = cursor.number(width)
        program = cursor.at + head
        minimum = cursor.number(1)
        if version >= 4:
            cursor.number(1)
        cursor.number(1)
        base, span, first = cursor.number(1, signed=True), cursor.number(1), cursor.number(1)
        if not span or not first:
            raise Broken
        lengths = cursor.take(first - 1)
        try:
            if version == 5:
                self._new_files(unit, cursor, lines, directory)
            else:
                _old_files(cursor, lines, directory)
        except Broken:
            pass
        if not cursor.at <= program <= cursor.end:
            raise Broken
        cursor.at, cursor.end = program, min(cursor.end, program + _LINE_PROGRAM_MAX)
        self._works((cursor.end - program) // 4)  # before it is run: a row may take one byte
        _run_lines(cursor, lines, minimum, base, span, lengths)

    def _new_files(self, unit: Unit, cursor: Cursor, lines: _Lines, directory: str) -> None:
        def table() -> Iterator[tuple[str, int]]:
            formats = [(cursor.uleb(), cursor.uleb()) for _ in range(cursor.number(1))]
            count = cursor.uleb()
            for _ in range(min(count, _FILES_MAX) if formats else 0):
                self._works(1 + len(formats))
                path, number = "", 0
                for kind, form in formats:
                    value = self._value(unit, cursor, form, 0)
                    if kind == 1:
                        path = self._text(unit, value)
                    elif kind == 2:
                        number = _constant(value)
                yield path, number

        directories = [os.path.join(directory, path) for path, _ in table()]
        for index, (path, number) in enumerate(table()):
            parent = directories[number] if number < len(directories) else directory
            lines.files[index] = _path(parent, path)


def _old_files(cursor: Cursor, lines: _Lines, directory: str) -> None:
    directories = [directory]
    while (text := cursor.text()) and len(directories) < _FILES_MAX:
        directories.append(os.path.join(directory, _shown(text)))
    while (text := cursor.text()) and len(lines.files) < _FILES_MAX:
        number = cursor.uleb()
        cursor.uleb()
        cursor.uleb()
        parent = directories[number] if number < len(directories) else directory
        lines.files[len(lines.files) + 1] = _path(parent, _shown(text))


def _run_lines(cursor: Cursor, lines: _Lines, minimum: int, base: int, span: int, lengths: bytes) -> None:
    rows = lines.rows
    first = len(lengths) + 1
    address, file, line = 0, 1, 1
    data, end = cursor.data, cursor.end
    constant = (255 - first) // span * minimum
    while cursor.at < end and len(rows) < _ROWS_MAX:
        code = data[cursor.at]
        cursor.at += 1
        if code >= first:
            code -= first
            address += code // span * minimum
            line += base + code % span
            rows.append((address, file, line, False))
        elif code == 0:
            length = cursor.uleb()
            behind = cursor.at + length
            if not length or behind > end:
                raise Broken
            kind = cursor.number(1)
            if kind == 1:
                rows.append((address, file, line, True))
                address, file, line = 0, 1, 1
            elif kind == 2 and length == 9:
                address = cursor.number(8)
            cursor.at = behind
        elif code == 1:
            rows.append((address, file, line, False))
        elif code == 2:
            address += cursor.uleb() * minimum
        elif code == 3:
            line += cursor.sleb()
        elif code == 4:
            file = cursor.uleb()
        elif code == 8:
            address += constant
        elif code == 9:
            address += cursor.number(2)
        elif code in (5, 12):
            cursor.uleb()
        elif code not in (6, 7, 10, 11):
            for _ in range(lengths[code - 1]):
                cursor.uleb()


def _row(lines: _Lines, pc: int) -> tuple[str, int]:
    index = bisect.bisect_right(lines.starts, pc) - 1
    if index < 0 or lines.rows[index][3]:
        return "", 0
    _, file, line, _ = lines.rows[index]
    return lines.files.get(file, ""), max(0, min(line, 1 << 31))


def _covering(ranges: list[tuple[int, int, int]], pc: int) -> int | None:
    index = bisect.bisect_right(ranges, pc, key=lambda it: it[0]) - 1
    return ranges[index][2] if index >= 0 and pc < ranges[index][1] else None


def _length(cursor: Cursor) -> tuple[int, int]:
    length = cursor.number(4)
    return (cursor.number(8), 8) if length == 0xFFFFFFFF else (length, 4)


def _constant(value: Value | None) -> int:
    return value[1] if value is not None and isinstance(value[1], int) else 0


def _shown(text: bytes) -> str:
    return printable(text[:4096].decode("utf-8", "replace"))


def _path(directory: str, name: str) -> str:
    return os.path.normpath(os.path.join(directory, name)) if name else ""
