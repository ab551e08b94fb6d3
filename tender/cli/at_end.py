"""The observer of a run's end: looks at the guest of a process that has ended its run and waits for this.

The native command forks a helper before it gives up its rights, and the helper executes this (bindings/command/observer.c
says why). `tender core --at-end PID PROGRAM DIR MOST FRONT REPORT REASON`: DIR is empty without --core, REPORT is empty,
auto or always, and REASON is "timeout" or empty. Descriptor 3 is the socket to the process, which goes on when an answer
comes or the socket is closed, that is at the latest when this process ends.
"""

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from tender.cli import say
from tender.errors import TenderError

if TYPE_CHECKING:
    from tender.debug.find import Guest
    from tender.debug.report import Captured

_SOCKET = 3
_LIMIT_S = 110
"""Less than the process waits (OBSERVER_WAIT_S)."""
_SAYING_LIMIT_S = 3
"""For what is written to stderr. It may be a terminal that nobody reads, and the command does not wait for such a one."""


def main(argv: list[str]) -> int:
    """Looks at the process, says what came of it, and returns the exit status, which nobody reads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LIMIT_S)  # its default action ends this process, and so closes the socket
    pid, program, directory, keep, front, report, reason = argv
    say.speak_as(program, hints=front != "solo5")
    from tender.cli.core import say_core

    try:
        _look(int(pid), directory, int(keep), report, reason)
    except TenderError as error:
        signal.alarm(_SAYING_LIMIT_S)
        if directory:
            say_core(error)
        elif report == "always":
            say.error(f"crash report: none: {error.message}")
    except Exception as error:
        signal.alarm(_SAYING_LIMIT_S)
        if directory:
            say_core(TenderError(f"internal error: {type(error).__name__}: {error}; please report"))
    finally:
        os.write(_SOCKET, b"d")
    return 0


def _look(pid: int, directory: str, keep: int, report: str, reason: str) -> None:
    from tender.cli.core import core_of, say_core
    from tender.debug.core import KEEP_DEFAULT
    from tender.debug.find import guests_of

    for guest in guests_of(pid):
        copied = _copied(guest, reason) if report else None
        if directory:
            core = core_of(guest, directory=directory, keep=keep or KEEP_DEFAULT, reason=reason)
            left = signal.alarm(_SAYING_LIMIT_S)
            say_core(core)
            signal.alarm(left)
        if copied is not None:
            from tender.debug.report import crash_text

            text = crash_text(copied, color=say.wants_color(2)).removesuffix("\n")
            signal.alarm(_SAYING_LIMIT_S)
            say.plain(text)


def _copied(guest: "Guest", reason: str) -> "Captured":
    from tender.debug.attach import attach
    from tender.debug.core import ended_for
    from tender.debug.report import capture

    target = attach(guest)
    try:
        copied = capture(target)
    finally:
        target.detach()
    return replace(copied, known=ended_for(copied.known, reason))
