"""A disk is refused if stdout or stderr is open for writing to it, by both launchers and for each way
to name it.
"""

import os
import subprocess
from pathlib import Path

import pytest
from support import Guest

STREAMS = ("stdout", "stderr")


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("word", ["{disk}:raw", "{disk}:raw:ro", "{link}:raw:ro", "@{fd}:raw:ro"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_disk_that_stdout_or_stderr_writes_to_is_refused(
    tender_cmd: list[str], guest: Guest, tmp_path: Path, stream: str, word: str, launcher: str
) -> None:
    disk, link = tmp_path / "disk.img", tmp_path / "link.img"
    disk.write_bytes(bytes(1 << 20))
    link.symlink_to(disk)
    fd = os.open(disk, os.O_RDWR)
    os.lseek(fd, 0, os.SEEK_END)  # so that text on stderr can be told apart from the disk
    try:
        streams = dict.fromkeys(STREAMS, subprocess.PIPE) | {stream: fd}
        done = subprocess.run(
            [*tender_cmd, f"--block={word.format(disk=disk, link=link, fd=fd)}", str(guest("disk"))],
            env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
            pass_fds=[fd],
            timeout=60,
            check=False,
            **streams,  # type: ignore[call-overload]
        )
    finally:
        os.close(fd)
    content = disk.read_bytes()
    said = (done.stderr if stream == "stdout" else content[1 << 20 :]).decode()
    assert done.returncode == 1
    assert f"{stream} is open for writing to the same file" in said
    assert "tender: hint: give the console and messages another file than the disk's" in said
    assert content[: 1 << 20] == bytes(1 << 20)
    assert stream == "stderr" or len(content) == 1 << 20


def test_a_disk_that_a_stream_only_reads_is_allowed(
    tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with disk.open("rb") as stdin:
        done = subprocess.run(
            [*tender_cmd, "--backend=sandbox", f"--block={disk}", str(guest("disk"))],
            stdin=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
