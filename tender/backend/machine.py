"""What every machine has once it is made.

The machine is the VM's (bindings/python/owner.h), and C's: bindings/machine/machine.h says what it does.
"""

import os
from typing import Final

from tender.annotations import Backend, IsolationLayer, NetRingLike
from tender.config import standing
from tender.errors import HostError
from tender.image import Image
from tender.native import CData, check, ffi, lib
from tender.values import Owner

RING_MODES: Final[dict[str, int]] = {
    "auto": lib.RING_ADAPTIVE,
    "on": lib.RING_WORKER,
    "inline": lib.RING_INLINE,
    "off": lib.RING_NONE,
}
"""enum vm_ring_mode of VmConfig.net_ring: what is wanted."""


class Machine(Owner):
    """A machine that is ready to run. Raises HostError, ImageError.

    handle       the `struct vm_handle` that owns it; while a pool leases it to a Vm, that Vm's handle does
    image_name   of the image, as messages show it
    fallback     why it is no earlier one of BACKENDS although nobody asked for it; empty: it was asked for
    notice       the same as a line for a person
    program      the path of the one that the guest's process executes, if it has one
    """

    fallback = notice = ""
    reusable = False
    """It can be reset() after a run: keep() was called, and the backend can."""
    patched = False
    """Its templates have their call sites patched."""

    def __init__(
        self,
        handle: CData,
        *,
        name: Backend,
        image: Image,
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        net_ring: NetRingLike = "off",
        program: str = "",
    ) -> None:
        self.name, self.handle, self.image_name = name, handle, image.name
        self._plan = plan = ffi.new("struct machine_plan *")
        self._of_plan = image.elf, manifest  # what it points to
        error = ffi.new("struct machine_error *")
        title = ffi.from_buffer(image.name.encode("utf-8", "replace").replace(b"\0", b"?") + b"\0")
        path = ffi.from_buffer(program.encode("utf-8", "surrogateescape") + b"\0")
        line = ffi.from_buffer(cmdline + b"\0")
        plan.image, plan.name, plan.manifest, plan.mem_bytes = image.elf.c, title, manifest, mem_bytes
        plan.ring_mode = RING_MODES[net_ring]
        plan.cmdline, plan.cmdline_bytes = line, len(cmdline)
        plan.program = path
        template = image.template(mem_bytes, patched=self.patched)
        plan.template_fd = template.fd
        answer = lib.tn_machine_open(handle, name.encode(), plan, error)
        lib.tn_descriptor_close(template)
        if answer == -1:
            raise self._refused(error, program)
        check(answer, f"no machine of this build: {name}")

    @property
    def isolation(self) -> tuple[IsolationLayer, ...]:
        """The isolation layers around the guest."""
        layers = ffi.new("uint32_t *")
        check(lib.tn_isolation(self.handle, layers), "the isolation layers")
        return standing(layers[0])

    def _refused(self, error: CData, program: str) -> HostError:
        return machine_error(error)

    def write_boot_info(self, cmdline: bytes) -> None:
        """What the guest will be told; until the first run it may be said again."""
        line = ffi.from_buffer(cmdline + b"\0")
        self._plan.cmdline, self._plan.cmdline_bytes = line, len(cmdline)
        lib.tn_write_boot_info(self.handle, self._plan)

    def keep(self, image: Image) -> None:
        """Before the first run: prepares this machine for reset(), and sets `reusable`. Raises HostError."""
        if not lib.tn_vm_keeps(self.handle):
            return
        template = image.template(self._plan.mem_bytes)
        answer = lib.tn_vm_keep(self.handle, template.fd)
        lib.tn_descriptor_close(template)
        check(answer, "keeping the image's memory and the state of a fresh vCPU")
        self.reusable = True

    def reset(self) -> None:
        """As it was before the first run, but for the boot info. Raises HostError; it is then only to be closed."""
        check(lib.tn_vm_reset(self.handle), "resetting the vCPU and guest memory")

    def close(self) -> None:
        """Gives everything back. Idempotent. Nothing may run on it."""
        lib.tn_vm_close(self.handle)


def machine_error(error: CData) -> HostError:
    """The HostError that a filled `struct machine_error *` stands for."""
    text, code = ffi.string(error.text).decode("utf-8", "replace"), ffi.string(error.code).decode()
    return HostError(text or os.strerror(error.os_error), errno=error.os_error, code=code)
