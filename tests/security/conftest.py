"""The fixtures of the hostile guest: its image, and the rig that runs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_rig import Rig, held, wait_until
from support import Guest

from tender import Image


@pytest.fixture(scope="module")
def image(guest: Guest) -> Iterator[Image]:
    with Image.open(guest("sandbox_attack")) as opened:
        yield opened


@pytest.fixture
def rig(image: Image, guest: Guest, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(image, guest("sandbox_attack"), tmp_path)
    made.vm().close()  # the first one also starts the thread that makes all of them, which stays
    before = held()
    try:
        yield made
        wait_until(lambda: held() == before)  # a thread that has reported its end takes a moment to be gone
        made.check()
    finally:
        made.close()
