"""Disks that fail, row by row: the guest gets EUNSPEC, the error is counted, and the guest goes on.
solo5-hvt would end it.

One boot makes many requests; each has the answer that it must get (tests/bare.py). The medium is
tests/faulty_disk.py. Each request reaches it as a system call, or, if `mapped`, the host's page cache and a
mapping are in between. Load, a full tmpfs and files truncated at random are in test_disk_load.py.
"""

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import (
    BLOCK_READ,
    BLOCK_WRITE,
    DATA,
    EUNSPEC,
    HEAP,
    L_BLOCK,
    OK,
    Bare,
    Placed,
    Ran,
)
from faulty_disk import PAGE, FaultyDisk
from support import Guest

from tender import CAPTURE, BlockFd, BlockFile, ExitReason, Image, Vm, VmConfig, VmResult, run

pytestmark = pytest.mark.backends

SIZE = 16 * PAGE
BAD = 8 * PAGE + 512
"""The sector that fails."""
mapped = pytest.mark.parametrize("mapped", [False, True], ids=["by calls", "mapped"])
fails_with = pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])


class Requests(Bare):
    """A guest with one disk: its requests, and the answer that each must get."""

    def __init__(self) -> None:
        super().__init__([("storage", "block")])
        self.expected: list[tuple[Placed, str, int]] = []
        self.filled: list[tuple[int, int, int]] = []

    def write_disk(self, offset: int, data: bytes, answer: int) -> None:
        call = self.call(BLOCK_WRITE, L_BLOCK, 1, offset, self.place(data, align=512), len(data), 0x7E)
        self.expected.append((call, f"write of {len(data)} at {offset}", answer))

    def read_disk(self, offset: int, length: int, answer: int) -> int:
        """Adds a read; returns the address of its buffer."""
        buffer = self.place(b"\xa5" * (length + 8), align=512)
        call = self.call(BLOCK_READ, L_BLOCK, 1, offset, buffer, length, 0x7E)
        self.expected.append((call, f"read of {length} at {offset}", answer))
        return buffer

    def boot(
        self, block: BlockFd | BlockFile, said: Callable[[], None] | None = None
    ) -> tuple[VmResult, Callable[[int, int], bytes]]:
        """Runs the guest; returns its result, and a function that reads its memory. `said` is called when
        the guest writes to the console."""
        self.halt(7)
        with Image.from_bytes(self.elf()) as image:
            with Vm(
                image,
                VmConfig(mem=2, block=block),
                console=CAPTURE if said is None else lambda _: said(),
            ) as vm:
                result = vm.run(timeout=60)
                memory = vm.memory(DATA, HEAP - DATA)
        got = {name: Ran(result, memory).at(call)[-1] for call, name, _ in self.expected}
        assert got == {name: answer for _, name, answer in self.expected}
        assert (result.reason, result.status) == (ExitReason.EXIT, 7), result.message
        refused = sum(answer == EUNSPEC for _, _, answer in self.expected)
        counters = result.counters
        assert counters.block_errors == refused
        assert counters.block_reads + counters.block_writes == len(self.expected) - refused
        return result, Ran(result, memory).raw


# ---- errors


@mapped
@fails_with
def test_a_failing_write_is_an_error_and_adjacent_writes_succeed(code: int, mapped: bool) -> None:
    with FaultyDisk(SIZE, mapped=mapped) as disk:
        before = bytes(disk.data)
        disk.write[BAD] = code
        guest = Requests()
        guest.write_disk(BAD, b"\1" * 512, EUNSPEC)
        guest.write_disk(BAD - 512, b"\2" * 512, OK)
        guest.write_disk(BAD + 512, b"\3" * 512, OK)
        guest.write_disk(BAD - PAGE, b"\4" * (3 * PAGE), EUNSPEC)
        guest.write_disk(SIZE - 512, b"\5" * 512, OK)
        buffer = guest.read_disk(SIZE - 512, 511, OK)
        _, memory = guest.boot(BlockFd(disk.open()))
        assert memory(buffer, 512) == b"\5" * 511 + b"\xa5"
        # A later write through the mapping may include bytes that a failed call did not write. Those are
        # writes as well, but not to this sector.
        assert disk.data[BAD : BAD + 512] == before[BAD : BAD + 512]
        assert disk.data[BAD - 512 : BAD] in (b"\2" * 512, b"\4" * 512)
        assert disk.data[SIZE - 512 :] == b"\5" * 512


