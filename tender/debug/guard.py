"""Puts back what a debugger that was killed had changed in a guest.

A debugger changes the process of a guest: bytes under breakpoints, debug registers, for a moment the registers of a
thread. The kernel forgets none of that when the debugger is killed, and the guest would die of it. So there are two
processes:

    guard  (this file)  waits for its child, and repairs the guest if the child did not end well
      +-- debugger      the only one that traces the guest

Both share a page of memory, the journal. The debugger writes down each change before it makes it, and takes the line out
after it has undone it. A line stays true whenever the debugger is killed, because to put a byte back twice does no harm.

If the guard is killed, the kernel sends the debugger SIGTERM (PR_SET_PDEATHSIG). It then removes all it has changed and
ends. Only who kills both within the same instant leaves changes behind.

Between the death of the debugger and the repair the guest may run into a breakpoint. The word `held` of struct vm_shared
(bindings/core/vm_types.h) makes it wait there.
"""

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Never

from tender.debug.find import Guest, born
from tender.debug.target import DebugError

STATUS_LEFT = 128 + signal.SIGTERM
"""The status of a debugger that a signal ended before it had a client."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GUEST_BYTES = 64 << 10
_REWOUND = _GUEST_BYTES - 8
_REGISTERS_BYTES = 4096
_SLOTS = 8192
ORIGINAL_MAX = 16
"""The most bytes that one line of the journal holds."""
_SLOT = struct.Struct(f"<Q{ORIGINAL_MAX}s")
_SLOT_BYTES = 32  # a byte that says whether it is used, the number of bytes, and _SLOT from offset 8 on


class Journal:
    """What a debugger has changed in the process of a guest, in memory that it shares with its guard.

    Addresses are those of the process that is traced. A change is noted before it is made, and dropped after it was
    undone.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _GUEST_BYTES + _REGISTERS_BYTES + _SLOTS * _SLOT_BYTES)
        self._slots: dict[int, int] = {}

    # The first bytes: [0] a guest is noted, [1] debug registers are set, [4..8) the length of what follows from [8] on: the
    # guest and the time at which its process began, as JSON. The last 8 bytes before the registers: see `rewound`.

    @property
    def guest(self) -> Guest | None:
        """The guest that is traced, or that was when the debugger was killed."""
        if not self._page[0]:
            return None
        (length,) = struct.unpack_from("<I", self._page, 4)
        guest, _ = json.loads(self._page[8 : 8 + length])
        return Guest(**guest)

    @guest.setter
    def guest(self, guest: Guest | None) -> None:
        self._page[0] = 0
        if guest is None:
            return
        text = json.dumps([asdict(guest), born(guest.pid)]).encode()
        if len(text) > _REWOUND - 8:
            raise ValueError("the guest's description is too long for the journal")
        self._page[8 : 8 + len(text)] = text
        struct.pack_into("<I", self._page, 4, len(text))
        self._page[0] = 1

    def note(self, address: int, original: bytes) -> None:
        """Notes that the bytes at `address` will be changed, and what they were. A second note replaces the first."""
        if not 0 < len(original) <= ORIGINAL_MAX:
            raise ValueError(f"a line of the journal holds 1 to {ORIGINAL_MAX} bytes, not {len(original)}")
        slot = self._slots.get(address)
        if slot is None:
            slot = self._slots[address] = self._free()
        _SLOT.pack_into(self._page, slot + 8, address, original)
        self._page[slot + 1] = len(original)
        self._page[slot] = 1

    def drop(self, address: int) -> None:
        """Takes a line out: the bytes at `address` are the original ones again."""
        slot = self._slots.pop(address, None)
        if slot is not None:
            self._page[slot] = 0

    @contextlib.contextmanager
    def changing(self, address: int, original: bytes) -> Iterator[None]:
        """Notes a change that the block makes. A new line is taken out again if the kernel refuses the change."""
        is_new = address not in self._slots
        self.note(address, original)
        try:
            yield
        except DebugError:
            if is_new:
                self.drop(address)
            raise

    def debug_registers(self, used: bool) -> None:
        """Notes whether the debug registers (KVM: KVM_SET_GUEST_DEBUG) are in use."""
        self._page[1] = used

    @property
    def uses_debug_registers(self) -> bool:
        """Whether they are."""
        return bool(self._page[1])

    @property
    def rewound(self) -> int:
        """The address that the debugger has put RIP back to, at a breakpoint. 0: it has not, since the thread went on.

        It is noted before RIP is changed: RIP tells whether that was done.
        """
        (address,) = struct.unpack_from("<Q", self._page, _REWOUND)
        return int(address)

    @rewound.setter
    def rewound(self, address: int) -> None:
        struct.pack_into("<Q", self._page, _REWOUND, address)

    def registers(self, tid: int, saved: bytes) -> None:
        """Notes that a thread's registers are about to be lent to an injected system call, and their values.

        `saved` is as PTRACE_GETREGS gives them. With no bytes: the thread has its own registers again. The thread should
        stay, behind the injected instruction, at one that does not go on (a jump to itself), since a debugger that is
        killed lets the thread run.
        """
        at = _GUEST_BYTES
        self._page[at] = 0
        if not saved:
            return
        if len(saved) > _REGISTERS_BYTES - 16:
            raise ValueError("these registers are too long for the journal")
        struct.pack_into("<II", self._page, at + 4, tid, len(saved))
        self._page[at + 16 : at + 16 + len(saved)] = saved
        self._page[at] = 1

    @property
    def lent_registers(self) -> tuple[int, bytes] | None:
        """The thread whose registers are lent, and what they were."""
        at = _GUEST_BYTES
        if not self._page[at]:
            return None
        tid, length = struct.unpack_from("<II", self._page, at + 4)
        return tid, self._page[at + 16 : at + 16 + length]

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """Yields the address and the original bytes of each change."""
        for slot in range(_GUEST_BYTES + _REGISTERS_BYTES, len(self._page), _SLOT_BYTES):
            if self._page[slot]:
                address, original = _SLOT.unpack_from(self._page, slot + 8)
                yield address, original[: self._page[slot + 1]]

    def is_alive(self) -> bool:
        """Whether the process of the noted guest is still there, and not another one that has got its number."""
        if not self._page[0]:
            return False
        (length,) = struct.unpack_from("<I", self._page, 4)
        guest, then = json.loads(self._page[8 : 8 + length])
        return bool(then) and born(guest["pid"]) == then

    def _free(self) -> int:
        for slot in range(_GUEST_BYTES + _REGISTERS_BYTES, len(self._page), _SLOT_BYTES):
            if not self._page[slot]:
                return slot
        raise ValueError("too many breakpoints: the journal of the debugger is full")

    def close(self) -> None:
        """Gives the memory back."""
        self._page.close()


