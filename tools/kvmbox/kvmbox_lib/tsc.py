"""The frequency of this machine's time-stamp counter, which QEMU's emulation passes to the test VM unchanged.

If the test VM's kernel is not told the frequency, it measures the counter against an emulated timer while it boots. When
other programs use the processors, it chooses the wrong one of two results. Its clock then ran fifteen times too fast, and
so did the clock of each VM that was resumed from it.
"""

import ctypes
import mmap
import time
from collections.abc import Callable

RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
LOOKS = 20  # the fastest of them counts, because the others were interrupted
APART_S = 0.02
STEP_MHZ = 1  # two measurements give the same number, and the counter of each VM in the test VM has the same rate to 0.1 %


def frequency_mhz() -> int:
    """The frequency in MHz, rounded to STEP_MHZ."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(RDTSC)  # the mapping lives as long as `counter`, which refers to it
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    first_ns, first = _look(counter)
    time.sleep(APART_S)
    last_ns, last = _look(counter)
    return round((last - first) * 1000 / (last_ns - first_ns) / STEP_MHZ) * STEP_MHZ


def _look(counter: Callable[[], int]) -> tuple[int, int]:
    """A point in time, and the counter at that time."""
    looks = []
    for _ in range(LOOKS):
        before, count, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        looks.append((after - before, (before + after) // 2, count))
    return min(looks)[1:]
