"""The kernel's calls for a debugger: ptrace(2), wait4(2), process_vm_readv(2). It decides nothing about guests.

A call that the kernel refuses raises DebugError with its errno. For EPERM the message names the rule that refused, and the
hint what to type: see tender/debug/access.py. A thread that is gone raises Gone.

All calls for a traced thread come from the thread that seized it (ptrace(2)). Reading and writing memory may be done by
any thread, and needs no tracing: the kernel asks for the same rights at each call.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from errno import EFAULT, EINTR, EIO, EPERM, ESRCH
from typing import Any

from tender.debug.access import refusal
from tender.debug.target import DebugError
from tender.native import ffi, lib

O_EXITKILL: int = lib.PTRACE_O_EXITKILL
O_TRACECLONE: int = lib.PTRACE_O_TRACECLONE
O_TRACEEXEC: int = lib.PTRACE_O_TRACEEXEC
O_TRACEEXIT: int = lib.PTRACE_O_TRACEEXIT
O_TRACEFORK: int = lib.PTRACE_O_TRACEFORK
O_TRACESYSGOOD: int = lib.PTRACE_O_TRACESYSGOOD
O_TRACEVFORK: int = lib.PTRACE_O_TRACEVFORK
EVENT_CLONE: int = lib.PTRACE_EVENT_CLONE
EVENT_EXEC: int = lib.PTRACE_EVENT_EXEC
EVENT_EXIT: int = lib.PTRACE_EVENT_EXIT
EVENT_FORK: int = lib.PTRACE_EVENT_FORK
EVENT_STOP: int = lib.PTRACE_EVENT_STOP
EVENT_VFORK: int = lib.PTRACE_EVENT_VFORK
NT_PRSTATUS: int = lib.NT_PRSTATUS
NT_X86_XSTATE: int = lib.NT_X86_XSTATE

REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""The fields of `struct user_regs_struct` of <sys/user.h>."""

_WORD = 8
_REGSET_MAX = 16384
_DEBUG_REGISTERS: int = ffi.offsetof("struct user", "u_debugreg")


class Gone(DebugError):
    """The thread has ended, or is not stopped and so cannot be asked."""

    default_code = "debug-gone"


@dataclass(frozen=True)
class Status:
    """What wait4(2) says of a thread.

    Attributes:
        tid: The thread.
        stop: The signal that it stopped with; 0: it has ended.
        event: The PTRACE_EVENT_... of the stop, or 0. For EVENT_STOP, `stop` is SIGTRAP after interrupt(), and another
            signal in a group stop, which listen() keeps.
        code: The exit status of a process that exited.
        killed_by: The signal that killed it, or 0.
    """

    tid: int
    stop: int = 0
    event: int = 0
    code: int | None = None
    killed_by: int = 0

    @property
    def ended(self) -> bool:
        return not self.stop


@dataclass(frozen=True)
class SignalInfo:
    """A part of `siginfo_t`: the signal, why it was sent (SI_USER, TRAP_HWBKPT, ...), and the address of a fault."""

    signal: int
    code: int
    address: int


def seize(tid: int, options: int = 0) -> None:
    """Begins to trace a thread, which runs on. The guest is not killed if the tracer dies: EXITKILL is not set."""
    _call(lib.PTRACE_SEIZE, tid, 0, options)


def set_options(tid: int, options: int) -> None:
    """Sets the options of a stopped thread."""
    _call(lib.PTRACE_SETOPTIONS, tid, 0, options)


def has_pending(tid: int, number: int) -> bool:
    """Whether a signal waits for this thread. The stop that interrupt() makes comes before such a signal.

    Source: proc(5), SigPnd.
    """
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            found = next((line for line in file if line.startswith(b"SigPnd:")), b"SigPnd: 0")
    except OSError:
        return False
    return bool(int(found.split()[1], 16) >> (number - 1) & 1)


def interrupt(tid: int) -> None:
    """Asks a seized thread to stop with EVENT_STOP. A signal handler may call it."""
    _call(lib.PTRACE_INTERRUPT, tid)


def listen(tid: int) -> None:
    """Keeps a thread in its group stop, and tells when SIGCONT ends that."""
    _call(lib.PTRACE_LISTEN, tid)


def cont(tid: int, signal: int = 0) -> None:
    """Lets a stopped thread run, and delivers this signal to it."""
    _call(lib.PTRACE_CONT, tid, 0, signal)


def step(tid: int, signal: int = 0) -> None:
    """Lets a stopped thread execute one instruction."""
    _call(lib.PTRACE_SINGLESTEP, tid, 0, signal)


