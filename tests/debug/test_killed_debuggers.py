"""A debugger that is killed with SIGKILL harms no guest of the sandbox, at whatever instant that happens.

The guest computes a sum from all that it executes. It prints the one of a run that nobody looks at, or it was harmed.
"""

import os
import random
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tender.debug import ptrace
from tender.debug.facts import Shared
from tender.debug.find import guests_of
from tender.debug.gdb_packets import framed
from tender.debug.guard import Journal, guarded
from tender.debug.sandbox import SandboxTarget
from tender.debug.sandbox_restore import restore
from tender.debug.symbols import Symbols
from tender.debug.target import Ended, Stop, Watch
from tender.native import lib

LIMIT_S = 120
KILLED = 128 + signal.SIGKILL
ENDED, DONE = 3, 0
"""What a session returns if the guest ends, and if it was not killed."""
ROUNDS = "60000000"  # of debug.elf spin: about three seconds

StartGuest = Callable[..., Any]  # conftest.py


class Guests:
    """Guests that compute, one after the other. Each must end as `plain` says.

    Attributes:
        tick, ticks: The address of a function that is called in each round, and of the number of rounds that it counts.
    """

    def __init__(self, start_guest: StartGuest) -> None:
        self._start_guest = start_guest
        self._running = self._start()
        symbols = Symbols.open(str(self._running.path))
        self.tick, self.ticks = (self._address(symbols, name) for name in ("tick", "ticks"))
        self.plain = self._running.end()
        assert self.plain[0] == 0 and re.fullmatch(rb"ready\nsum \d+\n", self.plain[1])
        self._running = self._start()

    def _start(self) -> Any:
        return self._start_guest("debug", "spin", ROUNDS, options=("--backend=sandbox",))

    @staticmethod
    def _address(symbols: Symbols, name: str) -> int:
        found = symbols.find(name)
        assert found, name
        return found.address

    def pid(self) -> int:
        """Returns the process of a guest that runs."""
        if self._running.process.poll() is not None:
            self.check()
            self._running = self._start()
        pid: int = self._running.pid
        return pid

    def runs(self) -> bool:
        """Whether the guest has not ended."""
        return self._running.process.poll() is None

    def check(self) -> None:
        """Waits for the end of the guest."""
        assert self._running.end() == self.plain


@pytest.fixture
def guests(start_guest: StartGuest) -> Guests:
    return Guests(start_guest)


def resumed(target: SandboxTarget) -> Stop | Ended:
    target.resume()
    while (what := target.poll()) is None:
        pass
    return what


def killed_at(instant: int) -> Any:
    """Returns the kernel's calls of tender/debug/ptrace.py, with an end: every other instant is right before a call that may
    change something, and the others right after it."""

    class Calls:
        count = 0

        def __getattr__(self, name: str) -> Any:
            real = getattr(lib, name)
            if name not in ("tn_ptrace", "tn_ptrace_regset", "tn_process_write"):
                return real

            def call(*arguments: Any) -> Any:
                self.pass_instant()
                answer = real(*arguments)
                self.pass_instant()
                return answer

            return call

        def pass_instant(self) -> None:
            if self.count == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1

    return Calls()


