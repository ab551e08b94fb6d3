"""A KeyboardInterrupt at every moment at which Python may raise one: once the interrupted object is
gone, nothing is left.

CPython checks for signals after each call, at the start of a function, and where a loop jumps back.
A trace function raises at the N-th such moment within the library, for each N that exists.
"""

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import Guest, assert_nothing_is_left, footprint

import tender
from tender import CAPTURE, DISCARD, BlockFile, Image, Vm, VmConfig, VmPool

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4)
LIBRARY = str(Path(tender.__file__).parent)
LIMIT_S = 60
STRIDE = {"sandbox": 1, "kvm": 11}
"""Each moment; where KVM is emulated a boot takes long, and a part of them must do. What both backends share is the most."""


class Moments:
    """Raises at moment `at` of the code that runs inside of it. Afterwards `met` is the number of
    moments.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.met = 0
        self._looks: dict[
            FrameType, bool
        ] = {}  # whether Python checks for signals after the frame's last instruction

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            self._meet()
        elif event == "opcode":
            if self._looks.pop(frame, False):
                self._meet()
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self._looks[frame] = name.startswith(("CALL", "JUMP_BACKWARD"))
        elif event == "return":
            self._looks.pop(frame, None)
        return self.trace

    def _meet(self) -> None:
        self.met += 1
        if self.met == self.at:
            sys.settrace(None)
            raise KeyboardInterrupt

    def during(self, act: Callable[[], object]) -> bool:
        """Returns whether the act was interrupted."""
        sys.settrace(self.trace)
        try:
            act()
            return False
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            self._looks.clear()


def opens(hello: Path, _: Path) -> None:
    with Image.open(hello):
        pass


def reads_bytes(hello: Path, _: Path) -> None:
    with Image.from_bytes(hello.read_bytes()):
        pass


def runs(hello: Path, _: Path) -> None:
    with Image.open(hello) as image, Vm(image, SMALL, console=CAPTURE) as vm:
        vm.run(timeout=LIMIT_S)


def starts_and_waits(hello: Path, _: Path) -> None:
    with Image.open(hello) as image, Vm(image, SMALL, console=CAPTURE) as vm:
        vm.start(timeout=LIMIT_S)
        vm.wait()


def starts_and_closes(hello: Path, _: Path) -> None:
    with Image.open(hello) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.start()


def closes_nothing(hello: Path, _: Path) -> None:
    vm = Vm(Image.open(hello), SMALL, console=DISCARD)
    vm.run()


def has_a_disk_and_a_console(_: Path, place: Path) -> None:
    config = VmConfig(mem=4, block=BlockFile(place / "disk"))
    with Image.open(disk_guest[0]) as image, Vm(image, config, console=place / "console") as vm:
        vm.run(timeout=LIMIT_S)


def takes_from_a_pool(hello: Path, _: Path) -> None:
    with Image.open(hello) as image, VmPool(image, SMALL, size=2) as pool:
        pool.run(timeout=LIMIT_S)
        with pool.take(("word",)):
            pass


disk_guest: list[Path] = []
ACTS = [
    opens,
    reads_bytes,
    runs,
    starts_and_waits,
    starts_and_closes,
    closes_nothing,
    has_a_disk_and_a_console,
    takes_from_a_pool,
]


@pytest.mark.parametrize("act", ACTS)
def test_an_interrupt_at_any_moment_leaves_nothing_when_one(
    guest: Guest, tmp_path: Path, backend: str, act: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disk_guest[:] = [guest("disk")]
    for _ in range(2):
        act(guest("hello"), tmp_path)
    before = footprint()
    at = 1
    while Moments(at).during(lambda: act(guest("hello"), tmp_path)):
        at += STRIDE[backend]
    assert at > 10
    assert_nothing_is_left(before)
    act(guest("hello"), tmp_path)
