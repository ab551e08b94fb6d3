"""What commands that look into a guest say when they cannot: one form for `tender debug`, `core`, `report` and others."""

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tender.cli import say
from tender.errors import TenderError

if TYPE_CHECKING:
    from tender.debug.find import Guest

STATUS_FAILED = 1

_AS_ROOT = re.compile(r"sudo tender debug \d+")  # of tender.debug.access, which does not know the command


def failed(command: str, argv: Sequence[str], error: TenderError) -> int:
    """Says what is wrong, and the way out with the words that were typed. Returns the exit status."""
    say.error(f"{command}: {error.message.removeprefix(f'{command}: ')}")
    say.hint(retold(error.command_hint or error.hint, command, argv))
    return STATUS_FAILED


def retold(hint: str, command: str, argv: Sequence[str]) -> str:
    """Returns a hint that has the user repeat as root what they typed."""
    typed = f"sudo tender {command} {shlex.join(argv)}"
    return _AS_ROOT.sub(lambda _: typed, hint)


def misused(command: str, why: str, usage: str) -> int:
    """Says what is wrong with the words, and how they are written. Returns the exit status."""
    say.error(f"{command}: {why}")
    say.plain(usage.partition("\n\n")[0])
    say.hint(f"tender {command} --help")
    return STATUS_FAILED


def only_guest(pid: int) -> "Guest":
    """Returns the guest of a process that has one. Raises DebugError, which names the guests of one that has several."""
    from tender.debug.find import guests_of
    from tender.debug.target import DebugError

    guests = guests_of(pid)
    if len(guests) > 1:
        raise DebugError(
            f"process {pid} holds {len(guests)} guests",
            hint="name the process of one: " + ", ".join(str(it.pid) for it in guests[:20]),
        )
    return guests[0]
