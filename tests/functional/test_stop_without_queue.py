"""A stop and a time limit work where the user's queue of signals is full (RLIMIT_SIGPENDING)."""

import resource
import threading
from collections.abc import Iterator

import pytest
from support import Guest

from tender import DISCARD, ExitReason, Image, Vm, VmConfig

pytestmark = pytest.mark.backends


@pytest.fixture(autouse=True)
def no_queue() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (soft, hard))


@pytest.mark.parametrize("name", ["spin", "sleep", "flood"])
def test_a_time_limit_ends_the_run(guest: Guest, name: str) -> None:
    with Image.open(guest(name)) as image, Vm(image, VmConfig(mem=8), console=DISCARD) as vm:
        assert vm.run(0.2).reason == ExitReason.TIMEOUT


@pytest.mark.parametrize("name", ["spin", "sleep", "flood"])
def test_a_stop_from_another_thread_ends_the_run(guest: Guest, name: str) -> None:
    with Image.open(guest(name)) as image, Vm(image, VmConfig(mem=8), console=DISCARD) as vm:
        stopper = threading.Timer(0.2, vm.stop)
        stopper.start()
        assert vm.run(60).reason == ExitReason.STOPPED
        stopper.join()
