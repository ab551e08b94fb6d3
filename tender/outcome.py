"""What a run left behind, as values: its last event becomes a VmResult, and shared words become counters and times."""

from typing import Any

from tender.annotations import Backend, IsolationLayer
from tender.native import CData, ffi, lib
from tender.result import BootTimeline, Counters, ExitReason, GuestFault, Trap, VmResult

_NAMES = [lib.tn_hypercall_name(number) for number in range(32)]
_HYPERCALLS = {number: ffi.string(name).decode() for number, name in enumerate(_NAMES) if name}
COUNTED = (
    "exits",
    *("",) * len(_NAMES),  # hypercalls, by number
    *(name for name in Counters.__slots__ if name not in ("exits", "hypercalls", "net_ring_packets")),
)
"""struct vm_counters, one name for each word (a test compares). All are read at once: one by one costs more than a boot."""
_REASONS = {str(reason): reason for reason in ExitReason}  # a call of the class costs ten times as much
_FIRST_HYPERCALL = COUNTED.index("")


def result(
    event: CData,
    *,
    backend: Backend,
    isolation: tuple[IsolationLayer, ...],
    timed_out: bool,
    told: int,
    console: bytes | None,
    counters: Counters,
    boot: BootTimeline,
) -> VmResult:
    """Returns the VmResult of an event that ends a run."""
    reason, status, message = explain(event, backend, timed_out=timed_out, told=told)
    halted = event.kind == lib.EVENT_HALT
    trap = None
    if halted and event.cookie_valid:
        trap = Trap(**{name: int(getattr(event.trap, name)) for name in Trap.__slots__})
    return VmResult(
        reason=reason,
        status=status,
        guest_status=int(event.status) if halted else None,
        message=message,
        trap=trap,
        console=console,
        counters=counters,
        boot=boot,
        backend=backend,
        fault=guest_fault(event) if event.registers_valid else None,
        isolation=isolation,
    )


def explain(
    event: CData, backend: str, *, timed_out: bool = False, told: int = lib.TOLD_LIBRARY
) -> tuple[ExitReason, int, str]:
    """Returns reason, status and message of an event that ends a run. `told` says in whose words a way out is."""
    end = ffi.new("struct exit_report *")
    lib.tn_exit_report_fill(event, backend.encode(), timed_out, told, end)
    message = ffi.string(end.message).decode("utf-8", "replace")
    return _REASONS[ffi.string(end.reason).decode()], int(end.status), message


def counters(shared: CData, *, console_lost_bytes: int) -> Counters:
    """Returns what a `struct vm_shared *` counts, and the console bytes that Python lost."""
    c, ring = _numbers(shared, "counters"), _numbers(shared, "ring_counters")
    values: dict[str, Any] = {
        name: mine + its for name, mine, its in zip(COUNTED, c, ring, strict=True) if name
    }
    values["net_ring_packets"] = ring[COUNTED.index("net_rx_packets")] + ring[COUNTED.index("net_tx_packets")]
    values["hypercalls"] = {name: c[_FIRST_HYPERCALL + number] for number, name in _HYPERCALLS.items()}
    values["console_lost_bytes"] = c[COUNTED.index("console_lost_bytes")] + console_lost_bytes
    return Counters(**values)


def boot(shared: CData, *, start: int, vm_created: int) -> BootTimeline:
    """Returns the steps in a `struct vm_shared *`, after the monitor's own."""
    first_run, first_exit, first_console, guest_exit = _numbers(shared, "timeline")
    return BootTimeline(
        start=start,
        vm_created=vm_created,
        first_run=first_run,
        first_exit=first_exit,
        first_console=first_console,
        guest_exit=guest_exit,
    )


def _numbers(shared: CData, name: str) -> list[int]:
    """Returns the numbers of a member of struct vm_shared that consists of 64-bit words."""
    member = ffi.addressof(shared, name)
    words: list[int] = ffi.unpack(ffi.cast("uint64_t *", member), ffi.sizeof(member[0]) // 8)
    return words


_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


def guest_fault(event: CData) -> GuestFault:
    """Returns where the guest stood, of an event whose registers are valid."""
    c = event.registers
    values = {name: int(c.gpr[i]) for i, name in enumerate(_REGISTERS)}
    values.update((f"r{i}", int(c.gpr[i])) for i in range(8, 16))
    values.update(rflags=int(c.rflags), cr2=int(c.cr2), fs_base=int(c.fs_base))
    code = bytes(ffi.buffer(event.instruction))[: event.instruction_bytes]
    return GuestFault(rip=int(event.rip), instruction=code.hex(" "), registers=values)
