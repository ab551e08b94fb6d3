"""How much of its heap a guest uses, from outside: by the symbols of the allocators that Tender knows.

    ocaml-solo5    the C library under OCaml's runtime, as MirageOS has it: dlmalloc, which takes memory by sbrk()
    guest library  that of Tender: guest_kernel/memory.c

The guest does nothing for it and need not stand still: its memory is read as it is. `Probe` says where an image keeps the
numbers, and is made once for an image. What it reads is the guest's own data: bounded, checked, and not to be relied on.

    probe = probe_of(path)
    use = heap_use(probe, reader_of(guest), running=True)
"""

import os
from collections.abc import Callable
from functools import lru_cache

from tender.debug import kvm_memory, sandbox_memory
from tender.debug.confined import Died, run_confined
from tender.debug.find import Guest
from tender.debug.ptrace import read_memory
from tender.debug.symbols import Symbols
from tender.errors import ImageError
from tender.values import Value, value

Read = Callable[[int, int], bytes]

OCAML, LIBRARY = "ocaml-solo5", "guest library"
_PIECES_MAX = 50_000
_TRIES = 3
_WINDOW_BYTES = 4096
# Of struct malloc_state in nolibc/dlmalloc.i of ocaml-solo5, whose last word counts what is allocated since 0.8.1.
_STATE_BYTES, _FOOTPRINT = 944, 856


@value
class HeapUse(Value):
    """The use of a heap.

    Attributes:
        kind: The allocator: "ocaml-solo5" or "guest library".
        used_bytes: What is allocated now, with headers; None if it is not known.
        taken_bytes: What the allocator holds of `total_bytes`, allocated or free; None if it is not known.
        total_bytes: The size of the heap.
        damaged_at: The guest address of the first header that is none; None if all are whole, or it is not known.
    """

    kind: str
    used_bytes: int | None
    taken_bytes: int | None
    total_bytes: int
    damaged_at: int | None = None


@value
class MemoryUse(Value):
    """The use of a guest's memory.

    Attributes:
        total_bytes: The size of guest memory.
        touched_bytes: The pages of the image, and those that were written to. They are never given back.
        heap: The heap inside of it, by the guest's own numbers; None if its allocator is not known.
    """

    total_bytes: int
    touched_bytes: int
    heap: HeapUse | None


@value
class Probe(Value):
    """Where an image keeps the numbers of its heap: guest addresses.

    Attributes:
        kind: The allocator.
        first: The word with the heap's first address.
        last: The word with its end.
        taken: The word with the end of what is taken; 0: there is none.
        state: The allocator's own numbers; 0: there are none that are known.
    """

    kind: str
    first: int
    last: int
    taken: int = 0
    state: int = 0


def probe_in(symbols: Symbols) -> Probe | None:
    """Returns where an image keeps the numbers of its heap, or None: it has no allocator that is known."""
    first, last, taken = (symbols.find(name) for name in ("sbrk_start", "sbrk_end", "sbrk_cur"))
    if first and last and taken:
        state = symbols.find("_gm_")
        return Probe(
            kind=OCAML,
            first=first.address,
            last=last.address,
            taken=taken.address,
            state=state.address if state and state.size == _STATE_BYTES else 0,
        )
    first, last = symbols.find("heap_first"), symbols.find("heap_end")
    if first and last:
        return Probe(kind=LIBRARY, first=first.address, last=last.address)
    return None


def probe_of(path: str) -> Probe | None:
    """Returns the same for a file, which is read in a confined child, once as long as it does not change."""
    try:
        it = os.stat(path)
    except (OSError, ValueError):
        return None
    return _probe_of(path, it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns)


@lru_cache(maxsize=1024)
def _probe_of(path: str, *which: int) -> Probe | None:
    def made() -> dict[str, object] | None:
        symbols = Symbols.open(path)
        probe = probe_in(symbols)
        return probe.to_dict() if probe else None

    try:
        found = run_confined(made)
    except (Died, ImageError):
        return None
    return Probe(**found) if found else None


def reader_of(guest: Guest) -> Read:
    """Returns what reads the memory of a guest that runs, which it does not stop."""

    def read(gpa: int, length: int) -> bytes:
        length = min(length, guest.mem_bytes - gpa)
        if gpa < 0 or length <= 0:
            return b""
        return read_memory(guest.pid, guest.memory_hva + gpa, length)

    return read


def touched_bytes(guest: Guest) -> int:
    """Returns the bytes of the pages that may hold other bytes than zeros, as in a core. Raises DebugError."""
    if guest.backend == "sandbox":
        runs = sandbox_memory.touched_of(guest.pid, guest.mem_bytes, reader_of(guest))
    else:
        runs = kvm_memory.touched_of(guest)
    return sum(end - start for start, end in runs)


def heap_use(probe: Probe, read: Read, *, running: bool = False) -> HeapUse | None:
    """Returns the use of the heap, or None: the guest has not made its heap yet, or the numbers make no sense.

    Args:
        probe: That of the guest's image.
        read: Reads guest memory: fewer bytes than asked for where there are no more.
        running: Whether the guest runs meanwhile, so that the numbers may be of different moments.
    """
    first, last = _word(read, probe.first), _word(read, probe.last)
    if not first or not last or first >= last:
        return None
    if probe.kind == OCAML:
        return _of_ocaml(probe, read, first, last)
    for _ in range(_TRIES if running else 1):
        use = _of_library(read, first, last)
        if use.damaged_at is None:
            break
    else:
        if running:
            return use._with(damaged_at=None)
    return use


def heap_of(guest: Guest) -> HeapUse | None:
    """Returns the use of the heap of a guest that runs, or None: it is not known. Raises DebugError if it has gone."""
    probe = probe_of(guest.image) if guest.image else None
    return heap_use(probe, reader_of(guest), running=True) if probe else None


def _of_ocaml(probe: Probe, read: Read, first: int, last: int) -> HeapUse | None:
    end = _word(read, probe.taken)
    if end is None or not first <= end <= last:
        return None
    taken, used = end - first, None
    if probe.state:
        footprint, counted = (_word(read, probe.state + at) for at in (_FOOTPRINT, _STATE_BYTES - 8))
        if footprint is not None and counted is not None and counted <= footprint <= taken:
            used = counted
    return HeapUse(kind=OCAML, used_bytes=used, taken_bytes=taken, total_bytes=last - first)


def _of_library(read: Read, first: int, last: int) -> HeapUse:
    """Walks the pieces: each begins with its size, which has bit 0 if it is used, and the size of the one before."""
    use = HeapUse(kind=LIBRARY, used_bytes=None, taken_bytes=None, total_bytes=last - first)
    window, start = b"", 0
    at, before, used = first, 0, 0
    for _ in range(_PIECES_MAX):
        if at == last:
            return use._with(used_bytes=used)
        if not start <= at <= start + len(window) - 16:
            window, start = read(at, _WINDOW_BYTES), at
        head = window[at - start : at - start + 16]
        size, previous = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
        length = size & ~1
        if len(head) < 16:
            return use  # that memory is not known: a large guest's is copied in part
        if length < 16 or length % 16 or length > last - at or previous != before:
            return use._with(damaged_at=at)
        used += length if size & 1 else 0
        at, before = at + length, length
    return use


def _word(read: Read, address: int) -> int | None:
    data = read(address, 8)
    return int.from_bytes(data, "little") if len(data) == 8 else None
