"""How a run ended: the reason, the statuses, what was counted, and when each step was reached."""

from tender.annotations import Backend, BootStep, IsolationLayer, Word
from tender.errors import ConfigError, TenderError
from tender.native import lib
from tender.values import Value, value

STATUS_ENDED: int = lib.STATUS_ENDED
"""The status of an end that is not the guest's own halt: a restart would only repeat it, or it was asked for."""
STATUS_HOST_FAILED: int = lib.STATUS_HOST_FAILED
"""The status of a failure of the host or of Tender that no guest caused: a restart may help.

Source: Albatross, which manages unikernels, does not restart one after 1 and 60 to 64, and does after 2.
"""


class ExitReason(Word):
    """Why a VM ended.

    The words are stable. `--json` shows them as they are.
    """

    EXIT = "exit"
    """The guest halted with a status below 255."""
    ABORT = "abort"
    """The guest halted with 255: it aborted, or it trapped and said so."""
    STOPPED = "stopped"
    """`stop()` was called."""
    TIMEOUT = "timeout"
    """The time limit of `run()` or `start()` was over."""
    SIGNAL = "signal"
    """The command got SIGINT or SIGTERM. The library does not have this reason."""
    TRANSLATION_FAULT = "translation-fault"
    """The guest wrote to a page that is not writable below the guest."""
    BAD_PORT = "bad-port"
    """The guest used an I/O port that belongs to no hypercall."""
    BAD_HYPERCALL = "bad-hypercall"
    """The guest made a hypercall that does not exist."""
    BAD_ACCESS = "bad-access"
    """A hypercall named memory that the guest may not name."""
    UNHANDLED_EXIT = "unhandled-exit"
    """The vCPU stopped in another way: a triple fault, HLT, memory-mapped I/O."""
    ENTRY_FAILURE = "entry-failure"
    """KVM could not enter the guest."""
    INTERNAL_ERROR = "internal-error"
    """KVM reported an error of its own."""
    HOST_ERROR = "host-error"
    """A system call of the monitor failed."""
    UNSUPPORTED_INSTRUCTION = "unsupported-instruction"
    """Sandbox only: a privileged instruction that is not among those that are emulated."""
    FORBIDDEN_SYSCALL = "forbidden-syscall"
    """Sandbox only: the guest made a system call of the host's kernel."""
    SANDBOX_FAULT = "sandbox-fault"
    """Sandbox only: a fault in the code of the handlers, or a report that cannot be true."""
    SANDBOX_DIED = "sandbox-died"
    """Sandbox only: the process was killed, by its filter or by the host."""


@value
class GuestFault(Value):
    """Where the guest stood when the sandbox ended it.

    Attributes:
        rip: The guest-physical address of the instruction.
        instruction: The bytes at `rip`, in hexadecimal with a space between two bytes.
        registers: `rax` to `r15`, `rflags`, `cr2` and `fs_base` by name.
    """

    rip: int
    instruction: str
    registers: dict[str, int]


@value
class Trap(Value):
    """The registers that a guest left in its halt cookie when it trapped.

    Source: abi/tender_abi.h, struct hvt_trap_cookie, which is Solo5's.

    Attributes:
        cr2: The address of a page fault.
        error_code: What the processor pushed with the exception.
        rip: The instruction that trapped.
        cs: Its code segment.
        rflags: The flags.
        rsp: The stack pointer.
        ss: The stack segment.
    """

    cr2: int
    error_code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


@value
class BootTimeline(Value):
    """When each step of a boot was reached.

    Each is a time of CLOCK_MONOTONIC in nanoseconds, and 0 for a step that was not reached.

    Attributes:
        start: The Vm was asked for.
        vm_created: KVM has the VM, its memory and its vCPU, or the sandbox's process is started.
        first_run: Just before the guest's first instruction.
        first_exit: The guest's first exit to the monitor.
        first_console: The guest's first console byte was written.
        guest_exit: The run ended.
    """

    start: int
    vm_created: int
    first_run: int
    first_exit: int
    first_console: int
    guest_exit: int

    def since_start_ms(self, step: BootStep) -> float | None:
        """Returns the milliseconds from `start` to a step.

        Args:
            step: The name of a field.

        Returns:
            Milliseconds, or None if the step was not reached.

        Raises:
            ConfigError: `step` is not the name of a field.
        """
        if step not in self.__slots__:
            raise ConfigError(f"since_start_ms: {step!r} is none of {', '.join(self.__slots__)}")
        stamp = getattr(self, step)
        return (stamp - self.start) / 1e6 if stamp else None


