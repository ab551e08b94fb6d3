"""Solo5's manifest.json: bytes in, devices out, or the error that names the line.

The grammar is JSON as Solo5's elftool reads it, because a manifest that it takes must be taken here. Commas may be
missing, and there may be too many of them (except before the first value). What follows the outermost value is ignored.
Strings are bytes. The line of a value is the line where it may begin; for a member that is after the colon.

The text is not trusted. It is read once, from left to right, and values may be nested NESTING_MAX deep at most.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tender.errors import ManifestError

SOURCE_BYTES_MAX = 1 << 20  # a manifest with as many devices as there can be has some 5 KiB
NESTING_MAX = 64
DEVICES_MAX = 63  # MFT_MAX_ENTRIES, less the reserved first
NAME_BYTES_MAX = 67
VERSION = 1

_SPACE = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_ESCAPED = {
    b'"': b'"',
    b"/": b"/",
    b"\\": b"\\",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
}
_WORDS = {b"t": b"true", b"f": b"false", b"n": b"null"}
_ALPHANUMERIC = re.compile(rb"[A-Za-z0-9]+")
_IDENTIFIER_REST = re.compile(rb"[A-Za-z0-9_]*")
T = TypeVar("T")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


class Kind(Enum):
    """The kind of a value, in the words of the messages."""

    NULL = "NULL"
    BOOLEAN = "BOOLEAN"
    STRING = "STRING"
    INTEGER = "INTEGER"
    REAL = "REAL"
    ARRAY = "ARRAY"
    OBJECT = "OBJECT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A value and its line. Only the contents that its kind has are set."""

    kind: Kind
    line: int
    text: bytes = b""
    number: int = 0
    items: "tuple[Node, ...]" = ()
    members: "tuple[tuple[bytes, Node], ...]" = ()


@dataclass(frozen=True, kw_only=True)
class DeclaredDevice:
    """A device of a manifest. `type` is what follows MFT_DEV_, and may be a type that does not exist."""

    name: str
    type: str


def parse(data: bytes, source: str) -> tuple[DeclaredDevice, ...]:
    """Returns the devices that a manifest.json declares. Raises ManifestError, whose message names `source`."""
    if len(data) > SOURCE_BYTES_MAX:
        raise _error(f"{source}: larger than {SOURCE_BYTES_MAX} bytes: this is not a manifest")
    return _Checker(source).devices(_Reader(data).value(nesting=0))


def _error(text: str) -> ManifestError:
    return ManifestError(text, code="manifest-json")


def _shown(raw: bytes) -> str:
    """Returns bytes of the file as they may reach a terminal."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _Reader:
    """Reads JSON into nodes. `at` only grows, and newlines are counted as it passes them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._counted = 0
        self._line = 1

    def value(self, *, nesting: int) -> Node:
        line = self._line_before(self.at)
        first = self._peek()
        if first == b"":
            raise self._ends_early()
        if nesting > NESTING_MAX:
            raise self._wrong(f"values nested deeper than {NESTING_MAX}")
        if first == b"{":
            members = self._series(b"}", lambda: self._member(nesting + 1))
            return Node(kind=Kind.OBJECT, line=line, members=members)
        if first == b"[":
            items = self._series(b"]", lambda: self.value(nesting=nesting + 1))
            return Node(kind=Kind.ARRAY, line=line, items=items)
        if first == b'"':
            return Node(kind=Kind.STRING, line=line, text=self._string())
        if first in b"-0123456789":
            return self._number(line)
        if first in _WORDS:
            self._word(_WORDS[first])
            return Node(kind=Kind.NULL if first == b"n" else Kind.BOOLEAN, line=line)
        raise self._wrong_byte()

    def _series(self, end: bytes, read_one: Callable[[], T]) -> tuple[T, ...]:
        self.at += 1
        found: list[T] = []
        while True:
            first = self._peek()
            if first == b"":
                raise self._ends_early()
            if first == b"," and not found:
                raise self._wrong("missing value before comma")
            if first in (b",", end):
                self.at += 1
                if first == end:
                    return tuple(found)
            else:
                found.append(read_one())

    def _member(self, nesting: int) -> tuple[bytes, Node]:
        if self._here() != b'"':
            raise self._wrong("missing quote from string")
        key = self._string()
        if self._peek() != b":":
            raise self._wrong("expected colon in object element")
        self.at += 1
        return key, self.value(nesting=nesting)

    def _string(self) -> bytes:
        self.at += 1
        parts: list[bytes] = []
        while True:
            plain = _PLAIN.match(self.data, self.at)
            assert plain is not None
            parts.append(plain.group())
            self.at = plain.end()
            here = self._here()
            if here == b"":
                raise self._ends_early()
            if here in b"\t\n\v\f\r":
                raise self._wrong("unescaped whitespace")
            if here < b" ":
                raise self._wrong(f"unknown byte (0x{here[0]:02x})")
            self.at += 1
            if here == b'"':
                return b"".join(parts)
            parts.append(self._escape())

    def _escape(self) -> bytes:
        """Returns what an escape stands for, after its backslash."""
        here = self._here()
        if here == b"":
            raise self._ends_early()
        if here in _ESCAPED:
            self.at += 1
            return _ESCAPED[here]
        if here != b"u":
            raise self._wrong(f"unknown escape code '\\{_shown(here)}'")
        code = 0
        for _ in range(4):
            self.at += 1
            digit = self._here()
            if digit == b"":
                raise self._ends_early()
            if digit not in b"0123456789abcdefABCDEF":
                raise self._wrong("expected hex digit")
            code = 16 * code + int(digit, 16)
        self.at += 1
        return chr(code).encode("utf-8", "surrogatepass")

    def _number(self, line: int) -> Node:
        found = _NUMBER.match(self.data, self.at)
        if found is None:  # a minus without digits
            self.at += 1
            raise self._wrong_byte() if self._here() else self._ends_early()
        self.at = found.end()
        here = self._here()
        if here not in b",]}" and not here.isspace():  # at the end `here` is empty, which `in` finds
            raise self._wrong_byte()
        if found.group(1) is not None or found.group(2) is not None:
            return Node(kind=Kind.REAL, line=line)
        # Cut first: 20 digits exceed an int64 already, and thousands of them would be an error of int().
        number = int(found.group()[:21])
        return Node(kind=Kind.INTEGER, line=line, number=max(_INT64_MIN, min(number, _INT64_MAX)))

    def _word(self, word: bytes) -> None:
        for letter in word:
            here = self._here()
            if here == b"":
                raise self._ends_early()
            if here[0] != letter:
                raise self._wrong(f"expected {word.decode('ascii')}")
            self.at += 1

    def _here(self) -> bytes:
        """Returns the byte at `at`; nothing at the end."""
        return self.data[self.at : self.at + 1]

    def _peek(self) -> bytes:
        """Returns the first byte that is not space; nothing at the end."""
        space = _SPACE.match(self.data, self.at)
        assert space is not None
        self.at = space.end()
        return self._here()

    def _line_before(self, end: int) -> int:
        self._line += self.data.count(b"\n", self._counted, end)
        self._counted = end
        return self._line

    def _wrong(self, text: str) -> ManifestError:
        """Returns an error at `at`. Its byte counts as read: a newline belongs to the line that it begins."""
        return _error(f"{text} on line {self._line_before(self.at + 1)} in JSON data")

    def _wrong_byte(self) -> ManifestError:
        return self._wrong(f"unexpected '{_shown(self._here())}'")

    def _ends_early(self) -> ManifestError:
        return _error("premature EOF in JSON data")


