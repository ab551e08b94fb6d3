"""Picks the target for a guest's backend."""

import importlib

from tender.debug.find import Guest
from tender.debug.guard import Journal
from tender.debug.image_file import facts_of_file
from tender.debug.target import Target

_TARGETS = {"sandbox": ("tender.debug.sandbox", "SandboxTarget"), "kvm": ("tender.debug.kvm", "KvmTarget")}


def prepare(guest: Guest) -> None:
    """Does what needs no guest that stands still, so that it stands still for a shorter time."""
    importlib.import_module(_TARGETS[guest.backend][0])
    facts_of_file(guest.image)


def attach(guest: Guest, journal: Journal | None = None, *, seized: bool = False) -> Target:
    """Attaches to a guest and stops it.

    A target without a journal should change nothing: nobody would put it back if this process were killed.

    Args:
        guest: One of guests_of().
        journal: Where the target notes what it changes, and `guest` itself while it is attached.
        seized: Whether the calling thread traces the guest's thread already, and has stopped it at a point before the
            guest's first instruction.

    Raises DebugError: the kernel does not let us, or another debugger is there.
    """
    if journal is not None:
        journal.guest = guest
    module, name = _TARGETS[guest.backend]
    target: Target = getattr(importlib.import_module(module), name)(guest, journal, seized=seized)
    return target
