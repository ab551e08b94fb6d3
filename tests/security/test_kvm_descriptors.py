"""A hijacked hypercall handler of the native command on KVM, and each descriptor that its process has.

The calls are made in the running command, under its filter. tests/native/test_kvm_rights.c tests
what the filter allows. This file tests the descriptors that exist, including those that a caller
passed or left open.
"""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from injected import Injector
from support import Guest

pytestmark = pytest.mark.kvm

WRITE, WRITEV, PWRITEV2 = 1, 20, 328  # asm/unistd_64.h
RWF_NOWAIT = 8  # linux/fs.h
DISK_BYTES = 1 << 20
GIVEN = 5

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tender_cmd: list[str], guest: Guest) -> Iterator[Start]:
    """Starts a guest on KVM with these options. The guest has printed its first line, and waits."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*options: str, program: str = "block_sparse", **streams: object) -> subprocess.Popen[bytes]:
        command = [*tender_cmd, "--mem=8", "--backend=kvm", *options, str(guest(program))]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        running = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
        made.append(running)
        assert running.stdout is not None
        assert running.stdout.read(1), running.communicate()
        until = time.monotonic() + 60
        while program != "spin" and state_of(running.pid) != "S":
            assert running.poll() is None and time.monotonic() < until
        return running  # type: ignore[no-any-return]

    yield start
    for running in made:
        running.kill()
        running.communicate()


def state_of(pid: int) -> str:
    """Returns the state of the process. S: it sleeps, because the guest has printed everything and
    waits.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def descriptors_of(pid: int, path: Path) -> list[int]:
    wanted = path.stat()
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        about = entry.stat()
        if (about.st_dev, about.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(entry.name))
    return sorted(found)


def try_write(inside: Injector, call: int, fd: int) -> int:
    """Writes some bytes with that call, at the descriptor's file offset."""
    if call == WRITE:
        return inside.call(WRITE, fd, inside.put(b"A" * 4096), 4096)
    piece = (inside.scratch + 64).to_bytes(8, "little") + (512).to_bytes(8, "little")
    inside.put(piece.ljust(64) + b"A" * 512)
    return inside.call(call, fd, inside.scratch, 1, -1, 0, RWF_NOWAIT)


WAYS = {
    "read-only, by a descriptor": (f"@{GIVEN}:raw:ro", GIVEN),
    "read-only, by stdin": ("@0:raw:ro", 0),
    "read-only, by its path, and left open": ("{disk}:raw:ro", GIVEN),
    "by a descriptor at its end": (f"@{GIVEN}:raw", GIVEN),
    "by its path, and left open at its end": ("{disk}:raw", GIVEN),
}


@pytest.mark.parametrize("call", [WRITE, WRITEV, PWRITEV2], ids=["write", "writev", "pwritev2"])
@pytest.mark.parametrize("way", WAYS)
def test_no_descriptor_of_a_disk_is_written_at_its_own_offset(
    start: Start, tmp_path: Path, way: str, call: int
) -> None:
    word, number = WAYS[way]
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\x11" * DISK_BYTES)
    given = os.open(disk, os.O_RDWR)
    if "end" in way:
        os.lseek(given, 0, os.SEEK_END)

    def pass_descriptor() -> None:
        os.dup2(given, number)

    def run() -> subprocess.Popen[bytes]:
        return start(f"--block={word.format(disk=disk)}", preexec_fn=pass_descriptor, close_fds=False)

    first = run()
    fds = descriptors_of(first.pid, disk)
    assert number in fds and len(fds) > 1
    first.kill()
    first.wait(timeout=60)  # its lock ends with it
    for fd in fds:
        running = run()
        with pytest.raises(ProcessLookupError):
            try_write(Injector(running.pid), call, fd)
        assert disk.read_bytes() == b"\x11" * DISK_BYTES
    os.close(given)


@pytest.mark.parametrize("call", [WRITE, WRITEV, PWRITEV2], ids=["write", "writev", "pwritev2"])
@pytest.mark.parametrize("with_disk", [False, True], ids=["without a disk", "with a disk"])
def test_the_file_of_places_is_not_written(start: Start, tmp_path: Path, with_disk: bool, call: int) -> None:
    """It is one file for all commands of a user: the process of another VM could read what is written
    there.
    """
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(DISK_BYTES))
    with (tmp_path / "log").open("wb") as log:  # with stderr in a file, RLIMIT_FSIZE limits no file
        running = start(f"--block={disk}", stderr=log) if with_disk else start(program="spin", stderr=log)
        (fd,) = (
            int(entry.name)
            for entry in Path(f"/proc/{running.pid}/fd").iterdir()
            if "tender-ends" in os.readlink(entry)
        )
        places = Path(os.readlink(f"/proc/{running.pid}/fd/{fd}"))
        before = places.read_bytes()
        with contextlib.suppress(ProcessLookupError):  # the filter may also kill the process for this call
            assert try_write(Injector(running.pid), call, fd) == -errno.EBADF
        assert places.read_bytes() == before
