"""The console and the report never overwrite what the guest is made of, by whatever name, in a run or
a refusal.
"""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import Guest

from tender import BlockFd, BlockFile, DeviceError, Image, Vm, VmConfig

DISK, IMAGE = "disk.img", "app.elf"
# words, and the file that they would overwrite; {fd} is a descriptor of the disk
COMMANDS: dict[str, tuple[list[str], str]] = {
    "report, disk": (["--json=disk.img", "--block=disk.img", "app.elf"], DISK),
    "report, disk by a link": (["--json=link.img", "--block=disk.img", "app.elf"], DISK),
    "report, disk by a hard link": (["--json=hard.img", "--block=disk.img", "app.elf"], DISK),
    "report, disk with suffixes": (
        ["--block", "storage=disk.img:raw:ro", "--json=./disk.img", "app.elf"],
        DISK,
    ),
    "report, disk by a descriptor": (["--json=disk.img", "--block=@{fd}", "app.elf"], DISK),
    "report by a descriptor, disk": (["--json=fd:{fd}", "--block=disk.img", "app.elf"], DISK),
    "report, image": (["--json=app.elf", "--block=disk.img", "app.elf"], IMAGE),
    "report by a descriptor, disk, no image": (["--json=fd:{fd}", "--block=disk.img", "absent.elf"], DISK),
    "console, disk": (["--console=disk.img", "--block=disk.img", "app.elf"], DISK),
    "console by a descriptor, disk": (["--console=fd:{fd}", "--block:storage=disk.img", "app.elf"], DISK),
    "console, image": (["--console=app.elf", "--block=disk.img", "app.elf"], IMAGE),
    "report, disk, no image": (["--json=disk.img", "--block=disk.img", "absent.elf"], DISK),
    "report, a disk of no device": (["--json=disk.img", "--block:nope=disk.img", "app.elf"], DISK),
    "report, disk, too many arguments": (
        ["--json=disk.img", "--block=disk.img", "app.elf", "x" * 9000],
        DISK,
    ),
    "report, console": (["--json=log", "--console=log", "--block=disk.img", "app.elf"], "log"),
}
# Refused for another reason: that reason is reported, and no report is written.
REFUSED: dict[str, tuple[list[str], str]] = {
    "a word too many": (["--frob", "--json=disk.img", "--block=disk.img", "app.elf"], DISK),
    "a bad value": (["--json=disk.img", "--block:storage=disk.img:ro", "--mem=x", "app.elf"], DISK),
    "a bad value, a name before the file": (
        ["--json=disk.img", "--block", "storage=disk.img", "--mem=x", "app.elf"],
        DISK,
    ),
    "a bad value, a descriptor": (["--json=disk.img", "--block=@{fd}:ro", "--mem=x", "app.elf"], DISK),
    "a bad value, the image": (["--json=app.elf", "--mem=x", "app.elf"], IMAGE),
    "an unknown option, the image": (["--json=app.elf", "--frob", "app.elf"], IMAGE),
    "an unknown option with a value, the image": (["--json=app.elf", "--frob", "5", "app.elf"], IMAGE),
}


@pytest.fixture
def place(guest: Guest, tmp_path: Path) -> Path:
    shutil.copy(guest("disk"), tmp_path / IMAGE)
    (tmp_path / DISK).write_bytes(b"sector" * 256)
    (tmp_path / "link.img").symlink_to(DISK)
    (tmp_path / "hard.img").hardlink_to(tmp_path / DISK)
    (tmp_path / "log").write_text("kept")
    return tmp_path


