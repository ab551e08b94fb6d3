"""An object that its user drops without close() gives everything back immediately: none is part of a
reference cycle.

The garbage collector is off. Descriptors are closed and processes end without it.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from support import Guest

import tender
from tender import CAPTURE, DISCARD, HostError, Image, Vm, VmConfig, VmPool

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4)
LIMIT_S = 60


def raising(_: bytes) -> None:
    raise ZeroDivisionError


def a_vm(image: Image) -> None:
    Vm(image, SMALL, console=CAPTURE)


def a_vm_with_a_callable(image: Image) -> None:
    Vm(image, SMALL, console=lambda _: None)


def a_vm_that_has_run(image: Image) -> None:
    Vm(image, SMALL, console=CAPTURE).run(LIMIT_S)


def a_vm_whose_callable_raised(image: Image) -> None:
    vm = Vm(image, SMALL, console=raising)
    with pytest.raises(ZeroDivisionError):
        vm.run(LIMIT_S)


def a_started_vm(image: Image) -> None:
    vm = Vm(image, SMALL, console=CAPTURE)
    vm.start(LIMIT_S)
    vm.wait()


def a_started_vm_whose_callable_raised(image: Image) -> None:
    vm = Vm(image, SMALL, console=raising)
    vm.start(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while vm._failure is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert isinstance(vm._failure, ZeroDivisionError)


def a_refused_vm(image: Image) -> None:
    with pytest.raises(HostError):
        Vm(image, VmConfig(mem=4, require=("kvm", "user-namespace")))


def a_pool(image: Image) -> None:
    VmPool(image, SMALL, size=2)


def a_pool_that_has_run(image: Image) -> None:
    pool = VmPool(image, SMALL, size=2)
    for _ in range(3):
        pool.run(timeout=LIMIT_S)


def a_lease(image: Image) -> None:
    VmPool(image, SMALL).take()


def a_lease_that_was_given_back(image: Image) -> None:
    pool = VmPool(image, SMALL)
    vm = pool.take()
    vm.start(LIMIT_S)
    vm.wait()
    vm.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> tuple[int, int]:
    """Returns the number of descriptors and of living processes."""
    children = psutil.Process().children(recursive=True)
    return len(os.listdir("/proc/self/fd")), sum(it.status() != psutil.STATUS_ZOMBIE for it in children)


@pytest.mark.parametrize(
    "dropped",
    [
        a_vm,
        a_vm_with_a_callable,
        a_vm_that_has_run,
        a_vm_whose_callable_raised,
        a_started_vm,
        a_started_vm_whose_callable_raised,
        a_refused_vm,
        a_pool,
        a_pool_that_has_run,
        a_lease,
        a_lease_that_was_given_back,
    ],
)
def test_nothing_is_left_without_the_collector_of(
    guest: Guest, no_collector: None, dropped: Callable[[Image], None]
) -> None:
    with Image.open(guest("hello")) as image:
        for _ in range(2):  # the machine of a process's first VM stays open until the second is made
            tender.run(image, SMALL, console=DISCARD)
        before = held()
        for _ in range(3):
            dropped(image)
        deadline = time.monotonic() + LIMIT_S
        while held() != before and time.monotonic() < deadline:
            time.sleep(0.001)  # a process takes a moment to end, and so does a machine on KVM
        assert held() == before


def test_an_image_is_closed_without_the_collector(guest: Guest, no_collector: None) -> None:
    before = held()
    Image.open(guest("hello"))
    assert held() == before
