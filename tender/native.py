"""The compiled core as Python sees it. Only here do -errno and error structures become exceptions."""

import os
from collections.abc import Callable
from errno import EINTR, ENOENT
from typing import Any, Unpack

try:
    from tender._native import ffi, lib
except ImportError as error:
    if "subinterpreters" not in str(error):
        from tender.platform_check import misfit

        if why := misfit():
            raise ImportError(why, name="tender._native") from error
        raise
    raise ImportError(
        "tender cannot be used in a subinterpreter with a GIL of its own, because its core (a cffi module) does not allow "
        "that: use a thread, a process, or a subinterpreter that shares the GIL",
        name="tender._native",
    ) from error
from tender.cures import cure
from tender.errors import Hints, HostError, ImageError, Told
from tender.printable import printable, quoted
from tender.values import Value, value

CData = Any  # a cffi object: its fields are checked by cffi, not by mypy

__all__ = [
    "DEVICE_KINDS",
    "CData",
    "ParsedElf",
    "Segment",
    "answered",
    "both_told",
    "check",
    "descriptor",
    "ffi",
    "host_error",
    "image_error",
    "image_handle",
    "lib",
    "open_file",
    "open_into",
    "parse_elf_bytes",
    "query_abi_fd",
    "query_manifest_fd",
    "says",
    "vm_handle",
]


def host_error(what: str, errno: int, **told: Unpack[Told]) -> HostError:
    """Returns a HostError for `what` with the words of errno."""
    return HostError(f"{what}: {os.strerror(errno)}", errno=errno, **told)


DEVICE_KINDS: dict[int, tuple[str, str]] = {
    type: (ffi.string(lib.tn_device_name(type)).decode(), ffi.string(lib.tn_device_word(type)).decode())
    for type in range(lib.tn_device_types())
    if lib.tn_device_name(type) != ffi.NULL
}
"""The name of each kind, and its type as messages and manifest.json show it, by the type in a manifest (abi/devices.def)."""

_says = lib.tn_says


def says(name: str, *values: object) -> str:
    """Returns a message that the native command has too (SAYS of bindings/machine/says.def), with these values."""
    format: str = ffi.string(_says(name.encode())).decode()
    return format % values


def check(answer: int, what: str) -> int:
    """Returns `answer` if it is not negative. Raises HostError for `what` if it is -errno."""
    if answer < 0:
        raise host_error(what, -answer)
    return answer


lib.tn_tsc_sample()  # at import: a microsecond now saves some hundred later (arch/x86_64/tsc.h)

# An exception, as a KeyboardInterrupt, may come between any two instructions. Then a name may never get what a call
# returned. So one call of C puts what has to be given back into a structure that exists already. It is given back at the
# latest when the last reference to the structure goes (bindings/python/owner.h).


def descriptor() -> CData:
    """Returns a `struct descriptor *` that is not open yet."""
    return ffi.gc(ffi.new("struct descriptor *", (-1,)), lib.tn_descriptor_close)


def vm_handle() -> CData:
    """Returns a `struct vm_handle *` that owns nothing yet."""
    return ffi.gc(ffi.new("struct vm_handle *"), lib.tn_vm_drop)


def image_handle() -> CData:
    """Returns a `struct image_handle *` that owns nothing yet."""
    return ffi.gc(ffi.new("struct image_handle *"), lib.tn_image_close)


_CODES = {1: "image-file", 2: "image-note", 3: "image-abi", 4: "image-manifest", 5: "image-too-large"}


def image_error(error: CData, file: str, **hints: Unpack[Hints]) -> ImageError:
    """Returns the ImageError that a filled `struct elf_error *` stands for."""
    text: str = ffi.string(error.text).decode("utf-8", "replace")
    if error.os_error:
        text += f": {os.strerror(error.os_error)}"
    code = _CODES.get(error.code, "image")
    return ImageError(text, file=file, offset=error.offset, code=code, **hints)


def both_told(hint: Callable[[int], CData]) -> Hints:
    """Returns what C says to users of the library and of the command (enum told), as arguments of an error."""
    texts = [ffi.string(hint(told)).decode() for told in (lib.TOLD_LIBRARY, lib.TOLD_COMMAND)]
    return {"hint": texts[0], "command_hint": texts[1]}


_FILE_HINTS = {
    lib.DEVICE_FILE_PIPE: "a pipe cannot be read at any offset: write it to a file first",
    lib.DEVICE_FILE_NO_READER: "start its reader first: cat {path} &",
}

OUTPUT_HINT = "give a file, a pipe, a connected socket or a terminal"


def open_file(path: str, use: int) -> tuple[int, str, int, str]:
    """For the command: returns a descriptor that the caller owns, or -1, and what open_into() says."""
    file = descriptor()
    refused = open_into(file, path, use)
    fd, file.fd = int(file.fd), -1
    why, errno, hints = refused
    return fd, why, errno, hints.get("command_hint", "")


