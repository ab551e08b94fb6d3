"""Looks into a guest of the library, from the process that holds its Vm.

    sandbox        the process is looked into from outside, as `tender debug` does
    KVM, runs      another process does that and brings a core: a thread cannot trace its own process
    KVM, else      the processor's state and memory are this process's own

The guest stands still meanwhile, and goes on as if nobody had looked.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import EBUSY, ENODATA, EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tender.debug.core import CoreFile
from tender.debug.core_format import MEMORY_START, PAGE, XCR0_OFFSET
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.facts import Shared
from tender.debug.find import Guest, guests_of, program_of
from tender.debug.kvm_memory import out_of_gate
from tender.debug.kvm_vcpu import EXIT_IO, Vcpu
from tender.debug.memory_use import MemoryUse, heap_use, probe_of, touched_bytes
from tender.debug.ptrace import read_memory
from tender.debug.registers import Registers
from tender.debug.report import capture
from tender.debug.symbols import Frame, Symbol, Symbols
from tender.debug.target import DebugError, Facts, GuestState, Mapping, Where
from tender.debug.trace import POLL_S, Hypercall, Ring, recorded
from tender.debug.unfinished import Call, unfinished_of
from tender.errors import ConfigError, HostError, ImageError
from tender.native import CData, ffi, lib

if TYPE_CHECKING:
    from tender.vm import Vm

T = TypeVar("T")

_PR_SET_PTRACER = 0x59616D61
_LIMIT_S = 300
_GPR = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_RAX, _RDX = 0, 2
_FS, _GS = 4, 5
_BOOT_INFO_END = 0x14000
_FIRST_SEGMENT = 0x100000


def look_into(vm: "Vm", visit: Callable[[GuestState], T]) -> T:
    """Returns what `visit` returns of the guest, which stands still meanwhile.

    Raises DebugError: the guest cannot be looked into. VmStateError: the VM is closed.
    """
    if vm.backend == "sandbox":
        return _of_process(vm, visit)
    state = ffi.new("struct cpu_state *")
    answer = 0
    for _ in range(3):  # it may begin or end meanwhile
        answer = lib.tn_cpu_state(vm._handle, lib.CPU_ALL, state)
        if not answer:
            return visit(_Still(vm, state))
        if answer != -EBUSY:
            break
        with _CoreFromOutside(vm) as core:
            if core is not None:
                return visit(core)
    vm._checked(0 if answer in (-ENODATA, -EOPNOTSUPP, -EBUSY) else answer)
    raise DebugError("the guest cannot be looked into: it is not at a place where its registers are known")


def _of_process(vm: "Vm", visit: Callable[[GuestState], T]) -> T:
    from tender.debug.attach import looking_at

    pid = vm.pid
    if pid < 0:
        raise DebugError("the guest's process is gone, and the guest's state with it", code="debug-gone")
    for guest in guests_of(pid):
        with looking_at(guest) as target:
            return visit(target)
    raise DebugError(f"process {pid}: it has no guest yet", code="debug-gone")


# ---- KVM, from another process


class _CoreFromOutside:
    """The core of a VM of this process that another process has made; None: that process found no running guest."""

    def __init__(self, vm: "Vm") -> None:
        self._file = os.memfd_create("tender-core", os.MFD_CLOEXEC)
        self._core: CoreFile | None = None
        try:
            self._make(int(ffi.cast("uintptr_t", lib.tn_vm(vm._handle))))
        except BaseException:
            os.close(self._file)
            raise

    def _make(self, address: int) -> None:
        words = (str(os.getpid()), str(address), str(self._file))
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tender", "core", "of-vm", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(self._file,),
        )
        try:
            # Where yama lets a process be traced by its parents alone, it may be traced by this child too.
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(child.pid), 0, 0, 0)
            _, said = child.communicate(b"g", timeout=_LIMIT_S)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, 0, 0, 0, 0)
        if child.returncode == 0:
            self._core = CoreFile(f"/proc/self/fd/{self._file}")
        elif child.returncode != _NOT_RUNNING:
            lines = said.decode("utf-8", "replace").splitlines() or [
                "the process that looks into it was killed"
            ]
            hints = [line.partition("hint: ")[2] for line in lines if "hint: " in line]
            raise DebugError(lines[0].removeprefix("tender: "), hint=hints[0] if hints else "")

    def __enter__(self) -> CoreFile | None:
        return self._core

    def __exit__(self, *_: object) -> None:
        if self._core is not None:
            self._core.close()
        os.close(self._file)


_NOT_RUNNING = 3


def serve(argv: list[str]) -> int:
    """The other process: `tender core of-vm PID ADDRESS FD` writes a core into FD. Raises TenderError."""
    from tender.debug.attach import looking_at
    from tender.debug.core import write_core

    pid, address, file = map(int, argv)
    if not os.read(0, 1):
        return 1
    for guest in guests_of(pid):
        if guest.values.get("vm") == address and guest.tid:
            with looking_at(guest) as target:
                write_core(target, file, resume=target.detach)
            return 0
    return _NOT_RUNNING


# ---- KVM, while it does not run


def backtrace(vm: "Vm") -> tuple[Frame, ...]:
    """Returns the guest's stack. Memory is copied while the guest stands still, and unwound afterwards."""
    copied = look_into(vm, capture)
    try:
        symbols = Symbols.open(vm.image_name)
    except ImageError:
        return (Frame(pc=copied.registers().rip),)
    try:
        return tuple(symbols.backtrace(copied.registers(), copied.read))
    finally:
        symbols.close()


