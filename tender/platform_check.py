"""Says that the core was built for another machine. The loader only says that it cannot open the file.

It is imported when the core could not be imported, so a start that works pays nothing for it.
"""

import os
import sys

ONLY = "tender runs on Linux on x86_64 only"
MACHINES = {
    (1, 3): "i386",
    (1, 40): "arm",
    (1, 62): "x32",
    (2, 21): "ppc64",
    (2, 22): "s390x",
    (2, 62): "x86_64",
    (2, 183): "aarch64",
    (2, 243): "riscv64",
    (2, 258): "loongarch64",
}
"""Machines by ELF class and e_machine. Source: <elf.h>."""


def machine_of(path: str) -> str:
    """Returns the machine that an ELF file is for; empty if the file is not an ELF file, or cannot be read."""
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError:
        return ""
    if len(header) < 20 or not header.startswith(b"\x7fELF"):
        return ""
    of_class, number = header[4], int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    return MACHINES.get((of_class, number), f"machine {number} of ELF class {of_class}")


def misfit(
    core: str = f"{os.path.dirname(__file__)}/_native.abi3.so",
    python: str = "/proc/self/exe",
    system: str = sys.platform,
) -> str:
    """Returns why the core cannot be loaded here, as one line; empty if it was built for this machine."""
    if system != "linux":
        return f"{ONLY}, and this is {system}"
    made_for, ours = machine_of(core), machine_of(python)
    if ours and ours != "x86_64":
        return f"{ONLY}, and this Python ({sys.executable}) is for {ours}"
    if made_for and ours and made_for != ours:
        return f"{ONLY}, and its core {core} is for {made_for}"
    return ""
