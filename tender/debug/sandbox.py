"""A guest in the sandbox, as a debugger's target: one thread of one process, whose addresses are the guest's.

The guest's code is ring-3 code of the process, so its registers are those of the thread, a breakpoint is an int3 in its text
(the kernel copies that page for this process only), and a step is a step. What differs from an ordinary program:

    hypercall       a jump into the program of the sandbox, by a trampoline or the gate. It is one step.
    #GP, #UD        of privileged instructions: the program emulates them by a signal handler. They are no stops.
    patched sites   memory shows the call sites of hypercalls as the image has them.
    its end         the program's function end_run(), or, for the command's own process, the exit of the process.

Inside a hypercall the guest's registers are found by unwinding the program: sandbox_registers.py. All that is read here is
in the power of the guest, which can write to the program's memory: nothing that is read is used as more than a number.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum, auto
from time import sleep

from tender.debug import ptrace
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.facts import ENDED_KINDS, Shared, facts_of, has_ended_well
from tender.debug.find import Guest
from tender.debug.guard import Journal
from tender.debug.ptrace import Gone, Status
from tender.debug.registers import GENERAL, Registers
from tender.debug.sandbox_debug_registers import DebugRegisters, hardware_watch
from tender.debug.sandbox_memory import LOW_END, MEMORY_START, PatchedSites, mappings_of, touched_of
from tender.debug.sandbox_registers import Unwinder
from tender.debug.sandbox_restore import HANDLER_BEGINS, SI_KERNEL
from tender.debug.sandbox_restore import restore as restore  # guard.py calls it
from tender.debug.sandbox_system import SystemState, before_start, unfinished
from tender.debug.target import DebugError, Ended, Facts, Mapping, Stop, Target, Watch, Where
from tender.debug.x86 import TRAP_FLAG, is_emulated
from tender.native import lib

GUEST_END = 1 << 32
"""No address of the program lies below it, and none of the guest's above."""

_INT3, _JUMP = b"\xcc", b"\xe9"
_PUSHF = b"\x9c"
_RESUME_FLAG = 0x10000
_FLAGS_SETTABLE = 0x240CD5  # ID AC OF DF SF ZF AF PF CF; Intel SDM volume 1, 3.4.3
_ADDRESS_MAX = 1 << 47
_ENTRY_STEPS = 64  # enter_guest() has about 30 instructions, a way into the program 3
_TRAP_BRKPT, _TRAP_TRACE, _TRAP_HWBKPT = 1, 2, 4  # asm-generic/siginfo.h
_BUS_ADRALN = 1
_HANDLER_TRIES, _HANDLER_S = 100, 0.001
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FAULTS = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS)


class _Mode(Enum):
    """What is done between a resume() or a step() and the next stop."""

    RUN = auto()
    STEP = auto()
    """One instruction of the guest, then a stop."""
    OVER = auto()
    """One instruction without the breakpoint that lies on it, then RUN."""


