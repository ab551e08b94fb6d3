"""Makes another process execute a system call, as a hijacked handler would: at its own `syscall` instruction, under its own
filter.

It uses ptrace(2) directly, because no library that the tests depend on offers it. The process must be this user's, or this
user must be root.
"""

import ctypes
import errno
import os
import signal

_ATTACH, _DETACH, _GETREGS, _SETREGS, _SINGLESTEP = 16, 17, 12, 13, 9  # sys/ptrace.h
_REGISTER_NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
    " fs_base gs_base ds es fs gs"
)  # sys/user.h
_SYSCALL = b"\x0f\x05"
_BELOW_STACK = 16384

_libc = ctypes.CDLL(None, use_errno=True)


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTER_NAMES.split()]


def _ptrace(request: int, pid: int, data: object = None) -> None:
    number = data if isinstance(data, int) else 0
    last = ctypes.c_void_p(number) if isinstance(data, int) or data is None else data
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_int(pid), None, last) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Injector:
    """Holds the process `pid`, which waits in a system call, until the context is left."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _Registers()
        _ptrace(_ATTACH, pid)
        os.waitpid(pid, 0)
        _ptrace(_GETREGS, pid, ctypes.byref(self._before))
        self.scratch: int = (self._before.rsp - _BELOW_STACK) & ~0xFFF
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self._before.rip - len(_SYSCALL))
            assert memory.read(len(_SYSCALL)) == _SYSCALL, "the process is not in a system call"

    def put(self, content: bytes) -> int:
        """Copies bytes into the process's memory; returns their address. The next put() overwrites them."""
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(self.scratch)
            memory.write(content)
        return self.scratch

    def call(self, number: int, *arguments: int) -> int:
        """Returns the call's result, or -errno; raises ProcessLookupError if the filter killed the process for it."""
        now = _Registers.from_buffer_copy(self._before)
        now.rip -= len(_SYSCALL)
        now.rax, now.orig_rax = number, (1 << 64) - 1
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(now, name, value % (1 << 64))
        _ptrace(_SETREGS, self._pid, ctypes.byref(now))
        _ptrace(_SINGLESTEP, self._pid)
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGSYS
            raise ProcessLookupError(errno.ESRCH, "killed by the filter")
        assert os.WSTOPSIG(status) == signal.SIGTRAP, os.WSTOPSIG(status)
        _ptrace(_GETREGS, self._pid, ctypes.byref(now))
        _ptrace(_SETREGS, self._pid, ctypes.byref(self._before))
        return ctypes.c_longlong(now.rax).value
