"""The teardown of the command's KVM machine, which the kernel does after the process has ended: nobody
waits, nothing is left.
"""

import errno
import fcntl
import os
import platform
import re
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.kvm

# deferred_teardown.h
HEADER = Path(__file__).resolve().parents[2] / "bindings" / "machine" / "kvm" / "deferred_teardown.h"
PLACES, FIRST_BYTE = (
    int(found, 0)
    for found in re.findall(r"^#define DEFERRED_TEARDOWN_(?:MAX|FIRST_BYTE) +(\w+)", HEADER.read_text(), re.M)
)
OFD_GETLK, OFD_SETLK = 36, 37  # linux/fcntl.h
LIMIT_S = 60


@pytest.fixture
def hello(tender_cmd: list[str], guest: Guest) -> list[str]:
    return [*tender_cmd, "--mem=4", "--backend=kvm", str(guest("hello"))]


def private_file() -> Path:
    """The file in which this user's commands count their teardowns, as deferred_teardown.h defines it."""
    user = os.geteuid()
    directory = Path(f"/run/user/{user}") if user else Path("/run")
    if directory.is_dir() and os.access(directory, os.W_OK):
        return directory / "tender-ends"
    return Path(f"/dev/shm/tender-ends-{user}")


@pytest.fixture
def places() -> Iterator[int]:
    """The file in which the commands count. It is created if it does not exist."""
    fd = os.open(private_file(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    """The host's machines on KVM: one directory PID-FD for each."""
    mounted = subprocess.run(["mount", "-t", "debugfs", "none", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"KVM's machines are seen in debugfs: {mounted.stderr.decode().strip()}")
    yield tmp_path / "kvm"
    subprocess.run(["umount", tmp_path], check=True)


def lock(place: int) -> bytes:
    return struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, FIRST_BYTE + place, 1, 0)


def taken(fd: int) -> int:
    """How many places other open files hold."""
    found = (fcntl.fcntl(fd, OFD_GETLK, lock(place)) for place in range(PLACES))
    return sum(struct.unpack("hhqqi4x", one)[0] != fcntl.F_UNLCK for one in found)


def run(command: list[str]) -> int:
    """Runs the command and returns its pid."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    assert running.wait(timeout=LIMIT_S) == 0
    return running.pid


def of(machines: Path, pids: list[int]) -> list[str]:
    return [made.name for made in machines.glob("*-*") if int(made.name.partition("-")[0]) in pids]


def test_a_hundred_runs_leave_nothing(hello: list[str], places: int, machines: Path) -> None:
    sockets = Path("/proc/net/unix").read_text().count("\n")
    pids = [run(hello) for _ in range(100)]
    until = time.monotonic() + LIMIT_S
    while (of(machines, pids) or taken(places)) and time.monotonic() < until:
        time.sleep(0.01)
    assert (of(machines, pids), taken(places)) == ([], 0)
    assert Path("/proc/net/unix").read_text().count("\n") <= sockets


@pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 9),
    reason="this kernel may collect sockets in the process that exits",
)
def test_the_teardown_is_not_waited_for(hello: list[str], places: int) -> None:
    """The teardown takes the kernel milliseconds, so at least one of fifty runs is seen to end
    before its machine.
    """
    assert any(run(hello) and taken(places) for _ in range(50))


def test_without_a_place_the_machine_has_ended_with_its_process(
    hello: list[str], places: int, machines: Path
) -> None:
    held = [os.open(private_file(), os.O_RDWR | os.O_CLOEXEC) for _ in range(PLACES)]
    for place, fd in enumerate(held):
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                fcntl.fcntl(fd, OFD_SETLK, lock(place))
                break
            except OSError as error:
                assert error.errno == errno.EAGAIN and time.monotonic() < until
                time.sleep(0.01)
    assert taken(places) == PLACES
    for _ in range(10):
        pid = run(hello)
        assert of(machines, [pid]) == []
    for fd in held:
        os.close(fd)


def test_a_killed_run_leaves_neither_machine_nor_place(
    tender_cmd: list[str], guest: Guest, places: int, machines: Path
) -> None:
    command = [*tender_cmd, "--mem=4", "--backend=kvm", str(guest("spin"))]
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.read(1)
    assert len(of(machines, [running.pid])) == 1
    running.kill()
    running.communicate(timeout=LIMIT_S)
    assert of(machines, [running.pid]) == []


AS_NOBODY = """
import fcntl, os, struct, sys
path, first, places = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def lock_all(fd):
    for place in range(places):
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first + place, 1, 0))
lock_all(os.eventfd(0))  # all such are one file to a lock
for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_CREAT):
    try:
        lock_all(os.open(path, flags))
        print("opened", flags, flush=True)
    except PermissionError:
        pass
print("holds", flush=True)
sys.stdin.read()
"""


def test_another_user_takes_no_place(hello: list[str], places: int) -> None:
    words = [sys.executable, "-c", AS_NOBODY, str(private_file()), str(FIRST_BYTE), str(PLACES)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "holds\n"
        assert taken(places) == 0
        counted = count_ends(hello, places)
        other.communicate("")
    assert counted


def count_ends(command: list[str], places: int) -> bool:
    """Whether one of fifty runs is seen to leave its teardown behind, or to hold a place on its way
    there.
    """
    for _ in range(50):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while running.poll() is None:
            if taken(places):
                running.wait(LIMIT_S)
                return True
        assert running.returncode == 0
        if taken(places):
            return True
    return False


@pytest.mark.parametrize(
    "squatter", ["a file that others may open", "another user's", "a link", "a directory", "a FIFO"]
)
def test_a_file_that_is_not_this_users_alone_is_not_used(hello: list[str], squatter: str) -> None:
    """The run ends well, the file is unchanged, and a lock that another process holds on it does not
    matter.
    """
    path = private_file()
    path.unlink(missing_ok=True)
    if squatter == "a link":
        path.symlink_to("/dev/null")
    elif squatter == "a directory":
        path.mkdir(0o700)
    elif squatter == "a FIFO":
        os.mkfifo(path, 0o600)
    else:
        path.touch(0o600)
        path.chmod(0o666 if squatter == "a file that others may open" else 0o600)
        os.chown(path, *((65534, 65534) if squatter == "another user's" else (-1, -1)))
    before = path.lstat()
    try:
        run(hello)
        after = path.lstat()
        assert (after.st_mode, after.st_uid, after.st_ino) == (before.st_mode, before.st_uid, before.st_ino)
        if stat.S_ISREG(after.st_mode):
            fd = os.open(path, os.O_RDWR)
            assert not count_ends(hello, fd)
            os.close(fd)
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
