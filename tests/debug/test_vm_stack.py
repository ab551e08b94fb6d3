"""The stack and the variables of a guest of the library, on both backends."""

import threading
import time
from pathlib import Path

import pytest
from support import Guest

from tender import Image, Vm, VmConfig


@pytest.mark.backends
def test_a_waiting_guests_stack_and_variables_are_those_of_its_source(guest: Guest) -> None:
    ready = threading.Event()
    config = VmConfig(mem=16, args=("poll", "100000"))

    def heard(data: bytes) -> None:
        ready.set()

    with Image.open(guest("debug")) as image, Vm(image, config, console=heard) as vm:
        vm.start(timeout=100)
        assert ready.wait(100)
        ticks = vm.symbol("ticks")
        assert ticks is not None
        end = time.monotonic() + 100
        while not any(vm.memory(ticks.address, 8)) and time.monotonic() < end:  # it has printed, and waits
            pass

        frames = vm.backtrace()
        nodes = vm.symbol("nodes")

        names = [frame.function for frame in frames]
        assert "main" in names and names.index("main") >= 1
        main = frames[names.index("main")]
        assert (Path(main.file).name, main.certain) == ("main.c", True)
        assert "return wait(" in Path(main.file).read_text().split("\n")[main.line - 1]
        assert nodes is not None and not nodes.is_function
        first = vm.memory(nodes.address, 8)
        assert int.from_bytes(first, "little") == nodes.address + nodes.size // 4
        vm.stop()
        assert vm.wait(100).reason == "stopped"
