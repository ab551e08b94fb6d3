"""Waiting for a disk that another process has locked: with each launcher, each way to ask for it and
to give the disk.
"""

import fcntl
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import Guest

from tender import DISCARD, Backend, BlockFd, BlockFile, Image, Vm, VmConfig
from tender.errors import DeviceError

pytestmark = pytest.mark.backends
LAUNCHERS = ["native", "python"]
ASKED = {"option": [], "words": [], "variable": [], "solo5-hvt": ["solo5-hvt"]}
NANOSLEEP, CLOCK_NANOSLEEP = "35", "230"  # asm/unistd_64.h
SLEEPS = 3

by_launcher = pytest.mark.parametrize("launcher", LAUNCHERS)
asked = pytest.mark.parametrize("how", ASKED)
given = pytest.mark.parametrize("by_descriptor", [False, True], ids=["path", "descriptor"])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def locked(disk: Path) -> Iterator[int]:
    fd = os.open(disk, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        yield fd
    finally:
        os.close(fd)


@contextmanager
def started(
    tender_cmd: list[str],
    guest: Guest,
    disk: Path,
    backend: str,
    launcher: str,
    how: str,
    seconds: str,
    by_descriptor: bool,
) -> "Iterator[subprocess.Popen[str]]":
    fd = os.open(disk, os.O_RDWR)
    words = [f"--block:storage={f'@{fd}' if by_descriptor else disk}", str(guest("block_edges"))]
    options = {"option": [f"--lock-wait={seconds}"], "words": ["--lock-wait", seconds]}.get(how, [])
    variables = {} if options else {"TENDER_LOCK_WAIT": seconds}
    with subprocess.Popen(
        [*tender_cmd, *ASKED[how], *options, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        pass_fds=[fd], env={**os.environ, **variables, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": backend},
    ) as command:  # fmt: skip
        os.close(fd)
        try:
            yield command
        finally:
            command.kill()


def wait_until_it_waits(command: "subprocess.Popen[str]") -> None:
    """Waits until the command was seen in several different sleeps. It sleeps nowhere else before this
    wait.
    """
    process, deadline, sleeps, last = psutil.Process(command.pid), time.monotonic() + 300, 0, -1
    while sleeps < SLEEPS:
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline, "it does not wait"
        call = Path(f"/proc/{command.pid}/syscall").read_text().split()[0]
        switches = process.num_ctx_switches().voluntary
        if call in (NANOSLEEP, CLOCK_NANOSLEEP) and switches > last:
            sleeps, last = sleeps + 1, switches
        time.sleep(0.01)


@given
@asked
@by_launcher
def test_the_guest_starts_when_the_lock_is_free(
    tender_cmd: list[str],
    guest: Guest,
    disk: Path,
    backend: str,
    launcher: str,
    how: str,
    by_descriptor: bool,
) -> None:
    with (
        locked(disk) as holder,
        started(tender_cmd, guest, disk, backend, launcher, how, "600", by_descriptor) as command,
    ):
        wait_until_it_waits(command)
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
        _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (0, "")


@given
@asked
@by_launcher
@pytest.mark.parametrize("seconds", ["0", "0.2"])
def test_a_lock_that_stays_is_the_same_error_as_without_a_wait(
    tender_cmd: list[str],
    guest: Guest,
    disk: Path,
    backend: str,
    launcher: str,
    how: str,
    by_descriptor: bool,
    seconds: str,
) -> None:
    began = time.monotonic()
    with (
        locked(disk),
        started(tender_cmd, guest, disk, backend, launcher, how, seconds, by_descriptor) as command,
    ):
        _, said = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "in use already: another VM or program has locked it" in said.splitlines()[0]
    assert time.monotonic() - began >= float(seconds)


@given
@asked
@by_launcher
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(
    tender_cmd: list[str], guest: Guest, disk: Path, backend: str, launcher: str, how: str, by_descriptor: bool,
    number: signal.Signals,
) -> None:  # fmt: skip
    with (
        locked(disk),
        started(tender_cmd, guest, disk, backend, launcher, how, "600", by_descriptor) as command,
    ):
        wait_until_it_waits(command)
        command.send_signal(number)
        _, said = command.communicate(timeout=60)
    program = ASKED[how][0] if ASKED[how] else "tender"
    assert (command.returncode, said) == (
        1, f"{program}: Exiting on signal {number.value}\n",
    )  # fmt: skip


@asked
@by_launcher
def test_an_interrupt_that_is_ignored_does_not_end_the_wait(
    tender_cmd: list[str], guest: Guest, disk: Path, backend: str, launcher: str, how: str
) -> None:
    """A shell's background job inherits SIGINT as ignored. solo5-hvt handles it even then."""
    is_deaf = how != "solo5-hvt"
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (
            locked(disk) as holder,
            started(tender_cmd, guest, disk, backend, launcher, how, "600", False) as command,
        ):
            wait_until_it_waits(command)
            command.send_signal(signal.SIGINT)
            if is_deaf:
                wait_until_it_waits(command)
                free = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
                fcntl.fcntl(holder, fcntl.F_OFD_SETLK, free)
            _, said = command.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert (command.returncode, said) == ((0, "") if is_deaf else (1, "solo5-hvt: Exiting on signal 2\n"))


@pytest.mark.parametrize("by_descriptor", [False, True], ids=["path", "descriptor"])
def test_a_vm_waits_while_it_is_made(guest: Guest, disk: Path, backend: Backend, by_descriptor: bool) -> None:
    fd = os.open(disk, os.O_RDWR)
    block = BlockFd(fd) if by_descriptor else BlockFile(disk)
    try:
        with Image.open(guest("block_edges")) as image, locked(disk) as holder:
            for seconds in (0, 0.2):
                began = time.monotonic()
                with pytest.raises(DeviceError) as refused:
                    Vm(
                        image,
                        VmConfig(mem=16, block=block, lock_wait=seconds),
                        console=DISCARD,
                        backend=backend,
                    )
                assert refused.value.code == "block-locked" and time.monotonic() - began >= seconds
            free = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            later = threading.Timer(0.2, fcntl.fcntl, (holder, fcntl.F_OFD_SETLK, free))
            later.start()
            with Vm(
                image, VmConfig(mem=16, block=block, lock_wait=60), console=DISCARD, backend=backend
            ) as vm:
                assert vm.run(60).ok
            later.join()
    finally:
        os.close(fd)
