"""A unikernel that is loaded once and run many times: an ELF file becomes the start state of VMs.

    app.elf --parse--> ParsedElf --load--> template (memfd) --map privately--> each VM's memory

A template has what VMs of one image and one memory size share of the state at the first instruction: segments, page
tables, GDT. It is sealed, so nothing can change it while a VM runs.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from errno import EFBIG, EINTR, ENOENT, ESTALE

from tender.annotations import DeviceKind
from tender.config import path_text
from tender.cures import cure
from tender.errors import ConfigError, ImageError
from tender.native import (
    DEVICE_KINDS,
    CData,
    ParsedElf,
    Segment,
    descriptor,
    ffi,
    host_error,
    image_error,
    image_handle,
    lib,
    open_into,
    parse_elf_bytes,
    parse_elf_fd,
)
from tender.printable import printable
from tender.values import Owner, Value, value


def _kind(type: int) -> str:
    """Returns the name of a type in a manifest, as a DeviceKind if it is one."""
    name = DEVICE_KINDS[type][0] if type in DEVICE_KINDS else f"type {type:#x}"
    return DeviceKind(name) if name in DeviceKind.__members__.values() else name


@value
class Device(Value):
    """A device that the unikernel declares in its manifest.

    Attributes:
        name: Its name, for the arguments of `VmConfig`.
        kind: A `DeviceKind`; "type 0xN" for a kind that Tender does not know.
        handle: The number by which the guest names it in hypercalls, from 1 on. Source: Solo5's mft_abi.h.
    """

    name: str
    kind: str
    handle: int


TARGETS = {1: "hvt", 2: "spt", 3: "virtio", 4: "muen", 5: "genode", 6: "xen"}
"""Solo5's names for the targets of an ABI note: what a unikernel is built for."""

_HEADER_BYTES = 64  # of an ELF file; Source: the ELF specification, Elf64_Ehdr

_CUT_OFF = ("does not match the expected size", "bytes read mismatches note size")
"""How the parser says that the file ends before something that its headers name."""

_STEPS = {
    lib.TEMPLATE_STEP_COPY: "copying the template",
    lib.TEMPLATE_STEP_UNPATCH: "undoing the patches",
    lib.TEMPLATE_STEP_TABLES: "page tables",
    lib.TEMPLATE_STEP_PATCH: "patching call sites",
    lib.TEMPLATE_STEP_SEAL: "sealing the template",
}


