"""A warm process that boots through the library, one boot for each line on its standard input.

    python -P -m tender.bench.worker MODE IMAGE MEM_MIB CONSOLE_FD [ARG ...]

answers each line with one of numbers: CLOCK_MONOTONIC stamps of points.LIBRARY_POINTS (0: not reached), the
thread's CPU nanoseconds, minor page faults. It is a process of its own, and imports little, because
KVM_CREATE_VM grows with the number of mappings in the process: the harness must not be part of the figure.

MODE is a backend, and then a boot is a Vm's; "pool-" and a backend, and then it is that of a VM taken from a pool,
from take() to the end of giving it back; or "program" or "program-bare": the sandbox's process alone, of a VM
whose console and manifest are ready, bare of namespaces. `start` is then before SandboxVm(), which makes the
shared memory and spawns, `closed` behind its close(), which has reaped. CONSOLE_FD -1 discards the console.
"""

import resource
import sys
import time

from tender.backend import check_backend
from tender.backend.sandbox import SandboxVm
from tender.config import VmConfig
from tender.image import Image
from tender.native import check, ffi, lib, vm_handle
from tender.pool import VmPool
from tender.vm import DISCARD, Vm

PROGRAM_MODES = ("program", "program-bare")
POOL = "pool-"


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def boot(image: Image, config: VmConfig, console: int, mode: str) -> "tuple[int, ...]":
    """One VM, from Vm() or take() to close(). Raises RuntimeError if the guest did not end by itself."""
    pool = mode.startswith(POOL) and _pool(image, config, console, mode.removeprefix(POOL))
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    cpu = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)
    vm = (
        pool.take()
        if pool
        else Vm(image, config, console=DISCARD if console < 0 else console, backend=check_backend(mode))
    )
    result = vm.run()
    vm.close()
    closed = _now_ns()
    cpu = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID) - cpu
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
    if result.reason != "exit":
        raise RuntimeError(f"{image.name}: the guest ended with {result.reason}: {result.message}")
    t = result.boot
    stamps = (t.start, t.vm_created, t.first_run, t.first_exit, t.first_console, t.guest_exit, closed)
    return (*stamps, cpu, faults)


_POOLS: "list[VmPool]" = []


def _pool(image: Image, config: VmConfig, console: int, backend: str) -> VmPool:
    if not _POOLS:
        _POOLS.append(
            VmPool(image, config, console=DISCARD if console < 0 else console, backend=check_backend(backend))
        )
    return _POOLS[0]


def boot_program(image: Image, config: VmConfig, console: int, mode: str) -> "tuple[int, ...]":
    """One sandbox's process, from SandboxVm() to reaped. Raises RuntimeError if the guest did not halt."""
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
        namespaces=mode == "program",
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
    mode, path, mem, console, *args = argv
    config = VmConfig(mem=int(mem), args=args)
    once = boot_program if mode in PROGRAM_MODES else boot
    with Image.open(path) as image:
        for _line in sys.stdin:
            sys.stdout.write(" ".join(map(str, once(image, config, int(console), mode))) + "\n")
            sys.stdout.flush()
        for pool in _POOLS:
            pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
