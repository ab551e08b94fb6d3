"""A debugger that is killed harms no guest, whatever it was about to do. Its guard repairs what it has left.

The debugger is this library in a child of the test, so that a kill costs little also on an emulated machine.
"""

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest
from support import Guest as FindGuest

from tender.debug import ptrace
from tender.debug.attach import attach, prepare
from tender.debug.find import Guest, guests_of
from tender.debug.guard import Journal, guarded
from tender.debug.symbols import Symbols
from tender.debug.target import Ended, Stop, Target, Watch, Where
from tender.native import lib

pytestmark = pytest.mark.backends

StartGuest = Callable[..., Any]  # conftest.py
Undebugged = Callable[..., tuple[int, bytes, bytes]]

ROUNDS = "100000000"  # of debug.elf spin: longer than all kills
KILLED = 128 + signal.SIGKILL
CALLS = 100
"""How many calls are tried, one by one. A session attaches, comes to a breakpoint and makes a step with fewer."""
RANDOM_KILLS = 20


class Deadly:
    """The library's core, but the process is killed just before its call number `at` that concerns a guest."""

    _COUNTED = frozenset({"tn_ptrace", "tn_process_write", "tn_wait"})

    def __init__(self, core: Any, at: int) -> None:
        self._core, self._left = core, at

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._core, name)
        if name not in self._COUNTED:
            return value

        def call(*arguments: Any) -> Any:
            looks_only = name == "tn_wait" and arguments[1] & os.WNOHANG
            self._left -= not looks_only
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            return value(*arguments)

        return call


def wait(target: Target) -> Stop | Ended:
    """Waits until a guest stops. SIGCHLD is blocked."""
    while (what := target.poll()) is None:
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)
    return what


def debug_for_ever(guest: Guest, journal: Journal, breakpoint_at: int, watched: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    target = attach(guest, journal)
    target.insert(Watch.SOFTWARE, breakpoint_at, 1)
    target.insert(Watch.WRITE, watched, 8)
    while target.where() is not Where.ENDED:
        target.resume()
        wait(target)
        target.step()


def begin(start_guest: StartGuest, find: FindGuest) -> tuple[Any, Guest, int, int]:
    symbols = Symbols.open(str(find("debug")))
    tick, ticks = symbols.find("tick"), symbols.find("ticks")
    assert tick and ticks
    running = start_guest("debug", "spin", ROUNDS)
    (guest,) = guests_of(running.pid)
    prepare(guest)
    return running, guest, tick.address, ticks.address


def test_before_each_of_its_calls(start_guest: StartGuest, undebugged: Undebugged, guest: FindGuest) -> None:
    """The odd calls, and then the even ones: the states that one kill leaves are those that the next debugger finds."""
    running, found, tick, ticks = begin(start_guest, guest)
    for at in (*range(1, CALLS, 2), *range(2, CALLS, 2)):

        def session(journal: Journal, at: int = at) -> int:
            vars(ptrace)["lib"] = Deadly(lib, at)
            debug_for_ever(found, journal, tick, ticks)
            return 0

        assert guarded(session) == KILLED, at
        assert running.process.poll() is None, (at, running.end())
    assert running.end() == undebugged("debug", "spin", ROUNDS)


def test_at_random_moments(start_guest: StartGuest, undebugged: Undebugged, guest: FindGuest) -> None:
    running, found, tick, ticks = begin(start_guest, guest)
    dice = random.Random(14)  # the same each time
    for _ in range(RANDOM_KILLS):
        moment = dice.uniform(0.001, 0.2)

        def session(journal: Journal, moment: float = moment) -> int:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, moment)  # the kernel ends this process by it as by SIGKILL
            debug_for_ever(found, journal, tick, ticks)
            return 0

        assert guarded(session) == 128 + signal.SIGALRM, moment
        assert running.process.poll() is None, (moment, running.end())
    assert running.end() == undebugged("debug", "spin", ROUNDS)
