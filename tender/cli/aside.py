"""A child process reads files that are only needed to explain an error. So nobody waits for a file system that hangs.

A thread would not do: a process does not end while one of its threads waits for a file system that no signal interrupts.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from signal import SIGINT, SIGKILL, SIGTERM

from tender.cli import say

LIMIT_S = 10.0
_LOOK_MS = 50


def asked(make: Callable[[], str]) -> str:
    """Returns what `make` returns; empty if it raises, or takes longer than LIMIT_S or than say.hurry() allows."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
    except OSError:  # no process can be made: then there is no explanation
        os.close(reader)
        os.close(writer)
        return ""
    if child == 0:
        _answer(make, writer)
    os.close(writer)
    try:
        return _heard(reader)
    finally:
        os.close(reader)
        os.kill(child, SIGKILL)
        os.waitpid(child, os.WNOHANG)  # if it cannot end yet, the system reaps it


def _answer(make: Callable[[], str], writer: int) -> None:
    """Answers and ends the child.

    It closes stdout and stderr first: a child that cannot end yet does not keep their readers waiting.
    """
    try:
        os.closerange(1, 3)
        for number in (SIGINT, SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        data = make().encode("utf-8", "surrogatepass")
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


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
        piece = os.read(reader, 1 << 16)
        if not piece:
            return data.decode("utf-8", "surrogatepass")
        data += piece
