"""A guest on KVM as a debugger's target, from outside: ptrace(2) of the one thread that runs its vCPU.

    debugger (this file) --ptrace--> the vCPU's thread, its system-call filter in force --KVM_RUN--> guest

Where the thread stands says where the guest is:

    in KVM_RUN                      at an instruction of its own; its registers can be written
    at a breakpoint, after a step   the same: the run loop tells (vm_shared.told, bindings/machine/kvm/run_kvm.c)
    anywhere else                   in a hypercall, and the handler goes on when the thread does
    where it tells of the end       at its end: the state can be read

A breakpoint is a HLT in this VM's own copy of the page. It exits from every processor, also from an emulated one, and
nothing has to be switched on for it. Steps and hardware breakpoints are KVM_SET_GUEST_DEBUG. An exception of the guest
goes to its own handler without an exit, so no debugger sees it before that.

This process may be killed at any moment, and the thread goes on then. Whatever is changed is noted in the journal first,
and the run loop waits for the guard while vm_shared.held is set.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any

from tender.debug import ptrace
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.facts import ENDED_KINDS, Shared, facts_of, has_ended_well
from tender.debug.find import Guest
from tender.debug.guard import Journal
from tender.debug.kvm_memory import is_library, mappings_of, out_of_gate, touched_of
from tender.debug.kvm_vcpu import (
    DEBUG_ENABLE,
    DEBUG_SINGLESTEP,
    DEBUG_USE_HW,
    EXIT_DEBUG,
    EXIT_HLT,
    EXIT_INTR,
    EXIT_IO,
    EXIT_UNKNOWN,
    GENERAL,
    SYSCALL_STOP,
    Vcpu,
    VcpuRegisters,
    unpacked,
)
from tender.debug.registers import Registers
from tender.debug.target import DebugError, Ended, Facts, Mapping, Stop, Watch, Where
from tender.debug.unfinished import Call, unfinished_of, was_interrupted
from tender.debug.x86 import DEBUG_ADDRESSES, DR7_GLOBAL, WATCH_LENGTHS, dr7
from tender.native import lib

_HLT = b"\xf4"
_RET = b"\xc3"
_GROUP_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_EINTR, _ENOSYS = (1 << 64) - 4, (1 << 64) - 38  # in rax: interrupted; a system call that has not begun
_DR6_STEP, _DR7_EXACT = 1 << 14, 0x600  # Intel SDM volume 3, 18.2
_RFLAGS = 0x3D7FD7  # those that exist, without VM: Intel SDM volume 1, 3.4.3
_RFLAGS_VM, _RFLAGS_ONE = 1 << 17, 2


class _Mode(Enum):
    """What the thread does."""

    STILL = "still"
    RUN = "run"
    STEP = "step"
    OVER = "over"  # a step over a breakpoint, then RUN
    OUT = "out"  # to the end of a hypercall, then a stop


class KvmTarget:
    """A guest on KVM that this process traces: `Target` has the contract of each method."""

    def __init__(
        self,
        guest: Guest,
        journal: Journal | None = None,
        *,
        seized: bool = False,
        repair: Callable[[Vcpu], None] | None = None,
    ) -> None:
        """Attaches, and stops the guest.

        Args:
            guest: A guest on KVM.
            journal: Where changes are noted. None: nothing may be changed.
            seized: The thread is traced already, and stands at the beginning of its first KVM_RUN.
            repair: Called once, as soon as the thread stands in an EVENT_STOP.

        Raises DebugError: the VM does not run now, another process traces the thread, or the kernel refuses.
        """
        self.pid = guest.pid
        self._shared = Shared(guest)
        if not guest.tid:
            if not self._has_ended():
                raise DebugError(
                    f"process {guest.pid}: this VM does not run now", hint="try again while it runs"
                )
            guest = replace(guest, tid=guest.pid)
        self._guest, self._tid, self._journal = guest, guest.tid, journal
        self._vcpu = Vcpu(guest, journal)
        self._soft: dict[int, int] = {}  # the original byte under each breakpoint
        self._hard: list[tuple[Watch, int, int]] = []
        self._uses_debug = False
        self._lifted = -1  # a breakpoint that is out for a step
        self._mode, self._where = _Mode.RUN, Where.HYPERCALL
        self._registers = VcpuRegisters()
        self._shown: Registers | None = None  # the same, as registers() has returned them
        self._is_dirty = False  # they differ from the vCPU's
        self._asked = True  # a stop is wanted
        self._settling = self._leaving = self._settled = False  # see _interrupted()
        self._gone: Ended | None = None
        self._attached, self._is_killed = True, False
        self._holds = False
        self._repair = repair
        if seized:
            ptrace.set_options(self._tid, ptrace.O_TRACESYSGOOD | ptrace.O_EXITKILL)
            self._leave_guest()
        else:
            ptrace.seize(self._tid, ptrace.O_TRACESYSGOOD)
        try:
            if not seized:
                ptrace.interrupt(self._tid)
            if isinstance(self._wait(), Ended):
                raise ptrace.Gone(f"process {self.pid}: it ends at this moment")
        except BaseException:
            if not seized and journal is None:  # with a journal the guard does
                ptrace.let_go(self._tid)
            raise

    # ---- what can be read

    def facts(self) -> Facts:
        return facts_of(self._guest, self._shared.read(), self.read)

    def where(self) -> Where:
        return self._where

    def registers(self) -> Registers:
        self._need_still()
        if self._shown is None:
            self._shown = self.stack_registers()._with(xsave=self._vcpu.xsave(self._registers.cr4))
        return self._shown

    def stack_registers(self) -> Registers:
        self._need_still()
        general: dict[str, Any] = self._registers.general
        if self._where is not Where.GUEST:
            general = self._out_of_gate(general)
        return Registers(**general, fs_base=self._registers.fs_base, gs_base=self._registers.gs_base)

    def read(self, gpa: int, length: int) -> bytes:
        length = min(length, self._guest.mem_bytes - gpa)
        if gpa < 0 or length <= 0:
            return b""
        data = bytearray(ptrace.read_memory(self.pid, self._guest.memory_hva + gpa, length))
        for at, byte in self._soft.items():
            if gpa <= at < gpa + len(data):
                data[at - gpa] = byte
        return bytes(data)

    def mappings(self) -> Sequence[Mapping]:
        return mappings_of(self._guest)

    def touched(self) -> Sequence[tuple[int, int]]:
        return touched_of(self._guest)

    def cpu_parts(self) -> CpuParts:
        self._need_still()
        return self._registers.parts()

    def unfinished(self) -> Unfinished | None:
        self._need_still()
        if self._where is Where.GUEST:
            return None
        event, general = self._shared.event_kind(), self._registers.general
        if self._where is Where.ENDED and event != lib.EVENT_STOPPED:
            return None
        call = None
        if self._vcpu.exit_reason == EXIT_IO and event in (lib.EVENT_NONE, lib.EVENT_STOPPED):
            waits = self._where is Where.ENDED or was_interrupted(self._vcpu.thread_registers())
            call = Call(general["rdx"] & 0xFFFF, general["rax"] & 0xFFFFFFFF, waits)

        def process(at: int, size: int) -> bytes:
            return ptrace.read_memory(self.pid, at, size)

        return unfinished_of(self._guest, self._guest.values["vm"], call, process, self.read)

    # ---- changes

    def set_registers(self, registers: Registers) -> None:
        self._need_still()
        if self._where is not Where.GUEST:
            place = "inside a hypercall" if self._where is Where.HYPERCALL else "at its end"
            raise DebugError(f"the guest is {place}: its registers can be read and not written")
        _check_values(registers)
        now = self.registers()
        if registers.xsave and registers.xsave != now.xsave:
            self._vcpu.set_xsave(registers.xsave)
        general = {name: getattr(registers, name) for name in GENERAL}
        general["rflags"] = registers.rflags & _RFLAGS | _RFLAGS_ONE
        if (registers.fs_base, registers.gs_base) != (now.fs_base, now.gs_base):
            self._vcpu.put(
                self._registers.with_bases(general, registers.fs_base, registers.gs_base), system=True
            )
            self._registers = self._vcpu.synchronise()
            self._is_dirty = False
        elif general != self._registers.general:
            self._registers = replace(self._registers, general=general)
            self._is_dirty = True
        self._shown = None

    def write(self, gpa: int, data: bytes) -> None:
        if gpa < 0 or gpa + len(data) > self._guest.mem_bytes:
            raise DebugError(f"{gpa:#x}: there is no guest memory of {len(data)} bytes")
        put = bytearray(data)
        for at in self._soft:
            if gpa <= at < gpa + len(put):
                self._note(at, put[at - gpa])
                put[at - gpa] = _HLT[0]
        try:
            ptrace.write_memory(self.pid, self._guest.memory_hva + gpa, bytes(put))
        except ptrace.Gone:
            raise
        except DebugError:  # text and read-only data: the host's mapping is not writable
            ptrace.poke(self._tid, self._guest.memory_hva + gpa, bytes(put))

    def insert(self, kind: Watch, gpa: int, length: int) -> None:
        self._need_still()
        if kind is Watch.SOFTWARE:
            if gpa not in self._soft:
                original = self.read(gpa, 1)
                if not original:
                    raise DebugError(f"{gpa:#x}: there is no guest memory for a breakpoint")
                self._note(gpa, original[0])
                try:
                    self._poke(gpa, _HLT[0])
                except DebugError:
                    del self._soft[gpa]
                    if self._journal:
                        self._journal.drop(self._guest.memory_hva + gpa)
                    raise
            return
        one = _hardware(kind, gpa, length)
        if one in self._hard:
            return
        if one[2] not in WATCH_LENGTHS or gpa % one[2] or not 0 <= gpa < self._guest.mem_bytes:
            raise DebugError(
                f"{gpa:#x}: a watchpoint has 1, 2, 4 or 8 bytes at a multiple of that, not {length}"
            )
        if len(self._hard) == DEBUG_ADDRESSES:
            raise DebugError(f"all {DEBUG_ADDRESSES} hardware breakpoints of the processor are in use")
        self._hard.append(one)
        self._set_debug()

    def remove(self, kind: Watch, gpa: int, length: int) -> None:
        self._need_still()
        if kind is Watch.SOFTWARE:
            if gpa in self._soft:
                self._poke(gpa, self._soft.pop(gpa))
                if self._journal:
                    self._journal.drop(self._guest.memory_hva + gpa)
        elif (one := _hardware(kind, gpa, length)) in self._hard:
            self._hard.remove(one)
            self._set_debug()

    # ---- going on

    def resume(self, signal: int = 0) -> None:
        if self._gone or self._is_killed:
            return
        self._need_still()
        if self._where is Where.ENDED and is_library(self._guest):  # the process goes on, the guest does not
            ended = Ended(self.facts().status)
            self.detach()
            self._gone = ended
            return
        breakpoints = {*self._soft, *(at for kind, at, _ in self._hard if kind is Watch.HARDWARE)}
        is_at_one = self._where is Where.GUEST and self._registers.general["rip"] in breakpoints
        self._start(_Mode.OVER if is_at_one else _Mode.RUN)

    def step(self, signal: int = 0) -> Stop | Ended:
        if self._gone:
            return self._gone
        self._need_still()
        if self._where is Where.ENDED:
            self.resume()
        else:
            self._start(_Mode.STEP if self._where is Where.GUEST else _Mode.OUT)
        return self._gone or self._wait()

    def interrupt(self) -> None:
        self._asked = True
        with suppress(DebugError):
            ptrace.interrupt(self._tid)

    def poll(self) -> Stop | Ended | None:
        while self._gone is None and self._mode is not _Mode.STILL:
            status = self._next(block=False)
            if status is None:
                return None
            if (stop := self._took(status)) is not None:
                return stop
        return self._gone

    def kill(self) -> None:
        """Kills the guest's process: for a library's VM, the program that uses the library."""
        ptrace.kill(self.pid)
        self._mode, self._is_killed = _Mode.RUN, True  # to its end

    def detach(self) -> None:
        if not self._attached:
            return
        self._attached = False
        with suppress(DebugError):  # it has ended
            while self._mode is not _Mode.STILL:
                self.interrupt()
                self._wait()
            if self._gone is None or self._where is Where.ENDED:
                self._let_go()

    def let_go_held(self) -> None:
        """For restore(): detaches, and the run loop waits for no other debugger any more."""
        self._holds = True
        self.detach()

    # ---- the thread goes on, and stops

    def _need_still(self) -> None:
        if self._gone:
            raise ptrace.Gone(f"process {self.pid}: the guest has ended")
        if self._mode is not _Mode.STILL:
            raise DebugError("the guest runs: it must be stopped for that")

    def _start(self, mode: _Mode) -> None:
        if self._is_dirty:
            self._vcpu.put(self._registers)
            self._is_dirty = False
            if mode is not _Mode.RUN:
                self._vcpu.synchronise()
        if mode in (_Mode.STEP, _Mode.OVER):
            rip = self._registers.general["rip"]
            if rip in self._soft:
                self._lifted = rip
                ptrace.poke(self._tid, self._guest.memory_hva + rip, bytes([self._soft[rip]]))
            self._set_debug(DEBUG_SINGLESTEP, but_not=rip)
        self._mode, self._shown = mode, None
        self._go_on()

    def _go_on(self, number: int = 0) -> None:
        """Lets the thread run as the mode wants it."""
        to_syscall = self._settling or self._leaving
        if (
            self._asked and not to_syscall
        ):  # the stop for an earlier request may have been that of a call of ours
            ptrace.interrupt(self._tid)
        self._vcpu.go_on(number, to_syscall=to_syscall or self._mode is _Mode.OUT)

    def _wait(self) -> Stop | Ended:
        while True:
            status = self._next(block=True)
            if status is not None and (stop := self._took(status)) is not None:
                return stop

    def _next(self, *, block: bool) -> ptrace.Status | None:
        try:
            return ptrace.wait(self._tid, block=block)
        except ptrace.Gone:
            return ptrace.Status(self._tid)

    def _took(self, status: ptrace.Status) -> Stop | Ended | None:
        """Deals with a stop of the thread. None: it goes on, and the debugger need not know."""
        if status.ended:
            self._mode, self._where = _Mode.STILL, Where.ENDED
            self._gone = Ended(None if status.killed_by else status.code, status.killed_by)
            return self._gone
        try:
            if self._repair:
                if status.event != ptrace.EVENT_STOP:  # the run loop tells, or a signal comes: as without us
                    ptrace.cont(self._tid, 0 if status.event else status.stop)
                    return None
                repair, self._repair = self._repair, None
                repair(self._vcpu)
            return self._deal_with(status)
        except ptrace.Gone:  # it was killed at this moment: the next wait tells how
            return None

    def _deal_with(self, status: ptrace.Status) -> Stop | None:
        if status.event == ptrace.EVENT_STOP:
            if self._asked:
                return self._interrupted()
            if status.stop in _GROUP_STOPS:
                ptrace.listen(self._tid)
            else:
                self._go_on()
        elif status.event:
            self._go_on()
        elif status.stop == SYSCALL_STOP:
            return self._at_system_call()
        elif status.stop == signal.SIGURG and self._shared.told() in (lib.TOLD_EXIT, lib.TOLD_END):
            return self._told()
        else:
            self._go_on(status.stop)
        return None

    def _interrupted(self) -> Stop | None:
        """The thread has stopped because it was asked to. It may stand anywhere.

        An exit that the run loop is about to tell of must be told first, or it would end the run once we are away. A
        handler that computes is given the time to come back to KVM_RUN, or to its next system call.
        """
        thread = self._vcpu.thread_registers()
        in_run = self._vcpu.is_in_run(thread)
        if in_run and thread["rax"] == _EINTR:
            self._hold()
            self._end_step()
            return self._stopped(Where.GUEST, Stop(signal.SIGINT))
        if self._has_ended() and self._shared.told() == lib.TOLD_END:
            return self._stopped(Where.ENDED, Stop(signal.SIGINT))
        self._hold()
        if self._shared.told() == lib.TOLD_EXIT:
            return self._told(waits_for_answer=False)
        waits = thread["orig_rax"] >> 63 == 0 and not in_run
        is_untold = self._vcpu.exit_reason not in (EXIT_UNKNOWN, EXIT_IO, EXIT_INTR)
        if is_untold and self._shared.is_held():
            self._vcpu.go_on()
            return None
        if not is_untold:
            self._end_step()
            if self._settled or waits:
                return self._stopped(Where.HYPERCALL, Stop(signal.SIGINT))
            self._settled = True
        self._settling = True
        self._go_on()
        return None

    def _at_system_call(self) -> Stop | None:
        """A system call begins or ends, where that was asked for."""
        thread = self._vcpu.thread_registers()
        if self._leaving:
            self._leaving = False
            self._registers = self._vcpu.end_leave()
            return self._stopped(
                Where.GUEST, Stop(signal.SIGINT if self._asked else signal.SIGTRAP), known=True
            )
        begins = thread["rax"] == _ENOSYS
        if begins and self._vcpu.is_in_run(thread):
            self._leave_guest()
        elif begins and self._settling:  # a call of a handler that may wait
            self._settling = False
            ptrace.interrupt(self._tid)
            self._vcpu.go_on()
        else:
            self._go_on()
        return None

    def _leave_guest(self) -> None:
        """The thread is at the beginning of KVM_RUN, which shall return immediately."""
        self._settling, self._leaving = False, True
        self._hold()
        self._vcpu.prepare_leave()
        self._go_on()

    def _told(self, *, waits_for_answer: bool = True) -> Stop | None:
        """The run loop tells of an exit or of the end. The signal by which it does goes no further.

        waits_for_answer: it stands in that signal. Else it may have gone on already, because nobody was there.
        """
        if self._shared.told() == lib.TOLD_END:
            if self._where is Where.ENDED:
                self._go_on()
                return None
            return self._stopped(Where.ENDED, Stop(signal.SIGINT if self._ended_well() else signal.SIGABRT))
        reason, dr6 = self._vcpu.exit_reason, self._vcpu.debug_exit()
        if reason not in (
            EXIT_HLT,
            EXIT_DEBUG,
        ):  # a debugger that was killed has dealt with it, or the run loop has
            self._shared.answer(lib.TOLD_NOTHING)
            self._go_on()
            return None
        self._registers = self._vcpu.synchronise()
        if reason == EXIT_HLT and self._is_own_halt():
            if waits_for_answer:
                self._end_step()
                self._shared.answer(lib.TOLD_REFUSED)
                self._change_rip(1)
                self._vcpu.forget_exit()
            self._vcpu.go_on()  # to the end of the run, or to the same exit again
            return None
        self._vcpu.forget_exit()
        stop = self._breakpoint() if reason == EXIT_HLT else self._debug_exit(dr6)
        self._shared.answer(lib.TOLD_NOTHING)
        if stop is None:
            self._go_on()
            return None
        return self._stopped(Where.GUEST, stop, known=True)

    def _is_own_halt(self) -> bool:
        """Whether the guest itself has the HLT that it executed. RIP is at it again."""
        rip = self._registers.general["rip"]
        return (rip not in self._soft or rip == self._lifted) and self.read(rip, 1) == _HLT

    def _change_rip(self, by: int) -> None:
        general = self._registers.general
        self._vcpu.put(replace(self._registers, general=general | {"rip": general["rip"] + by}))
        self._registers = self._vcpu.synchronise()

    def _breakpoint(self) -> Stop | None:
        """The guest has come to a breakpoint. None: to one that is not there any more."""
        self._end_step()
        is_one = self._registers.general["rip"] in self._soft
        return Stop(signal.SIGTRAP, Watch.SOFTWARE) if is_one else None

    def _debug_exit(self, dr6: int) -> Stop | None:
        """A step is done, or a hardware breakpoint was hit. None: the guest goes on."""
        mode = self._mode
        self._end_step()
        for number, (kind, address, _) in enumerate(self._hard):
            if dr6 >> number & 1:
                return Stop(signal.SIGTRAP, kind, 0 if kind is Watch.HARDWARE else address)
        if mode is _Mode.STEP:
            return Stop(signal.SIGTRAP)
        if mode is _Mode.OVER:
            self._mode = _Mode.RUN
        return None

    def _stopped(self, where: Where, stop: Stop, *, known: bool = False) -> Stop:
        if not known:
            rip = self._vcpu.rip() if where is Where.ENDED else None
            self._registers = self._vcpu.synchronise()
            if rip is not None and rip != self._registers.general["rip"]:
                self._change_rip(rip - self._registers.general["rip"])  # the run loop is still to report it
        if where is Where.GUEST and self.read(self._registers.general["rip"], 1) == _RET:
            general = self._out_of_gate(self._registers.general)
            self._is_dirty = general != self._registers.general
            self._registers = replace(self._registers, general=general)
        self._mode, self._where, self._shown = _Mode.STILL, where, None
        self._asked = self._settling = self._settled = False
        return stop

    def _out_of_gate(self, general: dict[str, int]) -> dict[str, int]:
        rip, rsp = out_of_gate(general["rip"], general["rsp"], self.read)
        return general | {"rip": rip, "rsp": rsp}

    def _has_ended(self) -> bool:
        return self._shared.event_kind() in ENDED_KINDS

    def _ended_well(self) -> bool:
        return has_ended_well(self._shared.read(), self._guest.backend)

    def _hold(self) -> None:
        """From now on the run loop tells of breakpoints, and waits if we are killed."""
        if self._journal and not self._holds:
            self._shared.hold(True)
            self._holds = True

    # ---- the guest's text, and its debug registers

    def _note(self, gpa: int, original: int) -> None:
        if self._journal:
            self._journal.note(self._guest.memory_hva + gpa, bytes([original]))
        self._soft[gpa] = original

    def _poke(self, gpa: int, byte: int) -> None:
        ptrace.poke(self._tid, self._guest.memory_hva + gpa, bytes([byte]))

    def _set_debug(self, step: int = 0, but_not: int = -1) -> None:
        """Sets the vCPU's debug registers, without a breakpoint at `but_not`. step: DEBUG_SINGLESTEP or 0."""
        registers = [0] * 8
        for number, (kind, at, length) in enumerate(self._hard):
            if kind is not Watch.HARDWARE or at != but_not:
                registers[number] = at
                registers[7] |= _DR7_EXACT | dr7(number, kind, length, DR7_GLOBAL)
        control = step | (DEBUG_USE_HW if registers[7] else 0)
        if control and self._journal:
            self._journal.debug_registers(True)
        if control or self._uses_debug:
            self._vcpu.set_guest_debug(control | DEBUG_ENABLE if control else 0, registers)
        self._uses_debug = bool(control)
        if not control and self._journal:
            self._journal.debug_registers(False)

    def _end_step(self) -> None:
        if self._mode not in (_Mode.STEP, _Mode.OVER):
            return
        self._set_debug()
        if self._lifted >= 0:
            self._poke(self._lifted, _HLT[0])
            self._lifted = -1

    def _let_go(self) -> None:
        for gpa in list(self._soft):
            self.remove(Watch.SOFTWARE, gpa, 1)
        self._hard.clear()
        self._set_debug()
        if self._is_dirty:
            self._vcpu.put(self._registers)
        if self._holds:
            self._shared.hold(False)
        self._vcpu.detach()


def _hardware(kind: Watch, gpa: int, length: int) -> tuple[Watch, int, int]:
    return (kind, gpa, 1 if kind is Watch.HARDWARE else length)


def _check_values(registers: Registers) -> None:
    """Raises DebugError for values with which KVM would not enter the guest. Source: Intel SDM volume 3, 27.3.1."""
    for name in ("rip", "fs_base", "gs_base"):
        top = getattr(registers, name) >> 47
        if top not in (0, (1 << 17) - 1):
            raise DebugError(f"{name} {getattr(registers, name):#x}: not an address of this processor")
    if registers.rflags & _RFLAGS_VM:
        raise DebugError(f"rflags {registers.rflags:#x}: a guest has no virtual 8086 mode")


def restore(guest: Guest, journal: Journal) -> None:
    """Puts back what a debugger that was killed has changed: guard.py calls it."""

    def repair(vcpu: Vcpu) -> None:
        lent = journal.lent_registers
        if lent:
            vcpu.give_back(unpacked(lent[1]))
        for address, original in journal.changes():
            ptrace.poke(guest.tid, address, original)
        if journal.uses_debug_registers:
            vcpu.set_guest_debug(0)

    KvmTarget(guest, repair=repair).let_go_held()