def hypercalls(vm: "Vm") -> Iterator[Hypercall]:
    """Switches the recording on, and returns the calls from now on until the end of the run.

    Raises DebugError: hypercalls cannot be recorded.
    """
    ring = Ring(_own_view(vm))
    ring.switch_on()
    return _calls(vm, ring)


def _calls(vm: "Vm", ring: Ring) -> Iterator[Hypercall]:
    try:
        while not vm._closed:
            is_last = vm._state == "ended"
            calls = ring.take()
            yield from calls
            if is_last:
                return
            if not calls:
                time.sleep(POLL_S)
    finally:
        with suppress(DebugError):
            ring.switch_off()


def _own_view(vm: "Vm") -> Guest:
    """Returns the guest as this process sees it: its shared memory is mapped here too, and stays after the guest's end."""
    program = program_of(os.getpid())
    pid = os.getpid()
    address = int(ffi.cast("uintptr_t", lib.tn_vm(vm._handle)))
    for note, base in program.notes if program else ():
        shared = read_memory(pid, address + note["vm_shared"], 8)
        return Guest(
            backend=str(vm.backend),
            pid=pid,
            tid=0,
            holder=pid,
            image="",
            mem_bytes=vm.config.mem_bytes,
            memory_hva=0,
            shared_hva=int.from_bytes(shared, "little"),
            note={**note, "trace": note.get("sandbox_trace", 0)},
            base=base,
            values={"vm": address},
        )
    raise DebugError("the library finds no debug note of its own")


def symbol(vm: "Vm", name: str) -> Symbol | None:
    """Returns the symbol of the VM's image. Raises ImageError: there is no such file."""
    symbols = Symbols.open(vm.image_name)
    try:
        return symbols.find(name)
    finally:
        symbols.close()


def memory_use(vm: "Vm") -> MemoryUse:
    """Returns the use of the guest's memory. The guest goes on meanwhile.

    Raises DebugError: the guest's process is gone, or it cannot be looked into.
    """
    pid, address = vm.pid, int(ffi.cast("uintptr_t", lib.tn_vm(vm._handle)))
    found = guests_of(pid) if pid > 0 else []
    guest = next((it for it in found if it.values.get("vm", address) == address), None)
    if guest is None:
        raise DebugError("the guest's process is gone, and the guest's state with it", code="debug-gone")

    def read(gpa: int, length: int) -> bytes:
        try:
            return vm.memory(gpa, min(length, vm.config.mem_bytes - gpa))
        except (ConfigError, HostError):
            return b""

    probe = probe_of(vm.image_name)
    return MemoryUse(
        total_bytes=vm.config.mem_bytes,
        touched_bytes=touched_bytes(guest),
        heap=heap_use(probe, read, running=True) if probe else None,
    )


