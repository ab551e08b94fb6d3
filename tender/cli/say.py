"""Lines for a person: diagnostics on stderr, answers on stdout; never a traceback for a closed pipe.

stdout belongs to the guest's console while a guest runs, so only the subcommands that run none use `out`.
Who speaks is the process's, as stderr is: `speak_as` is called once, first.
"""

import os
import stat
import sys
import time
from collections.abc import Iterable
from errno import EAGAIN, EIO, ENOSYS, EOPNOTSUPP

from tender.printable import printable

PROGRAM = "tender"
PATIENCE_S = 1.0
_LOOK_MS = 50
_NO_FLAGS = (ENOSYS, EOPNOTSUPP)
_KEPT_MAX = 1 << 16
_hurry_until = float("inf")  # of the monotonic clock
HINTS = True  # whether `hint` says anything; whoever would work for one asks first


class OutputLost(Exception):
    """stdout cannot take an answer; `error` is the host's OSError. None itself, so that nobody takes it for another's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.error = error


class _Stream:
    """A standard stream as this command writes it."""

    encoding, errors = "utf-8", "backslashreplace"
    _fd: int

    def write(self, text: str) -> int:
        raise NotImplementedError

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


class Stdout(_Stream):
    """What the command's process has as sys.stdout: the one place where an answer is written, or fails to be."""

    _fd = 1

    def __init__(self) -> None:
        self._kept = b""

    def write(self, text: str) -> int:
        """Raises OutputLost."""
        self._kept += text.encode(self.encoding, self.errors)
        if len(self._kept) >= _KEPT_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Raises OutputLost, once: what is lost is not tried again."""
        data, self._kept = self._kept, b""
        try:
            write(self._fd, data)
        except OSError as error:
            raise OutputLost(error) from error


class Stderr(_Stream):
    """The same for sys.stderr, which may be closed, or have no reader: what it does not take is left out."""

    _fd = 2

    def write(self, text: str) -> int:
        _stderr(text)
        return len(text)

    def flush(self) -> None:
        pass


def speak_as(program: str, *, hints: bool) -> None:
    """From now on diagnostics begin with this name."""
    global PROGRAM, HINTS
    PROGRAM, HINTS = program, hints


def error(text: str) -> None:
    """`PROGRAM: text` on stderr; each line of a longer text gets the prefix."""
    _stderr(_prefixed(text))


def notice(text: str) -> None:
    """The same of what is no error, before the guest starts: left out if there is no space for it in PATIENCE_S."""
    _stderr(_prefixed(text), time.monotonic() + PATIENCE_S)


def hurry(*, after_s: float | None = None) -> None:
    """From now on, or `after_s` later, nothing waits longer than PATIENCE_S for a reader, all in all."""
    global _hurry_until
    now = time.monotonic()
    if after_s is not None:
        _hurry_until = now + after_s + PATIENCE_S
    elif now + PATIENCE_S < _hurry_until:
        _hurry_until = now + PATIENCE_S


def is_over(until: float) -> bool:
    """Whether who waits until then, of the monotonic clock, waits no longer: because of that, or because of hurry()."""
    return time.monotonic() >= min(until, _hurry_until)


def write(fd: int, data: bytes, until: float = float("inf")) -> None:
    """Writes all of `data`; waits for space, not longer than `until` or hurry() allows. Raises OSError, so TimeoutError."""
    try:
        import select
    except (ImportError, OSError):  # no descriptor is left to read it by
        os.write(fd, data)
        return
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    own = _terminal_without_waiting(fd)
    is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    try:
        while data:
            if writable.poll(_LOOK_MS):
                try:
                    written = _write_at_once(fd if own < 0 else own, data[: select.PIPE_BUF], is_pipe)
                    if not written:  # such a file never takes more
                        raise OSError(EIO, os.strerror(EIO))
                    data = data[written:]
                    continue
                except BlockingIOError:  # somebody else filled it, or it was too little
                    time.sleep(_LOOK_MS / 1000)
            if is_over(until):
                raise TimeoutError(EAGAIN, os.strerror(EAGAIN))
    finally:
        if own >= 0:
            os.close(own)


def _write_at_once(fd: int, data: bytes, is_pipe: bool) -> int:
    """A write that does not wait: poll() has told of a buffer, but another writer may take it."""
    if is_pipe:
        try:
            return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
    return os.write(fd, data)


def _terminal_without_waiting(fd: int) -> int:
    """The terminal once more, without waiting, for the flags of `fd` are its owner's; -1 for what is none.

    poll() tells of space as soon as a terminal has any, and a newline may take more than its own byte.
    """
    if not os.isatty(fd):
        return -1
    try:
        from tender.native import lib
    except ImportError:  # of which there may be something to say
        return -1
    return int(lib.tn_terminal_without_waiting(fd))


def _prefixed(text: str) -> str:
    """What came into a text: whoever made it has made a name printable, as only there a newline of a name is known."""
    return "".join(f"{PROGRAM}: {printable(line)}\n" for line in text.split("\n"))


def hint(text: str) -> None:
    """`PROGRAM: hint: text` on stderr, line by line; nothing for an empty text."""
    if text and HINTS:
        _stderr("".join(f"{PROGRAM}: hint: {printable(line)}\n" for line in text.split("\n")))


def plain(text: str) -> None:
    """The text as it is, on stderr."""
    _stderr(text + "\n")


def out(text: str) -> None:
    """The text as it is, on stdout. Raises OutputLost, which `guarded` turns into a line and a status."""
    if sys.stdout is not None:
        try:
            sys.stdout.write(text + "\n")
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def _stderr(text: str, until: float = float("inf")) -> None:
    try:
        if sys.stderr is sys.__stderr__ or isinstance(sys.stderr, Stderr):
            write(2, text.encode("utf-8", "backslashreplace"), until)
        elif sys.stderr is not None:  # a caller's own
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        pass  # a reader that went away, or does not read, must not change how we end


def flush() -> None:
    """Write out what is buffered. Raises OutputLost."""
    if sys.stdout is not None:
        sys.stdout.flush()
