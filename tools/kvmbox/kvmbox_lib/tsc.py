"""How fast this machine's time-stamp counter runs, which QEMU's emulation hands to the test VM as it is.

Without that its kernel counts it against an emulated timer while it boots. Where other programs have the processors
it takes the wrong one of two answers: its clock then ran fifteen times too fast, and so did that of each VM that was
resumed from it.
"""

import ctypes
import mmap
import time
from collections.abc import Callable

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
LOOKS = 20  # the narrowest counts: the others were interrupted
APART_S = 0.02
STEP_MHZ = 10  # two measurements should be the same number; the kernel refines it, by up to 1 %


def frequency_mhz() -> int:
    """To the nearest STEP_MHZ."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(RDTSC)  # the mapping lives as long as `counter`, which refers to it
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    first_ns, first = _look(counter)
    time.sleep(APART_S)
    last_ns, last = _look(counter)
    return round((last - first) * 1000 / (last_ns - first_ns) / STEP_MHZ) * STEP_MHZ


def _look(counter: Callable[[], int]) -> tuple[int, int]:
    """A moment, and the counter then."""
    looks = []
    for _ in range(LOOKS):
        before, count, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        looks.append((after - before, (before + after) // 2, count))
    return min(looks)[1:]
