"""A stop and a time limit are obeyed in the middle of one long transfer of a disk, by each backend and
each launcher.

The disk answers a read only when it is told to (tests/faulty_disk.py), so no clock is needed. After
a stop the command asks the medium for little more than the piece under way.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import BLOCK_READ, BLOCK_WRITE, HEAP, L_BLOCK, Bare
from faulty_disk import FaultyDisk

from tender import BlockFd, Image, Vm, VmConfig

pytestmark = pytest.mark.backends
SIZE = 16 << 20
PIECE = 1 << 20
"""BLOCK_PIECE_BYTES of block.h."""
LIMIT_S = 60
transfer = pytest.mark.parametrize("number", [BLOCK_READ, BLOCK_WRITE], ids=["read", "write"])


class SlowDisk(FaultyDisk):
    """Answers the first transfers. Then it sets `asked`, and answers no transfer before `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def _transfer(self, writing: bool, offset: int, length: int, payload: bytes) -> bytes:
        if offset >= 2 * PIECE:
            self.asked.set()
            assert self.go_on.wait(LIMIT_S)
        return super()._transfer(writing, offset, length, payload)

    def reached(self) -> int:
        """Returns the end offset of what was transferred."""
        return max(offset + length for offset, length in self.reads + self.writes)

    def __exit__(self, *about: object) -> None:
        self.go_on.set()
        super().__exit__(*about)  # type: ignore[arg-type]


@pytest.fixture
def disk() -> Iterator[SlowDisk]:
    made = SlowDisk()
    with made:
        yield made


def guest_of(number: int) -> Bare:
    """A guest that makes one transfer of the whole disk."""
    guest = Bare([("storage", "block")])
    guest.call(number, L_BLOCK, 1, 0, HEAP, SIZE, 0)
    guest.halt(0)
    return guest


@pytest.fixture
def elf(tmp_path: Path, number: int) -> Path:
    path = tmp_path / "long.elf"
    path.write_bytes(guest_of(number).elf())
    return path


@transfer
@pytest.mark.parametrize("launcher", ["native", "python"])
@pytest.mark.parametrize("number_of_signal", [signal.SIGTERM, signal.SIGINT])
def test_the_command_obeys_a_signal(
    tender_cmd: list[str],
    elf: Path,
    disk: SlowDisk,
    backend: str,
    launcher: str,
    number_of_signal: signal.Signals,
) -> None:
    fd = disk.open()
    words = [*tender_cmd, f"--backend={backend}", "--mem=32", f"--block=@{fd}", str(elf)]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, pass_fds=[fd], env={**os.environ, "TENDER_LAUNCHER": launcher}
    ) as command:
        try:
            assert disk.asked.wait(LIMIT_S)
            command.send_signal(number_of_signal)
            disk.go_on.set()
            _, said = command.communicate(timeout=LIMIT_S)
        finally:
            command.kill()
    assert (command.returncode, said) == (1, f"tender: Exiting on signal {number_of_signal.value}\n".encode())
    assert disk.reached() < SIZE


@transfer
def test_the_library_obeys_a_stop(elf: Path, disk: SlowDisk, backend: str) -> None:
    with Vm(Image.open(str(elf)), VmConfig(mem=32, block=BlockFd(disk.open()))) as vm:
        vm.start()
        assert disk.asked.wait(LIMIT_S)
        vm.stop()
        disk.go_on.set()
        result = vm.wait(timeout=LIMIT_S)
    assert result.reason == "stopped"
    assert disk.reached() < SIZE and result.counters.block_errors == 0
    assert (result.counters.block_reads, result.counters.block_writes) == (0, 0)


@transfer
@pytest.mark.parametrize("launcher", ["native", "python"])
def test_the_command_obeys_a_time_limit(
    tender_cmd: list[str], elf: Path, disk: SlowDisk, backend: str, launcher: str
) -> None:
    """The disk answers again 4 s after it was asked. By then the limit of 2 s is over, whichever
    clock measures it.
    """
    fd = disk.open()
    words = [*tender_cmd, f"--backend={backend}", "--mem=32", "--timeout=2", f"--block=@{fd}", str(elf)]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, pass_fds=[fd], env={**os.environ, "TENDER_LAUNCHER": launcher}
    ) as command:
        try:
            assert disk.asked.wait(LIMIT_S)
            threading.Timer(4, disk.go_on.set).start()
            _, said = command.communicate(timeout=LIMIT_S)
        finally:
            command.kill()
    assert (command.returncode, b"its time limit of 2 s is over" in said) == (1, True), said
    assert disk.reached() < SIZE
