"""The end of the command's machine on KVM, which the kernel makes behind the process: nobody waits, nothing is left."""

import errno
import fcntl
import os
import platform
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.kvm

# leave_behind.h
HEADER = Path(__file__).resolve().parents[2] / "bindings" / "kvm" / "leave_behind.h"
PLACES, FIRST_BYTE = (
    int(found, 0)
    for found in re.findall(r"^#define LEFT_BEHIND_(?:MAX|FIRST_BYTE) +(\w+)", HEADER.read_text(), re.M)
)
OFD_GETLK, OFD_SETLK = 36, 37  # linux/fcntl.h
LIMIT_S = 60


@pytest.fixture
def hello(tender_cmd: list[str], guest: Guest) -> list[str]:
    return [*tender_cmd, "--mem=4", "--backend=kvm", str(guest("hello"))]


@pytest.fixture
def event_fd() -> Iterator[int]:
    """As the command has one: all such are one file to a lock."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    """The host's machines on KVM, a directory PID-FD each."""
    mounted = subprocess.run(["mount", "-t", "debugfs", "none", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"KVM's machines are seen in debugfs: {mounted.stderr.decode().strip()}")
    yield tmp_path / "kvm"
    subprocess.run(["umount", tmp_path], check=True)


def lock(place: int) -> bytes:
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, FIRST_BYTE + place, 1, 0)


def taken(fd: int) -> int:
    """How many places somebody else has."""
    found = (fcntl.fcntl(fd, OFD_GETLK, lock(place)) for place in range(PLACES))
    return sum(struct.unpack("hhqqi4x", one)[0] != fcntl.F_UNLCK for one in found)


def run(command: list[str]) -> int:
    """The pid that it had."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    assert running.wait(timeout=LIMIT_S) == 0
    return running.pid


def of(machines: Path, pids: list[int]) -> list[str]:
    return [made.name for made in machines.glob("*-*") if int(made.name.partition("-")[0]) in pids]


def test_of_a_hundred_runs_nothing_is_left(hello: list[str], event_fd: int, machines: Path) -> None:
    sockets = Path("/proc/net/unix").read_text().count("\n")
    pids = [run(hello) for _ in range(100)]
    until = time.monotonic() + LIMIT_S
    while (of(machines, pids) or taken(event_fd)) and time.monotonic() < until:
        time.sleep(0.01)
    assert (of(machines, pids), taken(event_fd)) == ([], 0)
    assert Path("/proc/net/unix").read_text().count("\n") <= sockets


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 9),
    reason="this kernel may collect sockets in the process that exits",
)
def test_its_end_is_not_waited_for(hello: list[str], event_fd: int) -> None:
    """It takes the kernel milliseconds, so that some run in fifty is seen to have ended before its machine."""
    assert any(run(hello) and taken(event_fd) for _ in range(50))


def test_without_a_place_the_machine_has_ended_with_its_process(
    hello: list[str], event_fd: int, machines: Path
) -> None:
    held = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(PLACES)]
    for place, fd in enumerate(held):
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                fcntl.fcntl(fd, OFD_SETLK, lock(place))
                break
            except OSError as error:
                assert error.errno == errno.EAGAIN and time.monotonic() < until
                time.sleep(0.01)
    assert taken(event_fd) == PLACES
    for _ in range(10):
        pid = run(hello)
        assert of(machines, [pid]) == []
    for fd in held:
        os.close(fd)


def test_a_killed_run_leaves_neither_machine_nor_place(
    tender_cmd: list[str], guest: Guest, event_fd: int, machines: Path
) -> None:
    command = [*tender_cmd, "--mem=4", "--backend=kvm", str(guest("spin"))]
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.read(1)
    assert len(of(machines, [running.pid])) == 1
    running.kill()
    running.communicate(timeout=LIMIT_S)
    assert of(machines, [running.pid]) == []