def cont_to_syscall(tid: int, signal: int = 0) -> None:
    """Lets a stopped thread run until a system call begins or ends."""
    _call(lib.PTRACE_SYSCALL, tid, 0, signal)


def let_go(tid: int) -> None:
    """Ends the tracing of a thread, whether it stands still or not. Nothing happens if it has ended."""
    with suppress(DebugError):
        try:
            detach(tid)
        except Gone:  # it runs, or it has ended
            interrupt(tid)
            wait(tid)
            detach(tid)


def detach(tid: int, signal: int = 0) -> None:
    """Ends the tracing of a stopped thread, which runs on."""
    _call(lib.PTRACE_DETACH, tid, 0, signal)


def getregs(tid: int) -> dict[str, int]:
    """Returns the general registers of a stopped thread, by the names of REGISTERS."""
    registers = ffi.new("struct user_regs_struct *")
    _call(lib.PTRACE_GETREGS, tid, 0, _address(registers))
    return {name: int(getattr(registers, name)) for name in REGISTERS}


def setregs(tid: int, registers: dict[str, int]) -> None:
    """Sets all general registers of a stopped thread."""
    given = ffi.new("struct user_regs_struct *", registers)
    _call(lib.PTRACE_SETREGS, tid, 0, _address(given))


def getregset(tid: int, kind: int) -> bytes:
    """Returns a set of registers of a stopped thread: NT_X86_XSTATE, NT_PRSTATUS."""
    buffer = ffi.new("uint8_t[]", _REGSET_MAX)
    size = _check(
        lib.tn_ptrace_regset(lib.PTRACE_GETREGSET, tid, kind, buffer, _REGSET_MAX), tid, "registers"
    )
    return bytes(ffi.buffer(buffer, size))


def setregset(tid: int, kind: int, data: bytes) -> None:
    """Sets a set of registers of a stopped thread."""
    buffer = ffi.new("uint8_t[]", data)
    _check(lib.tn_ptrace_regset(lib.PTRACE_SETREGSET, tid, kind, buffer, len(data)), tid, "registers")


def getsiginfo(tid: int) -> SignalInfo:
    """Returns what the signal says that a thread has stopped with."""
    info = ffi.new("siginfo_t *")
    _call(lib.PTRACE_GETSIGINFO, tid, 0, _address(info))
    return SignalInfo(int(info.si_signo), int(info.si_code), _address(info.si_addr))


def geteventmsg(tid: int) -> int:
    """Returns the message of the event: the new thread's id after EVENT_CLONE, the status after EVENT_EXIT."""
    word = ffi.new("uint64_t *")
    _call(lib.PTRACE_GETEVENTMSG, tid, 0, _address(word))
    return int(word[0])


def peek_user(tid: int, offset: int) -> int:
    """Returns a word of `struct user`."""
    word = ffi.new("uint64_t *")
    _call(lib.PTRACE_PEEKUSER, tid, offset, _address(word))
    return int(word[0])


def poke_user(tid: int, offset: int, word: int) -> None:
    """Sets a word of `struct user`."""
    _call(lib.PTRACE_POKEUSER, tid, offset, word)


def get_debug_register(tid: int, number: int) -> int:
    """Returns DR0 to DR3, DR6 or DR7 of a stopped thread."""
    return peek_user(tid, _DEBUG_REGISTERS + _WORD * number)


def set_debug_register(tid: int, number: int, word: int) -> None:
    """Sets DR0 to DR3, DR6 or DR7 of a stopped thread. DR7 must be cleared before an address is changed."""
    poke_user(tid, _DEBUG_REGISTERS + _WORD * number, word)


def peek(tid: int, address: int) -> int:
    """Returns a word of a stopped thread's memory."""
    word = ffi.new("uint64_t *")
    _call(lib.PTRACE_PEEKDATA, tid, address, _address(word))
    return int(word[0])


