"""What reads files only to explain an error is done by a child: a file system that does not answer keeps nobody waiting.

Not by a thread: a process does not end while one of its threads waits for a file system that no signal interrupts.
"""

import _signal  # type: ignore[import-not-found]
import posix
import select
import time

from tender.cli import say

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 10.0
_LOOK_MS = 50
_SIGINT, _SIGKILL, _SIGTERM = 2, 9, 15


def asked(make: "Callable[[], str]") -> str:
    """What `make` returns; empty if it raises, takes longer than LIMIT_S, or than `say` lets wait who hurries."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    try:
        child = posix.fork()
    except OSError:  # no more processes: then there is no explanation
        posix.close(reader)
        posix.close(writer)
        return ""
    if child == 0:
        _answer(make, writer)
    posix.close(writer)
    try:
        return _heard(reader)
    finally:
        posix.close(reader)
        posix.kill(child, _SIGKILL)
        posix.waitpid(child, posix.WNOHANG)  # where it cannot end yet, its end is the system's


def _answer(make: "Callable[[], str]", writer: int) -> None:
    """Does not return. A child that cannot end yet keeps no reader of stdout or stderr waiting for their end."""
    try:
        posix.closerange(1, 3)
        for number in (_SIGINT, _SIGTERM):
            _signal.signal(number, _signal.SIG_DFL)
        data = make().encode("utf-8", "surrogatepass")
        while data:
            data = data[posix.write(writer, data) :]
    finally:
        posix._exit(0)


def _heard(reader: int) -> str:
    until = time.monotonic() + LIMIT_S
    data = b""
    ready = select.poll()
    ready.register(reader, select.POLLIN)
    while True:
        if not ready.poll(_LOOK_MS):
            if say.is_over(until):
                return ""
            continue
        piece = posix.read(reader, 1 << 16)
        if not piece:
            return data.decode("utf-8", "surrogatepass")
        data += piece
