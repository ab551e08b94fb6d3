"""A file system that does not answer: the first signal ends the command's wait for it, before there is
a guest.
"""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hanging_files import HangingFile
from support import Guest

from tender import Image, ImageError

pytestmark = pytest.mark.backends

LAUNCHERS = ["native", "python"]
PLACES = {
    "image, opened": ("image", "open"),
    "image, read": ("image", "read"),
    "disk, opened": ("disk", "open"),
    "disk, locked": ("disk", "lock"),
    "disk, read": ("disk", "read"),
}


@pytest.fixture
def where(tmp_path: Path) -> Path:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse to mount a file system of this test's by")
    place = tmp_path / "hangs"
    place.mkdir()
    return place


def hanging(where: Path, guest: Guest, place: str) -> tuple[HangingFile, list[str]]:
    """Returns the file, and the words of a run that waits for it."""
    what, call = PLACES[place]
    data = guest("hello").read_bytes() if what == "image" else bytes(1 << 20)
    file = HangingFile(where, data, call)
    if what == "image":
        return file, [str(file.path)]
    return file, [f"--block:storage={file.path}", str(guest("block_edges"))]


# solo5-hvt takes every disk as raw, so it does not read the disk before the guest reads it.
CASES = [
    (front, place)
    for place in PLACES
    for front in ("tender", "solo5-hvt")
    if (front, place) != ("solo5-hvt", "disk, read")
]


@pytest.mark.parametrize(("program", "place"), CASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_a_wait_for_a_file(
    tender_cmd: list[str],
    guest: Guest,
    backend: str,
    where: Path,
    launcher: str,
    program: str,
    place: str,
    number: signal.Signals,
) -> None:
    file, words = hanging(where, guest, place)
    environment = {**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": backend}
    with file, subprocess.Popen(
        [*tender_cmd, *([] if program == "tender" else [program]), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
    ) as command:  # fmt: skip
        try:
            assert file.waited.wait(60)
            command.send_signal(number)
            _, said = command.communicate(timeout=60)
        finally:
            command.kill()
    assert (command.returncode, said.decode()) == (1, f"{program}: Exiting on signal {number.value}\n")


def test_the_report_names_the_signal(
    tender_cmd: list[str], guest: Guest, backend: str, where: Path, tmp_path: Path
) -> None:
    file, words = hanging(where, guest, "image, read")
    report = tmp_path / "report"
    with file, subprocess.Popen(
        [*tender_cmd, f"--backend={backend}", f"--json={report}", *words], stderr=subprocess.DEVNULL
    ) as command:  # fmt: skip
        try:
            assert file.waited.wait(60)
            command.send_signal(signal.SIGTERM)
            status = command.wait(60)
        finally:
            command.kill()
    told = json.loads(report.read_text())
    assert (status, told["status"], told["reason"], told["signal"]) == (1, 1, "signal", 15)


@pytest.mark.parametrize("launcher", ["", "python", "json"])
def test_an_end_is_reported_though_the_image_cannot_be_read_again(
    tender_cmd: list[str], guest: Guest, backend: str, where: Path, tmp_path: Path, launcher: str
) -> None:
    """After a guest's end the command neither reads the image a second time nor waits for its file
    system.
    """
    report = tmp_path / "report"
    words = [f"--json={report}"] if launcher == "json" else []
    environment = {**os.environ, "TENDER_LAUNCHER": launcher.replace("json", ""), "TENDER_BACKEND": backend}
    with HangingFile(where, guest("triple").read_bytes(), "read", since=2) as file:
        done = subprocess.run(
            [*tender_cmd, *words, file.path], capture_output=True, text=True, env=environment, timeout=120, check=False
        )  # fmt: skip
        assert done.returncode == 1 and not file.waited.is_set()
    assert backend == "kvm" or ("hint: rip 0x" in done.stderr and "bytes there: " in done.stderr)
    if launcher == "json":
        assert json.loads(report.read_text())["status"] == 1


@pytest.mark.parametrize("call", ["open", "read"])
def test_the_library_waits_on_after_a_signal_that_its_caller_handles(
    guest: Guest, where: Path, call: str
) -> None:
    """An exception of the handler ends the wait. Where the kernel itself stops waiting, the library
    reports its error.
    """

    class Enough(Exception):
        pass

    heard = []

    def handler(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 3:
            raise Enough

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with HangingFile(where, guest("hello").read_bytes(), call) as file:
            fd = os.open(file.path, os.O_RDONLY) if call == "read" else -1
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
            with pytest.raises((Enough, OSError)) as own:
                os.pread(fd, 64, 0) if call == "read" else os.open(file.path, os.O_RDONLY)
            # Linux 7 fails a read that a signal has interrupted with EIO, whatever FUSE answers.
            fails = isinstance(own.value, OSError)
            assert not fails or (call, getattr(own.value, "errno", 0)) == ("read", errno.EIO)
            heard.clear()
            with pytest.raises(ImageError if fails else Enough) as caught:
                Image.open(file.path)
            assert not fails or "Input/output error" in str(caught.value)
            assert file.waited.is_set() and (fails or len(heard) == 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
