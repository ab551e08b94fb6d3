"""Two VMs cannot write to one disk image, and none can read it while another one writes: the second VM is
refused, with a message."""

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Guest

from tender import DISCARD, BlockFd, BlockFile, DeviceError, Image, Vm, VmConfig

pytestmark = pytest.mark.backends

REFUSED_WRITER = "Could not open block device: {}: in use already: another VM or program has locked it"
REFUSED_READER = (
    "Could not open block device: {}: in use already: a VM or program that may write to it has locked it"
)
WAY_OUT = (
    "one writer, or any number of readers: {0}:ro in all of them; or a copy: cp {0} COPY; "
    "or wait for it: --lock-wait=SECONDS"
)


def made(guest: Guest, *disks: BlockFile | BlockFd, name: str = "disk") -> Vm:
    """Returns a VM that has opened its disks and has not run yet."""
    with Image.open(guest(name)) as image:
        names = [device.name for device in image.devices if device.kind == "block"]
        return Vm(image, VmConfig(mem=8, block=dict(zip(names, disks, strict=True))), console=DISCARD)


def tender(tender_cmd: list[str], guest: Guest, disk: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*tender_cmd, "--mem=8", f"--block:storage={disk}{''.join(words)}", str(guest("disk"))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_writer_is_refused_with_a_hint(guest: Guest, tender_cmd: list[str], disk: Path) -> None:
    with made(guest, BlockFile(str(disk))):
        done = tender(tender_cmd, guest, disk)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"tender: {REFUSED_WRITER.format(disk)}",
        f"tender: hint: {WAY_OUT.format(disk)}",
    ]
    assert tender(tender_cmd, guest, disk).returncode == 0, "the first VM is closed"


def test_solo5_hvts_command_line_refuses_a_second_writer_too(guest: Guest, solo5: object, disk: Path) -> None:
    with made(guest, BlockFile(str(disk))):
        done = solo5("--mem=8", "--block:storage=disk.img", guest("disk"))  # type: ignore[operator]
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"solo5-hvt: {REFUSED_WRITER.format('disk.img')}\n"


def test_readers_share_an_image(guest: Guest, disk: Path, tender_cmd: list[str]) -> None:
    reading = BlockFile(str(disk), read_only=True)
    with made(guest, reading), made(guest, reading):
        done = tender(tender_cmd, guest, disk, ":ro")
        assert "in use" not in done.stderr and done.stdout, "the guest did not run"


def test_a_writer_is_refused_while_there_are_readers(guest: Guest, disk: Path) -> None:
    with made(guest, BlockFile(str(disk), read_only=True)):
        with pytest.raises(DeviceError) as refused:
            made(guest, BlockFile(str(disk)))
    assert str(refused.value) == REFUSED_WRITER.format(disk)
    assert (refused.value.code, refused.value.errno) == ("block-locked", 11)


def test_a_reader_is_refused_while_there_is_a_writer(guest: Guest, disk: Path) -> None:
    with made(guest, BlockFile(str(disk))):
        with pytest.raises(DeviceError) as refused:
            made(guest, BlockFile(str(disk), read_only=True))
    assert str(refused.value) == REFUSED_READER.format(disk)


def test_one_image_cannot_be_two_writable_disks_of_one_guest(guest: Guest, disk: Path) -> None:
    same, reading = BlockFile(str(disk)), BlockFile(str(disk), read_only=True)
    with pytest.raises(DeviceError, match="in use already"):
        made(guest, *([same] * 63), name="max_devices")
    made(guest, *([reading] * 63), name="max_devices").close()


def test_another_name_of_the_file_is_the_same_image(guest: Guest, disk: Path, tmp_path: Path) -> None:
    os.link(disk, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(disk)
    with made(guest, BlockFile(str(disk))):
        for name in ("hard", "soft"):
            with pytest.raises(DeviceError, match=f"{name}: in use already"):
                made(guest, BlockFile(str(tmp_path / name)))


def test_a_copy_is_another_image(guest: Guest, disk: Path, tmp_path: Path) -> None:
    shutil.copy(disk, tmp_path / "copy")
    with made(guest, BlockFile(str(disk))), made(guest, BlockFile(str(tmp_path / "copy"))):
        pass


def test_an_inherited_descriptor_is_locked_like_a_path(guest: Guest, disk: Path) -> None:
    with open(disk, "r+b") as file, made(guest, BlockFd(file.fileno())):
        with pytest.raises(DeviceError, match="in use already"):
            made(guest, BlockFile(str(disk)))
        for read_only in (
            False,
            True,
        ):  # the same descriptor is refused too: as a second writer, and as a reader
            with pytest.raises(DeviceError, match="in use already"):
                made(guest, BlockFd(file.fileno(), read_only=read_only))
        with pytest.raises(DeviceError, match="in use already"):
            made(guest, BlockFile(str(disk), read_only=True))
    made(guest, BlockFile(str(disk))).close()


def test_a_read_only_descriptor_does_not_exclude_readers(guest: Guest, disk: Path) -> None:
    with open(disk, "rb") as file, made(guest, BlockFd(file.fileno(), read_only=True)):
        made(guest, BlockFile(str(disk), read_only=True)).close()
        with pytest.raises(DeviceError, match="in use already"):
            made(guest, BlockFile(str(disk)))


def test_the_lock_ends_with_a_killed_process(guest: Guest, disk: Path, backend: str) -> None:
    program = (
        "import sys\n"
        "from tender import BlockFile, Image, Vm, VmConfig\n"
        f"vm = Vm(Image.open({str(guest('disk'))!r}), VmConfig(mem=8, block=BlockFile({str(disk)!r})),"
        f" backend={backend!r})\n"
        "print('made', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert holder.stdout is not None and holder.stdout.readline() == "made\n"
    with pytest.raises(DeviceError, match="in use already"):
        made(guest, BlockFile(str(disk)))
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    limit = time.monotonic() + 120
    while True:  # a sandbox process holds the disk as well; the kernel kills it after its monitor has ended
        try:
            made(guest, BlockFile(str(disk))).close()
            return
        except DeviceError:
            assert time.monotonic() < limit, "the lock outlives its process"


F_OFD_SETLK = 37


def _refuse_locks() -> None:
    """Runs in a child before exec: F_OFD_SETLK fails with ENOLCK from now on, as on a file system without locks."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # the call's number
            (0x15, 0, 3, 72),  # fcntl
            (0x20, 0, 0, 24),  # its second argument
            (0x15, 0, 1, F_OFD_SETLK),
            (0x06, 0, 0, 0x00050000 | 37),  # SECCOMP_RET_ERRNO, ENOLCK
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, head, 0, 0):
        os._exit(99)


def test_without_locks_in_the_file_system_the_disk_is_used_unlocked(
    guest: Guest, disk: Path, tender_cmd: list[str]
) -> None:
    with made(guest, BlockFile(str(disk))):
        done = subprocess.run(
            [*tender_cmd, "--mem=8", f"--block:storage={disk}", str(guest("disk"))],
            capture_output=True, text=True, timeout=60, check=False, preexec_fn=_refuse_locks,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
