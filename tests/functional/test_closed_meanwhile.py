"""An Image, a Vm and a VmPool are closed while other threads use them: each call ends, by a result or a defined error."""

import threading
from collections.abc import Callable

import pytest
from support import Guest, assert_nothing_is_left, footprint

import tender
from tender import CAPTURE, DISCARD, ImageError, Vm, VmConfig, VmPool, VmStateError

pytestmark = pytest.mark.doors
SMALL = VmConfig(mem=4)
ROUNDS = 12
LIMIT_S = 120


def at_once(*acts: Callable[[], object]) -> None:
    """Each on a thread of its own, begun together; fails for an error that is none of the defined ones, and for a hang."""
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


def test_an_image_is_closed_while_vms_of_it_are_made(guest: Guest, door: str) -> None:
    def runs(image: tender.Image) -> None:
        assert tender.run(image, SMALL, console=DISCARD, timeout=LIMIT_S).ok

    for _ in range(2):  # the machine of a process's first VM stays open until the second is made
        tender.run(guest("hello"), SMALL, console=DISCARD)
    before = footprint()
    for _ in range(ROUNDS):
        image = tender.Image.open(guest("hello"))
        at_once(*[lambda image=image: runs(image)] * 3, image.close)
    if door == "sandbox":
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
