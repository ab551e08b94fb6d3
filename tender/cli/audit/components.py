"""Libraries, runtimes and compilers in an image, and their versions, from what they leave in a file.

What is found is evidence and no proof: a string may be there for another reason, and a stripped or hostile file shows
what its maker wants. Each component says what shows it:

    comment   the section .comment, where compilers write their version
    string    a text anywhere in the file
    symbol    a name in the symbol table; some versions are bytes at a symbol
    build     what `dune` writes for `dune-build-info`: the libraries of an OCaml program with their versions
    note      an ELF note

A new component is a row of STRINGS, SYMBOLS or COMMENTS.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

COMPONENTS_MAX = 1024
HITS_MAX = 4096  # occurrences of one row's anchor that are looked at
COMMENT_MAX = 64 << 10
DATA_MAX = 1 << 20  # bytes of one OCaml module's data
BEFORE, AFTER = 96, 256  # how far around an anchor the pattern reaches
_VERSION = rb"(\d{1,5}(?:\.\d{1,5}){1,3}[a-z]?\d{0,3}(?:[-~+](?:alpha|beta|rc|pre|dev)[.\d]{0,8})?)"


class Evidence(StrEnum):
    """What shows that a component is there."""

    COMMENT = "comment"
    STRING = "string"
    SYMBOL = "symbol"
    BUILD = "build"
    NOTE = "note"


@dataclass(frozen=True, order=True)
class Component:
    """Something that an image contains. `version` is empty if nothing tells it."""

    name: str
    version: str
    evidence: Evidence


@dataclass(frozen=True)
class Row:
    """How one component is recognised by text.

    Attributes:
        name: The component; `{}` stands for the first group of the pattern.
        anchor: Bytes that are searched for first, because that is fast.
        pattern: Where the anchor is: the last group is the version; without a group, the version is unknown.
        source: What says that the text is there.
    """

    name: str
    anchor: bytes
    pattern: bytes
    source: str


COMMENTS = (
    Row("gcc", b"GCC: (", rb"GCC: \([^)]{0,80}\) " + _VERSION, "GCC's manual, option -fident"),
    Row(
        "clang", b"clang version ", rb"clang version " + _VERSION, "clang --version; .comment of its objects"
    ),
    Row("rustc", b"rustc version ", rb"rustc version " + _VERSION, "rustc 1.73 and later write .comment"),
    Row(
        "tender-guest",
        b"Tender guest library ",
        rb"Tender guest library " + _VERSION,
        "guest_kernel/extension.c",
    ),
)

STRINGS = (
    Row("openssl", b"OpenSSL ", rb"OpenSSL " + _VERSION + rb"[-+a-z0-9]{0,16} {1,3}\d{1,2} [A-Z][a-z]{2} \d{4}",
        "OpenSSL's opensslv.h, OPENSSL_VERSION_TEXT"),
    Row("libressl", b"LibreSSL ", rb"LibreSSL " + _VERSION + rb"\0", "LibreSSL's opensslv.h"),
    Row("boringssl", b"BoringSSL)", rb"OpenSSL [\d.]+ \(compatible; BoringSSL\)", "BoringSSL's crypto.cc; no version"),
    Row("aws-lc", b"AWS-LC ", rb"AWS-LC " + _VERSION, "AWS-LC's base.h, AWSLC_VERSION_NUMBER_STRING"),
    Row("mbedtls", b"ed TLS ", rb"[Mm]bed TLS " + _VERSION, "Mbed TLS's build_info.h, MBEDTLS_VERSION_STRING_FULL"),
    Row("zlib", b" Copyright 1995-", rb"(?:inflate|deflate) " + _VERSION + rb" Copyright 1995-\d{4}",
        "zlib's inftrees.c and deflate.c"),
    Row("lwip", b"lwIP/", rb"lwIP/" + _VERSION, "lwIP's httpd.c, HTTPD_SERVER_AGENT"),
    Row("sqlite", b"SQLite format 3\0", rb"SQLite format 3\0", "SQLite's btreeInt.h; the version is at a symbol"),
    Row("glibc", b"GNU C Library (", rb"GNU C Library \([^)]{0,80}\) (?:stable|development) release version " + _VERSION,
        "glibc's version.c"),
    Row("go", b"\xff Go buildinf:", rb"\xff Go buildinf:[\x00-\xff]{0,40}?go" + _VERSION,
        "Go's debug/buildinfo, since Go 1.18"),
    Row("go:{}", b"\ndep\t", rb"\ndep\t([\w.~/-]{1,120})\tv" + _VERSION, "Go's runtime/debug.BuildInfo"),
    Row("rust:{}", b"/registry/src/",
        rb"/registry/src/[^/\0]{1,80}/([a-z0-9_-]{1,60}?)-(\d{1,5}\.\d{1,5}\.\d{1,5})/", "cargo's paths in panics"),
    Row("rustc", b"/rustc/", rb"/rustc/[0-9a-f]{40}/library/", "rustc's --remap-path-prefix of its library"),
    Row("solo5", b"Solo5: Bindings version ", rb"\0v" + _VERSION + rb"(?:-\d+-g[0-9a-f]+)?(?:-dirty)?\0",
        "Solo5's bindings/crt.c; the version is a string next to the message"),
    Row("solo5", b"Solo5: Bindings version ", rb"Solo5: Bindings version v?" + _VERSION, "the same, as one string"),
)  # fmt: skip

SYMBOLS = {
    "caml_startup": ("ocaml", "OCaml's runtime/startup_nat.c"),
    "_nolibc_init": ("ocaml-solo5", "ocaml-solo5's nolibc/sysdeps_solo5.c"),
    "solo5_app_main": ("solo5", "Solo5's solo5.h: what a unikernel defines"),
    "lwip_init": ("lwip", "lwIP's init.c"),
    "tcp_slowtmr": ("lwip", "lwIP's tcp.c"),
    "sqlite3_open_v2": ("sqlite", "SQLite's API"),
    "OPENSSL_init_crypto": ("openssl", "OpenSSL's API since 1.1"),
    "mbedtls_ssl_handshake": ("mbedtls", "Mbed TLS's API"),
    "inflateInit2_": ("zlib", "zlib's API"),
    "_impure_ptr": ("newlib", "newlib's reent.h"),
    "__init_libc": ("musl", "musl's env/__libc_start_main.c"),
    "rust_eh_personality": ("rustc", "rustc's library/std/src/personality"),
    "runtime.rt0_go": ("go", "Go's runtime/asm_amd64.s"),
    "gate_init": ("tender-guest", "guest_kernel/gate.c"),
    "camlMirage_runtime": ("mirage-runtime", "the module of that package"),
}

AT_SYMBOL = {"sqlite3_version": ("sqlite", "SQLite's main.c")}
"""Symbols of arrays that hold a version as text."""

OCAML_VERSION = re.compile(r"camlStdlib__Sys(?:__|\.|\$)data_begin|camlStdlib__Sys")
OCAML_PACKAGES = re.compile(r"caml(?:[A-Za-z_]*__)?Build_info_data(?:__|\.|\$)data_begin")
"""Symbols before the data of modules: that of Sys.ocaml_version, and that of dune-build-info."""


def in_comment(comment: bytes) -> set[Component]:
    """Returns the compilers of a section .comment."""
    found: set[Component] = set()
    for row in COMMENTS:
        found |= set(_matches(row, comment[:COMMENT_MAX], Evidence.COMMENT))
    return found


def in_bytes(piece: bytes, hits: dict[bytes, int]) -> set[Component]:
    """Returns what texts in a piece of a file show. `hits` counts over all pieces of a file: it is the bound."""
    found: set[Component] = set()
    for row in STRINGS:
        at = piece.find(row.anchor)
        while at >= 0 and hits.get(row.pattern, 0) < HITS_MAX:
            hits[row.pattern] = hits.get(row.pattern, 0) + 1
            found |= set(_matches(row, piece[max(at - BEFORE, 0) : at + AFTER], Evidence.STRING))
            at = piece.find(row.anchor, at + len(row.anchor))
    return found


def _matches(row: Row, text: bytes, evidence: Evidence) -> Iterator[Component]:
    for match in re.finditer(row.pattern, text):
        groups = [group.decode("ascii", "replace") for group in match.groups()]
        yield Component(row.name.format(groups[0] if groups else ""), groups[-1] if groups else "", evidence)


def version_text(data: bytes) -> str:
    """Returns the version that an array of characters holds; empty if it holds none."""
    match = re.match(_VERSION + rb"\0", data)
    return match[1].decode() if match else ""


def ocaml_version(data: bytes) -> str:
    """Returns the version of OCaml from the data of its module Sys, where it is a string; empty if it is not there.

    An OCaml string begins at a multiple of 8 and is filled with zeros and a last byte that says how many.
    """
    for at in range(0, len(data) - 7, 8):
        match = re.match(rb"([345]\.\d{1,2}\.\d{1,2}(?:[~+][\w.+~-]{1,40})?)\0", data[at : at + 64])
        if match:
            return match[1].decode()
    return ""


def ocaml_packages(data: bytes, start: int) -> Iterator[tuple[str, str]]:
    """Yields the names and versions of libraries in the data of a module that `dune` generates.

    The module has a list of tuples (name, Some version). Each is a block of words: a header, which tells size and
    kind, then the fields; a field that points to a block has the address behind its header.

    Args:
        data: The data of the module.
        start: The address of its first byte.
    """
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])

    def block(address: int, size: int) -> int:
        """Returns the place of the block's first field in `words`, or 0 if there is no such block."""
        index, rest = divmod(address - start, 8)
        inside = rest == 0 and index > 0 and index + size <= len(words)
        return index if inside and words[index - 1] & 0xFF == 0 and words[index - 1] >> 10 == size else 0

    def string(address: int) -> str:
        index, rest = divmod(address - start, 8)
        if rest or not 0 < index < len(words) or words[index - 1] & 0xFF != 252:
            return ""
        raw = data[index * 8 : (index + min(words[index - 1] >> 10, 32)) * 8]
        text = raw[: max(len(raw) - 1 - raw[-1], 0)] if raw else b""
        return text.decode("ascii", "replace") if re.fullmatch(rb"[\w.+~:/\[\]() -]{1,120}", text) else ""

    for index in range(1, len(words)):
        if not block(start + index * 8, 2):
            continue
        name, some = string(words[index]), block(words[index + 1], 1)
        version = string(words[some]) if some else ""
        if name and (some or words[index + 1] == 1):
            yield name, version.removeprefix("v") if re.match(r"v?\d", version) else ""


def merged(found: Iterable[Component]) -> list[Component]:
    """Returns the components in order. One without a version is left out if the same has one."""
    known = {component.name for component in found if component.version}
    kept = {(c.name, c.version): c for c in sorted(found, reverse=True) if c.version or c.name not in known}
    return sorted(kept.values())[:COMPONENTS_MAX]
