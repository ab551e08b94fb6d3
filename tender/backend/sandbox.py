"""Door 2: the guest as ring-3 code of a process of its own, tender-sandbox, behind a seccomp filter.

A SandboxVm owns that process and what is shared with it, and kills and reaps it in close(). Spawning, waiting
and what may be believed of its reports are C (bindings/sandbox/spawn.c, watch.c).
"""

import posix  # not os: its ABCs cost a tenth of the command's start

from tender.config import LAYERS, standing
from tender.errors import HostError
from tender.native import CData, ffi, lib
from tender.values import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tender.image import Image

PROGRAM = __file__.rpartition("/backend/")[0] + "/tender-sandbox"
_EPERM = 1


class SandboxVm(Owner):
    """A process with the guest's memory that waits for its first run(). Raises HostError, ImageError.

    namespaces  False for benchmarks alone: what the rest costs
    """

    name = "sandbox"

    def __init__(
        self,
        vm: CData,
        *,
        image: "Image",
        mem_bytes: int,
        manifest: CData,
        cmdline: bytes,
        program: str = PROGRAM,
        namespaces: bool = True,
    ) -> None:
        self.fallback = ""
        template_fd = image.template_fd(mem_bytes, patched=True)
        self._c = lib.tn_sandbox_new(vm)
        if self._c == ffi.NULL:
            raise _failed("its shared memory", ffi.errno)
        try:
            self._mem_bytes = mem_bytes
            self.write_boot_info(vm, image, manifest, cmdline)
            answer = lib.tn_sandbox_spawn(
                self._c,
                image.elf.c,
                template_fd,
                mem_bytes,
                program.encode("utf-8", "surrogateescape"),
                image.name.encode("utf-8", "replace").replace(b"\0", b"?"),
                namespaces,
            )
            if answer < 0:
                raise _failed(f"{program} cannot be started", -answer, step=_STEP_START)
        except BaseException:
            self.close()
            raise

    def write_boot_info(self, vm: CData, image: "Image", manifest: CData, cmdline: bytes) -> None:
        """What the guest will be told; until the first run() it may be said again."""
        line = ffi.from_buffer(cmdline + b"\0")
        lib.tn_sandbox_write_boot_info(
            self._c, image.elf.c, manifest, self._mem_bytes, lib.tn_tsc_hz(), line, len(cmdline)
        )

    def keep(self, vm: CData, image: "Image") -> bool:
        """False: a process that a guest has had is not to be trusted with another's."""
        return False

    def reset(self, vm: CData) -> None:
        """Not for this door: keep() says so."""
        raise NotImplementedError

    def run(self, vm: CData) -> None:
        """Runs until Python must decide; the VM's event says what. The GIL is released."""
        lib.tn_sandbox_run(self._c)

    def console(self, vm: CData, gpa: int, length: int) -> bytes:
        """The bytes of an EVENT_CONSOLE."""
        return bytes(ffi.buffer(lib.tn_sandbox_console(self._c), length))

    def read(self, vm: CData, gpa: int, length: int) -> bytes:
        """A copy of guest memory, as long as the process lives. Raises HostError."""
        into = bytearray(length)
        done = 0
        buffer = ffi.from_buffer(into)
        while done < length:
            got = lib.tn_sandbox_read(self._c, gpa + done, buffer + done, length - done)
            if got <= 0:
                raise HostError(
                    f"memory: {gpa + done:#x} cannot be read: {posix.strerror(-got)}",
                    errno=-got,
                    code="sandbox-memory",
                    hint="without user namespaces only root may look into it" if got == -_EPERM else "",
                )
            done += got
        return bytes(into)

    @property
    def pid(self) -> int:
        """The process; -1 once it is reaped."""
        return int(lib.tn_sandbox_pid(self._c))

    @property
    def isolation(self) -> tuple[str, ...]:
        """The layers that stand, of `ISOLATION`; before the first run() it waits until the process is set up."""
        return standing(int(lib.tn_sandbox_isolation(self._c)))

    def forget(self) -> None:
        """In a forked child: closes copies of descriptors; the process is the parent's."""
        self.close()

    def close(self) -> None:
        """Kills the process if it lives, reaps it, unmaps. Idempotent; never while run() is under way."""
        c, self._c = self._c, ffi.NULL
        lib.tn_sandbox_free(c)


ISOLATION = LAYERS[: LAYERS.index("kvm")]
"""The layers that may stand around the sandbox."""


_STEP_START, _STEP_SHARED = 0, 0xFFFFFFFF  # SETUP_START and SETUP_SHARED of ends.h


def _failed(what: str, errno: int, *, step: int = _STEP_SHARED) -> HostError:
    hint = ffi.string(lib.tn_setup_step_hint(step, errno)).decode()
    return HostError(f"sandbox: {what}: {posix.strerror(errno)}", errno=errno, code="sandbox", hint=hint)


def setup_failed(step: int, errno: int) -> HostError:
    """The HostError for an EVENT_SETUP_FAILED of the program."""
    name = lib.tn_setup_step_name(step)
    return _failed(f"step {step}" if name == ffi.NULL else ffi.string(name).decode(), errno, step=step)
