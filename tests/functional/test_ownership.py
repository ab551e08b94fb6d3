"""Who owns a VM's resources: a forked child has only copies of descriptors, an object cannot be
copied, and a time limit is checked before a guest starts.
"""

import copy
import linecache
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import Guest, still_runs

import tender
from tender import CAPTURE, DISCARD, ConfigError, Image, Vm, VmConfig, VmPool, VmStateError
from tender.native import lib

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4)


def leaves_with_exit(vm: Vm) -> None:
    with vm:
        sys.exit(0)


def leaves_with_an_exception(vm: Vm) -> None:
    with vm:
        raise ZeroDivisionError


def closes_twice(vm: Vm) -> None:
    vm.close()
    vm.close()


def stops_and_closes(vm: Vm) -> None:
    vm.stop()
    vm.close()


def in_a_child(act: Callable[[], object]) -> int:
    """Returns the status of a forked child that does this. 0: it came to its end, whatever exception
    it raised.
    """
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            pass
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "ending", [leaves_with_exit, leaves_with_an_exception, closes_twice, stops_and_closes]
)
def test_a_child_of_fork_does_not_end_its_parents_guest_when_it(
    guest: Guest, ending: Callable[[Vm], None]
) -> None:
    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=CAPTURE) as vm:
        assert in_a_child(lambda: ending(vm)) == 0
        assert vm.run(timeout=60).ok


def test_a_child_of_fork_keeps_no_page_of_the_vcpu(guest: Guest, backend: str) -> None:
    """A page that stays mapped would keep the vCPU, and with it the machine, of a parent that has
    closed them.
    """

    def closes(vm: Vm) -> None:
        assert ("kvm-vcpu" in Path("/proc/self/maps").read_text()) == (backend == "kvm")
        vm.close()
        assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()

    with Image.open(guest("hello")) as image:
        with Vm(image, SMALL, console=CAPTURE):
            pass  # the first vCPU of a process is kept
        with Vm(image, SMALL, console=CAPTURE) as vm:
            child = os.fork()
            if child == 0:
                try:
                    closes(vm)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert vm.run(timeout=60).ok


USES: dict[str, Callable[[Vm], object]] = {
    "run": lambda vm: vm.run(),
    "start": lambda vm: vm.start(),
    "wait": lambda vm: vm.wait(),
    "fileno": lambda vm: vm.fileno(),
    "counters": lambda vm: vm.counters,
    "boot": lambda vm: vm.boot,
    "memory": lambda vm: vm.memory(0x100000, 1),
    "pid": lambda vm: vm.pid,
    "isolation": lambda vm: vm.isolation,
    "registers": lambda vm: vm.registers(),
    "backtrace": lambda vm: vm.backtrace(),
    "symbol": lambda vm: vm.symbol("main"),
    "hypercalls": lambda vm: next(iter(vm.hypercalls())),
    "memory_use": lambda vm: vm.memory_use(),
    "core": lambda vm: vm.core("never.core"),
}
HARMLESS = {"close", "stop", "backend", "config", "fallback", "image_name"}


def test_the_table_of_uses_names_every_public_attribute_of_a_vm() -> None:
    assert set(USES) | HARMLESS - {"backend", "config", "fallback", "image_name"} == {
        name for name in dir(Vm) if not name.startswith("_")
    }


@pytest.mark.parametrize("use", USES)
def test_a_child_of_fork_is_told_that_a_vm_is_its_parents(guest: Guest, use: str) -> None:
    def tries() -> None:
        with pytest.raises(VmStateError, match=r"before fork\(\)"):
            USES[use](vm)
        with pytest.raises(VmStateError, match=r"before fork\(\)"):
            pool.take()
        os._exit(42)

    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        with VmPool(image, SMALL) as pool:
            assert in_a_child(tries) == 42
            assert vm.run(timeout=60).ok and pool.run(timeout=60).ok


