"""Lines for a person: diagnostics on stderr, answers on stdout. A closed pipe never causes a traceback.

While a guest runs, stdout belongs to its console. So only subcommands that run no guest use `out`. The name before each
line belongs to the process, as stderr does: `speak_as` is called once, before everything else.
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
_hurry_until = float("inf")  # a time of the monotonic clock
HINTS = True  # whether `hint` says anything; code that needs time to make a hint asks first


class OutputLost(Exception):
    """stdout cannot take an answer. `error` is the host's OSError.

    It is not an OSError itself, so no other handler takes it for an error of its own.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.error = error


class _Stream:
    """A standard stream that this command writes."""

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
    """sys.stdout of the command's process: the one place where an answer is written, or where that fails."""

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
        """Raises OutputLost once: lost text is not written again."""
        data, self._kept = self._kept, b""
        try:
            write(self._fd, data)
        except OSError as error:
            raise OutputLost(error) from error


class Stderr(_Stream):
    """The same for sys.stderr, which may be closed or have no reader. Text that it does not take is dropped."""

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
    """Writes `PROGRAM: text` to stderr. Each line of a longer text gets the prefix."""
    _stderr(_prefixed(text))


def notice(text: str) -> None:
    """Writes a line that is not an error, before the guest starts. It is dropped if stderr has no space in PATIENCE_S."""
    _stderr(_prefixed(text), time.monotonic() + PATIENCE_S)


def hurry(*, after_s: float | None = None) -> None:
    """From now on, or from `after_s` later on, nothing waits longer than PATIENCE_S in all for a reader."""
    global _hurry_until
    now = time.monotonic()
    if after_s is not None:
        _hurry_until = now + after_s + PATIENCE_S
    elif now + PATIENCE_S < _hurry_until:
        _hurry_until = now + PATIENCE_S


def is_over(until: float) -> bool:
    """Whether a wait until this time of the monotonic clock is over, because of that time or of hurry()."""
    return time.monotonic() >= min(until, _hurry_until)


def write(fd: int, data: bytes, until: float = float("inf")) -> None:
    """Writes all of `data`, and waits for space as long as `until` and hurry() allow. Raises OSError, as TimeoutError."""
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
                    if not written:  # the file will never take more
                        raise OSError(EIO, os.strerror(EIO))
                    data = data[written:]
                    continue
                except BlockingIOError:  # another program filled it, or the space was too small
                    time.sleep(_LOOK_MS / 1000)
            if is_over(until):
                raise TimeoutError(EAGAIN, os.strerror(EAGAIN))
    finally:
        if own >= 0:
            os.close(own)


def _write_at_once(fd: int, data: bytes, is_pipe: bool) -> int:
    """Writes without waiting. poll() has said that there is space, but another program may fill it first."""
    if is_pipe:
        try:
            return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
    return os.write(fd, data)


def _terminal_without_waiting(fd: int) -> int:
    """Opens the terminal again for writes that do not wait, because the flags of `fd` belong to its owner.

    Returns -1 if `fd` is not a terminal. poll() reports space as soon as a terminal has any, and a newline may need more
    than one byte.
    """
    if not os.isatty(fd):
        return -1
    try:
        from tender.native import lib
    except ImportError:  # a message about exactly this may be on its way
        return -1
    return int(lib.tn_terminal_without_waiting(fd))


def _prefixed(text: str) -> str:
    """Puts the program's name before each line.

    Whoever made the text has made names in it printable, because only there a newline in a name is known.
    """
    return "".join(f"{PROGRAM}: {printable(line)}\n" for line in text.split("\n"))


def hint(text: str) -> None:
    """Writes `PROGRAM: hint: text` to stderr for each line of the text."""
    if text and HINTS:
        _stderr("".join(f"{PROGRAM}: hint: {printable(line)}\n" for line in text.split("\n")))


def plain(text: str) -> None:
    """Writes the text to stderr as it is."""
    _stderr(text + "\n")


def out(text: str) -> None:
    """Writes the text to stdout as it is. Raises OutputLost, which `guarded` turns into a line and a status."""
    if sys.stdout is not None:
        try:
            sys.stdout.write(text + "\n")
        except UnicodeEncodeError:
            sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def _stderr(text: str, until: float = float("inf")) -> None:
    try:
        if sys.stderr is sys.__stderr__ or isinstance(sys.stderr, Stderr):
            write(2, text.encode("utf-8", "backslashreplace"), until)
        elif sys.stderr is not None:  # a stream of the caller's own
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        pass  # a reader that went away, or that does not read, must not change the exit status


def wants_color(fd: int) -> bool:
    """Whether a standard stream is a terminal whose user wants colours."""
    return os.isatty(fd) and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"


def flush() -> None:
    """Writes what is buffered. Raises OutputLost."""
    if sys.stdout is not None:
        sys.stdout.flush()
