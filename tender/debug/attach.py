"""Attaches to a guest by the target for its backend."""

import importlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tender.debug.find import Guest, born
from tender.debug.guard import Journal
from tender.debug.image_file import facts_of_file
from tender.debug.ptrace import Gone
from tender.debug.target import Target

_TARGETS = {"sandbox": ("tender.debug.sandbox", "SandboxTarget"), "kvm": ("tender.debug.kvm", "KvmTarget")}


def prepare(guest: Guest) -> None:
    """Does what needs no guest that stands still, so that it stands still for a shorter time."""
    importlib.import_module(_TARGETS[guest.backend][0])
    facts_of_file(guest.image)


@contextmanager
def looking_at(guest: Guest) -> Iterator[Target]:
    """Attaches to a guest that is only looked at, and lets it go on. Raises DebugError.

    A terminal's ^Z waits meanwhile: it would stop us, and leave the guest behind in its stop.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    try:
        target = attach(guest)
        try:
            yield target
        finally:
            target.detach()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def attach(guest: Guest, journal: Journal | None = None, *, seized: bool = False) -> Target:
    """Attaches to a guest and stops it.

    A target without a journal should change nothing: nobody would put it back if this process were killed.

    Args:
        guest: One of guests_of().
        journal: Where the target notes what it changes, and `guest` itself while it is attached.
        seized: Whether the calling thread traces the guest's thread already, and has stopped it at a point before the
            guest's first instruction.

    Raises DebugError: the kernel does not let us, another debugger is there, or the process is not that one any more.
    """
    if guest.born and born(guest.pid) != guest.born:  # as after a wait for a client of a debugger
        raise Gone(f"process {guest.pid}: it has ended since it was looked up")
    if journal is not None:
        journal.guest = guest
    module, name = _TARGETS[guest.backend]
    target: Target = getattr(importlib.import_module(module), name)(guest, journal, seized=seized)
    return target