def guarded(work: Callable[[Journal], int]) -> int:
    """Calls work() in a child process, repairs the guest if the child leaves one in the journal, and returns its status.

    The status of a child that a signal killed is 128 and the signal's number, as a shell shows it. SIGINT, SIGTERM, SIGHUP
    and SIGQUIT go on to the child as SIGTERM. A child that answers STATUS_LEFT has ended for it: the status is 128 and the
    number of the signal that came here.
    """
    journal = Journal()
    parent = os.getpid()
    passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    child = os.fork()
    if child == 0:
        _work(work, journal, parent, passed_on)
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        _send(child, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in passed_on}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    _, status = os.waitpid(child, 0)
    repair(journal)
    for number, handler in before.items():
        signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return 128 + received[0] if code == STATUS_LEFT and received else code


def _work(
    work: Callable[[Journal], int], journal: Journal, parent: int, blocked: set[signal.Signals]
) -> Never:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        end_with_parent(signal.SIGTERM)
        if os.getppid() == parent:
            status = work(journal)
    finally:
        os._exit(status)


def end_with_parent(number: int) -> None:
    """Has the kernel send this process a signal when its parent ends. Source: prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def repair(journal: Journal) -> None:
    """Puts back all that the journal holds, if it holds a guest that lives. No debugger may trace it any more."""
    guest = journal.guest
    if guest is None or not journal.is_alive():
        return
    with contextlib.suppress(DebugError, OSError):
        importlib.import_module(f"tender.debug.{guest.backend}").restore(guest, journal)
    journal.guest = None
