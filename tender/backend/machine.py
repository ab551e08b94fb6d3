"""What each machine has once it is made.

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
"""The enum vm_ring_mode that VmConfig.net_ring asks for."""


class Machine(Owner):
    """A machine that is ready to run. Raises HostError, ImageError.

    Attributes:
        name: The backend.
        handle: The `struct vm_handle *` that owns it. While a pool leases it to a Vm, that Vm's handle owns it.
        image_name: The name of the image, as messages show it.
        fallback: Why "auto" took none of the backends before this one; empty if this backend was asked for.
        notice: The same as a line for a person.
    """

    fallback = notice = ""
    reusable = False
    """Whether reset() makes it serve again: keep() was called, and the backend can do it."""
    patched = False
    """Whether the call sites of its templates are patched."""

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
        debuggable: bool = False,
        flight_recorder: bool = False,
        program: str = "",
    ) -> None:
        self.name, self.handle, self.image_name = name, handle, image.name
        self._plan = plan = ffi.new("struct machine_plan *")
        file = ffi.from_buffer(os.fsencode(image.path).replace(b"\0", b"?") + b"\0")
        self._of_plan = image.elf, manifest, file  # the plan points to these, and a debugger reads the last
        error = ffi.new("struct machine_error *")
        title = ffi.from_buffer(image.name.encode("utf-8", "replace").replace(b"\0", b"?") + b"\0")
        path = ffi.from_buffer(program.encode("utf-8", "surrogateescape") + b"\0")
        line = ffi.from_buffer(cmdline + b"\0")
        plan.image, plan.name, plan.manifest, plan.mem_bytes = image.elf.c, title, manifest, mem_bytes
        plan.path = file if image.path else ffi.NULL
        plan.ring_mode = RING_MODES[net_ring]
        plan.cmdline, plan.cmdline_bytes = line, len(cmdline)
        plan.program, plan.debuggable, plan.flight_recorder = path, debuggable, flight_recorder
        template = image.template(mem_bytes, patched=self.patched)
        plan.template_fd = template.fd
        answer = lib.tn_machine_open(handle, name.encode(), plan, error)
        lib.tn_descriptor_close(template)
        if answer == -1:
            raise self._refused(error, program)
        check(answer, f"no machine of this build: {name}")

    @property
    def isolation(self) -> tuple[IsolationLayer, ...]:
        """The isolation layers that stand around the guest."""
        layers = ffi.new("uint32_t *")
        check(lib.tn_isolation(self.handle, layers), "the isolation layers")
        return standing(layers[0])

    def _refused(self, error: CData, program: str) -> HostError:
        return machine_error(error)

    def write_boot_info(self, cmdline: bytes) -> None:
        """Writes what the guest is told. It may be written again until the first run."""
        line = ffi.from_buffer(cmdline + b"\0")
        self._plan.cmdline, self._plan.cmdline_bytes = line, len(cmdline)
        lib.tn_write_boot_info(self.handle, self._plan)

    def keep(self, image: Image) -> None:
        """Prepares this machine for reset() before its first run, and sets `reusable`. Raises HostError."""
        if not lib.tn_vm_keeps(self.handle):
            return
        template = image.template(self._plan.mem_bytes)
        answer = lib.tn_vm_keep(self.handle, template.fd)
        lib.tn_descriptor_close(template)
        check(answer, "keeping the image's memory and the state of a fresh vCPU")
        self.reusable = True

    def reset(self) -> None:
        """Makes this machine what it was before the first run, except for the boot info.

        Raises HostError. After that it can only be closed.
        """
        check(lib.tn_vm_reset(self.handle), "resetting the vCPU and guest memory")

    def close(self) -> None:
        """Gives everything back. It may be called again. No guest may run on the machine."""
        lib.tn_vm_close(self.handle)


def machine_error(error: CData) -> HostError:
    """Returns the HostError that a filled `struct machine_error *` stands for."""
    text, code = ffi.string(error.text).decode("utf-8", "replace"), ffi.string(error.code).decode()
    return HostError(text or os.strerror(error.os_error), errno=error.os_error, code=code)
