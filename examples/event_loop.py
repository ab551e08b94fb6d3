"""Runs guests in an asyncio program: the event loop waits for each VM's descriptor.

python examples/event_loop.py app.elf GUESTS
"""

import asyncio
import sys

from tender import CAPTURE, Image, Vm, VmConfig, VmResult


async def ended(vm: Vm) -> VmResult:
    """Waits for the end of a started guest without a thread of its own."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(vm, over.set)  # a Vm has fileno(): readable from the end of the run on
    try:
        await over.wait()
    finally:
        loop.remove_reader(vm)  # before close(), which closes the descriptor
    return vm.wait(0)


async def boot(image: Image, name: str) -> VmResult:
    """Cancelling this task leaves the `with` block, which stops the guest."""
    with Vm(image, VmConfig(mem=16, args=(name,)), console=CAPTURE) as vm:
        vm.start(timeout=60)
        return await ended(vm)


async def main(path: str, guests: int) -> None:
    with Image.open(path) as image:
        results = await asyncio.gather(*(boot(image, f"guest-{i}") for i in range(guests)))
    for number, result in enumerate(results):
        print(f"guest {number}: {result.reason}, status {result.status}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[2].isdecimal():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