@value
class Counters(Value):
    """What was counted in one run.

    Sizes are bytes; a frame is an Ethernet frame without its checksum.

    Attributes:
        exits: Exits of the guest to the monitor.
        hypercalls: Hypercalls by name.
        console_bytes: Bytes that the guest wrote to its console.
        console_lost_bytes: Of these, the bytes that nobody has got.
        net_rx_packets: Frames that the guest read.
        net_rx_bytes: Their bytes.
        net_tx_packets: Frames that the guest sent.
        net_tx_bytes: Their bytes.
        net_tx_drops: Frames that the guest sent and the interface did not take.
        net_rx_errors: Reads of an interface that failed.
        net_rx_drops: Frames that were too long for their buffer, empty, or had an offload that the guest cannot take.
        net_ring_kicks: How often the guest asked to have its network ring served.
        net_batches: Batches of our extension. Each frame of one is counted above too.
        net_detached: How often the interface of a TAP was deleted.
        net_attached: How often the descriptor of a TAP was found attached to a new interface.
        net_ring_packets: Of the frames above, those that went by the network ring.
        block_reads: Reads of a disk.
        block_read_bytes: Their bytes.
        block_writes: Writes of a disk.
        block_write_bytes: Their bytes.
        block_errors: Reads, writes and flushes of a disk that the host refused.
        block_flushes: Flushes of a disk.
        block_batches: Batches of our extension. Each request of one is counted above too.
        trapped_hypercalls: Sandbox only: hypercalls by a signal, where a patched call site or the gate page is faster.
        emulated: Sandbox only: other instructions that were emulated.
        guest_faults: Sandbox only: exceptions that were delivered to the guest.
    """

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
    net_rx_drops: int
    net_ring_kicks: int
    net_batches: int
    net_detached: int
    net_attached: int
    net_ring_packets: int
    block_reads: int
    block_read_bytes: int
    block_writes: int
    block_write_bytes: int
    block_errors: int
    block_flushes: int
    block_batches: int
    trapped_hypercalls: int
    emulated: int
    guest_faults: int


@value
class VmResult(Value):
    """How a run ended.

    Attributes:
        reason: Why it ended.
        status: What the command exits with: the guest's status, 0 to 255; 2 if the host failed; 1 for every other end.
        guest_status: The exit status as the guest gave it, a signed 32-bit number; None if the guest did not halt.
        message: One line for a person; empty for an ordinary exit.
        trap: The registers that the guest left when it trapped, else None.
        console: The captured bytes with `console=CAPTURE`, else None.
        counters: What was counted.
        boot: When each step was reached.
        backend: What the guest ran on: `Backend.KVM` or `Backend.SANDBOX`.
        fault: Where the guest stood, for an end that only the sandbox has, else None.
        isolation: The isolation layers that stood around the guest.
    """

    reason: ExitReason
    status: int
    guest_status: int | None
    message: str
    trap: Trap | None
    console: bytes | None
    counters: Counters
    boot: BootTimeline
    backend: Backend
    fault: GuestFault | None = None
    isolation: tuple[IsolationLayer, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the guest ended by itself with status 0."""
        return self.reason == ExitReason.EXIT and self.status == 0

    def check(self) -> "VmResult":
        """Returns this result if the guest ended by itself with status 0.

        Raises:
            GuestFailed: It ended in another way. The message has the last ten lines of a captured console.
        """
        if self.ok:
            return self
        tail = b"" if self.console is None else b"\n".join(self.console.splitlines()[-10:])
        text = f"guest ended: {self.reason}, status {self.status}"
        if self.message:
            text += f": {self.message}"
        if tail:
            text += "\n" + tail.decode("utf-8", "replace")
        raise GuestFailed(text, self)


class GuestFailed(TenderError):
    """The guest did not end with status 0.

    Only `VmResult.check()` raises this.

    Attributes:
        result: The `VmResult`.
    """

    default_code = "guest"

    def __init__(self, message: str, result: VmResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.result), self.__dict__)