def open_into(into: CData, path: str, use: int) -> tuple[str, int, Hints]:
    """Opens a file for `use`, of enum file_use, into a `struct descriptor *`.

    Returns why it cannot, errno, and a way out as cures.py has it; all empty if it can. It never waits: a FIFO whose
    other side is not open is one of the reasons.
    """
    error = ffi.new("struct device_error *")
    name = path.encode("utf-8", "surrogateescape")
    if answered(lambda: lib.tn_file_open(name, use, error, into), error) == 0:
        return "", 0, {}
    return ffi.string(error.text).decode(), error.os_error, _file_cure(error, path, use)


def _file_cure(error: CData, path: str, use: int) -> Hints:
    problem, directory = error.problem, os.path.dirname(path)
    if problem == lib.DEVICE_FILE_SOCKET:
        return cure("console-socket")
    if error.os_error == ENOENT and directory and not os.path.lexists(directory):
        hint = f"the directory {printable(directory)} does not exist"
    elif problem == lib.DEVICE_FILE_KIND and use != lib.FILE_IMAGE:
        hint = OUTPUT_HINT
    else:
        hint = _FILE_HINTS.get(problem, "").format(path=quoted(path))
    return {"hint": hint, "command_hint": hint} if hint else {}


def answered(ask: Callable[[], int], error: CData) -> int:
    """Returns what `ask` answers, which fills `error` unless it answers 0.

    It asks again if only a signal was in the way. The signal's handler has run by then, and may have raised.
    """
    while True:
        answer = ask()
        if not answer or error.os_error != EINTR:
            return answer


@value
class Segment(Value):
    """A loadable segment of an image that has bytes in the file.

    Source: the ELF specification, Elf64_Phdr.

    Attributes:
        start: The guest-physical address of the first page.
        end: The address behind the last page.
        vaddr: Where the bytes of the file begin in memory, `p_vaddr`.
        file_offset: Where they begin in the file, `p_offset`.
        file_bytes: How many bytes the file has, `p_filesz`.
        mem_bytes: How many bytes the segment has in memory, `p_memsz`; the rest is zero.
        flags: The rights as in `p_flags`: 1 execute, 2 write, 4 read.
    """

    start: int
    end: int
    vaddr: int
    file_offset: int
    file_bytes: int
    mem_bytes: int
    flags: int


class ParsedElf:
    """What the C parser says of a file that it accepts. `c` is the `struct elf_image *` itself."""

    def __init__(self, c: CData) -> None:
        self.c = c
        self.entry: int = c.entry
        self.kernel_end: int = c.kernel_end
        self.bss_end: int = c.bss_end
        self.abi_target: int = c.abi_target
        self.abi_version: int = c.abi_version
        self.extensions: int = c.extensions

    @property
    def segments(self) -> tuple[Segment, ...]:
        c = self.c
        return tuple(
            Segment(**{name: int(getattr(c.segments[i], name)) for name in Segment.__slots__})
            for i in range(c.segment_count)
        )

    @property
    def devices(self) -> list[tuple[bytes, int]]:
        """The name and the type of each entry of the manifest after the reserved first one. Handles count from 1."""
        manifest = self.c.manifest
        return [(ffi.string(manifest.e[i].name), int(manifest.e[i].type)) for i in range(1, manifest.entries)]


def parse_elf_fd(fd: int, file: str) -> ParsedElf:
    """Parses the file of `fd`, which messages call `file`. Raises ImageError."""
    image, error = ffi.new("struct elf_image *"), ffi.new("struct elf_error *")
    if answered(lambda: lib.tn_elf_parse_fd(fd, image, error), error) < 0:
        raise image_error(error, file)
    return ParsedElf(image)


def parse_elf_bytes(data: bytes, file: str = "") -> ParsedElf:
    """Parses an ELF in memory. Raises ImageError."""
    image, error = ffi.new("struct elf_image *"), ffi.new("struct elf_error *")
    if lib.tn_elf_parse_bytes(ffi.from_buffer(data), len(data), image, error) < 0:
        raise image_error(error, file)
    return ParsedElf(image)


def query_abi_fd(fd: int, file: str) -> tuple[int, int]:
    """Returns the target and the version of the ABI note, whatever they are. Raises ImageError."""
    asked = _query(lib.tn_elf_query_abi_fd, fd, file)
    return asked.abi_target, asked.abi_version


def query_manifest_fd(fd: int, file: str) -> list[tuple[bytes, int]]:
    """Returns ParsedElf.devices of a file for any target, also one that cannot be loaded. Raises ImageError."""
    return _query(lib.tn_elf_query_manifest_fd, fd, file).devices


def _query(ask: CData, fd: int, file: str) -> ParsedElf:
    image, error = ffi.new("struct elf_image *"), ffi.new("struct elf_error *")
    if answered(lambda: ask(fd, image, error), error) < 0:
        raise image_error(error, file)
    return ParsedElf(image)