@mapped
def test_a_failing_read_is_an_error_and_adjacent_reads_succeed(mapped: bool) -> None:
    with FaultyDisk(SIZE, mapped=mapped) as disk:
        disk.read[BAD] = errno.EIO
        guest = Requests()
        guest.read_disk(BAD, 512, EUNSPEC)
        guest.read_disk(BAD - 2 * PAGE, 4 * PAGE, EUNSPEC)
        buffers = {
            offset: guest.read_disk(offset, PAGE, OK) for offset in (0, 7 * PAGE, 9 * PAGE, SIZE - PAGE)
        }
        guest.write_disk(0, b"\1" * PAGE, OK)
        again = guest.read_disk(0, PAGE - 1, OK)
        before = bytes(disk.data)
        _, memory = guest.boot(BlockFd(disk.open()))
        for offset, buffer in buffers.items():
            assert memory(buffer, PAGE) == before[offset : offset + PAGE], offset
        assert memory(again, PAGE) == b"\1" * (PAGE - 1) + b"\xa5"


def test_an_evicted_page_that_cannot_be_read_again_is_an_error() -> None:
    """The page was read before, so it is copied from the mapping. The copy causes a page fault that fails,
    which would be SIGBUS."""
    with FaultyDisk(SIZE, mapped=True) as disk:
        fd = disk.open()
        guest = Requests()
        guest.read_disk(0, SIZE, OK)
        guest.write(b"now")
        guest.read_disk(BAD, 512, EUNSPEC)
        guest.read_disk(BAD - 3 * PAGE, 6 * PAGE, EUNSPEC)
        buffer = guest.read_disk(0, 3 * PAGE, OK)
        before = bytes(disk.data)

        def the_medium_breaks() -> None:
            disk.reads.clear()
            disk.read[BAD] = errno.EIO
            os.posix_fadvise(fd, 0, SIZE, os.POSIX_FADV_DONTNEED)

        _, memory = guest.boot(BlockFd(fd), the_medium_breaks)
        assert any(offset <= BAD < offset + length for offset, length in disk.reads), (
            "the host did not evict the page"
        )
        assert memory(buffer, 3 * PAGE) == before[: 3 * PAGE]


def test_a_flush_that_fails_is_an_error(guest: Guest) -> None:
    with FaultyDisk(SIZE, mapped=True) as disk:
        disk.sync = errno.EIO
        config = VmConfig(mem=16, block=BlockFd(disk.open()), args=("--batch", "--ops=20", "--errors"))
        result = run(guest("block_load"), config, console=CAPTURE, timeout=60)
        assert result.ok and result.console is not None and result.console.endswith(b" flush 3\n")
        assert result.counters.block_errors > 0 and result.counters.block_flushes == 0


# ---- short transfers


@pytest.mark.parametrize("short", [1, 511, 1000, 5000])
def test_a_transfer_that_is_cut_is_continued(short: int) -> None:
    """The host transfers few bytes at a time. It is still one request, and is counted as one."""
    offset, length = 3 * PAGE + 512, 2 * PAGE if short > 1 else 64
    with FaultyDisk(SIZE) as disk:
        disk.short = short
        before = bytes(disk.data)
        data = os.urandom(length)
        guest = Requests()
        buffer = guest.read_disk(offset, length, OK)
        guest.write_disk(offset, data, OK)
        again = guest.read_disk(offset, length - 1, OK)
        result, memory = guest.boot(BlockFd(disk.open(), raw=True))
        assert disk.data == before[:offset] + data + before[offset + length :]
        assert memory(buffer, length) == before[offset : offset + length]
        assert memory(again, length) == data[:-1] + b"\xa5"
        pieces = [(offset + done, length - done) for done in range(0, length, short)]
        assert disk.writes == pieces and disk.reads[: len(pieces)] == pieces
        assert result.counters.block_write_bytes == length
        assert result.counters.block_read_bytes == 2 * length - 1


def test_an_error_in_the_middle_fails_the_whole_request() -> None:
    """The bytes moved before the error stay moved, as on any disk. The first call is short, and the next
    one fails."""
    with FaultyDisk(SIZE) as disk:
        disk.short = 512
        disk.after_short = errno.EIO
        before = bytes(disk.data)
        guest = Requests()
        buffer = guest.read_disk(BAD, 1536, EUNSPEC)
        guest.write_disk(BAD, b"\1" * 1536, EUNSPEC)
        _, memory = guest.boot(BlockFd(disk.open(), raw=True))
        assert memory(buffer, 1536) == before[BAD : BAD + 512] + b"\xa5" * 1024
        assert disk.data == before[:BAD] + b"\1" * 512 + before[BAD + 512 :]
        assert disk.reads == disk.writes == [(BAD, 1536), (BAD + 512, 1024)]


