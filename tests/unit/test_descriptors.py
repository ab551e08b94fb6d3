"""Which descriptors can serve as a network and which as a disk. They are checked before a guest starts, and
the error gives the reason."""

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tender import BlockFd, BlockFile, DeviceError, NetFd
from tender.devices.opening import check_given, open_device

SIZE = 1 << 20
KEPT: ExitStack  # what a row opens in addition to its descriptor


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    global KEPT
    with ExitStack() as KEPT:
        yield


def _keep(fd: int) -> int:
    KEPT.callback(os.close, fd)
    return fd


def _file(flags: int) -> Callable[[Path], int]:
    def opened(directory: Path) -> int:
        (directory / "disk").write_bytes(bytes(SIZE))
        return _keep(os.open(directory / "disk", flags))

    return opened


def _direct(directory: Path) -> int:
    try:
        return _file(os.O_RDWR | os.O_DIRECT)(directory)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")


def _pair(kind: int) -> Callable[[Path], int]:
    def opened(_: Path) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        KEPT.enter_context(ours)
        return KEPT.enter_context(theirs).fileno()

    return opened


def _lone(family: int, kind: int) -> Callable[[Path], int]:
    return lambda _: KEPT.enter_context(socket.socket(family, kind)).fileno()


def _pipe(end: int) -> Callable[[Path], int]:
    def opened(_: Path) -> int:
        ends = os.pipe()
        return [_keep(fd) for fd in ends][end]

    return opened


def _fifo(directory: Path) -> int:
    os.mkfifo(directory / "fifo")
    return _keep(os.open(directory / "fifo", os.O_RDWR))


def _memfd(seals: int) -> Callable[[Path], int]:
    def opened(_: Path) -> int:
        fd = _keep(os.memfd_create("disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(fd, SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    return opened


NO_NET, NO_DISK = "neither a TAP interface nor a socket", "not a file or a block device"
ROWS: dict[str, tuple[Callable[[Path], int], str, str, str]] = {
    # descriptor: the reason why it cannot be a network, a disk, and a read-only disk ("": it can)
    "file": (_file(os.O_RDWR), NO_NET, "", ""),
    "file, synchronous": (_file(os.O_RDWR | os.O_SYNC), NO_NET, "", ""),
    "file, read-only": (_file(os.O_RDONLY), NO_NET, "O_RDONLY", ""),
    "file, write-only": (_file(os.O_WRONLY), NO_NET, "O_WRONLY", "O_WRONLY"),
    "file, appending": (_file(os.O_RDWR | os.O_APPEND), NO_NET, "O_APPEND", "O_APPEND"),
    "file, direct": (_direct, NO_NET, "O_DIRECT", "O_DIRECT"),
    "file, by name alone": (_file(os.O_PATH), "O_PATH", "O_PATH", "O_PATH"),
    "memfd": (_memfd(0), NO_NET, "", ""),
    "memfd, sealed": (_memfd(fcntl.F_SEAL_WRITE), NO_NET, "F_SEAL_WRITE", ""),
    "directory": (lambda path: _keep(os.open(path, os.O_RDONLY)), NO_NET, NO_DISK, NO_DISK),
    "pipe, its reader": (_pipe(0), NO_NET, NO_DISK, NO_DISK),
    "pipe, its writer": (_pipe(1), NO_NET, NO_DISK, NO_DISK),
    "FIFO": (_fifo, NO_NET, NO_DISK, NO_DISK),
    "eventfd": (lambda _: _keep(os.eventfd(0)), NO_NET, NO_DISK, NO_DISK),
    "/dev/null": (lambda _: _keep(os.open("/dev/null", os.O_RDWR)), NO_NET, NO_DISK, NO_DISK),
    "datagrams": (_pair(socket.SOCK_DGRAM), "", NO_DISK, NO_DISK),
    "sequenced packets": (_pair(socket.SOCK_SEQPACKET), "", NO_DISK, NO_DISK),
    "stream": (_pair(socket.SOCK_STREAM), "stream socket", NO_DISK, NO_DISK),
    "TCP": (_lone(socket.AF_INET, socket.SOCK_STREAM), "stream socket", NO_DISK, NO_DISK),
    "datagrams without a peer": (_lone(socket.AF_UNIX, socket.SOCK_DGRAM), "not connected", NO_DISK, NO_DISK),
    "UDP without a peer": (_lone(socket.AF_INET, socket.SOCK_DGRAM), "not connected", NO_DISK, NO_DISK),
    "packets without a peer": (
        _lone(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        "not connected",
        NO_DISK,
        NO_DISK,
    ),
    "closed": (lambda _: 987, "Bad file descriptor", "Bad file descriptor", "Bad file descriptor"),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("role", ["net", "block", "block:ro"])
def test_a_descriptor_is_accepted_or_refused_with_its_number(row: str, role: str, tmp_path: Path) -> None:
    opened, *reasons = ROWS[row]
    reason = reasons[["net", "block", "block:ro"].index(role)]
    fd = opened(tmp_path)

    def attach() -> None:
        if role == "net":
            open_device(NetFd(fd)).close()
        else:
            open_device(BlockFd(fd, read_only=role == "block:ro"), "storage").close()

    if not reason:
        attach()
        return
    with pytest.raises(DeviceError) as refused:
        attach()
    assert f"@{fd}: " in str(refused.value) and reason in str(refused.value)
    if reason.startswith(("O_", "F_", "stream", "not connected", NO_NET)):
        assert refused.value.hint


def test_the_commands_own_descriptors_are_refused(tmp_path: Path) -> None:
    fd = _file(os.O_RDWR)(tmp_path)
    with pytest.raises(DeviceError, match=f"(?m)@{fd}: Bad file descriptor$"):
        check_given(BlockFd(fd))
    os.set_inheritable(fd, True)
    check_given(BlockFd(fd))


def test_the_lock_of_a_disk_by_descriptor_ends_with_its_vm_despite_duplicates(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "d.img"
    disk.write_bytes(bytes(1024))
    fd = os.open(disk, os.O_RDWR)
    duplicate = os.dup(fd)
    try:
        held = open_device(BlockFd(fd), "storage")
        with pytest.raises(DeviceError) as refused:
            open_device(BlockFd(duplicate), "storage")
        assert refused.value.code == "block-locked"
        held.close()
        open_device(BlockFile(disk), "storage").close()
    finally:
        os.close(fd)
        os.close(duplicate)


@pytest.mark.parametrize("launcher", ["python", "native"])
@pytest.mark.parametrize("option", ["--net", "--block"])
def test_a_descriptor_number_that_was_not_inherited_is_refused(
    launcher: str, option: str, tender_cmd: list[str], guest: Callable[[str], str]
) -> None:
    name = "net_tx" if option == "--net" else "disk"
    for fd in range(3, 12):
        done = subprocess.run(
            [*tender_cmd, "--backend=sandbox", "--mem=8", option, f"@{fd}", guest(name)],
            capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL, env={**os.environ, "TENDER_LAUNCHER": launcher},
        )  # fmt: skip
        assert done.returncode == 1 and f"@{fd}: Bad file descriptor" in done.stderr