def refused(tender_cmd: list[str], words: list[str], place: Path, launcher: str) -> str:
    """Returns the error text. No file has changed."""
    files = {path: path.read_bytes() for path in place.iterdir()}
    fd = os.open(place / DISK, os.O_RDWR)
    try:
        done = subprocess.run(
            [*tender_cmd, *(word.replace("{fd}", str(fd)) for word in words)],
            cwd=place,
            env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(fd)
    assert (done.returncode, done.stdout) == (1, "")
    assert {path: path.read_bytes() for path in place.iterdir()} == files
    return done.stderr


@pytest.mark.parametrize("launcher", ["", "python", "native"])
@pytest.mark.parametrize("case", COMMANDS)
def test_a_file_that_the_guest_is_made_of_is_refused(
    place: Path, tender_cmd: list[str], case: str, launcher: str
) -> None:
    words, _ = COMMANDS[case]
    said = refused(tender_cmd, words, place, launcher)
    assert ": this is " in said and "which would be overwritten" in said
    assert launcher == "native" or "tender: hint: name another file" in said


# words, where stdout and stderr go, and what the report would overwrite
STREAMS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "stdout": (["--json=log"], {"stdout": "a"}, "where the console goes"),
    "stdout, by a link of the kernel's": (["--json=/dev/stdout"], {"stdout": "a"}, "where the console goes"),
    "stderr": (["--json=log"], {"stderr": "a"}, "where stderr goes"),
    "stderr, by a link of the kernel's": (["--json=/dev/stderr"], {"stderr": "a"}, "where stderr goes"),
    "a console by a descriptor": (
        ["--json=log", "--console=fd:1"],
        {"stdout": "a"},
        "where the console goes",
    ),
    "a report by a descriptor": (["--json=-", "--console=log"], {"stdout": "r+"}, "where the console goes"),
}


@pytest.mark.parametrize("launcher", ["", "python", "native"])
@pytest.mark.parametrize("case", STREAMS)
def test_a_report_is_not_written_over_what_the_command_writes(
    place: Path, guest: Guest, tender_cmd: list[str], case: str, launcher: str
) -> None:
    words, streams, what = STREAMS[case]
    with ExitStack() as stack:
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given |= {name: stack.enter_context((place / "log").open(mode)) for name, mode in streams.items()}
        done = subprocess.run(
            [*tender_cmd, *words, str(guest("hello"))], cwd=place, timeout=60, check=False, text=True,
            env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
            **given,
        )  # fmt: skip
    kept = (place / "log").read_text()
    said = kept.removeprefix("kept") if "stderr" in streams else done.stderr
    assert (done.returncode, kept.startswith("kept")) == (1, True)
    assert f"this is {what}, which would be overwritten" in said and "{" not in kept


def test_a_console_and_a_report_of_one_stream_follow_each_other(
    place: Path, guest: Guest, tender_cmd: list[str]
) -> None:
    """Both descriptors come from the process that started the command, so it decides what they are."""
    with (place / "log").open("a") as log:
        words = [*tender_cmd, "--backend=sandbox", "--json=-", str(guest("hello"))]
        assert subprocess.run(words, stdout=log, timeout=60, check=False).returncode == 0
    lines = (place / "log").read_text().splitlines()
    assert lines[0].startswith("kept") and json.loads(lines[-1])["status"] == 0


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("case", REFUSED)
def test_the_report_of_a_refusal_is_not_written_over_what_the_command_writes(
    place: Path, tender_cmd: list[str], case: str, launcher: str
) -> None:
    words, _ = REFUSED[case]
    said = refused(tender_cmd, words, place, launcher)
    assert "Invalid option" in said or "Malformed argument" in said


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_the_librarys_console_must_not_be_a_disk_of_its_guest(place: Path, by_descriptor: bool) -> None:
    fd = os.open(place / DISK, os.O_RDWR)
    block = BlockFd(fd) if by_descriptor else BlockFile(place / DISK)
    before = (place / DISK).read_bytes()
    try:
        with Image.open(place / IMAGE) as image, pytest.raises(DeviceError) as caught:
            Vm(image, VmConfig(block=block), console=place / "hard.img", backend="sandbox")
    finally:
        os.close(fd)
    assert caught.value.code == "device-console" and "storage: " in str(caught.value)
    assert (place / DISK).read_bytes() == before
