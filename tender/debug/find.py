"""Finds the guests of a process, from outside: by /proc and by the debug note of Tender's programs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Guest:
    """A guest that runs, and where its state lies. Addresses are those of the process `pid` unless said otherwise.

    Attributes:
        backend: "kvm" or "sandbox".
        pid: The process whose thread executes the guest.
        tid: That thread. 0: on KVM, a VM that does not run now.
        holder: The process that made the VM: `pid` itself on KVM and for the native command, the library's else.
        image: The path of the ELF file, if it is known and the file can be opened, else empty.
        mem_bytes: The size of guest memory.
        memory_hva: Where guest address 0 lies (0 in the sandbox).
        shared_hva: Where `struct vm_shared` lies.
        note: The numbers of the debug note of the program or library that runs it, by name (bindings/core/debug_note.h).
        base: Where that program or library is loaded; the note's addresses are relative to it.
        values: Further values that the backend's target needs, by name.
    """

    backend: str
    pid: int
    tid: int
    holder: int
    image: str
    mem_bytes: int
    memory_hva: int
    shared_hva: int
    note: dict[str, int]
    base: int
    values: dict[str, int]


def guests_of(pid: int) -> Sequence[Guest]:
    """Returns the guests that a process runs or holds, the sandbox processes of a library's VMs too.

    Raises DebugError: there is no such process, it holds no guest, or the kernel does not let us look (the message says
    which rule, the hint what to type).
    """
    raise NotImplementedError(pid)
