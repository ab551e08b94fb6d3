"""A unikernel, loaded once and run many times: the ELF turned into start states.

    app.elf --parse--> ParsedElf --load--> template (memfd) --map privately--> each VM's memory

A template holds everything of the first instruction's state that VMs of one image and one memory size share:
segments, page tables, GDT. It is sealed, so nothing can change it under a running VM.
"""

import posix  # not os: its ABCs cost a tenth of the command's start
from _thread import allocate_lock

from tender.config import path_text
from tender.errors import ConfigError, HostError, ImageError
from tender.native import (
    CData,
    ParsedElf,
    Segment,
    check,
    ffi,
    image_error,
    lib,
    open_file,
    parse_elf_bytes,
    parse_elf_fd,
)
from tender.values import Owner, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable


class Device(Value):
    """A device that the unikernel declares: `kind` is "net" or "block" ("type 0xN" for one we do not know)."""

    __slots__ = ("name", "kind", "handle")
    name: str
    kind: str
    handle: int

    def __init__(self, *, name: str, kind: str, handle: int) -> None:
        self._set(name=name, kind=kind, handle=handle)


_EFBIG = 27
_KINDS = {1: "block", 2: "net"}
_EXTENSIONS = (
    (lib.TENDER_FEATURE_GATE, "gate"),
    (lib.TENDER_FEATURE_BLOCK_BATCH, "block-batch"),
    (lib.TENDER_FEATURE_NET_BATCH, "net-batch"),
    (lib.TENDER_FEATURE_NET_OFFLOAD, "net-offload"),
)