def test_a_transfer_of_zero_bytes_is_an_error_not_an_endless_loop() -> None:
    with FaultyDisk(SIZE) as disk:
        disk.short = 0
        guest = Requests()
        guest.read_disk(0, 512, EUNSPEC)
        guest.write_disk(0, b"\1" * 512, EUNSPEC)
        guest.boot(BlockFd(disk.open()))
        assert len(disk.reads) + len(disk.writes) < 10


# ---- a truncated file


def test_a_file_truncated_while_its_guest_runs(tmp_path: Path) -> None:
    """The file is truncated in the middle of page 4, after all of it was read and half of it was written.
    Both copies and system calls meet the end."""
    path = tmp_path / "disk.img"
    before = os.urandom(SIZE)
    path.write_bytes(before)
    cut = 4 * PAGE + 512
    guest = Requests()
    guest.read_disk(0, SIZE, OK)
    guest.write_disk(8 * PAGE, b"\1" * (8 * PAGE), OK)
    guest.write(b"now")
    kept = guest.read_disk(3 * PAGE, PAGE + 512, OK)
    end = guest.read_disk(cut, 512, OK)
    guest.read_disk(5 * PAGE, 512, EUNSPEC)
    guest.read_disk(3 * PAGE, 3 * PAGE, EUNSPEC)
    guest.read_disk(12 * PAGE, 512, EUNSPEC)
    guest.read_disk(SIZE - 512, 512, EUNSPEC)
    guest.write_disk(0, b"\2" * 512, OK)
    guest.write_disk(10 * PAGE, b"\3" * PAGE, OK)  # this extends the file to there again
    hole = guest.read_disk(6 * PAGE, PAGE, OK)
    there = guest.read_disk(10 * PAGE, PAGE, OK)
    guest.read_disk(11 * PAGE, PAGE, EUNSPEC)
    _, memory = guest.boot(BlockFile(str(path)), lambda: os.truncate(path, cut))
    assert memory(kept, PAGE + 512) == before[3 * PAGE : cut]
    assert memory(end, 512) == bytes(512) == memory(hole, 512)
    assert memory(there, PAGE) == b"\3" * PAGE
    assert path.read_bytes() == b"\2" * 512 + before[512:cut] + bytes(10 * PAGE - cut) + b"\3" * PAGE


# ---- through both commands


@pytest.mark.parametrize("name", ["tender", "solo5-hvt"])
def test_a_guest_survives_a_failing_disk_under_both_commands(
    front: Callable[[str], str], guest: Guest, name: str
) -> None:
    """Half of the disk has no space, and a quarter cannot be read. The guest puts load on it and ends by
    itself, and no message appears."""
    with FaultyDisk(SIZE) as disk:
        disk.write = dict.fromkeys(range(SIZE // 2, SIZE, PAGE), errno.ENOSPC)
        disk.read = dict.fromkeys(range(0, SIZE // 4, PAGE), errno.EIO)
        fd = disk.open()
        words = [f"--block:storage=@{fd}", str(guest("block_load")), "--errors", "--ops=300"]
        done = subprocess.run(
            [front(name), "--mem=16", *words], capture_output=True, text=True, timeout=60, check=False, pass_fds=[fd]
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.startswith("load: OK crc 0x") and " errors 0 " not in done.stdout
        assert disk.writes and disk.reads


def test_a_file_size_limit_is_an_error_not_a_signal(
    tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """With `ulimit -f` below the size of the disk the kernel refuses the write and sends SIGXFSZ, which
    ends a program by default."""
    path, size, limit = tmp_path / "disk.img", 2 << 20, 15 << 17
    path.write_bytes(os.urandom(size))
    words = ["--json=fd:2", "-q", "--mem=16", f"--block:storage={path}", str(guest("block_load")), "--errors"]
    done = subprocess.run(
        [*tender_cmd, *words, "--batch"], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("load: OK crc 0x"), (done.stdout, done.stderr)
    assert json.loads(done.stderr)["counters"]["block_errors"] > 10
    assert path.stat().st_size == size


@pytest.mark.parametrize("name", ["tender", "solo5-hvt"])
def test_a_file_size_limit_below_the_image_size_is_reported(
    front: Callable[[str], str], guest: Guest, name: str, backend: str
) -> None:
    """The sandbox's image is a file in memory. On KVM the command has no such file."""
    done = subprocess.run(
        [front(name), "--mem=4", str(guest("hello"))], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE)),
    )  # fmt: skip
    if backend == "kvm":
        assert done.returncode == 0, done.stderr
        return
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()
    assert said[0].startswith(f"{name}: image: no file in memory of ") and said[0].endswith(
        ": File too large"
    )
    assert [line.endswith(": ulimit -f") for line in said[1:]] == ([True] if name == "tender" else [])
