"""What a debugger asks of a guest.

`GuestState` is what can be read: of a stopped guest, or of a core. `Target` is a guest that can be stopped, changed and
continued. sandbox.py and kvm.py have one class for each backend; core.py reads a core as a GuestState.

All calls of a target come from one thread: ptrace(2) belongs to the thread that attached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.registers import Registers
from tender.errors import HostError


class DebugError(HostError):
    """A guest cannot be looked into, or not in this way."""

    default_code = "debug"


class Where(StrEnum):
    """Where a guest stands."""

    GUEST = "guest"
    """At an instruction of its own."""
    HYPERCALL = "hypercall"
    """In a hypercall: the handlers serve it. Registers can be read and not written."""
    ENDED = "ended"
    """Its run has ended. Registers and memory can be read."""


@dataclass(frozen=True)
class Mapping:
    """A piece of guest memory with its rights.

    Attributes:
        start: The guest-physical address of the first byte; a multiple of 4096.
        end: The address behind the last byte.
        flags: The rights as in an ELF's p_flags: 1 execute, 2 write, 4 read.
    """

    start: int
    end: int
    flags: int


class Watch(StrEnum):
    """The kinds of breakpoints, by gdb's words. Their order is that of gdb's packets Z0 to Z4."""

    SOFTWARE = "swbreak"
    HARDWARE = "hwbreak"
    WRITE = "watch"
    READ = "rwatch"
    ACCESS = "awatch"


@dataclass(frozen=True)
class Stop:
    """The guest stands still.

    Attributes:
        signal: Why, as a signal's number in Linux: 2 asked for, 5 a breakpoint or a step, 11 a page fault, 4, 7 or 8 another
            exception.
        watch: The kind of the breakpoint that was hit; None: none.
        address: The address that a watchpoint watches.
    """

    signal: int
    watch: Watch | None = None
    address: int = 0


@dataclass(frozen=True)
class Ended:
    """The process of the guest is gone, or is about to go.

    Attributes:
        status: Its exit status; None if a signal killed it.
        signal: That signal, or 0.
    """

    status: int | None
    signal: int = 0


@dataclass(frozen=True)
class Facts:
    """What is known about a guest besides its registers and memory. What is not known is empty, 0 or None.

    Attributes:
        version: The version of Tender that runs it.
        backend: "kvm" or "sandbox".
        pid: The process that it runs in.
        image: The path of its ELF file.
        build_id: The build id of that file in hexadecimal.
        digest: The SHA-256 of that file in hexadecimal.
        arguments: The guest's command line.
        mem_bytes: The size of its memory.
        reason: Why it ended, a word of ExitReason, or "live".
        message: The line of the command about the end.
        status: The exit status of the end.
        fault: rip, instruction and the like of an abnormal end, as `GuestFault.to_dict()` gives it.
        devices: The devices of the manifest: name, kind and how they are attached.
        counters: As in VmResult.
        timeline: Steps of the boot in nanoseconds of CLOCK_MONOTONIC.
        hypercalls: The last hypercalls, oldest first, if they were recorded.
    """

    version: str = ""
    backend: str = ""
    pid: int = 0
    image: str = ""
    build_id: str = ""
    digest: str = ""
    arguments: str = ""
    mem_bytes: int = 0
    reason: str = "live"
    message: str = ""
    status: int | None = None
    fault: dict[str, object] | None = None
    devices: Sequence[dict[str, object]] = ()
    counters: dict[str, object] = field(default_factory=dict)
    timeline: dict[str, object] = field(default_factory=dict)
    hypercalls: Sequence[dict[str, object]] = ()


class GuestState(Protocol):
    """A guest that stands still: a stopped one, or one in a core."""

    def facts(self) -> Facts:
        """Returns what is known about it besides registers and memory."""

    def where(self) -> Where:
        """Returns where it stands."""

    def registers(self) -> Registers:
        """Returns its registers. In a hypercall they are those that it will have at its next instruction, as far as the
        hypercall does not change them."""

    def read(self, gpa: int, length: int) -> bytes:
        """Returns its memory from `gpa` on: at most `length` bytes, fewer if it has fewer there, none if it has none.

        Bytes under a breakpoint, and call sites that Tender has patched, are shown as the image has them.
        """

    def mappings(self) -> Sequence[Mapping]:
        """Returns its memory in ascending order."""

    def touched(self) -> Sequence[tuple[int, int]]:
        """Returns the runs [start, end) of pages that may hold other bytes than zeros, in ascending order.

        What lies in none of them reads as zeros.
        """

    def cpu_parts(self) -> CpuParts:
        """Returns what the processor has besides its registers."""

    def unfinished(self) -> Unfinished | None:
        """Returns the hypercall that it is in, if it is in one."""


class Target(GuestState, Protocol):
    """A guest that can be stopped, changed and continued. It is attached when it is made, and stands still then."""

    pid: int
    """The process that ends with the guest."""

    def stack_registers(self) -> Registers:
        """Returns registers() without the vector registers, which take time: for one who stops the guest often."""

    def set_registers(self, registers: Registers) -> None:
        """Sets the registers. An empty `xsave` leaves those as they are.

        Raises DebugError in a hypercall, at the end, or for values that no guest may have.
        """

    def write(self, gpa: int, data: bytes) -> None:
        """Writes memory, also text and read-only data. Raises DebugError if it is not all guest memory."""

    def insert(self, kind: Watch, gpa: int, length: int) -> None:
        """Sets a breakpoint or watchpoint. Raises DebugError if the processor has no free one, or for a bad address."""

    def remove(self, kind: Watch, gpa: int, length: int) -> None:
        """Removes one. Nothing happens if there is none."""

    def resume(self, signal: int = 0) -> None:
        """Lets the guest run. With the signal of the stop, the guest's own handler gets the fault; without, too, unless
        its registers or memory were changed so that the instruction succeeds."""

    def step(self, signal: int = 0) -> Stop | Ended:
        """Executes one instruction of the guest. A hypercall counts as one instruction and may take long: `interrupt()`
        from a signal handler ends the wait."""

    def interrupt(self) -> None:
        """Asks a running guest to stop soon: poll() will return Stop(2). It may be called from a signal handler."""

    def poll(self) -> Stop | Ended | None:
        """Returns what has happened to a running guest, None: nothing that concerns the debugger. It does not wait.

        SIGCHLD tells when to call it. At the end of its run the guest stops once more, with where() ENDED, as
        Stop(2) for an end of its own and Stop(6) for an abnormal one; the next resume() lets the process end.
        """

    def kill(self) -> None:
        """Kills the guest's process."""

    def detach(self) -> None:
        """Removes all breakpoints and lets the guest go on as if nobody had looked. It may be called again."""
