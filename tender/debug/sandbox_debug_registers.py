"""The processor's debug registers for a guest in the sandbox: hardware breakpoints and watchpoints.

The kernel keeps them for each thread, and does not clear them when the debugger is killed: so the journal says whether they
are in use.
"""

from dataclasses import dataclass

from tender.debug import ptrace
from tender.debug.guard import Journal
from tender.debug.target import DebugError, Watch
from tender.debug.x86 import DEBUG_ADDRESSES, DR7_LOCAL, WATCH_LENGTHS, dr7

DR6, DR7 = 6, 7


@dataclass(frozen=True)
class HardwareWatch:
    """What one debug register watches. An instruction has the length 1."""

    kind: Watch
    address: int
    length: int


def hardware_watch(kind: Watch, address: int, length: int) -> HardwareWatch:
    """Returns it for what a client has asked for."""
    return HardwareWatch(kind, address, 1 if kind == Watch.HARDWARE else length)


class DebugRegisters:
    """The debug registers of a thread that this one traces. Without a journal they stay as they are."""

    def __init__(self, tid: int, journal: Journal | None) -> None:
        self._tid, self._journal = tid, journal
        self._used: list[HardwareWatch | None] = [None] * DEBUG_ADDRESSES

    def insert(self, wanted: HardwareWatch) -> None:
        """Sets one. Raises DebugError: there is no journal, none is free, or the processor cannot watch that."""
        if self._journal is None:
            raise DebugError(
                "no breakpoint: nobody would take it out of the guest if this process were killed"
            )
        if wanted.length not in WATCH_LENGTHS or wanted.address % wanted.length:
            raise DebugError(
                f"no watchpoint at {wanted.address:#x}: the processor watches 1, 2, 4 or 8 bytes, aligned to their number, "
                f"not {wanted.length}"
            )
        if wanted in self._used:
            return
        if None not in self._used:
            raise DebugError("no watchpoint: the processor has four, and all are in use")
        free = self._used.index(None)
        self._used[free] = wanted
        try:
            self._set()
        except DebugError:
            self._used[free] = None
            self._set()
            raise

    def remove(self, wanted: HardwareWatch) -> None:
        """Clears one, if it is set."""
        if wanted in self._used:
            self._used[self._used.index(wanted)] = None
            self._set()

    def clear(self) -> None:
        """Clears all."""
        self._used = [None] * DEBUG_ADDRESSES
        self._set()

    def hit(self) -> HardwareWatch | None:
        """Returns what the thread has run into, if anything."""
        if not any(self._used):
            return None
        status = ptrace.get_debug_register(self._tid, DR6)
        ptrace.set_debug_register(self._tid, DR6, 0)
        return next((it for i, it in enumerate(self._used) if it is not None and status >> i & 1), None)

    def _set(self) -> None:
        """DR7 is cleared first, since the kernel checks each address with what DR7 says of it."""
        if self._journal is None:
            return
        used = any(self._used)
        if used:
            self._journal.debug_registers(True)
        elif not self._journal.uses_debug_registers:
            return
        ptrace.set_debug_register(self._tid, DR7, 0)
        control = 0
        for i, it in enumerate(self._used):
            ptrace.set_debug_register(self._tid, i, it.address if it else 0)
            if it:
                control |= dr7(i, it.kind, it.length, DR7_LOCAL)
        if control:
            ptrace.set_debug_register(self._tid, DR7, control)
        self._journal.debug_registers(used)
