"""The heap of a guest that runs, seen from outside and by the library, on both backends."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import Guest

from tender import Image, Vm, VmConfig
from tender.debug.find import guests_of
from tender.debug.memory_use import heap_of

LIMIT_S = 100
BYTES, HEADER = 40_000, 16

StartGuest = Callable[..., Any]  # conftest.py


@pytest.mark.backends
def test_a_heap_that_grows_is_seen_piece_by_piece_and_the_guest_goes_on(start_guest: StartGuest) -> None:
    running = start_guest("leak", str(BYTES), "1000000")
    (guest,) = guests_of(running.pid)
    seen: list[int] = []
    end = time.monotonic() + LIMIT_S
    while len(set(seen)) < 4:
        assert time.monotonic() < end, seen
        use = heap_of(guest)
        assert use is not None and use.damaged_at is None
        if use.used_bytes is not None:
            seen.append(use.used_bytes)
            assert use.used_bytes < use.total_bytes < 16 << 20
    assert seen == sorted(seen)
    assert all(it % (BYTES + HEADER) == 0 for it in seen), seen
    status, out, _ = running.end()
    assert (status, out) == (0, b"ready\nfull\n")


@pytest.mark.backends
def test_a_vm_says_what_its_guest_uses_while_it_runs_and_afterwards(guest: Guest) -> None:
    ready = threading.Event()

    def heard(data: bytes) -> None:
        ready.set()

    config = VmConfig(mem=16, args=(str(BYTES), "1000000"))
    with Image.open(guest("leak")) as image, Vm(image, config, console=heard) as vm:
        assert vm.memory_use().total_bytes == 16 << 20
        vm.start(timeout=LIMIT_S)
        assert ready.wait(LIMIT_S)
        first = last = vm.memory_use()
        end = time.monotonic() + LIMIT_S
        while last.heap is None or not last.heap.used_bytes or last.touched_bytes <= first.touched_bytes:
            assert time.monotonic() < end, last
            last = vm.memory_use()
        assert last.touched_bytes < last.total_bytes
        vm.stop()
        assert vm.wait(LIMIT_S).reason == "stopped"
        after = vm.memory_use().heap
        assert after is not None and after.used_bytes is not None and after.used_bytes >= last.heap.used_bytes
