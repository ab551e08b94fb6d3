"""The vCPU of a guest on KVM, reached from outside: by the stopped thread that runs it.

A vCPU belongs to its process, so no other process may call it. The debugger makes the thread call KVM itself: it lends
its registers to a system call and puts them back (`Vcpu.call`). The call that is needed most is KVM_RUN with
`immediate_exit`, which enters no guest: it writes the registers into the page that process and vCPU share, and takes new
ones from there. Source: Documentation/virt/kvm/api.rst, section 5, of Linux 6.12.

It decides nothing about breakpoints and stops: kvm.py does.
"""

import os
import signal
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EINTR
from typing import TYPE_CHECKING

from tender.debug import ptrace
from tender.debug.cpu_parts import SEGMENT, SYSTEM_BYTES, CpuParts
from tender.debug.find import Guest
from tender.debug.target import DebugError

if TYPE_CHECKING:
    from tender.debug.guard import Journal

SYS_IOCTL = 16  # <asm/unistd_64.h>
KVM_RUN, KVM_GET_REGS, KVM_SET_GUEST_DEBUG = 0xAE80, 0x8090AE81, 0x4048AE9B  # <linux/kvm.h>
KVM_GET_XSAVE, KVM_SET_XSAVE = 0x9000AEA4, 0x5000AEA5
EXIT_UNKNOWN, EXIT_IO, EXIT_DEBUG, EXIT_HLT, EXIT_INTR = 0, 2, 4, 5, 10

DEBUG_ENABLE, DEBUG_SINGLESTEP, DEBUG_USE_HW = 1, 2, 0x20000
"""Source: <linux/kvm.h>, KVM_GUESTDBG_..."""

# Offsets in struct kvm_run, and its parts; tests/debug/test_kvm_debug.py compares them with the header.
IMMEDIATE_EXIT, EXIT_REASON, DEBUG_EXIT, VALID, DIRTY, REGS, SREGS = 1, 8, 32, 288, 296, 304, 448
REGS_STRUCT, SREGS_BYTES, FS_BASE, GS_BASE = struct.Struct("<18Q"), 312, 72, 96
GUEST_DEBUG = struct.Struct("<II8Q")
SYNC_REGS, SYNC_SREGS = 1, 2
CR4, CR4_OSXSAVE = 248, 1 << 18

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
"""The fields of struct kvm_regs."""

XSAVE_BYTES = 4096
XCR0_AT, XSTATE_BV_AT = 464, 512
_FRAME_MAX = 16 << 10  # more than a signal's frame with all vector registers
_SYSCALL_CODE = b"\x0f\x05\xeb\xfe"  # debug_syscall of bindings/arch/x86_64/debug_syscall.S
_SYSCALL_BYTES = len(_SYSCALL_CODE)
_SIGNALS_MAX = 1000  # that may come during a call
_NO_CALL = (1 << 64) - 1  # orig_rax of a thread that is in no system call: the kernel restarts none then
_LOOKS, _LOOK_S = 20, 0.001
SYSCALL_STOP = signal.SIGTRAP | 0x80
"""How a thread that is traced with O_TRACESYSGOOD stops where a system call begins or ends."""


@dataclass
class VcpuRegisters:
    """The registers of the vCPU as KVM has them: the fields of kvm_regs by name, and the whole of kvm_sregs."""

    general: dict[str, int] = field(default_factory=dict)
    system: bytes = bytes(SREGS_BYTES)

    @property
    def fs_base(self) -> int:
        return int.from_bytes(self.system[FS_BASE : FS_BASE + 8], "little")

    @property
    def cr4(self) -> int:
        return int.from_bytes(self.system[CR4 : CR4 + 8], "little")

    def parts(self) -> CpuParts:
        """Returns the system registers as struct cpu_system has them. MSRs and debug registers have no place in the page."""
        names = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")  # struct kvm_sregs
        segments = {name: self.system[i * SEGMENT.size :][: SEGMENT.size] for i, name in enumerate(names)}
        rest = self.system[8 * SEGMENT.size : SYSTEM_BYTES]
        order = ("es", "cs", "ss", "ds", "fs", "gs", "tr", "ldt")
        return CpuParts(system=b"".join(segments[name] for name in order) + rest)

    def with_bases(self, general: dict[str, int], fs_base: int, gs_base: int) -> "VcpuRegisters":
        """Returns registers with these values and the same system registers else."""
        system = bytearray(self.system)
        system[FS_BASE : FS_BASE + 8] = fs_base.to_bytes(8, "little")
        system[GS_BASE : GS_BASE + 8] = gs_base.to_bytes(8, "little")
        return VcpuRegisters(general, bytes(system))

    @property
    def gs_base(self) -> int:
        return int.from_bytes(self.system[GS_BASE : GS_BASE + 8], "little")