class _Still:
    """A guest on KVM that does not run, as a GuestState."""

    def __init__(self, vm: "Vm", state: CData) -> None:
        self._vm, self._state = vm, state

    def facts(self) -> Facts:
        """Returns what the Vm knows."""
        from tender import __version__

        vm, result = self._vm, self._vm._result
        fault = _fault(result)
        if fault and fault.get("rip") == int(self._state.general.rip):  # in a hypercall: as registers()
            fault["rip"] = self.registers().rip
        image = os.path.realpath(vm.image_name)
        return Facts(
            version=__version__,
            backend=str(vm.backend),
            pid=os.getpid(),
            image=image if os.path.exists(image) else "",
            arguments=" ".join(vm.config.args),
            mem_bytes=vm.config.mem_bytes,
            reason="live" if result is None else str(result.reason),
            message="" if result is None else result.message,
            status=None if result is None else result.status,
            fault=fault,
            counters=vm.counters.to_dict(),
            timeline=vm.boot.to_dict(),
            hypercalls=recorded(_own_view(vm)),
        )

    def where(self) -> Where:
        """Returns whether it has ended."""
        return Where.ENDED if self._vm._state == "ended" else Where.GUEST

    def registers(self) -> Registers:
        """Returns the vCPU's registers. In a hypercall they are those after the return from the gate page."""
        general, system, fpu = self._state.general, self._state.system, self._state.fpu
        xsave = bytearray(ffi.buffer(fpu.xsave))
        xsave[XCR0_OFFSET : XCR0_OFFSET + 8] = int(fpu.xcr0).to_bytes(8, "little")
        values = {name: int(general.gpr[i]) for i, name in enumerate(_GPR)}
        values["rip"], values["rsp"] = out_of_gate(int(general.rip), values["rsp"], self.read)
        return Registers(
            **values,
            rflags=int(general.rflags),
            fs_base=int(system.segment[_FS].base),
            gs_base=int(system.segment[_GS].base),
            xsave=bytes(xsave) if self._state.known & lib.CPU_FPU else b"",
        )

    def cpu_parts(self) -> CpuParts:
        """Returns all parts of the processor's state."""
        return CpuParts(
            system=self._part("system", lib.CPU_SYSTEM),
            msrs=self._part("msrs", lib.CPU_MSRS),
            debug=self._part("debug", lib.CPU_DEBUG),
        )

    def _part(self, name: str, part: int) -> bytes:
        return bytes(ffi.buffer(ffi.addressof(self._state, name))) if self._state.known & part else b""

    def unfinished(self) -> Unfinished | None:
        """Returns the hypercall that a stop has ended."""
        address = int(ffi.cast("uintptr_t", lib.tn_vm(self._vm._handle)))
        guest = next((it for it in guests_of(os.getpid()) if it.values.get("vm") == address), None)
        if guest is None or Shared(guest).event_kind() not in (lib.EVENT_STOPPED, lib.EVENT_INTERRUPTED):
            return None
        call = None
        if Vcpu(guest).exit_reason == EXIT_IO:
            gpr = self._state.general.gpr
            call = Call(int(gpr[_RDX]) & 0xFFFF, int(gpr[_RAX]) & 0xFFFFFFFF, waits=True)
        return unfinished_of(guest, address, call, partial(read_memory, os.getpid()), self.read)

    def read(self, gpa: int, length: int) -> bytes:
        """Returns memory."""
        length = min(length, self._vm.config.mem_bytes - gpa)
        return self._vm.memory(gpa, length) if gpa >= 0 and length > 0 else b""

    def mappings(self) -> Sequence[Mapping]:
        """Returns memory: boot info, the image's segments, and the rest."""
        elf = self._vm._machine._of_plan[0].c
        found, at = [Mapping(MEMORY_START, _BOOT_INFO_END, 4)], _FIRST_SEGMENT
        for i in range(elf.segment_count):
            it = elf.segments[i]
            start, end = int(it.start), -(-int(it.end) // PAGE) * PAGE
            if start > at:
                found.append(Mapping(at, start, 6))
            found.append(Mapping(max(start, at), end, int(it.flags) & 7))
            at = end
        found.append(Mapping(at, self._vm.config.mem_bytes, 6))
        return [it for it in found if it.start < it.end]

    def touched(self) -> Sequence[tuple[int, int]]:
        """Returns all of it: what holds zeros becomes no part of a core."""
        return [(it.start, it.end) for it in self.mappings()]


def _fault(result: object) -> dict[str, object] | None:
    trap = getattr(result, "trap", None) or getattr(result, "fault", None)
    return None if trap is None else dict(trap.to_dict())