class Image(Owner):
    """A unikernel that passed every check.

    `Image.open()` and `Image.from_bytes()` make one. Any number of VMs and threads may share it. Close it when no more
    VMs are made of it: VMs that were made before go on. It is a context manager that closes itself.

    Attributes:
        name: The name of the file, as messages show it.
        path: The path of the file, from the root; empty for an image that was not opened by a path.
        entry: The guest-physical address of the first instruction.
        kernel_end: The highest end of a segment that has bytes in the file; 0 if there is none.
        bss_end: The highest end of any loadable segment, also of one without bytes in the file.
        abi_target: What the unikernel is built for: "hvt". Source: Solo5's elf_abi.h.
        abi_version: The version of that ABI, 1 or 2.
        extensions: What it asks for beyond Solo5's ABI: names of `abi/README.md`.
        devices: What it declares, in the order of handles.
    """

    def __init__(self, name: str, elf: ParsedElf, handle: CData, path: str = "") -> None:
        self.name = name
        self.path = path
        self.elf = elf
        self.entry = elf.entry
        self.kernel_end = elf.kernel_end
        self.bss_end = elf.bss_end
        self.abi_target = TARGETS[elf.abi_target]
        self.abi_version = elf.abi_version
        self.extensions = tuple(
            ffi.string(lib.tn_feature_name(1 << i)).decode() for i in range(32) if elf.extensions >> i & 1
        )
        self.devices = tuple(
            Device(name=device.decode("latin-1"), kind=_kind(kind), handle=i)
            for i, (device, kind) in enumerate(elf.devices, start=1)
            if kind < lib.MFT_RESERVED_FIRST
        )
        self._handle = handle
        self._fits: set[int] = set()  # bytes of memory found to be enough

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The loadable segments that have bytes in the file, by ascending address."""
        return self.elf.segments

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Image":
        """Reads and checks an ELF file.

        Args:
            path: The file.

        Raises:
            ConfigError: `path` is not a path.
            ImageError: The file cannot be opened, or is not a unikernel that can run here.
            HostError: The host has no memory for its template.
        """
        name = path_text("Image.open: path", path)
        file = descriptor()
        why, errno, hints = open_into(file, name, lib.FILE_IMAGE)
        if why:
            raise ImageError(
                why, file=name, code="image-open", **(hints or {"hint": _open_hint(name, errno)})
            )
        try:
            try:
                elf = parse_elf_fd(file.fd, name)
            except ImageError as error:
                with suppress(OSError):
                    _explain(error, os.pread(file.fd, _HEADER_BYTES, 0))
                raise
            return cls._load(
                name,
                elf,
                lambda handle, error: lib.tn_image_load_fd(handle, elf.c, file.fd, error),
                path=_absolute(name),
            )
        finally:
            lib.tn_descriptor_close(file)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> "Image":
        """Checks an ELF in memory.

        Args:
            data: The bytes of the file.
            name: What messages call it.

        Raises:
            ConfigError: `data` is not bytes, or `name` is not a string.
            ImageError: The bytes are not a unikernel that can run here.
            HostError: The host has no memory for its template.
        """
        if not isinstance(name, str):
            raise ConfigError(f"Image.from_bytes: name {name!r} is not a string")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ConfigError(
                f"Image.from_bytes: a value of type {type(data).__name__} is not bytes",
                hint="for a file, Image.open(path)",
            )
        try:
            elf = parse_elf_bytes(data, name)
        except ImageError as error:
            _explain(error, bytes(memoryview(data).cast("B")[:_HEADER_BYTES]))
            raise
        buffer = ffi.from_buffer(data)
        return cls._load(
            name,
            elf,
            lambda handle, error: lib.tn_image_load_bytes(handle, elf.c, buffer, len(data), error),
        )

    @classmethod
    def _load(cls, name: str, elf: ParsedElf, load: Callable[[CData, CData], int], path: str = "") -> "Image":
        while True:
            handle, error = image_handle(), ffi.new("struct elf_error *")
            answer = load(handle, error)
            if error.os_error != EINTR:  # a signal, whose handler has run by now
                break
        if answer > 0:
            raise image_error(error, name)
        if answer < 0:
            raise host_error(
                f"image: no file in memory of {lib.tn_template_bytes(elf.c)} bytes",
                -answer,
                hint="the limit on the size of files counts here too: ulimit -f" if answer == -EFBIG else "",
            )
        return cls(name, elf, handle, path)

    def check_fits(self, mem_bytes: int) -> None:
        """Checks that the image can run with this much memory.

        Args:
            mem_bytes: The size of guest memory in bytes.

        Raises:
            ImageError: The entry, a segment or the zeros behind them lie outside.
            ConfigError: `mem_bytes` is not a number of bytes.
        """
        if mem_bytes in self._fits:
            return
        if not isinstance(mem_bytes, int) or isinstance(mem_bytes, bool) or not 0 <= mem_bytes < 1 << 64:
            raise ConfigError(
                f"check_fits: mem_bytes: {mem_bytes!r} is not a number of bytes",
                hint="for 64 MiB: 64 << 20",
            )
        error = ffi.new("struct elf_error *")
        if lib.tn_elf_fits(self.elf.c, mem_bytes, error) < 0:
            mib = -(-max(self.bss_end, self.kernel_end, self.entry + 1) // (2 << 20)) * 2
            raise image_error(error, self.name, **(cure("mem-min", mib=mib) if mib <= 4096 else {}))
        self._fits.add(mem_bytes)

    def template(self, mem_bytes: int, *, patched: bool = False) -> CData:
        """Returns a `struct descriptor *` of a sealed memfd that VMs of this size map privately at 0.

        Args:
            mem_bytes: The size of guest memory in bytes.
            patched: For the sandbox: its call sites are jumps.

        Raises:
            ImageError: The image does not fit, or is closed.
            ConfigError: `mem_bytes` is not a number of bytes.
            HostError: The host refuses the memory.
        """
        if not self._closed:
            self.check_fits(mem_bytes)
        template, step = descriptor(), ffi.new("int *")
        answer = lib.tn_image_template(self._handle, self.elf.c, mem_bytes, patched, template, step)
        if answer == -ESTALE:
            raise ImageError("the image is closed", file=self.name, code="image-closed")
        if answer < 0:
            raise host_error(f"image: {_STEPS[step[0]]}", -answer)
        return template

    @property
    def _closed(self) -> bool:
        return bool(self._handle.owned == ffi.NULL)

    def close(self) -> None:
        """Releases the memory of the image.

        VMs that were made of it keep their own. Any thread may call it, any number of times.
        """
        lib.tn_image_close(self._handle)

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Image({self.name!r}, entry={self.entry:#x}, devices={[d.name for d in self.devices]})"


def check_image(what: str, image: object) -> None:
    """Checks that `image` is an Image. Raises ConfigError."""
    if not isinstance(image, Image):
        path = isinstance(image, (str, os.PathLike))
        raise ConfigError(
            f"{what}: image {image!r} is not an Image",
            hint=f"open it first: Image.open({str(image)!r})" if path else "",
        )


def _explain(error: ImageError, start: bytes) -> None:
    hint = _file_hint(start, error.message)
    error._set_hints(hint, hint)


def _absolute(path: str) -> str:
    """Returns the path from the root, or nothing: the directory of a process may be gone."""
    try:
        return os.path.join(os.getcwd(), path)
    except OSError:
        return path if path.startswith("/") else ""


def _open_hint(name: str, errno: int) -> str:
    if errno == ENOENT and "/" not in name:
        return f"there is no {printable(name)} in this directory; give the path of a unikernel ELF"
    return ""


def _file_hint(start: bytes, refusal: str) -> str:
    """Returns what a file is that the parser refused, from its first bytes and the parser's reason; empty if unknown."""
    if start[:4] == b"\x7fELF" and any(words in refusal for words in _CUT_OFF):
        return "the file is cut off, or its headers are wrong"
    return kind_hint(start, target_named(refusal))


