"""The heap of a guest that runs, seen from outside, on both backends."""

import time
from collections.abc import Callable
from typing import Any

import pytest

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
