"""An Image, a Vm and a VmPool are closed while other threads use them: each call ends with a result or
a defined error.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Guest, assert_nothing_is_left, footprint

import tender
from tender import CAPTURE, DISCARD, ImageError, Vm, VmConfig, VmPool, VmStateError, native

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4)
ROUNDS = 12
LIMIT_S = 120


def at_once(*acts: Callable[[], object]) -> None:
    """Runs each act on a thread of its own, all started together. Fails for an undefined error and for
    a hang.
    """
    wrong: list[BaseException] = []
    together = threading.Barrier(len(acts))

    def do(act: Callable[[], object]) -> None:
        together.wait(LIMIT_S)
        try:
            act()
        except VmStateError:
            pass
        except ImageError as error:
            if error.code != "image-closed":
                wrong.append(error)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=do, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_an_image_is_closed_while_vms_of_it_are_made(guest: Guest) -> None:
    def runs(image: tender.Image) -> None:
        assert tender.run(image, SMALL, console=DISCARD, timeout=LIMIT_S).ok

    def all_rounds() -> None:
        for _ in range(ROUNDS):
            image = tender.Image.open(guest("hello"))
            at_once(*[lambda image=image: runs(image)] * 3, image.close)

    all_rounds()  # the C library keeps arenas and stacks for this many threads
    before = footprint()
    all_rounds()
    assert_nothing_is_left(before)


def test_a_vm_is_closed_while_it_is_started_stopped_waited_for_and_looked_at(guest: Guest) -> None:
    with tender.Image.open(guest("flood")) as image:
        for _ in range(ROUNDS):
            vm = Vm(image, SMALL, console=CAPTURE)
            vm.start(timeout=LIMIT_S)
            at_once(
                vm.close,
                vm.close,
                vm.stop,
                vm.wait,
                lambda vm=vm: vm.counters,  # type: ignore[misc]
                lambda vm=vm: vm.memory(0x100000, 4096),  # type: ignore[misc]
                lambda vm=vm: vm.pid,  # type: ignore[misc]
            )
            vm.close()
            with pytest.raises(VmStateError):
                vm.memory(0x100000, 1)


def started(image: tender.Image) -> Vm:
    vm = Vm(image, SMALL, console=DISCARD)
    vm.start(timeout=LIMIT_S)
    return vm


def test_a_close_waits_while_another_thread_closes_the_same_vm(guest: Guest) -> None:
    """The other close() happens between this one's stop() and its wait for the guest's end."""
    with tender.Image.open(guest("flood")) as image:
        vm = started(image)
        others: list[threading.Thread] = []

        def stop_and_let_the_other_close() -> None:
            del vm.stop  # the class's method again
            others.append(threading.Thread(target=vm.close))
            others[0].start()
            others[0].join(LIMIT_S)

        vm.stop = stop_and_let_the_other_close  # type: ignore[method-assign]
        vm.close()
        assert not others[0].is_alive()
        with pytest.raises(VmStateError, match="closed"):
            vm.memory(0, 1)


def test_a_close_waits_while_another_thread_is_inside_start(guest: Guest) -> None:
    """At that point the guest runs, and Python does not know yet the descriptor that signals its end."""
    with tender.Image.open(guest("flood")) as image:
        vm = started(image)
        done, stops = vm._done, 0
        vm._done = native.descriptor()

        def stop() -> None:
            nonlocal stops
            stops += 1
            if stops == 2:
                vm._done = done
                Vm.stop(vm)

        vm.stop = stop  # type: ignore[method-assign]
        vm.close()
        assert stops >= 2
        with pytest.raises(VmStateError, match="closed"):
            vm.memory(0, 1)


NO_THREAD = """
import resource, sys
sys.path.insert(0, {tests!r})
import support
support.take_backend({backend!r})
from tender import DISCARD, HostError, Image, Vm, VmConfig

def address_space(limit):
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

with Image.open({path!r}) as image, Vm(image, VmConfig(mem=4), console=DISCARD) as vm:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for timeout in (None, 100):
        address_space(used + (256 << 10))
        try:
            vm.start(timeout)
        except HostError as error:
            print(error.message, "|", error.hint)
        address_space(resource.RLIM_INFINITY)
    vm.start(100)
    print(vm.wait().reason)
"""


def test_a_vm_whose_thread_cannot_be_made_can_be_started_later(guest: Guest, backend: str) -> None:
    """There is no space for the thread's stack, so the first attempts fail. A later attempt starts
    the VM.
    """
    tests = str(Path(__file__).resolve().parents[1])
    program = NO_THREAD.format(tests=tests, backend=backend, path=str(guest("hello")))
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    refused = "the run's thread cannot be had: Resource temporarily unavailable | threads count as processes: ulimit -u\n"
    assert (done.returncode, done.stderr, done.stdout) == (0, "", refused * 2 + "exit\n")


def test_a_vm_inside_run_is_not_closed_by_another_thread(guest: Guest) -> None:
    with tender.Image.open(guest("flood")) as image:
        for _ in range(ROUNDS):
            with Vm(image, SMALL, console=DISCARD) as vm:
                at_once(vm.close, lambda vm=vm: vm.run(LIMIT_S), vm.close, vm.stop)  # type: ignore[misc]


def test_a_pool_is_closed_while_threads_take_from_it(guest: Guest) -> None:
    with tender.Image.open(guest("hello")) as image:
        tender.run(image, SMALL, console=DISCARD)
        for _ in range(ROUNDS // 2):
            pool = VmPool(image, SMALL, size=2, console=DISCARD)
            at_once(*[lambda pool=pool: pool.run(timeout=LIMIT_S)] * 4, pool.close)
            assert pool.idle == 0