class _Checker:
    """Turns nodes into devices. The order of the checks is Solo5's: it decides which error is reported."""

    def __init__(self, source: str) -> None:
        self.source = source

    def devices(self, root: Node) -> tuple[DeclaredDevice, ...]:
        self._expect(Kind.OBJECT, root, "(root)")
        found: dict[bytes, Node] = {}  # the last value of a key that stands twice
        for key, node in root.members:
            if key == b"type":
                self._expect(Kind.STRING, node, ".type")
            elif key == b"version":
                self._expect(Kind.INTEGER, node, ".version")
            elif key == b"devices":
                self._expect(Kind.ARRAY, node, ".devices")
                for item in node.items:
                    self._expect(Kind.OBJECT, item, ".devices[]")
            else:
                raise self._wrong(node, f"(root): unknown key: {_shown(key)}")
            found[key] = node
        for key, name in ((b"type", ".type"), (b"version", ".version"), (b"devices", ".devices[]")):
            if key not in found:
                raise self._wrong(root, f"missing {name}")
        manifest_type, version, devices = found[b"type"], found[b"version"], found[b"devices"]
        if manifest_type.text != b"solo5.manifest":
            raise self._wrong(manifest_type, '.type: invalid value, expected "solo5.manifest"')
        if version.number != VERSION:
            raise self._wrong(version, f".version: invalid version {version.number}, expected {VERSION}")
        if len(devices.items) > DEVICES_MAX:
            raise self._wrong(devices, f".devices[]: too many entries, maximum {DEVICES_MAX}")
        return tuple(self._device(item) for item in devices.items)

    def _device(self, item: Node) -> DeclaredDevice:
        where = ".devices[...]"
        found: dict[bytes, Node] = {}
        for key, node in item.members:
            if key not in (b"name", b"type"):
                raise self._wrong(node, f"{where}: unknown key: {_shown(key)}")
            self._expect(Kind.STRING, node, where)
            found[key] = node
        if b"name" not in found:
            raise self._wrong(item, f"{where}: missing .name")
        name = found[b"name"]
        if not name.text:
            raise self._wrong(name, f"{where}: .name may not be empty")
        if len(name.text) > NAME_BYTES_MAX:
            raise self._wrong(name, f"{where}: name too long")
        if not _ALPHANUMERIC.fullmatch(name.text):
            raise self._wrong(name, f"{where}: name is not alphanumeric")
        if b"type" not in found:
            raise self._wrong(item, f"{where}: missing .type")
        kind = found[b"type"]
        # An unknown type is left to the C compiler. A word that is not a type would reach the compiler as code.
        if not _IDENTIFIER_REST.fullmatch(kind.text):
            raise self._wrong(kind, f'{where}: .type: invalid value, expected "NET_BASIC" or "BLOCK_BASIC"')
        return DeclaredDevice(name=name.text.decode("ascii"), type=kind.text.decode("ascii"))

    def _expect(self, kind: Kind, node: Node, where: str) -> None:
        if node.kind is not kind:
            raise self._wrong(node, f"{where}: expected {kind.value}, got {node.kind.value}")

    def _wrong(self, node: Node, text: str) -> ManifestError:
        return _error(f"{self.source}:{node.line}: {text}")
