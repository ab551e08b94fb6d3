"""Like tender.bench.worker, but for the sandbox process alone: a VM whose console and manifest are ready.

    python -P program_worker.py MODE IMAGE MEM_MIB CONSOLE_FD [ARG ...]

MODE is "program". `start` is just before SandboxVm(), which makes the shared memory and spawns the process. `closed` is
just after its close(), which has reaped the process.
"""

import sys
import time

from tender.backend.sandbox import SandboxVm
from tender.bench.child import reported
from tender.config import VmConfig
from tender.image import Image
from tender.native import check, ffi, lib, vm_handle

MODES = ("program",)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def boot_program(image: Image, config: VmConfig, console: int) -> "tuple[int, ...]":
    """Boot one sandbox process, from SandboxVm() until reaped. Raises RuntimeError if the guest did not halt."""
    handle, report, turn = vm_handle(), ffi.new("struct run_report *"), ffi.new("int *")
    check(lib.tn_vm_make(handle), "a VM")
    lib.tn_vm_set_console(lib.tn_vm(handle), console)
    manifest = ffi.new("struct mft *")
    ffi.memmove(manifest, ffi.addressof(image.elf.c, "manifest"), ffi.sizeof("struct mft"))
    start = _now_ns()
    SandboxVm(
        handle,
        image=image,
        mem_bytes=config.mem_bytes,
        manifest=manifest,
        cmdline=config.cmdline,
    )
    created = _now_ns()
    check(lib.tn_run_begin(handle, lib.NO_LIMIT, turn), "a run")
    check(lib.tn_run(handle, report), "a run")
    t = report.shared.timeline
    stamps = [int(t.first_run), int(t.first_exit), int(t.first_console), int(t.guest_exit)]
    lib.tn_vm_close(handle)
    closed = _now_ns()
    if report.event.kind != lib.EVENT_HALT:
        raise RuntimeError(f"{image.name}: the guest did not halt")
    return (start, created, *stamps, closed, 0, 0)


def main(argv: "list[str]") -> int:
    _mode, path, mem, console, *args = argv
    config = VmConfig(mem=int(mem), args=args)
    with Image.open(path) as image:
        for _line in sys.stdin:
            sys.stdout.write(" ".join(map(str, boot_program(image, config, int(console)))) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(reported(main, sys.argv[1:]))
