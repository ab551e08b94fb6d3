"""A unikernel, loaded once and run many times: the ELF turned into start states.

    app.elf --parse--> ParsedElf --load--> template (memfd) --map privately--> each VM's memory

A template holds everything of the first instruction's state that VMs of one image and one memory size share:
segments, page tables, GDT. It is sealed, so nothing can change it under a running VM.
"""

import os
from collections.abc import Callable
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
    """The name of a type in a manifest, as a DeviceKind if it is one."""
    name = DEVICE_KINDS[type][0] if type in DEVICE_KINDS else f"type {type:#x}"
    return DeviceKind(name) if name in DeviceKind.__members__.values() else name


@value
class Device(Value):
    """A device that the unikernel declares: `kind` is "net" or "block" ("type 0xN" for one we do not know)."""

    name: str
    kind: str
    handle: int


TARGETS = {1: "hvt", 2: "spt", 3: "virtio", 4: "muen", 5: "genode", 6: "xen"}
"""Solo5's names of what an ABI note says that a unikernel is built for."""

_STEPS = {
    lib.TEMPLATE_STEP_COPY: "copying the template",
    lib.TEMPLATE_STEP_UNPATCH: "undoing the patches",
    lib.TEMPLATE_STEP_TABLES: "page tables",
    lib.TEMPLATE_STEP_PATCH: "patching call sites",
    lib.TEMPLATE_STEP_SEAL: "sealing the template",
}


class Image(Owner):
    """A unikernel that passed every check. Share it between VMs and threads; close it when no more are made.

    `Image.open(path)` and `Image.from_bytes(data)` make one. VMs already made keep running after close().
    """

    def __init__(self, name: str, elf: ParsedElf, handle: CData) -> None:
        self.name = name
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
        """The loadable segments with bytes in the file, ascending."""
        return self.elf.segments

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Image":
        """Reads and checks the ELF at `path`. Raises ImageError, which says what is wrong with it; HostError."""
        name = path_text("Image.open: path", path)
        file = descriptor()
        why, errno, hints = open_into(file, name, lib.FILE_IMAGE)
        if why:
            raise ImageError(
                why, file=name, code="image-open", **(hints or {"hint": _open_hint(name, errno)})
            )
        try:
            elf = parse_elf_fd(file.fd, name)
            return cls._load(
                name, elf, lambda handle, error: lib.tn_image_load_fd(handle, elf.c, file.fd, error)
            )
        finally:
            lib.tn_descriptor_close(file)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> "Image":
        """The same from an ELF in memory; `name` stands in messages. Raises ImageError, HostError."""
        if not isinstance(name, str):
            raise ConfigError(f"Image.from_bytes: name {name!r} is not a string")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ConfigError(
                f"Image.from_bytes: a value of type {type(data).__name__} is not bytes",
                hint="for a file, Image.open(path)",
            )
        elf = parse_elf_bytes(data, name)
        buffer = ffi.from_buffer(data)
        return cls._load(
            name,
            elf,
            lambda handle, error: lib.tn_image_load_bytes(handle, elf.c, buffer, len(data), error),
        )

    @classmethod
    def _load(cls, name: str, elf: ParsedElf, load: Callable[[CData, CData], int]) -> "Image":
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
        return cls(name, elf, handle)

    def check_fits(self, mem_bytes: int) -> None:
        """Raises ImageError if entry, segments or bss lie outside `mem_bytes` of guest memory, ConfigError for no number."""
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
        """A `struct descriptor *` of a sealed memfd to map privately at 0, for VMs of this much memory.

        patched  one for the sandbox, whose call sites are jumps

        Raises ImageError if the image does not fit or is closed, HostError.
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
        """Releases the templates; VMs that are made or run keep what they have of them. Any thread; idempotent."""
        lib.tn_image_close(self._handle)

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Image({self.name!r}, entry={self.entry:#x}, devices={[d.name for d in self.devices]})"


def check_image(what: str, image: object) -> None:
    """Raises ConfigError for what is no Image."""
    if not isinstance(image, Image):
        path = isinstance(image, (str, os.PathLike))
        raise ConfigError(
            f"{what}: image {image!r} is not an Image",
            hint=f"open it first: Image.open({str(image)!r})" if path else "",
        )


def _open_hint(name: str, errno: int) -> str:
    if errno == ENOENT and "/" not in name:
        return f"there is no {printable(name)} in this directory; give the path of a unikernel ELF"
    return ""
