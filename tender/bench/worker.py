"""A warm process that boots through the library, one boot for each line on its standard input.

    python -P -m tender.bench.worker IMAGE MEM_MIB

answers each line with one of numbers: CLOCK_MONOTONIC stamps of points.LIBRARY_POINTS (0: not reached), the
thread's CPU nanoseconds, minor page faults. It is a process of its own, and imports little, because
KVM_CREATE_VM grows with the number of mappings in the process: the harness must not be part of the figure.
"""

import resource
import sys
import time

from tender.config import VmConfig
from tender.image import Image
from tender.vm import DISCARD, Vm


def boot(image: Image, config: VmConfig) -> "tuple[int, ...]":
    """One VM, from Vm() to close(). Raises RuntimeError if the guest did not end by itself."""
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    cpu = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)
    vm = Vm(image, config, console=DISCARD)
    result = vm.run()
    vm.close()
    closed = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    cpu = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID) - cpu
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
    if result.reason != "exit":
        raise RuntimeError(f"{image.name}: the guest ended with {result.reason}: {result.message}")
    t = result.boot
    stamps = (t.start, t.vm_created, t.first_run, t.first_exit, t.first_console, t.guest_exit, closed)
    return (*stamps, cpu, faults)


def main(argv: "list[str]") -> int:
    path, mem = argv
    config = VmConfig(mem=int(mem))
    with Image.open(path) as image:
        for _line in sys.stdin:
            sys.stdout.write(" ".join(map(str, boot(image, config))) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
