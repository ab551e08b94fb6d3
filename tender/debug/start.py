"""Starts the command with a guest that stands before its first instruction, under a tracer.

The command knows nothing of it. It is traced from its exec on, with all processes that it makes, until one of them is about
to run the guest:

    sandbox  at `enter_guest` of tender-sandbox: a debug register stops it there, and then single steps lead into the guest
    KVM      at the beginning of its first ioctl(KVM_RUN)

All other processes are let go then. The kernel kills what is traced here if this process is killed (PTRACE_O_EXITKILL), as
gdb has it for a program that it has started.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Never

from tender.debug import ptrace
from tender.debug.find import Guest, guests_of, maps_of, tender_files
from tender.debug.note import read_note
from tender.debug.target import DebugError

_FOLLOW = (
    ptrace.O_EXITKILL
    | ptrace.O_TRACEEXEC
    | ptrace.O_TRACEFORK
    | ptrace.O_TRACEVFORK
    | ptrace.O_TRACECLONE
    | ptrace.O_TRACESYSGOOD
)
_SYSCALL_STOP = signal.SIGTRAP | 0x80  # with O_TRACESYSGOOD, ptrace(2)
_SYS_IOCTL, _KVM_RUN = 16, 0xAE80  # asm/unistd_64.h, linux/kvm.h
_GUEST_END = 1 << 32  # the program of the sandbox lies above
_STEPS_MAX = 20000
_ENABLED = 1  # of DR7, for a breakpoint on execution: Intel SDM volume 3, 17.2.4
_TF = 0x100  # of RFLAGS


class NotStarted(DebugError):
    """The command ended before its guest began. It has said why.

    Attributes:
        status: Its exit status.
    """

    default_code = "debug-not-started"

    def __init__(self, status: int) -> None:
        super().__init__("the guest did not start")
        self.status = status


def start(program: str, words: Sequence[str], descriptors: Sequence[int] = (0, 1, 2)) -> Guest:
    """Starts `program` with these words as a session of its own, and returns its guest, which is traced and stands still.

    A ^C of the terminal does not reach it. It is to be attached with `seized=True`, by this thread.

    Args:
        program: The path of the native command.
        words: Its words, the first of which is its name.
        descriptors: What becomes its stdin, stdout and stderr.

    Raises NotStarted; DebugError: the kernel does not let us trace our own child.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become(program, words, descriptors, reader, writer)
    os.close(reader)
    try:
        ptrace.seize(child, _FOLLOW)
        os.write(writer, b"!")
    except BaseException:
        ptrace.kill(child)
        raise
    finally:
        os.close(writer)
    followed = _Followed(child)
    try:
        return followed.until_guest()
    except BaseException:
        followed.kill()
        raise


def _become(
    program: str, words: Sequence[str], descriptors: Sequence[int], reader: int, writer: int
) -> Never:
    with contextlib.suppress(BaseException):
        os.close(writer)
        os.setsid()
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGPIPE,
            signal.SIGCHLD,
        ):
            signal.signal(number, signal.SIG_DFL)
        held = [os.dup(it) for it in descriptors]
        for place, it in enumerate(held):
            os.dup2(it, place, inheritable=True)
        if os.read(reader, 1):
            os.execv(program, list(words))
    os._exit(127)


class _Followed:
    """The processes that the command has made, as far as they are traced."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._known = {child}
        self._armed: set[int] = set()

    def until_guest(self) -> Guest:
        while True:
            status = ptrace.wait(-1)
            assert status is not None
            tid = status.tid
            if status.ended:
                self._known.discard(tid)
                if tid == self._child:
                    raise NotStarted(status.code if status.code is not None else 128 + status.killed_by)
                continue
            self._known.add(tid)
            if self._is_at_guest(status):
                return self._handed_over(tid)

    def kill(self) -> None:
        """Ends all of them: nobody debugs a command that did not come to its guest."""
        for tid in self._known:
            with contextlib.suppress(DebugError):
                ptrace.kill(tid)

    def _is_at_guest(self, status: ptrace.Status) -> bool:
        """Lets a thread go on, unless it is about to run the guest."""
        tid = status.tid
        passed: int = 0
        if status.stop == _SYSCALL_STOP:
            registers = ptrace.getregs(tid)
            is_entry = registers["rax"] == (-38) & (2**64 - 1)  # -ENOSYS, until the call is made
            if is_entry and registers["orig_rax"] == _SYS_IOCTL and registers["rsi"] & 0xFFFFFFFF == _KVM_RUN:
                return True
        elif status.event == ptrace.EVENT_EXEC or (
            status.event == ptrace.EVENT_STOP and tid not in self._armed
        ):
            self._arm(tid)
        elif status.event == 0 and status.stop == signal.SIGTRAP and tid in self._armed:
            ptrace.set_debug_register(tid, 7, 0)
            ptrace.set_debug_register(tid, 6, 0)
            self._step_into_guest(tid)
            return True
        elif status.event == 0:
            passed = status.stop
        if tid in self._armed:
            ptrace.cont(tid, passed)
        else:
            ptrace.cont_to_syscall(tid, passed)
        return False

    def _arm(self, tid: int) -> None:
        """Has the program of the sandbox stop where it enters the guest."""
        note, base = _note_of_program(tid)
        if "enter_guest" not in note:
            return
        ptrace.set_debug_register(tid, 0, base + note["enter_guest"])
        ptrace.set_debug_register(tid, 7, _ENABLED)
        self._armed.add(tid)

    def _step_into_guest(self, tid: int) -> None:
        for _ in range(_STEPS_MAX):
            registers = ptrace.getregs(tid)
            if registers["rip"] < _GUEST_END:
                # The kernel leaves TF set where a step went over POPF or IRET (is_setting_trap_flag()).
                ptrace.setregs(tid, {**registers, "eflags": registers["eflags"] & ~_TF})
                return
            ptrace.step(tid)
            status = ptrace.wait(tid)
            if status is None or status.ended:
                raise DebugError("the guest ended before its first instruction")
        raise DebugError("the guest's first instruction was not reached")

    def _handed_over(self, tid: int) -> Guest:
        """Lets all others go, and returns the guest of this thread."""
        for other in self._known - {tid}:
            with contextlib.suppress(DebugError):
                _let_go(other)
        ptrace.set_options(tid, ptrace.O_EXITKILL)
        guest = next((it for it in guests_of(tid) if it.tid == tid), None)
        if guest is None:
            raise DebugError(f"process {tid}: its guest is not found")
        return guest


def _note_of_program(tid: int) -> tuple[dict[str, int], int]:
    """Returns the debug note of the program of a process, and where it is loaded; nothing if it has none."""
    try:
        starts = tender_files(tid, maps_of(tid))
    except OSError:
        return {}, 0
    for start in starts:
        return read_note(lambda address, length: ptrace.read_memory(tid, address, length), start)
    return {}, 0


def _let_go(tid: int) -> None:
    ptrace.interrupt(tid)
    status = ptrace.wait(tid)
    if status is not None and not status.ended:
        ptrace.set_options(tid, 0)
        ptrace.detach(tid, 0 if status.event or status.stop == _SYSCALL_STOP else status.stop)
