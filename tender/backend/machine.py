"""What every machine has once it is made, and the machines that C opens by themselves.

The machine is the VM's (bindings/python/owner.h), and C's: bindings/machine/machine.h says what it does.
"""

import os

from tender.annotations import Machine as Name
from tender.annotations import NetRing
from tender.errors import HostError
from tender.image import Image
from tender.native import CData, check, ffi, lib
from tender.values import Owner


class Machine(Owner):
    """A machine that is ready to run.

    handle    the VM that it is a part of, and ends with
    fallback  why it is no earlier one of BACKENDS although nobody asked for it; empty: it was asked for
    """

    name: Name
    handle: CData
    fallback: str
    _mem_bytes: int

    serves_again = False
    """A machine of this kind can be reset() when its guest has ended."""

    def write_boot_info(self, image: Image, manifest: CData, cmdline: bytes) -> None:
        """What the guest will be told; until the first run it may be said again."""
        line = ffi.from_buffer(cmdline + b"\0")
        lib.tn_write_boot_info(self.handle, image.elf.c, manifest, self._mem_bytes, line, len(cmdline))

    def keep(self, image: Image) -> bool:
        """Before the first run: this machine is to be reset() after it. True: it can be. Raises HostError."""
        if not self.serves_again:
            return False
        template = image.template(self._mem_bytes)
        answer = lib.tn_vm_keep(self.handle, template.fd)
        lib.tn_descriptor_close(template)
        check(answer, "keeping the image's memory and the state of a fresh vCPU")
        return True

    def reset(self) -> None:
        """As it was before the first run, but for the boot info. Raises HostError; it is then only to be closed."""
        check(lib.tn_vm_reset(self.handle), "resetting the vCPU and guest memory")


class OpenedVm(Machine):
    """A machine that C opens, by its name. Raises HostError, ImageError.

    handle       the VM that it becomes a part of, and ends with
    program      the path of the one that the guest's process executes, if it has one
    namespaces   False for benchmarks alone: what the rest costs
    """

    patched = False
    """Its templates have their hypercall sites patched."""

    def __init__(
        self,
        handle: CData,
        *,
        name: Name,
        image: Image,
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        net_ring: NetRing = "off",
        program: str = "",
        namespaces: bool = True,
    ) -> None:
        self.name, self.fallback, self.handle, self._mem_bytes = name, "", handle, mem_bytes
        error = ffi.new("struct machine_error *")
        template = image.template(mem_bytes, patched=self.patched)
        answer = lib.tn_machine_open(
            handle,
            name.encode(),
            image.elf.c,
            manifest,
            mem_bytes,
            ffi.from_buffer(cmdline + b"\0"),
            len(cmdline),
            template.fd,
            program.encode("utf-8", "surrogateescape"),
            image.name.encode("utf-8", "replace").replace(b"\0", b"?"),
            namespaces,
            error,
        )
        lib.tn_descriptor_close(template)
        if answer == -1:
            raise self._refused(error, program)
        check(answer, f"no machine of this build: {name}")

    def _refused(self, error: CData, program: str) -> HostError:
        return machine_error(error)


def machine_error(error: CData) -> HostError:
    """The HostError that a filled `struct machine_error *` stands for."""
    text, code = ffi.string(error.text).decode("utf-8", "replace"), ffi.string(error.code).decode()
    return HostError(text or os.strerror(error.os_error), errno=error.os_error, code=code)
