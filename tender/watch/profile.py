"""Samples what a guest does: its stack some hundred times a second, taken from outside.

    sampler (a child of its guard, tender/debug/guard.py)          guest
        is the thread that runs it on a processor? ------------>   (it is not stopped if it waits)
        stop, copy registers and stack, go on  ---------------->   stands still for that long
        unwind the copy, name its addresses                        runs

Only the stop costs the guest time. Names and lines are looked up while it runs, on another processor if there is one. A
sampler that falls behind, or whose stops take long, leaves samples out, and says how many.
"""

import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tender.debug.find import Guest
from tender.debug.registers import Registers
from tender.debug.symbols import Frame, Symbols
from tender.debug.target import Ended, Stop, Target, Where

HYPERCALL = "[hypercall]"
"""The innermost function of a stack that was taken while the monitor served a hypercall."""
UNKNOWN = "[unknown]"

_STACK_BYTES = 16 << 10
_DEEP_MAX = 128
_STOP_S = 5.0
_STOPS_APART = (
    9  # a stop is followed by nine times as long without one: a guest loses a tenth of its time at most
)
_WAITED_FOR = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_FAULTS = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS, signal.SIGTRAP)


class Place(NamedTuple):
    """A function in a stack, with the line that it executes or calls from.

    Attributes:
        function: Its name as people read it.
        file: The source file, or "".
        line: The line in it, or 0.
        address: An address in it.
    """

    function: str
    file: str = ""
    line: int = 0
    address: int = 0


Stack = tuple[Place, ...]
"""The outermost function first."""


@dataclass
class Profile:
    """What was sampled.

    Attributes:
        image: The path of the guest's ELF file.
        pid: Its process.
        backend: "kvm" or "sandbox".
        rate_hz: The samples that were wanted for each second.
        began_ns: When it began, in nanoseconds of CLOCK_REALTIME.
        duration_s: How long it took, in seconds.
        stacks: How often each stack was seen.
        waited: The samples at which the guest waited for something; only `waits` has stacks of them.
        missed: The samples that were left out, because the sampler was behind or the guest did not stop.
        stopped_s: How long the guest was stopped, in seconds, as far as the sampler can see.
        has_ended: Whether the guest ended meanwhile.
    """

    image: str
    pid: int
    backend: str
    rate_hz: float
    began_ns: int
    duration_s: float = 0.0
    stacks: Counter[Stack] = field(default_factory=Counter)
    waited: int = 0
    missed: int = 0
    stopped_s: float = 0.0
    has_ended: bool = False

    @property
    def samples(self) -> int:
        """The number of stacks."""
        return self.stacks.total()


def hold_signals() -> None:
    """Has this thread take the signals that a Sampler waits for only when it asks for them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)


class Sampler:
    """Samples one guest that this process traces.

    hold_signals() comes first: SIGCHLD tells of a stop, and the signals that end a program are the wish to end early.
    """

    def __init__(self, guest: Guest, target: Target, symbols: Symbols | None) -> None:
        """Lets the guest run. `target` is attached, and the guest stands still."""
        self._guest, self._target, self._symbols = guest, target, symbols
        self._tid = guest.tid or guest.pid
        self._is_enough = False
        self._has_ended = target.where() == Where.ENDED
        if not self._has_ended:
            target.resume()

    def run(self, seconds: float, rate_hz: float, *, waits: bool = False) -> Profile:
        """Samples for some seconds, or until the guest ends or a signal comes.

        Args:
            seconds: How long.
            rate_hz: Samples for each second.
            waits: Whether a guest that waits is sampled too.
        """
        made = Profile(
            self._guest.image, self._guest.pid, self._guest.backend, rate_hz, began_ns=time.time_ns()
        )
        began = time.monotonic()
        number, wanted = 0, max(1, round(seconds * rate_hz))
        while number < wanted and not self._has_ended and not self._is_enough:
            number += 1
            if not self._sleep_until(began + number / rate_hz):
                break
            stood_s = self._sample(made, waits=waits)
            behind = int((time.monotonic() + stood_s * _STOPS_APART - began) * rate_hz) - number
            if behind > 0:
                skipped = min(behind, wanted - number)
                made.missed += skipped
                number += skipped
        made.duration_s = time.monotonic() - began
        made.has_ended = self._has_ended
        return made

    def _sleep_until(self, until: float) -> bool:
        """Waits, and lets the guest go on if it has stopped for another reason. False: it has ended, or it is enough."""
        while (left := until - time.monotonic()) > 0:
            self._wait(left)
            if self._is_enough or not self._serve():
                return False
        return True

    def _wait(self, seconds: float) -> None:
        """Waits until the guest's thread stops or somebody wants an end, `seconds` at most."""
        info = signal.sigtimedwait(_WAITED_FOR, seconds)
        if info is not None and info.si_signo != signal.SIGCHLD:
            self._is_enough = True

    def _serve(self) -> bool:
        """Deals with a stop that nobody asked for: a fault goes on to the guest's own handler. False: it has ended."""
        stop = self._target.poll()
        return stop is None or self._goes_on(stop)

    def _goes_on(self, stop: Stop | Ended) -> bool:
        if isinstance(stop, Ended) or self._target.where() == Where.ENDED:
            self._has_ended = True
            return False
        self._target.resume(stop.signal if stop.signal in _FAULTS else 0)
        return True

    def _sample(self, made: Profile, *, waits: bool) -> float:
        """Takes one sample, and returns how long the guest stood still for it, in seconds."""
        if not self._is_running():
            made.waited += 1
            if not waits:
                return 0
        began = time.monotonic()
        self._target.interrupt()
        stop = self._target.poll()
        while stop is None:
            left = began + _STOP_S - time.monotonic()
            if left <= 0:  # it sits in the kernel; the stop comes later, and _serve() lets it go on
                made.missed += 1
                return 0
            self._wait(left)
            stop = self._target.poll()
        if isinstance(stop, Ended) or (where := self._target.where()) == Where.ENDED:
            self._has_ended = True
            return 0
        registers = self._target.stack_registers()
        copied = self._target.read(registers.rsp, _STACK_BYTES)
        self._goes_on(stop)
        stood_s = time.monotonic() - began
        made.stopped_s += stood_s

        def read(gpa: int, length: int) -> bytes:
            at = gpa - registers.rsp
            if at >= 0 and at + length <= len(copied):
                return copied[at : at + length]
            return self._target.read(
                gpa, length
            )  # another stack: its callers stand still while this one runs

        stack = self._stack(registers, read)
        made.stacks[(*stack, Place(HYPERCALL)) if where == Where.HYPERCALL else stack] += 1
        return stood_s

    def _is_running(self) -> bool:
        """Whether the thread that runs the guest is on a processor, or waits for one only. Source: proc(5)."""
        try:
            with open(f"/proc/{self._guest.pid}/task/{self._tid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2][:1] == b"R"
        except OSError:
            return True  # it ends: the next stop tells

    def _stack(self, registers: Registers, read: Callable[[int, int], bytes]) -> Stack:
        if self._symbols is None:
            return (Place(f"{registers.rip:#x}", address=registers.rip),)
        frames = self._symbols.backtrace(registers, read, _DEEP_MAX)
        return tuple(_place(it) for it in reversed(frames))


def _place(frame: Frame) -> Place:
    return Place(frame.function or UNKNOWN, frame.file, frame.line, frame.pc)
