"""How a run ended: the reason, the statuses, what was counted, and when each step was reached."""

from tender.annotations import Backend, BootStep, IsolationLayer, Word
from tender.errors import ConfigError, TenderError
from tender.native import lib
from tender.values import Value, value

STATUS_ENDED: int = lib.STATUS_ENDED
"""An end that is not the guest's own halt and that starting anew would only repeat, or that was asked for."""
STATUS_HOST_FAILED: int = lib.STATUS_HOST_FAILED
"""The host or tender failed while the guest ran, through nothing that the guest did: starting anew may help.

Managers of unikernels (Albatross) never start again after 1 and 60 to 64, and do after 2.
"""


class ExitReason(Word):
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
    # the sandbox only
    UNSUPPORTED_INSTRUCTION = "unsupported-instruction"  # privileged, and not among those that are emulated
    FORBIDDEN_SYSCALL = "forbidden-syscall"  # the guest asked the host's kernel for something
    SANDBOX_FAULT = "sandbox-fault"  # a fault in the handlers' code, or a report that cannot be true
    SANDBOX_DIED = "sandbox-died"  # its process was killed: by its filter, by the host


@value
class GuestFault(Value):
    """Where the guest stood when the sandbox ended it: `instruction` are the bytes at `rip` (hexadecimal).

    registers: rax to r15, rflags, cr2, fs_base.
    """

    rip: int
    instruction: str
    registers: dict[str, int]


@value
class Trap(Value):
    """What a guest that trapped left in its halt cookie."""

    cr2: int
    error_code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


@value
class BootTimeline(Value):
    """When each step was reached: CLOCK_MONOTONIC nanoseconds, 0 for a step that was not.

    start: the Vm was asked for; vm_created: KVM has the VM, its memory and its vCPU, or the sandbox's process
    is started; first_run: just before the guest's first instruction; first_exit: the first exit to the
    monitor; first_console: the guest's first console byte was written; guest_exit: the run ended.
    """

    start: int
    vm_created: int
    first_run: int
    first_exit: int
    first_console: int
    guest_exit: int

    def since_start_ms(self, step: BootStep) -> float | None:
        """Milliseconds from `start` to `step` (a field's name), None if it was not reached.

        Raises ConfigError for a name that is no field's.
        """
        if step not in self.__slots__:
            raise ConfigError(f"since_start_ms: {step!r} is none of {', '.join(self.__slots__)}")
        stamp = getattr(self, step)
        return (stamp - self.start) / 1e6 if stamp else None


@value
class Counters(Value):
    """What was counted: hypercalls by name, exits, packets, bytes."""

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
    net_rx_drops: int  # too long for their buffer, empty, or with an offload that who asked could not take
    net_ring_kicks: int  # of the network ring: how often the guest asked to be served
    net_batches: int  # of our extension: each frame of one is counted above too
    net_detached: int  # a TAP's interface was deleted
    net_attached: int  # its descriptor was found attached to a new one
    net_ring_packets: int  # of the packets above, those that went by the ring
    block_reads: int
    block_read_bytes: int
    block_writes: int
    block_write_bytes: int
    block_errors: int
    block_flushes: int
    block_batches: int  # each request of one is counted above too
    trapped_hypercalls: int  # the sandbox: by a signal, where a patched call site or the gate would be faster
    emulated: int  # the sandbox: other instructions emulated
    guest_faults: int  # the sandbox: exceptions delivered to the guest


@value
class VmResult(Value):
    """How a run ended.

    reason   one of ExitReason
    status   what the command line exits with: the guest's status (0..255), else STATUS_HOST_FAILED (2) if the host
             failed, or STATUS_ENDED (1)
    guest_status  the guest's own exit status as it gave it (signed 32-bit), None if it did not halt
    message  one line for a person, empty for an ordinary exit; the contract's words
    trap     registers the guest left behind when it trapped, else None
    console  the captured console bytes with console=CAPTURE, else None
    backend  the backend that the guest ran behind: "kvm" or "sandbox"
    fault    where the guest stood, for an end that only the sandbox has, else None
    isolation  the isolation layers that stood around the guest
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


class GuestFailed(TenderError):
    """Raised by VmResult.check() only: the guest did not end with status 0; `result` is the VmResult."""

    default_code = "guest"

    def __init__(self, message: str, result: VmResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.result), self.__dict__)
