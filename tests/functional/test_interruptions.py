"""Signals and stops, many and at random moments, for a guest that makes one hypercall after the other:
none is lost.

On KVM such a guest runs with signals unblocked (machine/kvm/run_signals.h) once it has made some
exits. The moments here come after those exits. test_run_signals.c tests all other moments.
"""

import os
import random
import signal
import threading
import time

import pytest
from support import Guest

from tender import CAPTURE, DISCARD, ExitReason, Image, Vm, VmConfig, VmPool

SMALL = VmConfig(mem=4)
SIGNALS = 200
STOPS = 60
LIMIT_S = 30
EXITS = 140  # after so many exits since the last signal the run no longer changes; only a guest that runs makes exits


@pytest.mark.backends
def test_each_of_many_signals_is_heard_while_a_guest_makes_hypercalls(guest: Guest) -> None:
    heard = threading.Event()
    unheard: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda *_: heard.set())

    def send(vm: Vm) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGUSR1}
        )  # the signal is for the thread that runs the guest
        moments = random.Random(1)
        for i in range(SIGNALS):
            inside = vm.counters.exits + EXITS
            while vm.counters.exits < inside:
                time.sleep(0.0002)
            for _ in range(moments.randrange(300)):
                pass
            heard.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            if not heard.wait(LIMIT_S):
                unheard.append(i)
                break
        vm.stop()

    try:
        with Image.open(guest("flood")) as image, Vm(image, SMALL, console=DISCARD) as vm:
            sender = threading.Thread(target=send, args=(vm,))
            sender.start()
            result = vm.run(timeout=300)
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert not unheard and result.reason == ExitReason.STOPPED


@pytest.mark.backends
@pytest.mark.parametrize("where", ["here", "on a thread of its own"])
def test_each_of_many_stops_ends_a_guest_that_makes_hypercalls(guest: Guest, where: str) -> None:
    """Each stop comes at another moment of the run, its first moments included. The machine serves
    again each time.
    """
    moments = random.Random(2)
    with Image.open(guest("flood")) as image, VmPool(image, SMALL, console=DISCARD) as pool:
        for i in range(STOPS):
            with pool.take() as vm:
                exits = moments.choice((0, 1, 100, 127, 128, 129, 200))

                def stop(vm: Vm = vm, exits: int = exits) -> None:
                    while vm.counters.exits < exits:
                        time.sleep(0.0002)
                    vm.stop()

                stopper = threading.Thread(target=stop)
                if where == "here":
                    stopper.start()
                    result = vm.run(timeout=LIMIT_S)
                else:
                    vm.start(timeout=LIMIT_S)
                    stopper.start()
                    waited = vm.wait(2 * LIMIT_S)
                    assert waited is not None
                    result = waited
                stopper.join()
                assert result.reason == ExitReason.STOPPED, i
                assert result.counters.exits >= exits


@pytest.mark.backends
def test_a_storm_of_signals_neither_loses_nor_repeats_what_a_guest_says(guest: Guest) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    with Image.open(guest("big_puts")) as image:
        with Vm(image, SMALL, console=CAPTURE) as vm:
            quiet = vm.run(timeout=LIMIT_S)
        try:
            while len(seen) < 20:
                with Vm(image, SMALL, console=CAPTURE) as vm:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
                    result = vm.run(timeout=LIMIT_S)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                assert (result.ok, result.console) == (True, quiet.console)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)


@pytest.mark.backends
def test_handlers_are_the_processs_own_after_a_run(guest: Guest) -> None:
    """A handler that raises ends the run with its exception. The next signal goes to Python alone again."""

    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    old = signal.signal(signal.SIGALRM, enough)
    try:
        for _ in range(20):
            with Image.open(guest("flood")) as image, Vm(image, SMALL, console=DISCARD) as vm:
                with pytest.raises(Enough):
                    signal.setitimer(
                        signal.ITIMER_REAL, 0.02
                    )  # on a busy machine the signal comes before the run
                    vm.run(timeout=LIMIT_S)
            with pytest.raises(Enough):
                os.kill(os.getpid(), signal.SIGALRM)
                time.sleep(LIMIT_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