class SandboxTarget(Target):
    """A guest in a process of tender-sandbox.

    Args:
        guest: The guest.
        journal: Where changes are noted for the guard. None: nothing is changed, so it has no breakpoints and no steps.
        seized: Whether this thread traces the guest's already, which stands before the guest's first instruction.

    Raises DebugError: the kernel does not let us.
    """

    def __init__(self, guest: Guest, journal: Journal | None = None, *, seized: bool = False) -> None:
        self.pid = guest.pid
        self._guest, self._journal = guest, journal
        self._tid = guest.tid or guest.pid
        self._shared = Shared(guest)
        self._sites = PatchedSites(self._raw_read)
        self._unwinder = Unwinder(guest)
        self._system = SystemState(guest)
        self._breakpoints: dict[int, bytes] = {}
        self._hardware = DebugRegisters(self._tid, journal)
        self._temporary: tuple[int, bytes] | None = None
        self._lifted: int | None = None
        self._mode = _Mode.RUN
        self._single = False
        self._has_stepped = self._guest_traps = False
        self._before = b""  # the first byte of the instruction that is stepped
        self._running = self._asked = self._is_group_stopped = False
        self._is_leaving = self._told_end = False
        self._pushed: int | None = None  # where PUSHF will store the flags that the kernel steps by
        self._pending = 0  # the signal of the guest's own fault, which is not delivered yet
        self._changed = False
        self._ended: Ended | None = None
        self._queue: Stop | Ended | None = None
        self._end_is_marked, self._end_original = False, b""
        self._is_look = False  # nothing is changed, so that no guard is there to let the thread go
        try:
            self._attach(seized)
        except BaseException:
            if self._is_look:
                ptrace.let_go(self._tid)
            raise

    # ---- the beginning and the end

    def _attach(self, seized: bool) -> None:
        if self._journal is not None:
            self._journal.rewound = 0
            self._journal.guest = self._guest
        if seized:
            ptrace.set_options(self._tid, ptrace.O_TRACEEXIT | ptrace.O_EXITKILL)
        else:
            try:
                ptrace.seize(self._tid, ptrace.O_TRACEEXIT)
            except DebugError:
                if self._journal is not None:
                    self._journal.guest = None
                raise
            self._is_look = self._journal is None
            self._running = True
            ptrace.interrupt(self._tid)
            self._stand_still()
        if self._journal is not None:
            self._leave_handler()
        if self._ended:
            raise Gone(f"process {self.pid}: it has just ended")
        if self._journal is not None:
            self._shared.hold(True)
            self._mark_end()
        self._settle()

    def _stand_still(self) -> None:
        """Waits for the stop that was asked for. Signals that come first are passed on."""
        while True:
            status = self._wait()
            if status.ended or status.event in (ptrace.EVENT_STOP, ptrace.EVENT_EXIT):
                self._running = False
                self._is_leaving = status.event == ptrace.EVENT_EXIT
                self._is_group_stopped = status.event == ptrace.EVENT_STOP and status.stop in _STOPS
                if status.ended:
                    self._has_ended(status)
                return
            if status.stop == signal.SIGTRAP and self._own_trap():
                ptrace.cont(self._tid)
            else:
                ptrace.cont(self._tid, 0 if status.event else status.stop)
            self._ask_again()

    def _ask_again(self) -> None:
        """Any stop takes an earlier interrupt() with it: task_clear_jobctl_pending() in ptrace_stop(), Linux 6.12."""
        with suppress(Gone):
            ptrace.interrupt(self._tid)

    def _leave_handler(self) -> None:
        """Lets a handler end that has begun with a trap of the guest's own: while `held` is set it waits for a guard."""
        for _ in range(_HANDLER_TRIES):
            if self._is_group_stopped or self._is_at_end():
                return
            if self._unwinder.handled(ptrace.getregs(self._tid), signal.SIGTRAP) is None:
                return
            ptrace.cont(self._tid)
            sleep(_HANDLER_S)
            ptrace.interrupt(self._tid)
            self._stand_still()

    def _settle(self) -> None:
        """A thread at a place that no unwind table describes goes on to the next that has one.

        These are: the trampolines and the gate, the first instructions of all, and a jump to the system call.
        """
        for _ in range(_ENTRY_STEPS):
            if not self._is_unsettled(self._rip()) or not self._single_step():
                return

    def _is_unsettled(self, rip: int) -> bool:
        if self._is_low(rip) or self._place("enter_guest") <= rip < self._place("enter_guest_end"):
            return True
        code = ptrace.read_memory(self.pid, rip, 5) if rip >= GUEST_END else b""
        if code[:1] != _JUMP or len(code) < 5:
            return False
        return rip + 5 + int.from_bytes(code[1:], "little", signed=True) == self._place("syscall_instruction")

    def _single_step(self) -> bool:
        """One instruction of the machine, before the debugger is told anything. False: something else has happened."""
        self._step_machine()
        status = self._wait()
        if status.ended:
            self._has_ended(status)
            return False
        self._clear_trap_flag()
        if status.event == ptrace.EVENT_STOP:
            return True  # an interrupt() that has come late
        if status.stop != signal.SIGTRAP or status.event:
            self._pending = 0 if status.event else status.stop
            self._is_leaving = status.event == ptrace.EVENT_EXIT
            return False
        return True

    def kill(self) -> None:
        ptrace.kill(self._tid)

    def detach(self) -> None:
        if self._ended is None:
            with suppress(Gone):
                self._come_to_rest()
                if self._ended is None:
                    self._take_all_out()
                    ptrace.detach(self._tid, self._signal_to_deliver())
                    # Not before: if we are killed, the kernel delivers the trap that the thread stands at.
                    if self._journal is not None:
                        self._shared.hold(False)
        self._ended = self._ended or Ended(None)
        if self._journal is not None and self._journal.guest is not None:
            self._journal.guest = None

    def _come_to_rest(self) -> None:
        if not self._running:
            return
        ptrace.interrupt(self._tid)
        while self._running and self._ended is None:
            status = self._wait()
            self._running = False
            if status.ended:
                self._has_ended(status)
                return
            self._clear_trap_flag()
            if status.event == ptrace.EVENT_STOP and ptrace.has_pending(self._tid, signal.SIGTRAP):
                ptrace.cont(self._tid)
                self._ask_again()
                self._running = True
            elif status.stop == signal.SIGTRAP and not status.event:
                if not self._own_trap() and ptrace.getsiginfo(self._tid).code == SI_KERNEL:
                    self._pending = signal.SIGTRAP
            elif not status.event:
                self._pending = status.stop
        # A stop that is asked for is not lost: it comes right after a detach() as well, and then concerns nobody.

    def _take_all_out(self) -> None:
        self._drop_temporary()
        self._put_lifted()
        self._unmark_end()
        for address in list(self._breakpoints):
            self._take_out(address)
        self._hardware.clear()

    def _mark_end(self) -> None:
        """A process that its holder would kill at the end of the run stops before it reports that."""
        if self._guest.holder != self.pid and not self._is_at_end():
            self._change(self._place("end_run"), _INT3)
            self._end_is_marked = True

    def _unmark_end(self) -> None:
        if self._end_is_marked:
            self._end_is_marked = False
            self._undo(self._place("end_run"), self._end_original)

    # ---- what is known

    def facts(self) -> Facts:
        return facts_of(self._guest, self._shared.read(), self.read)

    def where(self) -> Where:
        if self._is_at_end():
            return Where.ENDED
        return Where.GUEST if self._rip() < GUEST_END else Where.HYPERCALL

    def _is_at_end(self) -> bool:
        return self._is_leaving or self._ended is not None or self._shared.event_kind() in ENDED_KINDS

    def registers(self) -> Registers:
        raw = ptrace.getregs(self._tid)
        if raw["rip"] < GUEST_END:
            general = {name: raw[name] for name in (*GENERAL, "rip", "fs_base", "gs_base")}
            flags = self._system.flags(raw["eflags"] & ~_RESUME_FLAG)
            return Registers(**general, rflags=flags, xsave=self._xsave())
        entered = self._unwinder.guest(raw)
        found = entered.registers
        if self._is_at_end():
            found = self._unwinder.at_end(self._shared.read()) or found
        elif not entered.certain:
            found = before_start(self._guest, self._shared.read()) or found
        return found._with(
            rflags=self._system.flags(found.rflags & ~_RESUME_FLAG),
            fs_base=found.fs_base or raw["fs_base"],
            gs_base=raw["gs_base"],
            xsave=entered.xsave or self._xsave(),
        )

    def cpu_parts(self) -> CpuParts:
        return self._system.parts(self.registers())

    def unfinished(self) -> Unfinished | None:
        raw = ptrace.getregs(self._tid)
        entered = self._unwinder.guest(raw) if raw["rip"] >= GUEST_END else None
        return unfinished(self._guest, entered, self._shared.read(), self.read)

    def stack_registers(self) -> Registers:
        raw = ptrace.getregs(self._tid)
        if raw["rip"] >= GUEST_END:
            return self._unwinder.guest(raw).registers
        return Registers(**{name: raw[name] for name in (*GENERAL, "rip")})  # type: ignore[arg-type]

    def set_registers(self, registers: Registers) -> None:
        where = self.where()
        if where != Where.GUEST:
            raise DebugError(
                "the registers cannot be written: "
                + ("the guest is inside a hypercall" if where == Where.HYPERCALL else "the guest has ended")
            )
        if registers.rip >= GUEST_END or max(registers.fs_base, registers.gs_base) >= _ADDRESS_MAX:
            raise DebugError("the registers cannot be written: an address that no guest may have")
        raw = ptrace.getregs(self._tid)
        before = dict(raw)
        for name in (*GENERAL, "rip", "fs_base", "gs_base"):
            raw[name] = getattr(registers, name)
        raw["eflags"] = raw["eflags"] & ~_FLAGS_SETTABLE | registers.rflags & _FLAGS_SETTABLE
        if raw["rip"] != before["rip"]:
            raw["eflags"] &= ~_RESUME_FLAG
            if self._journal is not None:
                self._journal.rewound = raw["rip"]
            if self._pending == signal.SIGTRAP:
                self._pending = 0
        ptrace.setregs(self._tid, raw)
        if registers.xsave and registers.xsave != (now := self._xsave()):
            ptrace.setregset(self._tid, ptrace.NT_X86_XSTATE, registers.xsave + now[len(registers.xsave) :])
        self._changed = True

    def _xsave(self) -> bytes:
        return ptrace.getregset(self._tid, ptrace.NT_X86_XSTATE)

    # ---- memory

    def read(self, gpa: int, length: int) -> bytes:
        data = bytearray(self._raw_read(gpa, length))
        if data:
            for address, original in self._own_bytes():
                if gpa <= address < gpa + len(data):
                    data[address - gpa : address - gpa + 1] = original
            self._sites.show(gpa, data)
        return bytes(data)

    def _own_bytes(self) -> Iterator[tuple[int, bytes]]:
        yield from self._breakpoints.items()
        if self._temporary is not None:
            yield self._temporary

    def _raw_read(self, gpa: int, length: int) -> bytes:
        length = min(length, self._guest.mem_bytes - gpa)
        if gpa < 0 or length <= 0:
            return b""
        return ptrace.read_memory(self.pid, gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        if not data:
            return
        end = gpa + len(data)
        is_low = gpa < LOW_END and end > self._sites.start
        if gpa < MEMORY_START or end > self._guest.mem_bytes or is_low:
            raise DebugError(f"memory at {gpa:#x} cannot be written: it is not all the guest's")
        self._changed = True
        under = {address: byte for address, byte in self._own_bytes() if gpa <= address < end}
        data = bytes(self._sites.replaced(gpa, data, self.read))
        new = bytearray(data)
        for address in under:
            new[address - gpa : address - gpa + 1] = _INT3
        for address in under:
            byte = data[address - gpa : address - gpa + 1]
            if address in self._breakpoints:
                self._breakpoints[address] = byte
            if self._temporary is not None and self._temporary[0] == address:
                self._temporary = (address, byte)
            if self._journal is not None:
                self._journal.note(address, byte)
            if address == self._lifted:
                new[address - gpa : address - gpa + 1] = byte
        try:
            ptrace.write_memory(self.pid, gpa, bytes(new))
        except DebugError:
            ptrace.poke(self._tid, gpa, bytes(new))

    def mappings(self) -> Sequence[Mapping]:
        return mappings_of(self.pid, self._guest.mem_bytes)

    def touched(self) -> Sequence[tuple[int, int]]:
        return touched_of(self.pid, self._guest.mem_bytes, self._raw_read)

    # ---- breakpoints

    def insert(self, kind: Watch, gpa: int, length: int) -> None:
        if not MEMORY_START <= gpa < self._guest.mem_bytes or self._is_low(gpa):
            raise DebugError(f"no breakpoint at {gpa:#x}: the guest has no code or data of its own there")
        if kind == Watch.SOFTWARE:
            self._insert_software(gpa)
        else:
            self._hardware.insert(hardware_watch(kind, gpa, length))

    def _insert_software(self, gpa: int) -> None:
        if gpa in self._breakpoints:
            return
        site = self._sites.inside(gpa)
        if site is not None:
            raise DebugError(
                f"no breakpoint at {gpa:#x}: it lies inside of the hypercall at {site:#x}; set one there"
            )
        original = self._raw_read(gpa, 1)
        if self._temporary is not None and self._temporary[0] == gpa:
            original = self._temporary[1]
        if not original:
            raise DebugError(f"no breakpoint at {gpa:#x}: there is no memory")
        self._change(gpa, _INT3, original)
        self._breakpoints[gpa] = original

    def remove(self, kind: Watch, gpa: int, length: int) -> None:
        if kind == Watch.SOFTWARE:
            if gpa in self._breakpoints:
                self._take_out(gpa)
            return
        self._hardware.remove(hardware_watch(kind, gpa, length))

    def _take_out(self, gpa: int) -> None:
        original = self._breakpoints.pop(gpa)
        if self._temporary is None or self._temporary[0] != gpa:
            self._undo(gpa, original)

    def _change(self, address: int, byte: bytes, original: bytes = b"") -> None:
        if self._journal is None:
            raise DebugError(
                "no breakpoint: nobody would take it out of the guest if this process were killed"
            )
        original = original or ptrace.read_memory(self.pid, address, 1)
        if address == self._place("end_run"):
            self._end_original = original
        with self._journal.changing(address, original):
            ptrace.poke(self._tid, address, byte)

    def _undo(self, address: int, original: bytes) -> None:
        ptrace.poke(self._tid, address, original)
        if self._journal is not None:
            self._journal.drop(address)

    def _set_temporary(self, address: int) -> None:
        self._drop_temporary()
        original = self._breakpoints.get(address) or ptrace.read_memory(self.pid, address, 1)
        if original:
            self._change(address, _INT3, original)
            self._temporary = (address, original)

    def _drop_temporary(self) -> None:
        if self._temporary is not None:
            (address, original), self._temporary = self._temporary, None
            if address not in self._breakpoints:
                self._undo(address, original)

    def _put_lifted(self) -> None:
        address, self._lifted = self._lifted, None
        if address is not None and address in self._breakpoints:
            ptrace.poke(self._tid, address, _INT3)

    # ---- going on

    def resume(self, signal: int = 0) -> None:
        if self._ended is not None:
            self._queue = self._ended
            return
        self._try_to_start(_Mode.RUN)

    def step(self, signal: int = 0) -> Stop | Ended:
        if self._ended is not None:
            return self._ended
        if self._journal is None:
            raise DebugError("no step: nobody would repair the guest if this process were killed")
        self._try_to_start(_Mode.STEP)
        while (what := self._take_queue()) is None:
            what = self._handle(self._wait())
            if what is not None:
                return what
        return what

    def interrupt(self) -> None:
        self._asked = True
        with suppress(Gone):
            ptrace.interrupt(self._tid)

    def poll(self) -> Stop | Ended | None:
        while self._running and self._queue is None:
            try:
                status = ptrace.wait_unconsumed(self._tid, block=False)
            except Gone:
                status = Status(self._tid)
            if status is None:
                return None
            what = self._handle(status)
            if what is not None:
                return what
        return self._take_queue()

    def _take_queue(self) -> Stop | Ended | None:
        what, self._queue = self._queue, None
        return what

    def _try_to_start(self, mode: _Mode) -> None:
        try:
            self._start(mode)
        except Gone:  # killed: wait() tells
            self._running = True

    def _start(self, mode: _Mode) -> None:
        deliver = self._signal_to_deliver()
        self._pending, self._changed, self._asked = 0, False, False
        self._mode, self._single, self._before = mode, False, b""
        rip = self._rip()
        if self._is_leaving or (mode == _Mode.RUN and (self._is_group_stopped or self._is_at_end())):
            self._go(deliver)
            return
        if deliver:
            self._pass_on(deliver)
            return
        if rip >= GUEST_END:
            if mode == _Mode.STEP:
                self._run_to_guest()
            self._go()
            return
        if rip in self._breakpoints:
            self._lifted = rip
            ptrace.poke(self._tid, rip, self._breakpoints[rip])
            if mode == _Mode.RUN:
                self._mode = _Mode.OVER
        self._single = self._mode != _Mode.RUN
        self._before = self._raw_read(rip, 1)
        self._go()

    def _signal_to_deliver(self) -> int:
        """The guest's fault goes to its own handler. After a change by the debugger, the instruction is tried again."""
        return self._pending if self._pending and (not self._changed or self._pending not in _FAULTS) else 0

    def _go(self, number: int = 0) -> None:
        if number == signal.SIGTRAP and self._journal is not None:
            self._shared.answer(lib.TOLD_REFUSED)  # or trap.c would take the guest's int3 for one of ours
        self._drop_push()
        self._running = True
        if self._is_group_stopped and not self._single:
            ptrace.listen(self._tid)
        elif self._single:
            if self._before == _PUSHF:
                self._note_push()
            self._step_machine(number)
        else:
            ptrace.cont(self._tid, number)
            self._has_stepped = False
        if self._journal is not None:
            self._journal.rewound = 0
        if self._asked:
            self._ask_again()

    def _step_machine(self, number: int = 0) -> None:
        if not self._has_stepped:
            self._has_stepped = True
            self._guest_traps = bool(ptrace.getregs(self._tid)["eflags"] & TRAP_FLAG)
        ptrace.step(self._tid, number)

    def _clear_trap_flag(self) -> None:
        """After a step of POPF or IRET the kernel takes the flag that it steps by for the program's own, and leaves it set
        (enable_single_step() of arch/x86/kernel/step.c, Linux 6.12)."""
        if self._has_stepped and not self._guest_traps:
            raw = ptrace.getregs(self._tid)
            if raw["eflags"] & TRAP_FLAG:
                raw["eflags"] &= ~TRAP_FLAG
                ptrace.setregs(self._tid, raw)

    def _run_to_guest(self) -> None:
        """The thread is in the program: it runs until it is back in the guest, for a step."""
        entered = self._unwinder.guest(ptrace.getregs(self._tid))
        self._single = False
        if entered.by_signal:
            self._set_temporary(self._place("signal_return_leaves"))
        elif entered.certain and entered.registers.rip < GUEST_END:
            self._set_temporary(entered.registers.rip)

    def _pass_on(self, number: int) -> None:
        """Delivers a signal to the program. What it emulates is one instruction, and must be read without a breakpoint."""
        if self._mode != _Mode.RUN:
            self._single = False
            self._set_temporary(self._place("signal_return_leaves"))
        self._go(number)

    # ---- what happens

    def _wait(self) -> Status:
        try:
            status = ptrace.wait_unconsumed(self._tid)
        except Gone:
            status = None
        return status or Status(self._tid)

    def _has_ended(self, status: Status) -> Ended:
        self._running = False
        self._ended = Ended(status.code, status.killed_by)
        return self._ended

    def _handle(self, status: Status) -> Stop | Ended | None:
        """Answers what wait() has told. None: the thread runs on."""
        self._running = False
        try:
            if status.ended:
                return self._has_ended(status)
            if status.event == ptrace.EVENT_EXIT:
                return self._leaves()
            self._clear_trap_flag()
            if status.event == ptrace.EVENT_STOP:
                return self._stopped(status)
            if status.event:
                self._go()
                return None
            if status.stop == signal.SIGTRAP:
                return self._trapped()
            return self._signalled(status.stop)
        except Gone:  # killed meanwhile: wait() tells
            self._running = True
            return None

    def _stop(self, stop: Stop) -> Stop:
        self._drop_push()
        self._drop_temporary()
        self._put_lifted()
        self._asked = self._single = False
        self._mode = _Mode.RUN
        return stop

    def _stopped(self, status: Status) -> Stop | Ended | None:
        self._is_group_stopped = status.stop in _STOPS
        if self._asked:
            if ptrace.has_pending(
                self._tid, signal.SIGTRAP
            ):  # a breakpoint was hit meanwhile: that is the stop
                self._go()
                what = self._handle(self._wait())
                if what is None:
                    self.interrupt()
                return what
            stop = self._stop(Stop(signal.SIGINT))
            self._settle()
            return stop
        self._go()
        return None

    def _leaves(self) -> Stop | None:
        """The process is about to exit. Its memory is still there."""
        self._is_leaving = True
        if self._told_end or self._shared.event_kind() not in ENDED_KINDS:
            self._go()
            return None
        return self._stop(self._end())

    def _end(self) -> Stop:
        self._told_end = True
        return Stop(signal.SIGINT if has_ended_well(self._shared.read(), "sandbox") else signal.SIGABRT)

    def _own_trap(self) -> Stop | None:
        """A trap of an int3 that is ours: rip is put back to it."""
        raw = ptrace.getregs(self._tid)
        at = raw["rip"] - 1
        if ptrace.getsiginfo(self._tid).code != SI_KERNEL:
            return None
        is_temporary = self._temporary is not None and self._temporary[0] == at
        is_end = self._end_is_marked and at == self._place("end_run")
        if not is_temporary and not is_end and at not in self._breakpoints:
            return None
        if self._journal is not None:
            self._journal.rewound = at
        ptrace.setregs(self._tid, {**raw, "rip": at})
        return Stop(signal.SIGTRAP, None if is_temporary or is_end else Watch.SOFTWARE)

    def _trapped(self) -> Stop | None:
        stop = self._own_trap()
        if stop is not None:
            return self._at_own_trap(stop)
        code, rip = ptrace.getsiginfo(self._tid).code, self._rip()
        hit = self._hit() if code in (_TRAP_TRACE, _TRAP_HWBKPT, _TRAP_BRKPT) else None
        if hit is not None:
            return self._stop(hit)
        if self._single and code in (_TRAP_TRACE, _TRAP_BRKPT):
            return self._stepped(rip)
        if code == SI_KERNEL and rip < GUEST_END:
            self._pending = signal.SIGTRAP
            return self._stop(Stop(signal.SIGTRAP))
        self._go(signal.SIGTRAP if code > 0 and code != HANDLER_BEGINS else 0)
        return None

    def _at_own_trap(self, stop: Stop) -> Stop | None:
        at = self._rip()
        if self._end_is_marked and at == self._place("end_run"):
            self._unmark_end()
            return self._stop(self._end())
        if self._temporary is None or self._temporary[0] != at:
            return self._stop(stop)
        self._drop_temporary()
        if at < GUEST_END:
            return self._stop(Stop(signal.SIGTRAP))
        # The program's IRETQ is next: after it the guest's next instruction.
        self._put_lifted()
        if self._mode == _Mode.OVER:
            self._mode = _Mode.RUN
        self._single = self._mode == _Mode.STEP
        self._go()
        return None

    def _stepped(self, rip: int) -> Stop | None:
        """The machine has executed one instruction."""
        if rip < GUEST_END and not self._is_low(rip):
            if self._before == _PUSHF:
                self._hide_trap_flag()
            if self._mode == _Mode.STEP:
                return self._stop(Stop(signal.SIGTRAP))
        self._put_lifted()
        if self._mode == _Mode.OVER:
            self._mode, self._single = _Mode.RUN, False
        elif rip >= GUEST_END:
            self._run_to_guest()
        self._go()
        return None

    def _note_push(self) -> None:
        """Notes the flags that PUSHF is about to store, without the flag by which the kernel steps.

        What lies there before belongs to nobody: PUSHF destroys it.
        """
        raw = ptrace.getregs(self._tid)
        self._pushed = raw["rsp"] - 7  # the second byte of eight
        if self._journal is not None and not raw["eflags"] & TRAP_FLAG:
            self._journal.note(self._pushed, bytes([raw["eflags"] >> 8 & 0xFF]))

    def _drop_push(self) -> None:
        if self._pushed is not None and self._journal is not None:
            self._journal.drop(self._pushed)
        self._pushed = None

    def _hide_trap_flag(self) -> None:
        """PUSHF has stored the flag by which the kernel steps."""
        at = ptrace.getregs(self._tid)["rsp"] + 1
        byte = self._raw_read(at, 1)
        if byte and byte[0] & TRAP_FLAG >> 8:
            ptrace.poke(self._tid, at, bytes([byte[0] & ~(TRAP_FLAG >> 8)]))

    def _hit(self) -> Stop | None:
        """Which debug register was hit, if any."""
        it = self._hardware.hit()
        if it is None:
            return None
        return Stop(signal.SIGTRAP, it.kind, 0 if it.kind == Watch.HARDWARE else it.address)

    def _signalled(self, number: int) -> Stop | None:
        """A signal that is about to be delivered."""
        rip = self._rip()
        if number in _FAULTS and rip < GUEST_END and self._is_guests(number, rip):
            self._pending = number
            return self._stop(Stop(number))
        if number in (*_FAULTS, signal.SIGSYS) and rip < GUEST_END:
            self._pass_on(number)
        else:  # a signal of others, or one of the program's own: a step goes on after it
            if self._single and rip < GUEST_END:
                self._pass_on(number)
            else:
                self._go(number)
        return None

    def _is_guests(self, number: int, rip: int) -> bool:
        """Whether a fault goes to the guest's own handler: trap.c emulates others, or ends the run."""
        code = ptrace.getsiginfo(self._tid).code
        if code <= 0:
            return False  # another process has sent it
        if number == signal.SIGFPE:
            return True
        if number == signal.SIGBUS:
            return code != _BUS_ADRALN
        if number == signal.SIGILL and code == SI_KERNEL:
            return False  # uretprobe(2)
        return not is_emulated(self.read(rip, 15))

    # ---- places

    def _rip(self) -> int:
        return ptrace.getregs(self._tid)["rip"]

    def _place(self, name: str) -> int:
        return self._guest.base + self._guest.note[name]

    def _is_low(self, address: int) -> bool:
        """Whether it is in the trampolines or the gate page."""
        return self._sites.start <= address < LOW_END
