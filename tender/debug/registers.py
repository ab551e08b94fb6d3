"""The registers of a guest's vCPU, as a debugger shows them."""

from tender.values import Value, value

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
"""The general registers in the order of gdb's `info registers`."""

SHOWN = (*GENERAL, "rip", "rflags", "fs_base", "gs_base")
"""The registers that people are shown: all but the vector registers."""

DWARF = (
    *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)
"""The registers by their numbers in DWARF. Source: System V ABI for AMD64, figure 3.36."""


@value
class Registers(Value):
    """The registers of a guest's vCPU.

    Each is a number of 64 bits. Source: Intel SDM volume 1, 3.4.

    Attributes:
        rip: The address of the next instruction.
        rflags: The flags.
        fs_base: The base of FS: thread-local storage.
        gs_base: The base of GS.
        xsave: The x87, SSE and AVX registers in the standard form of XSAVE (Intel SDM volume 1, 13.4), whose bytes 464 to
            471 are XCR0 as Linux writes them in NT_X86_XSTATE. Empty: they are not known.
    """

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rbp: int = 0
    rsp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2
    fs_base: int = 0
    gs_base: int = 0
    xsave: bytes = b""

    def __repr__(self) -> str:
        """Returns one line in hexadecimal, with the size of `xsave` in place of its bytes."""
        names = dict.fromkeys(("rip", "rsp", *SHOWN))
        named = ", ".join(f"{name}={getattr(self, name):#x}" for name in names)
        return f"Registers({named}, xsave=<{len(self.xsave)} bytes>)"

    def __str__(self) -> str:
        """Returns lines of four registers in hexadecimal, as a crash report has them, without `xsave`."""
        words = [f"{name:>7} {getattr(self, name):016x}" for name in SHOWN]
        return "\n".join(" ".join(words[at : at + 4]) for at in range(0, len(words), 4))

    def by_dwarf(self) -> dict[int, int]:
        """Returns the registers by their DWARF numbers, for an unwinder."""
        return {number: getattr(self, name) for number, name in enumerate(DWARF)}
