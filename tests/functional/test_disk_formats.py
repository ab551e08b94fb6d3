"""A disk is raw: an image of another format is refused by its first bytes, unless the user says that
the disk is raw.
"""

import os
import subprocess
from pathlib import Path

import pytest
from support import Guest

from tender import BlockFd, BlockFile, DeviceError, Image, Vm, VmConfig

SIZE = 1 << 20
FORMATS = {
    "qcow2": b"QFI\xfb\0\0\0\3",
    "VMDK": b"KDMV\1\0\0\0",
    "VMDK ": b"# Disk DescriptorFile\nversion=1\n",
    "VDI": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
    "VHDX": b"vhdxfile",
    "VHD": b"conectix",
}


def disk_of(start: bytes, directory: Path) -> Path:
    path = directory / "disk image"
    path.write_bytes(start.ljust(SIZE, b"\0"))
    return path


def run(
    launcher: str, *words: str | Path, pass_fds: tuple[int, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=60, check=False, pass_fds=pass_fds,
        stdin=subprocess.DEVNULL, env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
    )  # fmt: skip


@pytest.mark.parametrize("launcher", ["", "python", "native"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_refuses_it_unless_it_is_declared_raw(
    name: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    path = disk_of(FORMATS[name], tmp_path)
    before = path.read_bytes()
    for suffix in ("", ":ro", ":rw"):
        done = run(launcher, *tender_cmd, f"--block=storage={path}{suffix}", guest("disk"))
        assert (done.returncode, done.stdout) == (1, "")
        reason = f"tender: Could not open block device: {path}: it is a {name.strip()} image"
        assert done.stderr.startswith(reason)
        if launcher != "native":
            assert f"qemu-img convert -O raw '{path}' RAW" in done.stderr and f"'{path}':raw" in done.stderr
    assert path.read_bytes() == before
    for suffix in (":raw:ro", ":raw"):
        words = ["--read-only"] if suffix.endswith("ro") else []
        done = run(launcher, *tender_cmd, f"--block=storage={path}{suffix}", guest("disk"), *words)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("launcher", ["", "python", "native"])
@pytest.mark.parametrize("name", FORMATS)
def test_solo5_hvts_disks_are_raw(
    name: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """As in Solo5's hvt, every byte of the disk belongs to the guest."""
    path = disk_of(FORMATS[name], tmp_path)
    done = run(launcher, *tender_cmd, "solo5-hvt", f"--block:storage={path}", guest("disk"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("launcher", ["", "python", "native"])
def test_an_inherited_descriptor_is_refused_unless_it_is_declared_raw(
    launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    fd = os.open(disk_of(FORMATS["qcow2"], tmp_path), os.O_RDWR)
    try:
        done = run(launcher, *tender_cmd, f"--block=storage=@{fd}", guest("disk"), pass_fds=(fd,))
        assert done.returncode == 1 and f"@{fd}: it is a qcow2 image" in done.stderr
        with Image.open(guest("disk")) as image:
            with pytest.raises(DeviceError, match="qcow2"):
                Vm(image, VmConfig(block=BlockFd(fd)), backend="sandbox")
            Vm(image, VmConfig(block=BlockFd(fd, raw=True)), backend="sandbox").close()
        done = run(launcher, *tender_cmd, f"--block=storage=@{fd}:raw", guest("disk"), pass_fds=(fd,))
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", FORMATS)
def test_the_library_refuses_it_unless_it_is_declared_raw(name: str, guest: Guest, tmp_path: Path) -> None:
    path = disk_of(FORMATS[name], tmp_path)
    with Image.open(guest("disk")) as image:
        with pytest.raises(DeviceError, match=f"it is a {name.strip()} image") as refused:
            Vm(image, VmConfig(block=BlockFile(path)), backend="sandbox")
        assert refused.value.code == "block-format" and refused.value.hint
        Vm(image, VmConfig(block=BlockFile(path, raw=True)), backend="sandbox").close()


@pytest.mark.parametrize("start", [b"", b"QFI", b"qfi\xfb", b"\0QFI\xfb", bytes(64) + b"\x7f\x10\xda"])
def test_other_bytes_are_a_disk(start: bytes, guest: Guest, tmp_path: Path) -> None:
    with Image.open(guest("disk")) as image:
        Vm(image, VmConfig(block=BlockFile(disk_of(start, tmp_path))), backend="sandbox").close()