KINDS = {
    "breakpoint": (Watch.SOFTWARE,),
    "watchpoint": (Watch.WRITE,),
    "both, and a hardware breakpoint": (Watch.SOFTWARE, Watch.WRITE, Watch.HARDWARE),
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_no_call_of_a_debugger_is_one_at_which_its_death_harms(
    kinds: tuple[Watch, ...], guests: Guests
) -> None:
    """The session attaches, runs into breakpoints, steps, and leaves. It is killed at the first instant, the second, ..."""

    def session(journal: Journal) -> int:
        vars(ptrace)["lib"] = killed_at(instant)  # in this child only
        target = SandboxTarget(guests_of(pid)[0], journal)
        places = {Watch.SOFTWARE: guests.tick, Watch.HARDWARE: guests.tick + 1, Watch.WRITE: guests.ticks}
        for kind in kinds:
            target.insert(kind, places[kind], 8 if kind == Watch.WRITE else 1)
        for go_on in (resumed, resumed, SandboxTarget.step, SandboxTarget.step, resumed):
            if isinstance(go_on(target), Ended):
                return ENDED
        for kind in kinds:
            target.remove(kind, places[kind], 8 if kind == Watch.WRITE else 1)
        target.resume()
        target.interrupt()
        while target.poll() is None:
            pass
        target.detach()
        return DONE

    instant, status = 0, KILLED
    while status != DONE:
        pid = guests.pid()
        status = guarded(session)
        if status == KILLED:
            instant += 1
        elif status != DONE:  # the guest has ended
            guests.check()
    guests.check()
    assert instant > 100, "the session has hardly been killed"


def test_a_debugger_that_is_killed_when_the_guest_goes_on_harms_it_not(guests: Guests) -> None:
    def session(journal: Journal) -> int:
        target = SandboxTarget(guests_of(pid)[0], journal)
        target.insert(Watch.SOFTWARE, guests.tick, 1)
        target.insert(Watch.HARDWARE, guests.tick + 1, 1)
        target.insert(Watch.WRITE, guests.ticks, 8)
        target.resume()
        os.kill(os.getpid(), signal.SIGKILL)
        return DONE

    for _ in range(50):
        pid = guests.pid()
        if guarded(session) != KILLED:
            guests.check()  # it has ended before
    guests.check()


def test_a_breakpoint_of_a_killed_debugger_is_waited_for(guests: Guests) -> None:
    """The guest waits until the debugger's changes are undone, and ends as if nobody had looked."""
    (guest,) = guests_of(guests.pid())
    shared, journal = Shared(guest), Journal()
    ptrace.seize(guest.tid)
    ptrace.interrupt(guest.tid)
    assert (status := ptrace.wait(guest.tid)) and status.event == ptrace.EVENT_STOP
    journal.note(guests.tick, ptrace.read_memory(guest.pid, guests.tick, 1))
    shared.hold(True)
    ptrace.poke(guest.tid, guests.tick, b"\xcc")
    ptrace.detach(guest.tid)  # as the kernel does for a tracer that is killed
    while not shared.tries():
        assert guests.runs()
    restore(guest, journal)
    guests.check()


# ---- the command


@contextmanager
def served(tender_cmd: list[str], pid: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Yields `tender debug --stdio PID`: the guard, whose child is the debugger."""
    with subprocess.Popen(
        [*tender_cmd, "debug", "--stdio", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as guard:
        yield guard


def kill_at_a_random_moment(tender_cmd: list[str], guests: Guests, victim: str, seconds: float) -> bool:
    """Has a client run into a breakpoint again and again, and kills the debugger, its guard, or the client. False: the guest
    has ended meanwhile."""
    hit = framed(b"vCont;c")
    with served(tender_cmd, guests.pid()) as guard:
        assert guard.stdin and guard.stdout
        end = time.monotonic() + seconds
        guard.stdin.write(framed(b"QStartNoAckMode") + b"+" + framed(b"Z0,%x,1" % guests.tick) + hit)
        while (left := end - time.monotonic()) > 0:
            if select.select([guard.stdout], [], [], left)[0]:
                data = guard.stdout.read(4096)
                if not data:
                    break
                if b"T05" in data:
                    guard.stdin.write(hit)
        debuggers = psutil.Process(guard.pid).children()
        if victim == "debugger":
            for it in debuggers:
                it.kill()
        elif victim == "guard":
            guard.kill()
        guard.stdin.close()
        while guard.stdout.read(4096):  # its end: both processes are gone
            pass
        status = guard.wait(LIMIT_S)
        if guests.runs() and debuggers:
            assert status == {"debugger": KILLED, "guard": -signal.SIGKILL, "client": 0}[victim], victim
    return guests.runs()


def test_killed_debuggers_harm_no_guest(guests: Guests, tender_cmd: list[str]) -> None:
    """50 times the debugger, its guard or its client is killed at a random moment, while it attaches or debugs."""
    chance, kills = random.Random(14), 0
    while kills < 50:
        victim = chance.choice(("debugger", "debugger", "guard", "client"))
        kills += kill_at_a_random_moment(tender_cmd, guests, victim, chance.uniform(0.05, 0.8))
    guests.check()


@pytest.mark.parametrize(
    "stops", [(b"vCont;c",), (b"vCont;c", b"vCont;s"), (b"vCont;c", b"vCont;s", b"vCont;s")]
)
def test_a_debugger_that_is_killed_while_the_guest_stands_still_harms_it_not(
    stops: tuple[bytes, ...], guests: Guests, tender_cmd: list[str]
) -> None:
    """The kernel delivers the guest the signal that it stands at: of a breakpoint, or of a step."""
    with served(tender_cmd, guests.pid()) as guard:
        assert guard.stdin and guard.stdout
        guard.stdin.write(framed(b"Z0,%x,1" % guests.tick))
        for packet in stops:
            guard.stdin.write(framed(packet))
            told = b""
            while b"T05" not in told:
                told += guard.stdout.read(4096)
        (debugger,) = psutil.Process(guard.pid).children()
        debugger.kill()
        assert guard.wait(LIMIT_S) == KILLED
    guests.check()