def poke(tid: int, address: int, data: bytes) -> None:
    """Writes memory of a stopped thread, also where it may not write itself, as text.

    The kernel gives it a copy of a private page. It is done by words: use write_memory() for large writable pieces.
    """
    start, end = address & -_WORD, -(-(address + len(data)) // _WORD) * _WORD
    for at in range(start, end, _WORD):
        word = bytearray(_WORD)
        if at < address or at + _WORD > address + len(data):
            word[:] = peek(tid, at).to_bytes(_WORD, "little")
        first, last = max(at, address), min(at + _WORD, address + len(data))
        word[first - at : last - at] = data[first - address : last - address]
        _call(lib.PTRACE_POKEDATA, tid, at, int.from_bytes(word, "little"))


def wait(tid: int, *, block: bool = True) -> Status | None:
    """Returns what has happened to a traced thread or a child, -1: any; None: nothing yet.

    With `block` it waits for that, also if handlers of signals run meanwhile; what a handler raises ends the wait. Raises
    Gone if there is no such thread to wait for.
    """
    status = ffi.new("int *")
    while (found := lib.tn_wait(tid, lib.__WALL | (0 if block else lib.WNOHANG), status)) == -EINTR:
        pass  # Python runs the handlers here
    if found < 0:
        raise Gone(f"thread {tid}: {os.strerror(-found)}", errno=-found)
    return status_of(found, int(status[0])) if found else None


def wait_unconsumed(tid: int, *, block: bool = True) -> Status | None:
    """Like wait(), but a stop is not consumed: until the thread goes on, it is returned again.

    wait4(2) clears the stop's signal in the kernel. If the tracer is killed after that, the thread goes on without the
    signal: after an int3 it executes the middle of an instruction. A signal that was not consumed is delivered to the thread
    (wait_task_stopped() of kernel/exit.c, ptrace_stop() of kernel/signal.c, Linux 6.12).
    """
    options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | lib.__WALL | (0 if block else os.WNOHANG)
    try:
        found = os.waitid(os.P_PID, tid, options)
    except ChildProcessError as error:
        raise Gone(f"thread {tid}: {error.strerror}", errno=error.errno or 0) from None
    if found is None:
        return None
    if found.si_code in (os.CLD_TRAPPED, os.CLD_STOPPED):
        return Status(tid, stop=found.si_status & 0xFF, event=found.si_status >> 8)
    return wait(tid)


def status_of(tid: int, word: int) -> Status:
    """Reads the word of wait4(2)."""
    if os.WIFSTOPPED(word):
        return Status(tid, stop=os.WSTOPSIG(word), event=word >> 16)
    if os.WIFSIGNALED(word):
        return Status(tid, killed_by=os.WTERMSIG(word))
    return Status(tid, code=os.WEXITSTATUS(word))


def kill(tid: int) -> None:
    """Kills the process of a thread. Nothing happens if it is gone."""
    try:
        os.kill(tid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise DebugError(f"process {tid}: {error.strerror}", errno=EPERM) from None


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Returns memory of a process: fewer bytes if it ends, none if there is none at `address`."""
    buffer = bytearray(length)
    got = read_memory_into(pid, address, buffer)
    return bytes(buffer if got == length else buffer[:got])


def read_memory_into(pid: int, address: int, buffer: bytearray | memoryview) -> int:
    """Fills the buffer with memory of a process, and returns how many bytes there are."""
    done, length = 0, len(buffer)
    if not _in_range(address, length):
        return 0
    into = ffi.from_buffer(buffer, require_writable=True)
    while done < length:
        answer = lib.tn_process_read(pid, address + done, into + done, length - done)
        if answer in (0, -EFAULT):
            break
        done += _check(answer, pid, "memory")
    return done


def write_memory(pid: int, address: int, data: bytes) -> None:
    """Writes memory of a process where the process itself may write. Raises DebugError (EFAULT) elsewhere."""
    if not _in_range(address, len(data)):
        raise DebugError(f"process {pid}: memory at {address:#x}: {os.strerror(EFAULT)}", errno=EFAULT)
    done, source = 0, ffi.from_buffer(data)
    while done < len(data):
        answer = lib.tn_process_write(pid, address + done, source + done, len(data) - done)
        done += _check(answer or -EIO, pid, f"memory at {address + done:#x}")


def _in_range(address: int, length: int) -> bool:
    return length > 0 and address >= 0 and address + length <= 1 << 64


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _call(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    return _check(lib.tn_ptrace(request, tid, address, data), tid, "ptrace")


def _is_ending(tid: int) -> bool:
    """Whether a thread is a zombie, or about to be one: ptrace(2) refuses it with EPERM, as one of another user."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])
    except OSError:
        return True


def _check(answer: int, tid: int, what: str) -> int:
    if answer >= 0:
        return answer
    errno = -answer
    if errno == ESRCH or (errno == EPERM and _is_ending(tid)):
        errno = ESRCH
        raise Gone(f"process {tid}: {what}: {os.strerror(errno)}", errno=errno)
    if errno == EPERM:
        why, hint = refusal(tid)
        raise DebugError(f"process {tid}: {why}", errno=errno, code="debug-denied", hint=hint)
    raise DebugError(f"process {tid}: {what}: {os.strerror(errno)}", errno=errno)
