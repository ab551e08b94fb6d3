"""A debugger that is left, killed or given the wrong thing leaves no guest behind that stands still or that it started."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sandbox_rig import wait_until
from support import Guest

pytestmark = pytest.mark.backends
LIMIT_S = 60
StartGuest = Callable[..., Any]


@pytest.fixture
def waiting_gdb(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose gdb connects to nothing: it writes its number into `gdb.pid`, and waits."""
    program = tmp_path / "bin/gdb"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\necho $$ >{tmp_path}/new\nmv {tmp_path}/new {tmp_path}/gdb.pid\nexec sleep 600\n"
    )
    program.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    yield {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp")}
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(int((tmp_path / "gdb.pid").read_text()), signal.SIGKILL)


def tracers_of(pid: int) -> set[str]:
    """The tracers of a process's threads; "0" for none."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        text = (thread / "status").read_text()
        found.add(text.partition("TracerPid:")[2].split()[0])
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_guest_goes_on_if_the_command_ends_before_gdb_has_connected(
    start_guest: StartGuest, tender_cmd: list[str], waiting_gdb: dict[str, str], tmp_path: Path, number: int
) -> None:
    guest = start_guest("debug", "sleep")
    with subprocess.Popen([*tender_cmd, "debug", str(guest.pid)], env=waiting_gdb) as command:
        wait_until(lambda: (tmp_path / "gdb.pid").exists())
        assert tracers_of(guest.pid) != {"0"}
        command.send_signal(number)
        assert command.wait(LIMIT_S) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: tracers_of(guest.pid) == {"0"})
    assert guest.process.poll() is None
    if number != signal.SIGKILL:
        assert not list((tmp_path / "tmp").iterdir())


def test_a_guest_that_was_started_ends_with_a_session_that_fails(
    guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    """The image has a name of its own, which no other process's words have."""
    image = tmp_path / "only-here.elf"
    image.write_bytes(guest("debug").read_bytes())
    wrong = str(guest("spin"))
    done = subprocess.run(
        [*tender_cmd, "debug", "--stdio", f"--image={wrong}", "--mem=16", str(image), "sleep"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "it is not the image of this guest" in done.stderr
    assert not running(image)


def running(image: Path) -> list[str]:
    """The processes that have this image in their words."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(image) in words:
                found.append(process.name)
    return found


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "empty"])
def test_an_image_that_is_no_file_is_refused_and_the_guest_goes_on(
    start_guest: StartGuest, tender_cmd: list[str], tmp_path: Path, kind: str
) -> None:
    path = {"device": Path("/dev/zero")}.get(kind, tmp_path / "image")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    guest = start_guest("debug", "sleep")
    done = subprocess.run(
        [*tender_cmd, "debug", "--stdio", f"--image={path}", str(guest.pid)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert str(path) in done.stderr
    assert tracers_of(guest.pid) == {"0"}
    assert guest.process.poll() is None
