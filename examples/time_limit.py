"""Ends a guest that does not end by itself: by a time limit, and by another thread.

python examples/time_limit.py sleep.elf
"""

import sys
import threading

from tender import DISCARD, Image, Vm, VmConfig, VmResult


def limited(image: Image, seconds: float) -> VmResult:
    """The time limit belongs to the guest. Its end is a result and not an exception."""
    with Vm(image, VmConfig(mem=16), console=DISCARD) as vm:
        return vm.run(timeout=seconds)


def stopped(image: Image, seconds: float) -> VmResult:
    """Any thread may stop a VM at any time."""
    with Vm(image, VmConfig(mem=16), console=DISCARD) as vm:
        timer = threading.Timer(seconds, vm.stop)
        timer.start()
        try:
            return vm.run()
        finally:
            timer.cancel()


def waited_for(image: Image, seconds: float) -> VmResult:
    """The limit of wait() belongs to the caller: the guest goes on when it is over."""
    with Vm(image, VmConfig(mem=16), console=DISCARD) as vm:
        vm.start()
        try:
            return vm.wait(timeout=seconds)
        except TimeoutError:
            print("the guest still runs")
            vm.stop()
            return vm.wait()


def main(path: str) -> None:
    with Image.open(path) as image:
        print(limited(image, 0.2).reason)
        print(stopped(image, 0.2).reason)
        print(waited_for(image, 0.2).reason)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
