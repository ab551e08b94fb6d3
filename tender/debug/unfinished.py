"""Finds out how far a hypercall is that a guest's thread is in: both backends have the same `struct vm` for that.

`vm.resume` is complete only where the handler was interrupted and has returned. While the thread is in the handler, the
number and the address are those that the guest's `out` has, and the fields for the progress are those of this hypercall as
soon as it waits. All of it may be a hostile guest's: these are numbers, and nobody follows them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tender.debug.cpu_parts import STRUCTURE_BYTES, Unfinished
from tender.debug.find import Guest
from tender.native import ffi, lib

_RESTARTS = frozenset((1 << 64) - it for it in (4, 512, 513, 514, 516))
"""rax of a thread whose system call was interrupted before it did anything: EINTR, and ERESTARTSYS and its kin of
include/linux/errno.h."""


@dataclass(frozen=True)
class Call:
    """The `out` of a guest that is in a hypercall.

    Attributes:
        port: Its port.
        gpa: The word that it writes.
        waits: Whether the handler stands in a system call that was interrupted before it did anything.
        begun: Whether the handler has begun.
    """

    port: int
    gpa: int
    waits: bool
    begun: bool = True


def was_interrupted(registers: dict[str, int]) -> bool:
    """Whether a stopped thread is in a system call that is made again when it goes on."""
    return registers["orig_rax"] >> 63 == 0 and registers["rax"] in _RESTARTS


def is_answer_of_interrupted(rax: int) -> bool:
    """Whether a system call has given this answer because a signal came before it did anything."""
    return rax in _RESTARTS


def unfinished_of(
    guest: Guest,
    vm: int,
    call: Call | None,
    process: Callable[[int, int], bytes],
    memory: Callable[[int, int], bytes],
) -> Unfinished | None:
    """Returns the hypercall that is not finished.

    Args:
        guest: The guest.
        vm: The address of its `struct vm`.
        call: The `out` that it is in. None: its thread is in none.
        process: Reads the memory of its process.
        memory: Reads the guest's memory.
    """
    note = guest.note
    if "vm_resume_gpa" not in note:
        return None

    def word(name: str, size: int = 8) -> int:
        return int.from_bytes(process(vm + note[name], size), "little")

    number, gpa, exact = word("vm_resume", 4), word("vm_resume_gpa"), True
    structure = process(vm + note["vm_resume_structure"], STRUCTURE_BYTES)
    begun = True
    if not number:
        if call is None or not 0 <= call.port - lib.HVT_PORT_BASE < lib.TENDER_HYPERCALL_MAX:
            return None
        number, gpa, begun = call.port - lib.HVT_PORT_BASE, call.gpa, call.begun
        exact = call.waits or not begun
        structure = memory(gpa, STRUCTURE_BYTES)
    deadline_ns = word("vm_resume_poll_deadline_ns") if begun else 0
    name = lib.tn_hypercall_name(number)
    return Unfinished(
        number=number,
        name=ffi.string(name).decode() if name else "",
        gpa=gpa,
        structure=structure,
        bytes_done=word("vm_resume_bytes_done") if begun else 0,
        batch_done=word("vm_resume_batch_done", 4) if begun else 0,
        time_left_ns=max(0, deadline_ns - time.monotonic_ns()) if deadline_ns else None,
        exact=exact,
    )
