"""The report of a run that the native command serves: equal to Python's in every field, wherever it
goes.
"""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from support import Guest

LIMIT = 120
pytestmark = pytest.mark.backends

# how a run ends: options, a guest and its arguments
ENDS: dict[str, list[str]] = {
    "well": ["hello"],
    "with a status": ["exit_status", "3"],
    "with a negative status": ["exit_status", "-2"],
    "by an abort": ["panic"],
    "by a trap that the guest reports": ["traps", "--kind=divide"],
    "by its time": ["--timeout=500ms", "sleep"],
    "by a write to its text": ["write_text"],
    "at a port": ["bad_port"],
    "at a hypercall": ["bad_hypercall"],
    "at a pointer": ["gate", "--wild"],
    "at an instruction": ["hlt"],
    "by a triple fault": ["triple"],
    "with a disk": ["--block={disk}", "disk"],
}


def run(launcher: str, words: list[str], **more: Any) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "TENDER_LAUNCHER": launcher}
    return subprocess.run(
        words, timeout=LIMIT, check=False, env=environment, **{"capture_output": True, **more}
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def words_for(end: str, guest: Guest, disk: Path) -> list[str]:
    words = [word.replace("{disk}", str(disk)) for word in ENDS[end]]
    options = list(takewhile(lambda word: word.startswith("--"), words))
    name, *args = words[len(options) :]
    return ["--mem=16", *options, str(guest(name)), *args]


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """Removes what differs from run to run. Of times it keeps whether they are there, of registers
    their names.
    """
    report["boot"] = {step: bool(at) for step, at in report["boot"].items()}
    for step, since in report["boot_ms"].items():
        assert since is None or 0 <= since < LIMIT * 1000, (step, since)
    report["boot_ms"] = {step: since is not None for step, since in report["boot_ms"].items()}
    report["isolation"] = bool(report["isolation"])
    if report["fault"]:
        assert all(0 <= value < 1 << 64 for value in report["fault"]["registers"].values())
        report["fault"]["registers"] = set(report["fault"]["registers"])
    return report


@pytest.mark.parametrize("end", ENDS)
def test_both_fronts_of_the_command_report_the_same(
    end: str, guest: Guest, tender_cmd: list[str], disk: Path, tmp_path: Path
) -> None:
    told, said = [], []
    for launcher in ("native", "python"):
        report = tmp_path / launcher
        done = run(launcher, [*tender_cmd, f"--json={report}", *words_for(end, guest, disk)])
        text = report.read_text()
        assert text.endswith("}\n") and text.count("\n") == 1 and text.isascii()
        told.append(comparable(json.loads(text)))
        said.append((done.returncode, re.sub(rb"0x[0-9a-f]+", b"0x", done.stderr)))
        assert done.returncode == told[-1]["status"]
    assert told[0] == told[1]
    assert said[0] == said[1]


# ---- where the report goes


def reported(text: bytes) -> int:
    """Returns the status in a report, which is the last line of `text`."""
    status: int = json.loads(text.splitlines()[-1])["status"]
    return status


@pytest.mark.parametrize("word", ["--json", "--json=fd:2"])
def test_on_stderr_the_report_is_the_last_line(word: str, guest: Guest, tender_cmd: list[str]) -> None:
    done = run("native", [*tender_cmd, word, "--mem=8", str(guest("triple"))])
    assert (done.returncode, reported(done.stderr)) == (1, 1)
    assert done.stderr.startswith(b"tender: ")


@pytest.mark.parametrize("word", ["--json=-", "--json=fd:1"])
def test_on_stdout_the_report_comes_after_the_console(word: str, guest: Guest, tender_cmd: list[str]) -> None:
    done = run("native", [*tender_cmd, word, "--mem=8", str(guest("exit_status")), "5"])
    assert (done.returncode, reported(done.stdout), done.stderr) == (5, 5, b"")


def test_a_file_holds_one_report_alone(guest: Guest, tender_cmd: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_bytes(b"x" * 10000)
    for status in (1, 2):
        words = [*tender_cmd, f"--json={report}", "--mem=8", str(guest("exit_status")), str(status)]
        assert run("native", words).returncode == status
        assert reported(report.read_bytes()) == status and report.read_bytes().count(b"\n") == 1


def test_a_descriptor_is_written_at_its_file_offset(
    guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w+b") as log:
        log.write(b"before\n")
        log.flush()
        words = [*tender_cmd, f"--json=fd:{log.fileno()}", "--mem=8", str(guest("exit_status")), "5"]
        assert run("native", words, pass_fds=[log.fileno()]).returncode == 5
        log.seek(0)
        first, second = log.read().splitlines()
    assert (first, json.loads(second)["status"]) == (b"before", 5)


def test_a_full_pipe_is_waited_for(guest: Guest, tender_cmd: list[str]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = 0
    while True:
        try:
            full += os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    words = [*tender_cmd, f"--json=fd:{writer}", "--mem=8", str(guest("exit_status")), "5"]
    with subprocess.Popen(
        words, pass_fds=[writer], env={**os.environ, "TENDER_LAUNCHER": "native"}
    ) as command:
        os.close(writer)
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(1)
        with open(reader, "rb") as pipe:
            assert reported(pipe.read()[full:]) == 5
        assert command.wait(LIMIT) == 5


def test_a_stop_amid_a_report_neither_doubles_nor_loses_a_part_of_it(
    guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    """The report is longer than its pipe, so that some is written and some waits. The reader goes on
    after the signal.
    """
    place = tmp_path
    for _ in range(15):
        place = place / ("\x01" * 200)
    place.mkdir(parents=True)
    image = place / "app.elf"
    image.write_bytes(guest("exit_status").read_bytes())
    for _ in range(20):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        words = [*tender_cmd, f"--json=fd:{writer}", "--console=none", "--mem=8", str(image), "5"]
        with subprocess.Popen(
            words, pass_fds=[writer], env={**os.environ, "TENDER_LAUNCHER": "native"}
        ) as command:
            os.close(writer)
            with open(reader, "rb") as pipe:
                text = pipe.read(1)
                command.send_signal(signal.SIGTERM)
                text += pipe.read()
            assert command.wait(LIMIT) == 5
        assert (text.count(b"\n"), json.loads(text)["image"]) == (1, str(image))


def test_a_socket_and_a_terminal_take_it(guest: Guest, tender_cmd: list[str]) -> None:
    ours, theirs = socket.socketpair()
    leader, follower = pty.openpty()
    with ours, theirs:
        for written, read in ((theirs.fileno(), ours.fileno()), (follower, leader)):
            words = [*tender_cmd, f"--json=fd:{written}", "--mem=8", str(guest("exit_status")), "5"]
            assert run("native", words, pass_fds=[written]).returncode == 5
            text = b""
            while not text.endswith(b"\n"):
                text += os.read(read, 1 << 16)
            assert reported(text) == 5
    os.close(leader)
    os.close(follower)


def test_a_fifo_is_written_for_its_reader(guest: Guest, tender_cmd: list[str], tmp_path: Path) -> None:
    """This holds too for a start that the native command leaves to Python: the reader sees no end
    of file before the report.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for image, expected in ((str(guest("exit_status")), 5), ("/absent/app.elf", 1)):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda into: into.append(fifo.read_bytes()), args=(read,))
        reader.start()
        keep = os.open(
            fifo, os.O_RDONLY | os.O_NONBLOCK
        )  # so that there is a reader, whichever side opens first
        done = run("", [*tender_cmd, f"--json={fifo}", "--mem=8", image, "5"])
        reader.join(LIMIT)
        os.close(keep)
        assert (done.returncode, [reported(text) for text in read]) == (expected, [expected]), done.stderr


def test_a_report_that_cannot_be_written_is_an_error_line_and_changes_nothing_else(
    guest: Guest, tender_cmd: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [*tender_cmd, f"--json=fd:{writer}", "--mem=8", str(guest("exit_status")), "5"]
    done = run("native", words, pass_fds=[writer])
    os.close(writer)
    assert (done.returncode, done.stderr) == (5, f"tender: --json=fd:{writer}: Broken pipe\n".encode())
    done = run("native", [*tender_cmd, "--json=/dev/full", "--mem=8", str(guest("exit_status")), "5"])
    assert (done.returncode, done.stderr) == (5, b"tender: --json=/dev/full: No space left on device\n")


@pytest.mark.parametrize("disk_writes", [False, True])
def test_a_limit_on_file_sizes_does_not_apply_to_the_report(
    disk_writes: bool, guest: Guest, tender_cmd: list[str], disk: Path, tmp_path: Path
) -> None:
    """The process of a guest lets no file grow past the guest's largest disk, or past 0 bytes
    without a disk. A report is longer than that.
    """
    report = tmp_path / "report"
    words = [f"--block={disk}", str(guest("disk"))] if disk_writes else [str(guest("hello"))]
    options = [f"--json={report}", "--console=none", "--mem=16"]
    with open(os.devnull, "w") as nowhere:  # neither of these is a file that grows
        done = run(
            "native", [*tender_cmd, *options, *words], capture_output=False, stdout=nowhere, stderr=nowhere
        )
    assert (done.returncode, reported(report.read_bytes())) == (0, 0)


def test_the_line_of_a_guest_with_a_disk_reaches_a_terminal(
    guest: Guest, tender_cmd: list[str], disk: Path, tmp_path: Path
) -> None:
    """The command writes to a descriptor of its own. The filter of a run with a disk must allow that
    descriptor.
    """
    leader, follower = pty.openpty()
    report = tmp_path / "report"
    words = [*tender_cmd, f"--json={report}", "--mem=16", f"--block={disk}", str(guest("block_batch_wild"))]
    done = run("native", words, capture_output=False, stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    said = os.read(leader, 1 << 16)
    os.close(leader)
    assert (done.returncode, said[:29]) == (1, b"tender: Invalid guest access:"), said
    assert json.loads(report.read_text())["reason"] == "bad-access"


@pytest.mark.parametrize("option", ["--json", "--console"])
def test_a_file_that_takes_no_byte_is_given_up(option: str, guest: Guest, tender_cmd: list[str]) -> None:
    """The file is the memory of a process that has executed another program: every write to it writes
    0 bytes.
    """
    words = [*tender_cmd, f"{option}=/proc/self/mem", "--mem=8", str(guest("exit_status")), "5"]
    for launcher in ("native", "python"):
        done = run(launcher, words)
        assert done.returncode == 5, done.stderr


# ---- a name, and a message, in any bytes

NAMES = [b"plain", b'"quoted\\"', b"\xff\xfe", "ünïcödé-\U0001f600".encode(), b"new\nline", b"\xed\xa0\x80", b"\xc0\xaf",
         b"\xf4\x90\x80\x80", b"\x7f\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_both_launchers_report_an_images_name_alike(
    name: bytes, guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    image = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(image)).write_bytes(guest("exit_status").read_bytes())
    told = []
    for launcher in ("native", "python"):
        words = [*map(os.fsencode, tender_cmd), b"--json=-", b"--console=none", b"--mem=8", image, b"0"]
        done = run(launcher, words)  # type: ignore[arg-type]
        assert done.returncode == 0 and done.stdout.isascii()
        told.append(json.loads(done.stdout)["image"])
    assert told[0] == told[1] == image.decode("utf-8", "backslashreplace")