class _Endless(DebugError):
    """A call that does not come to its end."""


class Vcpu:
    """The thread that runs a guest, while it stands still, and the guest's vCPU.

    Attributes:
        tid: The thread.
        signals: Signals for the thread that came then. They are sent again when it goes on.
    """

    def __init__(self, guest: Guest, journal: "Journal | None" = None) -> None:
        self.pid, self.tid = guest.pid, guest.tid
        self.signals: list[int] = []
        self._journal = journal
        self._page = guest.values["run_hva"]
        self.fd = guest.values["vcpu_fd"]
        self._syscall = guest.note["syscall"] + guest.base
        self._is_checked = False

    # ---- the thread

    def thread_registers(self) -> dict[str, int]:
        """Returns the thread's own registers, which are those of its process."""
        return ptrace.getregs(self.tid)

    def is_in_run(self, registers: dict[str, int]) -> bool:
        """Whether the thread is in KVM_RUN of this vCPU, or was just before the stop."""
        return (
            registers["orig_rax"] == SYS_IOCTL and registers["rdi"] == self.fd and registers["rsi"] == KVM_RUN
        )

    def go_on(self, signal_number: int = 0, *, to_syscall: bool = False) -> None:
        """Lets the thread run, with the signal that it has stopped for, if any."""
        self._send_signals()
        (ptrace.cont_to_syscall if to_syscall else ptrace.cont)(self.tid, signal_number)

    def detach(self) -> None:
        """Lets the thread run, and traces it no more."""
        self._send_signals()
        ptrace.detach(self.tid)

    def _send_signals(self) -> None:
        """Sends again what came while the thread made a call of ours. A kick is for this thread alone: KVM_RUN returns."""
        pending, self.signals = self.signals, []
        for number in pending:
            if number == signal.SIGURG:
                self.write_page(IMMEDIATE_EXIT, b"\1")
            else:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, number)

    def call(self, number: int, *arguments: int) -> int:
        """Makes the stopped thread call the kernel, and returns the answer or -errno. Its registers are put back.

        The thread is lent to debug_syscall of the program: a `syscall`, and behind it a jump to itself. If we are killed,
        the thread stays there until the guard gives it its registers back. Afterwards it stands in an EVENT_STOP. No
        signal comes with that stop, and a call of its own that was interrupted is restarted. For that the kernel looks at
        rax and orig_rax, which are put back too.
        """
        self._check_place()
        saved = ptrace.getregs(self.tid)
        lent = saved | {"rax": number, "orig_rax": _NO_CALL, "rip": self._syscall}
        lent |= dict(zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False))
        if self._journal:
            self._journal.registers(self.tid, _packed(saved))
        ptrace.setregs(self.tid, lent)
        try:
            self._run_to_system_call()  # where it begins
            self._run_to_system_call()  # and where it ends
        except _Endless:
            ptrace.setregs(self.tid, saved)
            raise
        answer = ptrace.getregs(self.tid)["rax"]
        self._run_to_event_stop()
        ptrace.setregs(self.tid, saved)
        if self._journal:
            self._journal.registers(self.tid, b"")
        return answer - (1 << 64) if answer >> 63 else answer

    def give_back(self, saved: dict[str, int]) -> None:
        """Ends a call() of a debugger that was killed. The thread stands in an EVENT_STOP.

        The journal may have noted the registers before they were lent, or still after they were put back. Then the thread
        has gone on, and must not be sent back. So it is sent back from debug_syscall alone. A signal's handler may have
        interrupted it there: that is short.
        """
        for _ in range(_LOOKS):
            if 0 <= ptrace.getregs(self.tid)["rip"] - self._syscall < _SYSCALL_BYTES:
                ptrace.setregs(self.tid, saved)
                return
            ptrace.cont(self.tid)
            time.sleep(_LOOK_S)
            self._run_to_event_stop(goes_on=False)

    def _run_to_event_stop(self, *, goes_on: bool = True) -> None:
        ptrace.interrupt(self.tid)
        if goes_on:
            ptrace.cont(self.tid)
        while (status := self._wait()).event != ptrace.EVENT_STOP:
            self._keep_signal(status)
            ptrace.cont(self.tid)

    def _check_place(self) -> None:
        """A process that gives itself out for one of Tender's could have us wait for a call that never comes."""
        if not self._is_checked:
            if ptrace.read_memory(self.pid, self._syscall, _SYSCALL_BYTES) != _SYSCALL_CODE:
                raise DebugError(f"process {self.pid}: it has no code for a debugger where its note says so")
            self._is_checked = True

    def _run_to_system_call(self) -> None:
        for _ in range(_SIGNALS_MAX):
            ptrace.cont_to_syscall(self.tid)
            status = self._wait()
            if status.stop == SYSCALL_STOP and not status.event:
                return
            self._keep_signal(status)
        raise _Endless(f"process {self.pid}: signals keep its thread from a call to KVM")

    def _keep_signal(self, status: ptrace.Status) -> None:
        """A signal that comes during a call of ours waits until the thread goes on."""
        if not status.event and status.stop != SYSCALL_STOP:
            self.signals.append(status.stop)

    def _wait(self) -> ptrace.Status:
        status = ptrace.wait(self.tid)
        if status is None or status.ended:
            raise ptrace.Gone(f"process {self.pid}: it has ended")
        return status

    def _scratch(self, size: int) -> int:
        """Returns the address of memory that the thread may write and does not use, far below the top of its stack.

        If we are killed, a signal's frame may come just below the top before the call is made.
        """
        at = (ptrace.getregs(self.tid)["rsp"] - _FRAME_MAX - size) & -64
        if len(ptrace.read_memory(self.pid, at, size)) < size:
            raise DebugError(f"thread {self.tid}: its stack has no space for a call to KVM")
        return at

    # ---- the shared page

    def read_page(self, offset: int, length: int) -> bytes:
        data = ptrace.read_memory(self.pid, self._page + offset, length)
        if len(data) < length:
            raise DebugError(f"process {self.pid}: the page of the vCPU cannot be read")
        return data

    def write_page(self, offset: int, data: bytes) -> None:
        ptrace.write_memory(self.pid, self._page + offset, data)

    @property
    def exit_reason(self) -> int:
        return int.from_bytes(self.read_page(EXIT_REASON, 4), "little")

    def forget_exit(self) -> None:
        """The exit in the page is dealt with: a later look must not take it for a new one."""
        self.write_page(EXIT_REASON, EXIT_INTR.to_bytes(4, "little"))

    def debug_exit(self) -> int:
        """Returns DR6 of a KVM_EXIT_DEBUG."""
        return int.from_bytes(self.read_page(DEBUG_EXIT + 16, 8), "little")

    # ---- registers

    def synchronise(self) -> VcpuRegisters:
        """Has KVM take the registers that wait in the page, and write all of them there. Returns them.

        If the vCPU has left the guest by an `out`, KVM completes the instruction first: RIP is behind it.
        """
        immediate, valid = self.read_page(IMMEDIATE_EXIT, 1), self.read_page(VALID, 8)
        reason = self.exit_reason
        self.prepare_leave()
        answer = self.call(SYS_IOCTL, self.fd, KVM_RUN, 0)
        registers = self.registers_in_page()
        self.write_page(IMMEDIATE_EXIT, immediate)
        self.write_page(VALID, valid)
        if reason == EXIT_IO:  # the hypercall goes on: who looks next is to see it too
            self.write_page(EXIT_REASON, reason.to_bytes(4, "little"))
        if answer != -EINTR:
            raise DebugError(f"process {self.pid}: KVM_RUN answers {answer}", errno=max(-answer, 0))
        return registers

    def prepare_leave(self) -> None:
        """The next KVM_RUN returns immediately, and leaves all registers in the page."""
        self.write_page(IMMEDIATE_EXIT, b"\1")
        self.write_page(VALID, (SYNC_REGS | SYNC_SREGS).to_bytes(8, "little"))

    def end_leave(self) -> VcpuRegisters:
        """The KVM_RUN of prepare_leave() has returned: returns the registers."""
        self.write_page(IMMEDIATE_EXIT, b"\0")
        return self.registers_in_page()

    def registers_in_page(self) -> VcpuRegisters:
        general = REGS_STRUCT.unpack(self.read_page(REGS, REGS_STRUCT.size))
        return VcpuRegisters(dict(zip(GENERAL, general, strict=True)), self.read_page(SREGS, SREGS_BYTES))

    def put(self, registers: VcpuRegisters, *, system: bool = False) -> None:
        """Leaves registers in the page, for KVM to take at the next KVM_RUN."""
        self.write_page(REGS, REGS_STRUCT.pack(*(registers.general[name] for name in GENERAL)))
        if system:
            self.write_page(SREGS, registers.system)
        dirty = int.from_bytes(self.read_page(DIRTY, 8), "little")
        self.write_page(DIRTY, (dirty | SYNC_REGS | (SYNC_SREGS if system else 0)).to_bytes(8, "little"))

    def rip(self) -> int:
        """Returns RIP as KVM has it: at the `out`, if the vCPU left the guest by one."""
        at = self._scratch(REGS_STRUCT.size)
        self._check(self.call(SYS_IOCTL, self.fd, KVM_GET_REGS, at), "KVM_GET_REGS")
        return int(
            REGS_STRUCT.unpack(ptrace.read_memory(self.pid, at, REGS_STRUCT.size))[GENERAL.index("rip")]
        )

    def set_guest_debug(self, control: int, debug_registers: Sequence[int] = (0,) * 8) -> None:
        """KVM_SET_GUEST_DEBUG. For a step, no registers may wait in the page: KVM notes the RIP that is stepped from."""
        at = self._scratch(GUEST_DEBUG.size)
        ptrace.write_memory(self.pid, at, GUEST_DEBUG.pack(control, 0, *debug_registers))
        self._check(self.call(SYS_IOCTL, self.fd, KVM_SET_GUEST_DEBUG, at), "KVM_SET_GUEST_DEBUG")

    def xsave(self, cr4: int) -> bytes:
        """Returns the x87, SSE and AVX registers, as Registers.xsave has them.

        XCR0 cannot be asked for. It has at least the components that are in use, and AVX if the guest has set
        CR4.OSXSAVE, without which it cannot use more than SSE.
        """
        at = self._scratch(XSAVE_BYTES)
        self._check(self.call(SYS_IOCTL, self.fd, KVM_GET_XSAVE, at), "KVM_GET_XSAVE")
        area = bytearray(ptrace.read_memory(self.pid, at, XSAVE_BYTES))
        used = int.from_bytes(area[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little")
        xcr0 = used | (7 if cr4 & CR4_OSXSAVE else 3)
        area[XCR0_AT : XCR0_AT + 8] = xcr0.to_bytes(8, "little")
        return bytes(area)

    def set_xsave(self, area: bytes) -> None:
        """Sets them. Raises DebugError if KVM refuses the values."""
        whole = bytearray(area[:XSAVE_BYTES].ljust(XSAVE_BYTES, b"\0"))
        whole[XCR0_AT : XCR0_AT + 48] = bytes(48)
        whole[XSTATE_BV_AT] |= 3  # else KVM keeps MXCSR
        at = self._scratch(XSAVE_BYTES)
        ptrace.write_memory(self.pid, at, bytes(whole))
        self._check(self.call(SYS_IOCTL, self.fd, KVM_SET_XSAVE, at), "KVM_SET_XSAVE")

    def _check(self, answer: int, what: str) -> None:
        if answer < 0:
            raise DebugError(f"process {self.pid}: {what} fails", errno=-answer)


def _packed(registers: dict[str, int]) -> bytes:
    return struct.pack(f"<{len(ptrace.REGISTERS)}Q", *(registers[name] for name in ptrace.REGISTERS))


def unpacked(data: bytes) -> dict[str, int]:
    """Returns the registers of a thread from the bytes that the journal has of them."""
    values = struct.unpack(f"<{len(ptrace.REGISTERS)}Q", data)
    return dict(zip(ptrace.REGISTERS, values, strict=True))