def test_a_child_of_fork_does_not_end_the_guests_of_a_pool(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL, size=2) as pool, pool.take() as taken:
        assert in_a_child(pool.close) == 0
        assert in_a_child(taken.close) == 0
        assert taken.run(timeout=60).ok and pool.run(timeout=60).ok


def test_a_console_callable_that_forks_and_returns_in_the_child_ends_the_childs_run(guest: Guest) -> None:
    """This holds with a time limit too, although the child does not have the limit's thread."""
    children: list[int] = []

    def fork(_: bytes) -> None:
        if not children:
            children.append(os.fork())

    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=fork) as vm:
        try:
            result = vm.run(timeout=60)
        except VmStateError:
            if children == [0]:
                vm.close()
                os._exit(42)
            raise
        finally:
            if children == [0]:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 42
        assert result.ok


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps, lambda it: it.__reduce_ex__(4)])
def test_what_owns_something_cannot_be_copied(guest: Guest, way: Callable[[object], object]) -> None:
    with (
        Image.open(guest("hello")) as image,
        Vm(image, SMALL, console=DISCARD) as vm,
        VmPool(image, SMALL) as pool,
        pool.take() as taken,
    ):
        for owner in (image, vm, pool, taken, vm._machine):
            with pytest.raises(TypeError):
                way(owner)
        assert vm.run(timeout=60).ok


@pytest.mark.parametrize("limit", [float("inf"), 1e10, 2**63, 10**400])
def test_a_time_that_no_clock_reaches_is_no_limit(guest: Guest, limit: float) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        assert tender.run(image, SMALL, console=DISCARD, timeout=limit).ok
        assert pool.run(timeout=limit).ok
        with Vm(image, SMALL, console=DISCARD) as vm:
            vm.start(timeout=limit)
            result = vm.wait(limit)
            assert result.ok


@pytest.mark.parametrize("limit", [-1, -0.5, float("nan"), "5", Decimal(5), timedelta(seconds=5), True, []])
def test_an_invalid_time_limit_is_refused_before_the_guest_starts(guest: Guest, limit: float) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        with Vm(image, SMALL, console=DISCARD) as vm:
            for run in (vm.run, vm.start, vm.wait, lambda it: pool.run(timeout=it)):
                with pytest.raises(ConfigError, match="is not a"):
                    run(limit)
            assert vm.run(timeout=60).ok
        with pytest.raises(ConfigError, match="is not a"):
            tender.run(image, SMALL, console=DISCARD, timeout=limit)


def test_an_interrupt_after_the_threads_start_does_not_free_its_vm(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() waits for the thread, and does not free the machine while the thread uses it."""

    class Interrupted:
        def __getattr__(self, name: str) -> object:
            return self.start if name == "tn_start" else getattr(lib, name)

        @staticmethod
        def start(*args: object) -> int:
            assert lib.tn_start(*args) == 0
            while not started.wait(60):
                pytest.fail("the guest said nothing")
            raise KeyboardInterrupt

    started = threading.Event()
    with Image.open(guest("flood")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        watch = threading.Thread(target=until_it_runs, args=(vm, started))
        watch.start()
        monkeypatch.setattr("tender.vm.lib", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            vm.start()
        monkeypatch.undo()
        watch.join()
        assert still_runs(vm, 0)
        vm.stop()
        result = vm.wait(60)
        assert result.reason == tender.ExitReason.STOPPED


def until_it_runs(vm: Vm, started: threading.Event) -> None:
    while not vm.counters.exits:
        time.sleep(0)
    started.set()


def test_an_interrupt_inside_wait_does_not_hang_the_next_one(guest: Guest) -> None:
    """The interrupt comes on the line after the one that takes the lock."""
    taking = False

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        nonlocal taking
        if frame.f_code is not Vm.wait.__code__ or event not in ("call", "line"):
            return None
        if taking:
            raise KeyboardInterrupt
        if "_readable(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            taking = True
            vm.stop()
        return interrupt

    with Image.open(guest("flood")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.start()
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                vm.wait(60)
        finally:
            sys.settrace(None)
        result = vm.wait(120)
        assert result.reason == tender.ExitReason.STOPPED
