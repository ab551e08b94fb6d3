"""A warm process that boots with the library, one boot for each line on its standard input.

    python -P -m tender.bench.worker MODE IMAGE MEM_MIB CONSOLE_FD [ARG ...]

It answers each line with a line of numbers: the CLOCK_MONOTONIC time stamps of points.LIBRARY_POINTS (0: not reached),
the thread's CPU nanoseconds, and the minor page faults. It is a process of its own, and imports little, because
KVM_CREATE_VM takes longer in a process with more mappings. The harness must not be part of the figure.

If MODE is a backend, a boot is that of a Vm. If MODE is "pool-" and a backend, a boot is that of a VM from a pool, from
take() until it is given back. CONSOLE_FD -1 discards the console.
"""

import resource
import sys
import time

from tender.annotations import DISCARD
from tender.bench.child import reported
from tender.config import VmConfig, check_backend
from tender.image import Image
from tender.pool import VmPool
from tender.vm import Vm

POOL = "pool-"


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def boot(image: Image, config: VmConfig, console: int, mode: str) -> "tuple[int, ...]":
    """Boot one VM, from Vm() or take() to close(). Raises RuntimeError if the guest did not end by itself."""
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


def main(argv: "list[str]") -> int:
    mode, path, mem, console, *args = argv
    config = VmConfig(mem=int(mem), args=args)
    with Image.open(path) as image:
        for _line in sys.stdin:
            sys.stdout.write(" ".join(map(str, boot(image, config, int(console), mode))) + "\n")
            sys.stdout.flush()
        for pool in _POOLS:
            pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(reported(main, sys.argv[1:]))
