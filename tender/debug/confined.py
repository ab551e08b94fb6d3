"""Runs a function in a child that can do little harm: for code that reads files that others made.

The child has limits on memory, time and files, no way to more rights, and, if the kernel has Landlock, writes and executes
no file. It answers with JSON by a pipe. Nothing that it does, not its death either, changes the caller's process.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

MEMORY_MAX = 1 << 30
CPU_MAX_S = 20
TIME_MAX_S = 40.0
_ANSWER_MAX = 32 << 20

_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # the numbers of all architectures
_LANDLOCK_WRITES = 0x1FFF & ~0x0C  # all rights of its first version but to read files and directories


class Died(Exception):
    """The child gave no answer. The message says why, as the end of a sentence."""


def run_confined(made: Callable[[], Any], *, time_max_s: float = TIME_MAX_S) -> Any:
    """Calls `made` in a confined child and returns its value, which must be plain data for JSON. Raises Died."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        _answer(made, writer)
    os.close(writer)
    try:
        data = _collect(reader, time.monotonic() + time_max_s)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not data:
        raise Died(_how(status))
    try:
        return json.loads(data)
    except ValueError:
        raise Died("gave half an answer") from None


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            return "took too long"
        return f"ended with signal {number}"
    return "failed" if os.WEXITSTATUS(status) != 3 else "needed too much memory"


def _answer(made: Callable[[], Any], writer: int) -> None:
    """In the child. It leaves by _exit: nothing of the caller's is flushed or run a second time."""
    status = 2
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        _confine()
        data = json.dumps(made()).encode()
        with os.fdopen(writer, "wb", buffering=0) as out:
            while data:
                data = data[out.write(data) :]
        status = 0
    except MemoryError:
        status = 3
    except BaseException:
        if "TENDER_DEBUG" in os.environ:
            import traceback

            traceback.print_exc()
    finally:
        os._exit(status)


def _confine() -> None:
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_MAX + _own_bytes()),
        (resource.RLIMIT_CPU, CPU_MAX_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    rights = ctypes.create_string_buffer(struct.pack("<Q", _LANDLOCK_WRITES), 8)
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, rights, ctypes.c_size_t(8), 0)
    if rules >= 0:  # else this kernel has no Landlock
        libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
        os.close(rules)


def _own_bytes() -> int:
    """The address space of this process: a library's may hold guests."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * 4096
    except (OSError, ValueError, IndexError):
        return 0


def _collect(reader: int, until: float) -> bytes:
    data = bytearray()
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while (left := until - time.monotonic()) > 0 and len(data) <= _ANSWER_MAX:
        if poller.poll(left * 1000):
            piece = os.read(reader, 1 << 16)
            if not piece:
                return bytes(data)
            data += piece
    return b""
