"""Disks under load: a guest reads what it wrote, and what it wrote is in the file. Whatever happens to
the file meanwhile is an error for the guest and nothing worse.
"""

import os
import re
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Guest, still_runs, with_note

from tender import CAPTURE, BlockFd, BlockFile, ExitReason, Image, Vm, VmConfig, VmResult, run

pytestmark = pytest.mark.backends
LIMIT = 120
IN_TEST_VM = bool(os.environ.get("KVMBOX"))
SIZE = 100 * 4096 + 1536  # the last page is not whole


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def config(block: BlockFile | BlockFd, *args: str) -> VmConfig:
    return VmConfig(mem=16, block=block, args=args)


def load(image: Path | Image, block: BlockFile | BlockFd, *args: str) -> tuple[int, int, int, VmResult]:
    """Returns the CRC, the number of errors and the answer to the last flush, as the guest reports them."""
    result = run(image, config(block, *args), console=CAPTURE, timeout=LIMIT)
    said = (result.console or b"").decode()
    found = re.fullmatch(r"load: OK crc (0x[0-9a-f]{8}) errors (\d+) flush (\d)\n", said)
    assert found and result.ok, (said, result.message)
    return int(found[1], 16), int(found[2]), int(found[3]), result


def in_the_file(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


@pytest.mark.parametrize("seed", range(3))
def test_what_a_guest_wrote_is_read_and_is_in_the_file(guest: Guest, disk: Path, seed: int) -> None:
    crc, errors, flush, result = load(
        guest("block_load"), BlockFile(str(disk)), f"--seed={seed}", "--batch", "--ops=1500"
    )
    assert (crc, errors, flush) == (in_the_file(disk), 0, 0)
    assert disk.stat().st_size == SIZE
    counters = result.counters
    assert counters.block_batches > 300 and counters.block_flushes > 100
    assert counters.block_reads > 3000 and counters.block_writes > 3000


def test_blocks_of_4_kib(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(512 << 10))
    crc, errors, _, _ = load(guest("block_load"), BlockFile(str(path), sector_size=4096), "--batch")
    assert (crc, errors) == (in_the_file(path), 0)


@pytest.mark.parametrize("flags", [os.O_DSYNC, os.O_SYNC])
def test_a_descriptor_that_is_not_mapped_serves_as_well(guest: Guest, disk: Path, flags: int) -> None:
    fd = os.open(disk, os.O_RDWR | flags)
    try:
        crc, errors, flush, _ = load(guest("block_load"), BlockFd(fd), "--batch", "--ops=300")
    finally:
        os.close(fd)
    assert (crc, errors, flush) == (in_the_file(disk), 0, 0)


def test_the_library_does_without_the_extension(guest: Guest, disk: Path) -> None:
    """The library sends the requests of a batch one by one. A flush is impossible, and its answer says
    so.
    """
    for features in (0, 1):
        with Image.from_bytes(with_note(guest("block_load"), 1, features)) as image:
            crc, errors, flush, result = load(image, BlockFile(str(disk)), "--batch", f"--seed={features}")
        assert (crc, errors, flush) == (in_the_file(disk), 0, 3)
        assert result.counters.block_batches == result.counters.block_flushes == 0


def test_a_batch_with_an_address_that_is_not_the_guests_ends_it(guest: Guest, disk: Path) -> None:
    result = run(guest("block_batch_wild"), config(BlockFile(str(disk))), console=CAPTURE, timeout=LIMIT)
    assert result.reason == ExitReason.BAD_ACCESS
    assert re.match(
        r"Invalid guest access: gpa=0x1000, sz=512 \(hypercall block_batch, rip=0x", result.message
    )


@pytest.fixture
def running(guest: Guest) -> Iterator[object]:
    """running(block, args): a guest under load that has printed its first line; it uses batches if
    asked. Closed afterwards.
    """
    made: list[Vm] = []

    def start(block: BlockFile | BlockFd, *args: str, batch: bool = True) -> Vm:
        said = threading.Event()
        with Image.open(guest("block_load")) as image:
            vm = Vm(
                image,
                config(block, "--forever", *(["--batch"] if batch else []), *args),
                console=lambda text: said.set() if b"load: runs" in text else print(text.decode()),
            )
        made.append(vm)
        vm.start()
        assert said.wait(LIMIT)
        return vm

    yield start
    for vm in made:
        vm.close()


@contextmanager
def opened(disk: Path, *, mapped: bool) -> Iterator[tuple[BlockFile | BlockFd, Path]]:
    """Yields a disk and its file. If `mapped`, the disk's pages are mapped.

    Otherwise the descriptor is synchronous, so each request is a system call of the host. That file
    is in memory: a guest that waits for a medium makes few requests.
    """
    if mapped:
        yield BlockFile(str(disk)), disk
        return
    memory = os.memfd_create("disk")
    path = Path(f"/proc/self/fd/{memory}")
    path.write_bytes(disk.read_bytes())
    fd = os.open(path, os.O_RDWR | os.O_DSYNC)
    try:
        yield BlockFd(fd), path
    finally:
        os.close(fd)
        os.close(memory)


by_each_way = pytest.mark.parametrize(
    ("mapped", "batch"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["mapped-batch", "mapped-call", "asked-batch", "asked-call"],
)


@by_each_way
def test_a_file_that_shrinks_and_grows_under_load_is_errors_for_the_guest(  # type: ignore[no-untyped-def]
    running, disk: Path, mapped: bool, batch: bool
) -> None:
    """The file shrinks to a page's end, into a page and to nothing, and grows back. This process goes
    on.
    """
    with opened(disk, mapped=mapped) as (block, path):
        rounds = 1 if IN_TEST_VM and not (mapped and batch) else 4
        shrink_and_grow(running(block, "--errors", batch=batch), path, rounds)


def shrink_and_grow(vm: Vm, disk: Path, rounds: int) -> None:
    for length in (50 * 4096, 0, 30 * 4096 + 700, 4096, 1, SIZE, 99 * 4096) * rounds:
        before = vm.counters.block_reads + vm.counters.block_errors
        os.truncate(disk, length)
        while vm.counters.block_reads + vm.counters.block_errors < before + 200:
            assert still_runs(vm, 0.001), "the guest has ended"
    os.truncate(disk, SIZE)
    vm.stop()
    result = vm.wait(LIMIT)
    assert result.reason == ExitReason.STOPPED
    assert result.counters.block_errors > 0
    assert disk.stat().st_size == SIZE


def test_a_file_that_shrinks_is_an_error_for_a_hypercall_that_came_as_a_signal(
    guest: Guest, tmp_path: Path, backend: str
) -> None:
    """In the sandbox the copy's fault then happens while another signal is handled."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(64 << 10))
    said: list[bytes] = []
    reads = threading.Event()

    def listen(piece: bytes) -> None:
        said.append(piece)
        reads.set()

    with Image.open(guest("block_trap")) as image:
        with Vm(image, config(BlockFile(str(path))), console=listen) as vm:
            vm.start()
            assert reads.wait(LIMIT)
            os.truncate(path, 4096)
            result = vm.wait(LIMIT)
    assert result.ok, (said, result)
    assert b"".join(said) == b"block_trap: reads\nblock_trap: refused 3\n"
    assert (result.counters.trapped_hypercalls > 2) == (backend == "sandbox")


@by_each_way
def test_a_stop_ends_a_guest_under_load(running, disk: Path, mapped: bool, batch: bool) -> None:  # type: ignore[no-untyped-def]
    for seed in range(4):
        with opened(disk, mapped=mapped) as (block, _):
            vm = running(block, f"--seed={seed}", batch=batch)
            vm.stop()
            result = vm.wait(LIMIT)
            assert result.reason == ExitReason.STOPPED
            vm.close()  # the next VM uses the same disk


def test_two_vms_read_one_image(running, disk: Path, guest: Guest) -> None:  # type: ignore[no-untyped-def]
    before = disk.read_bytes()
    read_only = BlockFile(str(disk), read_only=True)
    first = running(read_only, "--read-only")
    crc, errors, flush, _ = load(guest("block_load"), read_only, "--read-only", "--batch")
    assert (crc, errors, flush) == (zlib.crc32(before), 0, 9)
    first.stop()
    assert first.wait(LIMIT).reason == ExitReason.STOPPED
    assert disk.read_bytes() == before


def test_no_space_is_an_error_for_the_guest(guest: Guest, tender_cmd: list[str], tmp_path: Path) -> None:
    """The disk has holes, and its file system has no space for them. A refused write is not partly done."""
    script = (
        'mount -t tmpfs -o size=256k none "$1" && truncate -s 1M "$1/disk" && shift && "$@"; status=$?;'
        ' cat "$0/disk" >"$0.copy"; exit $status'
    )
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, place, place, *tender_cmd, "--mem=16", f"--block:storage={place}/disk",
         str(guest("block_load")), "--errors", "--batch", "--ops=4000"],
        capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    found = re.search(r"^load: OK crc (0x[0-9a-f]{8}) errors (\d+) flush 0$", done.stdout, re.MULTILINE)
    assert found and done.returncode == 0, (done.stdout, done.stderr)
    assert int(found[2]) > 100
    assert (tmp_path / "small.copy").stat().st_size == 1 << 20
