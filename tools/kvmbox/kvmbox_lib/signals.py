"""SIGINT, SIGTERM and SIGHUP to kvmbox, and its overall time limit.

Before the command runs, a signal ends kvmbox by an exception, which cleans up everything that kvmbox made. While the
command runs, signals are only noted, and the loop in job.py relays them. A handler that writes to the channel could
write into the middle of another frame.
"""

import os
import signal
import socket
from types import FrameType

from .errors import Interrupted

TIMED_OUT = 124
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def status_of(number: int) -> int:
    """The exit status that means: this signal ended kvmbox."""
    return TIMED_OUT if number == signal.SIGALRM else 128 + number


class Signals:
    """Catches signals while the context is entered. Wait for them with select() on this object."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._noting = False
        self._noted: list[int] = []
        self._receiver, self._sender = socket.socketpair()

    def __enter__(self) -> "Signals":
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (*ENDING, signal.SIGALRM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1) ignores SIGHUP
                signal.signal(number, self._caught)
        if self._limit_s:
            signal.setitimer(signal.ITIMER_REAL, self._limit_s)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(-1)
        for number in (*ENDING, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        self._receiver.close()
        self._sender.close()

    def fileno(self) -> int:
        """A descriptor that is readable when take() has signals to return."""
        return self._receiver.fileno()

    def note_only(self) -> None:
        """From now on note signals instead of raising Interrupted."""
        self._noting = True

    def ignore(self) -> None:
        """From now on ignore signals: kvmbox is ending, and still has to clean up."""
        for number in (*ENDING, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)

    def take(self) -> list[int]:
        """The signals noted since the last call."""
        try:
            while os.read(self._receiver.fileno(), 64):
                pass
        except BlockingIOError:
            pass
        noted, self._noted = self._noted, []
        return noted

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if not self._noting:
            self.ignore()
            raise Interrupted(status_of(number))
        self._noted.append(number)
