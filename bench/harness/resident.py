"""A process that keeps VMs alive: each line on its standard input starts one more VM.

    python -P resident.py BACKEND IMAGE MEM_MIB [ARG ...]

It prints "open" when the image is open. When the guest of a new VM waits in poll, it prints a line: "VM_CREATED_NS
FIRST_EXIT_NS FIRST_CONSOLE_NS PID", in nanoseconds from the call of Vm(). PID is the guest's process, or -1 if that is
this process. If a VM cannot be made, it prints "refused MESSAGE", and the earlier VMs stay alive. The end of its standard
input ends all VMs.
"""

import os
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tender.annotations import DISCARD
from tender.bench import facts
from tender.bench.child import reported
from tender.config import VmConfig, check_backend
from tender.errors import TenderError
from tender.image import Image
from tender.vm import Vm

_LIMIT_S = 30


def _still_runs(vm: Vm) -> bool:
    """Whether the guest still runs after half a millisecond."""
    try:
        vm.wait(timeout=0.0005)
    except TimeoutError:
        return True
    return False


def grow(image: Image, config: VmConfig, backend: str, stack: ExitStack) -> str:
    """Start one more VM, which `stack` closes. Returns its line. Raises TenderError, OSError, RuntimeError."""
    vm = Vm(image, config, console=DISCARD, backend=check_backend(backend))
    stack.enter_context(vm)
    vm.start()
    limit = facts.limit_s(_LIMIT_S)
    end = time.monotonic() + (limit or 0)
    while not vm.counters.hypercalls["poll"]:
        if not _still_runs(vm) or (limit is not None and time.monotonic() > end):
            raise RuntimeError(
                f"{image.name}: the guest does not wait in poll: it ended, or ran for {_LIMIT_S} s"
            )
    t = vm.boot
    pid = -1 if vm.pid == os.getpid() else vm.pid
    stamps = (t.vm_created, t.first_exit, t.first_console)
    return " ".join(str(stamp - t.start if stamp else 0) for stamp in stamps) + f" {pid}"


def raise_open_files() -> int:
    """Raise this process's limit on descriptors as far as possible. Root may exceed the hard limit. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (int(Path("/proc/sys/fs/nr_open").read_text()), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            break
        except (OSError, ValueError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main(argv: "list[str]") -> int:
    backend, path, mem, *args = argv
    config = VmConfig(mem=int(mem), args=args)
    raise_open_files()
    with ExitStack() as stack:
        image = stack.enter_context(Image.open(path))
        sys.stdout.write("open\n")
        sys.stdout.flush()
        for _line in sys.stdin:
            try:
                answer = grow(image, config, backend, stack)
            except (TenderError, OSError, RuntimeError, MemoryError) as error:
                answer = f"refused {' '.join(str(error).split())}"
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(reported(main, sys.argv[1:]))
