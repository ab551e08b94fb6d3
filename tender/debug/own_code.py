"""Which frames of a stack are the user's own code, and the lines of source that a report shows.

A guest that panics stands in its library, and a guest that waits too. What a person looks for is the first frame of their
own code. A frame is taken for a library's by the place of its source file, or by its name. Both come from the image, so a
hostile image can have the wrong frame shown, and no more.
"""

import os
import re
import stat
from collections.abc import Sequence

from tender.debug.symbols import Frame

_SOURCE_MAX = 1 << 20
_SOURCE_LINES = 3
_LINE_MAX = 200
_SOURCES_TRIED = 8

_BY_FILE = (
    ("guest library", re.compile(r"(^|/)guest_kernel/")),
    (
        "Solo5",
        re.compile(
            r"(^|/)(solo5|solo5[-.][^/]*)/bindings/|^bindings/(bindings|hvt|spt|virtio|muen|xen)/"
            r"|(^|/)nolibc/|(^|/)ocaml-solo5[^/]*/openlibm/"
        ),
    ),
    ("OCaml runtime", re.compile(r"(^|/)ocaml[^/]*/(runtime|stdlib)/|^runtime/|(^|/)camlinternal[^/]*\.ml$")),
    ("Rust library", re.compile(r"^/rustc/|(^|/)library/(core|std|alloc|panic_abort)/src/")),
    ("package", re.compile(r"(^|/)(\.opam|_opam|\.opam-switch|duniverse|\.cargo/registry)/")),
    ("system", re.compile(r"^/usr/(include|lib|share)/")),
)
_BY_NAME = (
    ("OCaml runtime", re.compile(r"caml_|Stdlib\.|CamlinternalFormat")),
    ("Rust library", re.compile(r"<?(core|std|alloc)::|rust_begin_unwind$|rust_panic$")),
    ("Solo5", re.compile(r"solo5_|_nolibc_")),
    ("guest library", re.compile(r"_start$")),
)


def library_of(frame: Frame) -> str:
    """Returns the library that the frame belongs to; empty: it is the user's own code, or not known."""
    for name, pattern in _BY_FILE:
        if frame.file and pattern.search(frame.file):
            return name
    return next((name for name, pattern in _BY_NAME if pattern.match(frame.function)), "")


def own_frame(frames: Sequence[Frame]) -> int | None:
    """Returns the number of the innermost frame of the user's own code, or None. A frame without a name does not count."""
    return next((n for n, it in enumerate(frames) if it.function and not library_of(it)), None)


def source_of(frames: Sequence[Frame]) -> dict[str, object] | None:
    """Returns lines of source: around the innermost frame of own code whose file can be read, else around the innermost.

    A file is read if it is a regular one of at most 1 MiB.
    """
    own = [n for n, it in enumerate(frames) if it.file and it.line and not library_of(it)]
    for number in dict.fromkeys((*own[:_SOURCES_TRIED], 0)):
        frame = frames[number] if frames else Frame(pc=0)
        text = _read(frame.file) if frame.file and frame.line else ""
        lines = text.split("\n") if text else []
        if 0 < frame.line <= len(lines):
            first = max(1, frame.line - _SOURCE_LINES)
            shown = [
                [at, lines[at - 1].expandtabs(4)[:_LINE_MAX]]
                for at in range(first, min(len(lines), frame.line + _SOURCE_LINES) + 1)
            ]
            return {"frame": number, "file": frame.file, "line": frame.line, "lines": shown}
    return None


def _read(path: str) -> str:
    """The path is that of a hostile file: only text of a regular file is read, and no device or link is opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _SOURCE_MAX:
            return ""
        data = os.read(fd, _SOURCE_MAX)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return "" if b"\0" in data else data.decode("utf-8", "replace")