class Image(Owner):
    """A unikernel that passed every check. Share it between VMs and threads; close it when no more are made.

    `Image.open(path)` and `Image.from_bytes(data)` make one. VMs already made keep running after close().
    """

    def __init__(self, name: str, elf: ParsedElf, base_fd: int) -> None:
        self.name = name
        self.elf = elf
        self.entry = elf.entry
        self.kernel_end = elf.kernel_end
        self.bss_end = elf.bss_end
        self.abi_target = elf.abi_target
        self.abi_version = elf.abi_version
        self.extensions = tuple(name for bit, name in _EXTENSIONS if elf.extensions & bit)
        self.devices = tuple(
            Device(name=device.decode("latin-1"), kind=_KINDS.get(kind, f"type {kind:#x}"), handle=i)
            for i, (device, kind) in enumerate(elf.devices, start=1)
            if kind < lib.MFT_RESERVED_FIRST
        )
        self._base_fd = base_fd  # segments only; becomes the first template
        self._base_patched = False
        self._fits: set[int] = set()  # bytes of memory found to be enough
        self._templates: dict[tuple[int, bool], int] = {}  # bytes of memory, for the sandbox: memfd
        self._lock = allocate_lock()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The loadable segments with bytes in the file, ascending."""
        return self.elf.segments

    @classmethod
    def open(cls, path: "str | os.PathLike[str]") -> "Image":
        """Reads and checks the ELF at `path`. Raises ImageError, which says what is wrong with it; HostError."""
        name = path_text("Image.open: path", path)
        fd, why, errno, hint = open_file(name, lib.FILE_IMAGE)
        if fd < 0:
            raise ImageError(why, file=name, code="image-open", hint=hint or _open_hint(name, errno))
        try:
            elf = parse_elf_fd(fd, name)
            error_out = ffi.new("struct elf_error *")
            return cls._load(
                name, elf, error_out, lambda template: lib.tn_template_load_fd(elf.c, fd, template, error_out)
            )
        finally:
            posix.close(fd)

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
        error_out = ffi.new("struct elf_error *")
        buffer = ffi.from_buffer(data)
        return cls._load(
            name,
            elf,
            error_out,
            lambda template: lib.tn_template_load_bytes(elf.c, buffer, len(data), template, error_out),
        )

    @classmethod
    def _load(cls, name: str, elf: ParsedElf, error_out: CData, load: "Callable[[int], int]") -> "Image":
        fd = _memfd(lib.tn_template_bytes(elf.c))
        try:
            if load(fd) < 0:
                raise image_error(error_out, name)
            return cls(name, elf, fd)
        except BaseException:
            posix.close(fd)
            raise

    def check_fits(self, mem_bytes: int) -> None:
        """Raises ImageError if entry, segments or bss lie outside `mem_bytes` of guest memory."""
        if mem_bytes in self._fits:
            return
        error = ffi.new("struct elf_error *")
        if lib.tn_elf_fits(self.elf.c, mem_bytes, error) < 0:
            raised = image_error(error, self.name)
            need = -(-max(self.bss_end, self.kernel_end, self.entry + 1) // (2 << 20)) * 2
            raised.hint = f"give it more memory: --mem={need} or more" if need <= 4096 else ""
            raise raised
        self._fits.add(mem_bytes)

    def template_fd(self, mem_bytes: int, *, patched: bool = False) -> int:
        """A sealed memfd to map privately at 0, for VMs of this much memory; it stays the image's.

        patched  one for the sandbox, whose hypercall sites are jumps

        Raises ImageError if the image does not fit or is closed, HostError.
        """
        with self._lock:
            if self._base_fd < 0:
                raise ImageError("the image is closed", file=self.name, code="image-closed")
            found = self._templates.get((mem_bytes, patched))
            if found is not None:
                return found
            self.check_fits(mem_bytes)
            fd = self._base_fd
            if self._templates:
                fd = _copy(fd, lib.tn_template_bytes(self.elf.c))
            else:
                self._base_patched = patched
            self._make_template(fd, mem_bytes, patched)
            self._templates[mem_bytes, patched] = fd
            return fd

    def _make_template(self, fd: int, mem_bytes: int, patched: bool) -> None:
        """What the base, or a copy of it, lacks of a template."""
        if self._templates and self._base_patched and not patched:
            check(lib.tn_template_unpatch(self.elf.c, fd), "undoing the patches")
        check(lib.tn_template_write_tables(self.elf.c, fd, mem_bytes), "page tables")
        if patched and not (self._templates and self._base_patched):
            check(lib.tn_template_patch(self.elf.c, fd), "patching hypercall sites")
        check(lib.tn_template_seal(fd), "sealing the template")

    def close(self) -> None:
        """Releases the templates; VMs that run keep their memory. Idempotent."""
        with self._lock:
            fds = {self._base_fd, *self._templates.values()} - {-1}
            self._base_fd = -1
            self._templates = {}
        for fd in fds:
            posix.close(fd)

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_base_fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"Image({self.name!r}, entry={self.entry:#x}, devices={[d.name for d in self.devices]})"


def check_image(what: str, image: object) -> None:
    """Raises ConfigError for what is no Image."""
    if not isinstance(image, Image):
        path = isinstance(image, str) or hasattr(type(image), "__fspath__")
        raise ConfigError(
            f"{what}: image {image!r} is not an Image",
            hint=f"open it first: Image.open({str(image)!r})" if path else "",
        )


def _open_hint(name: str, errno: int) -> str:
    if errno == 2 and "/" not in name:
        return f"there is no {name} in this directory; give the path of a unikernel ELF"
    return ""


def _memfd(size: int) -> int:
    fd = -1
    try:
        fd = posix.memfd_create("tender-image", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
        posix.ftruncate(fd, size)
    except OSError as error:
        if fd >= 0:
            posix.close(fd)
        raise HostError(
            f"image: no file in memory of {size} bytes: {error.strerror}",
            errno=error.errno or 0,
            hint="the limit on the size of files counts here too: ulimit -f" if error.errno == _EFBIG else "",
        ) from error
    return fd


def _copy(source: int, size: int) -> int:
    """A new memfd with the bytes of `source`, holes kept out of memory."""
    fd = _memfd(size)
    try:
        at = 0
        while at < size:
            try:
                at = posix.lseek(source, at, posix.SEEK_DATA)
            except OSError:
                break
            end = posix.lseek(source, at, posix.SEEK_HOLE)
            while at < end:
                piece = posix.pread(source, min(end - at, 1 << 20), at)
                at += posix.pwrite(fd, piece, at)
    except BaseException:
        posix.close(fd)
        raise
    return fd