def kind_hint(start: bytes, target: int | None) -> str:
    """Returns what a file is, from its first bytes and the target that its ABI note names; empty for a unikernel."""
    if start[:4] != b"\x7fELF":
        if start[:2] == b"#!":
            return "a script, not a unikernel"
        return "not an ELF file" if start else "an empty file"
    if target is not None and target != 1:
        name = TARGETS.get(target, f"an unknown target ({target})")
        return f"built for {name}: build the unikernel for hvt (mirage configure -t hvt)"
    machine = int.from_bytes(start[18:20], "little")
    if start[4:6] != b"\x02\x01" or machine != 62:
        return "an ELF file for another machine than x86_64"
    if target is None and start[16:18] in (b"\x02\x00", b"\x03\x00"):
        return "an ordinary Linux program or library, not a unikernel: 'tender sdk' shows how to build one"
    return ""


def target_named(refusal: str) -> int | None:
    """Returns the target that the core's refusal names: 1 (nothing to add) for hvt, None if there is no note.

    The file is hostile, so nothing here reads it a second time: the parser with its bounds has read it.
    """
    for number, name in TARGETS.items():
        if refusal.endswith(f"(it is for {name})"):
            return number
    return None if "No Solo5 ABI information" in refusal or "elf header" in refusal else 1
