"""Undoes what a debugger that was killed has changed in a guest of the sandbox. The guard calls it: guard.py.

When a tracer is killed the kernel lets the thread run, and delivers the signal that it stands at or that waits for it,
since SandboxTarget does not consume stops (ptrace.py). So a trap of the debugger's is found in one of two places:

    about to be delivered        it stops the thread, which we trace now, and is dropped
    in the program's handler     is_debuggers() of trap.c waits there, while `held` is set. The guest's registers lie in
                                 the frame of the signal. They are put right, and the handler is told to return.

After an int3 RIP lies behind it. It is put back, unless the debugger has done that: the journal tells.
"""

import signal
from collections.abc import Mapping
from contextlib import suppress

from tender.debug import ptrace
from tender.debug.facts import Shared
from tender.debug.find import Guest
from tender.debug.guard import Journal
from tender.debug.sandbox_registers import Unwinder
from tender.debug.target import DebugError
from tender.debug.x86 import TRAP_FLAG
from tender.native import lib

SI_KERNEL = 0x80
"""The code of a SIGTRAP by an int3: asm-generic/siginfo.h."""
HANDLER_BEGINS: int = signal.SIGTRAP
"""The code of a stop that is no signal: a thread that was stepped stands before a signal's handler. Source:
signal_delivered() of kernel/signal.c, Linux 6.12."""


def restore(guest: Guest, journal: Journal) -> None:
    """Puts bytes, debug registers and the guest's RIP back. Nobody traces the guest."""
    tid = guest.tid or guest.pid
    shared = Shared(guest)
    changes, rewound = dict(journal.changes()), journal.rewound
    ptrace.seize(tid)
    ptrace.interrupt(tid)
    deliver = 0
    while True:
        status = ptrace.wait(tid)
        if status is None or status.ended:
            return
        raw = ptrace.getregs(tid)
        if status.event:
            if not ptrace.has_pending(tid, signal.SIGTRAP):
                _leave_handler(guest, raw, shared, changes, rewound)
                break
        elif status.stop == signal.SIGTRAP and (code := ptrace.getsiginfo(tid).code) != HANDLER_BEGINS:
            at = _goes_on_at(code, raw["rip"], changes, 0)
            if at is None:
                deliver = signal.SIGTRAP
            else:
                ptrace.setregs(tid, {**raw, "rip": at, "eflags": raw["eflags"] & ~TRAP_FLAG})
            break
        ptrace.cont(tid, 0 if status.event or status.stop == signal.SIGTRAP else status.stop)
        with suppress(ptrace.Gone):
            ptrace.interrupt(tid)  # again: any stop takes an earlier request with it
    for address, original in changes.items():
        ptrace.poke(tid, address, original)
    if journal.uses_debug_registers:
        ptrace.set_debug_register(tid, 7, 0)
    with suppress(DebugError):
        shared.hold(False)
    ptrace.detach(tid, deliver)


def _leave_handler(
    guest: Guest, raw: dict[str, int], shared: Shared, changes: Mapping[int, bytes], rewound: int
) -> None:
    """If the thread handles a trap of the debugger's: the guest will go on as if there had been none."""
    frame = Unwinder(guest).handled(raw, signal.SIGTRAP)
    if frame is None or shared.told() == lib.TOLD_REFUSED:
        return
    at = _goes_on_at(frame.code, frame.rip, changes, rewound)
    if at is not None:
        frame.put(at, frame.rflags & ~TRAP_FLAG)
        shared.answer(lib.TOLD_TAKEN)


def _goes_on_at(code: int, rip: int, changes: Mapping[int, bytes], rewound: int) -> int | None:
    """Returns where the guest goes on after a trap. None: it is not the debugger's.

    Steps and debug registers are: RIP is right then.
    """
    if code <= 0:  # another process has sent it
        return None
    if code != SI_KERNEL or rip == rewound:
        return rip
    return rip - 1 if rip - 1 in changes else None
