"""The observer of a run's end: looks at the guest of a process that has ended its run and waits for this.

The native command forks a helper before it gives up its rights, and the helper executes this (bindings/command/observer.c
says why). `tender core --at-end PID PROGRAM DIR MOST FRONT REPORT REASON JSON`: DIR is empty without --core, REPORT is
empty, auto or always, REASON is "timeout" or empty, and JSON is "json" or empty. Descriptor 3 is the socket to the
process, which goes on when an answer comes or the socket is closed, that is at the latest when this process ends.
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
_TAIL = b"}\n"
_REST_BYTES = 64
"""More than the key and the end of the line take."""
_SAYING_LIMIT_S = 3
"""For what is written to stderr. It may be a terminal that nobody reads, and the command does not wait for such a one."""


def main(argv: list[str]) -> int:
    """Looks at the process, says what came of it, and returns the exit status, which nobody reads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP))
    signal.signal(signal.SIGALRM, _take_too_long)
    signal.alarm(_LIMIT_S)
    pid, program, directory, keep, front, report, reason, json = argv
    say.speak_as(program, hints=front != "solo5")
    from tender.cli.core import say_core

    try:
        _look(int(pid), directory, int(keep), report, reason, with_json=bool(json))
    except TenderError as error:
        _hurry()
        if directory:
            say_core(error)
        elif report == "always":
            say.error(f"crash report: none: {error.message}")
    except Exception as error:
        _hurry()
        if directory:
            say_core(TenderError(f"internal error: {type(error).__name__}: {error}; please report"))
    finally:
        os.write(_SOCKET, b"d")
    return 0


def _hurry() -> int:
    """From now on there is time only to say something. Then the alarm's default action ends this process, and so closes
    the socket. Returns the seconds that were left."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return signal.alarm(_SAYING_LIMIT_S)


def _take_too_long(_number: int, _frame: object) -> None:
    _hurry()
    raise TenderError(f"it would take more than {_LIMIT_S} s")


def _look(pid: int, directory: str, keep: int, report: str, reason: str, *, with_json: bool) -> None:
    from tender.cli.core import core_of, say_core
    from tender.debug.core import KEEP_DEFAULT
    from tender.debug.find import guests_of

    for guest in guests_of(pid):
        copied, path = _copied(guest, reason) if report else None, ""
        if directory:
            core = core_of(guest, directory=directory, keep=keep or KEEP_DEFAULT, reason=reason)
            path = core.path
            left = _hurry()
            say_core(core)
            signal.signal(signal.SIGALRM, _take_too_long)
            signal.alarm(left)
        if copied is not None:
            from tender.debug.report import report_of
            from tender.debug.report_text import text_of

            made = report_of(copied, core=path)
            if with_json:
                _add_to_line(guest, made)
            _hurry()
            say.plain(text_of(made, color=say.wants_color(2)).removesuffix("\n"))


def _add_to_line(guest: "Guest", made: dict[str, object]) -> None:
    """Puts the report into the line of --json, which waits in the process to be written: bindings/vm/report.h.

    The process stands still meanwhile. If a signal has ended its wait, it writes the line as it was.
    """
    from tender.cli.report import to_json
    from tender.debug import ptrace
    from tender.debug.attach import looking_at
    from tender.debug.report import fitted

    note = guest.note
    if "report_line" not in note:
        return
    at = guest.base + note["report_line"]
    with looking_at(guest):
        is_open, length = (
            int.from_bytes(ptrace.read_memory(guest.pid, at + offset, 8), "little")
            for offset in (0, note["report_line_length"])
        )
        space = note["report_line_bytes"] - length
        data = b', "report": ' + to_json(fitted(made, space - _REST_BYTES)).encode() + b"}\n"
        if not is_open or length < len(_TAIL) or len(data) > space:
            return
        end = at + note["report_line_text"] + length - len(_TAIL)
        if ptrace.read_memory(guest.pid, end, len(_TAIL)) == _TAIL:
            ptrace.write_memory(guest.pid, end, data)
            total = length - len(_TAIL) + len(data)
            ptrace.write_memory(guest.pid, at + note["report_line_length"], total.to_bytes(8, "little"))


def _copied(guest: "Guest", reason: str) -> "Captured":
    from tender.debug.attach import looking_at
    from tender.debug.core import ended_for
    from tender.debug.report import capture

    with looking_at(guest) as target:
        copied = capture(target)
    return replace(copied, known=ended_for(copied.known, reason))
