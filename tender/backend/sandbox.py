"""Door 2: the guest as ring-3 code of a process of its own, tender-sandbox, behind a seccomp filter.

That process and what is shared with it are the VM's (bindings/python/owner.h). Spawning, waiting and
what may be believed of its reports are C (bindings/machine/sandbox/spawn.c, watch.c).
"""

import posix  # not os: its ABCs cost a tenth of the command's start

from tender.config import LAYERS, standing
from tender.errors import HostError
from tender.native import CData, both_told, ffi, lib
from tender.values import Owner

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from typing import Final

    from tender.annotations import IsolationLayer
    from tender.image import Image

PROGRAM = __file__.rpartition("/backend/")[0] + "/tender-sandbox"


class SandboxVm(Owner):
    """A process with the guest's memory that waits for its first run. Raises HostError, ImageError.

    handle       the VM that it becomes a part of, and ends with
    namespaces   False for benchmarks alone: what the rest costs
    """

    name: "Final" = "sandbox"

    def __init__(
        self,
        handle: CData,
        *,
        image: "Image",
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        program: str = PROGRAM,
        namespaces: bool = True,
    ) -> None:
        self.fallback = ""
        self.handle = handle
        self._mem_bytes = mem_bytes
        template = image.template(mem_bytes, patched=True)
        try:
            answer = lib.tn_vm_add_sandbox(handle)
            if answer < 0:
                raise _failed("its shared memory", -answer)
            self.write_boot_info(image, manifest, cmdline)
            answer = lib.tn_sandbox_spawn(
                handle,
                image.elf.c,
                template.fd,
                mem_bytes,
                program.encode("utf-8", "surrogateescape"),
                image.name.encode("utf-8", "replace").replace(b"\0", b"?"),
                namespaces,
            )
            if answer < 0:
                raise _failed(f"{program} cannot be started", -answer, step=_STEP_START)
        finally:
            lib.tn_descriptor_close(template)

    def write_boot_info(self, image: "Image", manifest: CData, cmdline: bytes) -> None:
        """What the guest will be told; until the first run it may be said again."""
        line = ffi.from_buffer(cmdline + b"\0")
        lib.tn_write_boot_info(self.handle, image.elf.c, manifest, self._mem_bytes, line, len(cmdline))

    def keep(self, image: "Image") -> bool:
        """False: a process that a guest has had is not to be trusted with another's."""
        return False

    def reset(self) -> None:
        """Not for this door: keep() says so."""
        raise NotImplementedError

    def isolation(self, layers: int) -> "tuple[IsolationLayer, ...]":
        """The names of the layers that the VM was found to have."""
        return standing(layers)


ISOLATION = LAYERS[: LAYERS.index("kvm")]
"""The layers that may stand around the sandbox."""


_STEP_START, _STEP_SHARED = 0, 0xFFFFFFFF  # SETUP_START and SETUP_SHARED of ends.h


def _failed(what: str, errno: int, *, step: int = _STEP_SHARED) -> HostError:
    hints = both_told(lambda told: lib.tn_setup_step_hint(step, errno, told))
    return HostError(f"sandbox: {what}: {posix.strerror(errno)}", errno=errno, code="sandbox", **hints)


def setup_failed(step: int, errno: int) -> HostError:
    """The HostError for an EVENT_SETUP_FAILED of the program."""
    name = lib.tn_setup_step_name(step)
    return _failed(f"step {step}" if name == ffi.NULL else ffi.string(name).decode(), errno, step=step)
