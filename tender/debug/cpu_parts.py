"""What a guest's processor has besides the registers that a debugger shows, and the hypercall that is not finished.

A core has both, so that a guest can be restored from it. The parts are the bytes of `struct cpu_state`
(bindings/arch/x86_64/cpu_state.h), whose layout is also that of a core's note TNS1.
"""

import struct
from dataclasses import dataclass

SEGMENT = struct.Struct("<QIH9Bx")
"""struct cpu_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable. That of KVM is the same."""
TABLE = struct.Struct("<QH6x")
"""struct cpu_table: base, limit."""
CONTROL = struct.Struct("<7Q")
SYSTEM_BYTES = 8 * SEGMENT.size + 2 * TABLE.size + CONTROL.size
MSRS_BYTES, DEBUG_BYTES = 9 * 8, 6 * 8
STRUCTURE_BYTES = 48
"""The longest structure of a hypercall: struct vm_resume of bindings/core/vm.h."""


@dataclass(frozen=True)
class CpuParts:
    """Parts of the processor's state. An empty one is not known.

    Attributes:
        system: struct cpu_system: segments, tables and control registers.
        msrs: struct cpu_msrs.
        debug: struct cpu_debug.
    """

    system: bytes = b""
    msrs: bytes = b""
    debug: bytes = b""

    def control(self) -> dict[str, int]:
        """Returns cr0, cr2, cr3, cr4, cr8, efer and apic_base; nothing if they are not known."""
        if len(self.system) != SYSTEM_BYTES:
            return {}
        words = CONTROL.unpack_from(self.system, SYSTEM_BYTES - CONTROL.size)
        return dict(zip(("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"), words, strict=True))

    def selectors(self) -> tuple[int, ...]:
        """Returns the selectors of ES, CS, SS, DS, FS, GS, TR and LDTR; nothing if they are not known."""
        if len(self.system) != SYSTEM_BYTES:
            return ()
        return tuple(SEGMENT.unpack_from(self.system, i * SEGMENT.size)[2] for i in range(8))


@dataclass(frozen=True)
class Unfinished:
    """A hypercall that the guest is in. Who restores the guest makes it again and takes up what is done already.

    Attributes:
        number: Which one.
        name: Its name, or an empty text.
        gpa: Where its structure lies.
        structure: The structure as the handler has it, 48 bytes from `gpa` on.
        bytes_done: Bytes of a console write or of a transfer that are done.
        batch_done: Requests or frames of a batch that have an answer.
        time_left_ns: How long a wait lasts at most from now on. None: it has no limit that is known.
        exact: Whether the handler stands where this is all of its progress. If not, it was stopped at an instruction at
            which a little more may be done than these numbers say.
    """

    number: int
    name: str
    gpa: int
    structure: bytes = b""
    bytes_done: int = 0
    batch_done: int = 0
    time_left_ns: int | None = None
    exact: bool = False
