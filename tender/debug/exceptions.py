"""Which exception of the processor a guest's own handler was called for, as far as its stack says it.

A guest of our library has a frame of trap_common() (guest_kernel/traps_x86_64.S) then. What the processor has pushed ends at
its CFA: SS, RSP, RFLAGS, CS, RIP, the error code, and below that the number of the vector.
"""

from collections.abc import Callable, Sequence

from tender.debug.symbols import Frame

PAGE_FAULT = 14
_HANDLER = "trap_common"
_VECTOR_BELOW_CFA = 7 * 8

# Source: Intel SDM volume 3, table 6-1.
_NAMES = {
    0: "divide error (#DE)",
    1: "debug exception (#DB)",
    3: "breakpoint instruction (#BP)",
    4: "overflow (#OF)",
    5: "bound range exceeded (#BR)",
    6: "invalid opcode (#UD)",
    7: "no device: FPU or SSE is off (#NM)",
    8: "double fault (#DF)",
    10: "invalid TSS (#TS)",
    11: "segment not present (#NP)",
    12: "stack fault (#SS)",
    13: "general protection (#GP): a bad address, or an instruction that is not allowed",
    PAGE_FAULT: "page fault (#PF)",
    16: "x87 floating-point error (#MF)",
    17: "alignment check (#AC)",
    19: "SIMD floating-point error (#XM)",
}


def vector_of(frames: Sequence[Frame], read: Callable[[int, int], bytes]) -> int | None:
    """Returns the number of the exception in whose handler these frames are, or None."""
    handler = next((it for it in frames if it.function == _HANDLER and it.cfa >= _VECTOR_BELOW_CFA), None)
    data = read(handler.cfa - _VECTOR_BELOW_CFA, 8) if handler is not None else b""
    vector = int.from_bytes(data, "little")
    return vector if len(data) == 8 and vector < 32 else None


def exception_named(vector: int | None) -> str:
    """Returns the name of an exception; empty: it is not known."""
    return "" if vector is None else _NAMES.get(vector, f"exception {vector}")
