"""How a run ended: the reason, the statuses, what was counted, and when each step was reached."""

from tender.errors import GuestFailed
from tender.values import Value


class ExitReason:
    """Why a VM ended; the values are strings, stable, and stand in `--json` as they are."""

    EXIT = "exit"  # the guest halted with a status below 255
    ABORT = "abort"  # the guest halted with 255: it aborted, or trapped and said so
    STOPPED = "stopped"  # stop() was called
    TIMEOUT = "timeout"  # the time given to run() was over
    SIGNAL = "signal"  # the command line only: SIGINT or SIGTERM
    TRANSLATION_FAULT = "translation-fault"  # a write to a page that is not writable below the guest
    BAD_PORT = "bad-port"
    BAD_HYPERCALL = "bad-hypercall"
    BAD_ACCESS = "bad-access"  # a hypercall named memory that the guest may not name
    UNHANDLED_EXIT = "unhandled-exit"  # triple fault, HLT, MMIO, ...
    ENTRY_FAILURE = "entry-failure"
    INTERNAL_ERROR = "internal-error"
    HOST_ERROR = "host-error"


class Trap(Value):
    """What a guest that trapped left in its halt cookie."""

    __slots__ = ("cr2", "error_code", "rip", "cs", "rflags", "rsp", "ss")
    cr2: int
    error_code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int

    def __init__(
        self, *, cr2: int, error_code: int, rip: int, cs: int, rflags: int, rsp: int, ss: int
    ) -> None:
        self._set(cr2=cr2, error_code=error_code, rip=rip, cs=cs, rflags=rflags, rsp=rsp, ss=ss)


class BootTimeline(Value):
    """When each step was reached: CLOCK_MONOTONIC nanoseconds, 0 for a step that was not.

    start: the Vm was asked for; vm_created: KVM has the VM, its memory and its vCPU; first_run: just before
    the first KVM_RUN; first_exit: the first exit to the monitor; first_console: the guest's first console
    byte was written; guest_exit: the run ended.
    """

    __slots__ = ("start", "vm_created", "first_run", "first_exit", "first_console", "guest_exit")
    start: int
    vm_created: int
    first_run: int
    first_exit: int
    first_console: int
    guest_exit: int

    def __init__(self, **stamps_ns: int) -> None:
        self._set(**stamps_ns)

    def since_start_ms(self, step: str) -> float | None:
        """Milliseconds from `start` to `step` (a field's name), None if it was not reached."""
        stamp = getattr(self, step)
        return (stamp - self.start) / 1e6 if stamp else None


class Counters(Value):
    """What was counted: hypercalls by name, exits, packets, bytes."""

    __slots__ = (
        "exits",
        "hypercalls",
        "console_bytes",
        "console_lost_bytes",
        "net_rx_packets",
        "net_rx_bytes",
        "net_tx_packets",
        "net_tx_bytes",
        "net_tx_drops",
        "net_rx_errors",
        "block_reads",
        "block_read_bytes",
        "block_writes",
        "block_write_bytes",
        "block_errors",
    )
    exits: int
    hypercalls: dict[str, int]
    console_bytes: int
    console_lost_bytes: int
    net_rx_packets: int
    net_rx_bytes: int
    net_tx_packets: int
    net_tx_bytes: int
    net_tx_drops: int
    net_rx_errors: int
    block_reads: int
    block_read_bytes: int
    block_writes: int
    block_write_bytes: int
    block_errors: int

    def __init__(self, **counts: "int | dict[str, int]") -> None:
        self._set(**counts)

    def __hash__(self) -> int:
        return hash(repr(self))


class VmResult(Value):
    """How a run ended.

    reason   one of ExitReason
    status   what the command line exits with: the guest's status (0..255), or 1 for every other end
    guest_status  the guest's own exit status as it gave it (signed 32-bit), None if it did not halt
    message  one line for a person, empty for an ordinary exit; the contract's words
    trap     registers the guest left behind when it trapped, else None
    console  the captured console bytes with console=CAPTURE, else None
    """

    __slots__ = ("reason", "status", "guest_status", "message", "trap", "console", "counters", "boot")
    reason: str
    status: int
    guest_status: int | None
    message: str
    trap: Trap | None
    console: bytes | None
    counters: Counters
    boot: BootTimeline

    def __init__(
        self,
        *,
        reason: str,
        status: int,
        guest_status: int | None,
        message: str,
        trap: Trap | None,
        console: bytes | None,
        counters: Counters,
        boot: BootTimeline,
    ) -> None:
        self._set(
            reason=reason,
            status=status,
            guest_status=guest_status,
            message=message,
            trap=trap,
            console=console,
            counters=counters,
            boot=boot,
        )

    @property
    def ok(self) -> bool:
        """Whether the guest ended by itself with status 0."""
        return self.reason == ExitReason.EXIT and self.status == 0

    def check(self) -> "VmResult":
        """The result itself if ok. Raises GuestFailed, with the last console lines, if not."""
        if self.ok:
            return self
        tail = b"" if self.console is None else b"\n".join(self.console.splitlines()[-10:])
        text = f"guest ended: {self.reason}, status {self.status}"
        if self.message:
            text += f": {self.message}"
        if tail:
            text += "\n" + tail.decode("utf-8", "replace")
        raise GuestFailed(text, self)
