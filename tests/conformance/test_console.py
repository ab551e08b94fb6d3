"""The guest does not notice any failure of the console: row by row, through both commands.

The guest writes 256 KiB in one call, then three more bytes, then halts with 7. That status proves that it
went on. Tender's JSON says how many bytes arrived and how many were lost. The rows for the library are in
tests/functional/test_lifecycle.py.
"""

import fcntl
import json
import os
import pty
import resource
import signal
import socket
import subprocess
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bare import HEAP, L_PUTS, MIB, PUTS, Bare

pytestmark = [pytest.mark.backends, pytest.mark.parametrize("name", ["tender", "solo5-hvt"])]

TEXT = b"".join(b"%07d\n" % number for number in range(1 << 15)) + b"end"
PIPE_BYTES = 4096
"""The smallest size of a pipe: the text fills it 64 times."""
Process = subprocess.Popen[str]


class Counted(NamedTuple):
    arrived: int
    lost: int


class Command:
    """One run of the command: call start() once with one end of a console, then end()."""

    def __init__(self, path: str, image: Path, report: Path) -> None:
        self.path, self.image, self.report = path, image, report
        self.process: Process | None = None

    def start(
        self, stdout: int | None, *, image: Path | None = None, redirected: str = "", **options: Any
    ) -> Process:
        """`redirected` is a redirection that only a shell can make."""
        through = ["sh", "-c", f'exec "$0" "$@" {redirected}'] if redirected else []
        with_json = [f"--json={self.report}"] if self.path.endswith("/tender") else []
        words = [*through, self.path, *with_json, "--mem=8", str(image or self.image)]
        self.process = subprocess.Popen(words, stdout=stdout, stderr=subprocess.PIPE, text=True, **options)
        return self.process

    def end(self, status: int = 7, said: str = "") -> Counted | None:
        """Waits for the end; returns what tender counted, or None for solo5-hvt, whose command line has no
        option for a report."""
        assert self.process is not None
        _, stderr = self.process.communicate(timeout=60)
        assert (self.process.returncode, stderr) == (status, said)
        if not self.report.exists():
            return None
        counters = json.loads(self.report.read_text())["counters"]
        return Counted(counters["console_bytes"], counters["console_lost_bytes"])


@pytest.fixture
def command(name: str, front: Callable[[str], str], tmp_path: Path) -> Iterator[Command]:
    guest = Bare()
    guest.write(TEXT[:-3])
    guest.write(TEXT[-3:])
    guest.halt(7)
    image = tmp_path / "guest.hvt"
    image.write_bytes(guest.elf())
    made = Command(front(name), image, tmp_path / "report.json")
    yield made
    if made.process and made.process.poll() is None:  # the test has failed
        made.process.kill()
        made.process.communicate()


def small_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def drained(fd: int, piece: int) -> bytes:
    """Reads everything until the end, at most `piece` bytes at a time."""
    got = bytearray()
    while True:
        try:
            some = os.read(fd, piece)
        except OSError:  # EIO: no process has the terminal open any more
            some = b""
        if not some:
            return bytes(got)
        got += some


def wait_until_full(reader: int) -> None:
    deadline = time.monotonic() + 60
    while int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little") != PIPE_BYTES:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- no reader: all of the output is lost


def test_stdout_that_is_closed(command: Command) -> None:
    command.start(None, redirected=">&-")
    assert command.end() in (None, Counted(0, len(TEXT)))


def test_stdout_that_can_only_be_read(command: Command) -> None:
    with open("/dev/null", "rb") as unwritable:
        command.start(unwritable.fileno())
    assert command.end() in (None, Counted(0, len(TEXT)))


def test_a_full_device(command: Command) -> None:
    with open("/dev/full", "wb") as full:
        command.start(full.fileno())
    assert command.end() in (None, Counted(0, len(TEXT)))


def test_a_pipe_without_a_reader(command: Command) -> None:
    """The guest goes on. solo5-hvt dies of SIGPIPE here."""
    reader, writer = os.pipe()
    os.close(reader)
    command.start(writer)
    os.close(writer)
    assert command.end() in (None, Counted(0, len(TEXT)))


def test_a_socket_without_a_peer(command: Command) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        command.start(theirs.fileno())
    assert command.end() in (None, Counted(0, len(TEXT)))


# ---- a part of the output arrives


def test_a_reader_that_leaves(command: Command) -> None:
    """The reader closes the pipe in the middle of a write. Every byte is counted either as arrived or as
    lost."""
    reader, writer = small_pipe()
    command.start(writer)
    os.close(writer)
    got = b""
    while len(got) < 100_000:
        got += os.read(reader, 1000)
    os.close(reader)
    counted = command.end()
    assert got == TEXT[: len(got)]
    if counted:
        assert len(got) <= counted.arrived <= len(got) + PIPE_BYTES
        assert counted.arrived + counted.lost == len(TEXT)


def test_a_file_that_may_not_grow(command: Command, tmp_path: Path) -> None:
    """With `ulimit -f` the kernel sends SIGXFSZ, which ends a program by default. The bytes that fit are in
    the file, and the rest is lost."""
    guest = Bare()
    guest.call(PUTS, L_PUTS, HEAP, 4 * MIB)
    guest.write(b"end")
    guest.halt(7)
    image = tmp_path / "large.hvt"
    image.write_bytes(guest.elf())
    limit = 3 * MIB + 5
    with (tmp_path / "console").open("wb") as file:
        command.start(
            file.fileno(),
            image=image,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
    assert command.end() in (None, Counted(limit, 4 * MIB + 3 - limit))
    assert (tmp_path / "console").read_bytes() == bytes(limit)


# ---- a slow reader: nothing is lost, and the order is kept


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_pipe_with_a_slow_reader(command: Command, blocking: bool) -> None:
    """O_NONBLOCK belongs to every process that shares this end of the pipe, so the command must not change
    it."""
    reader, writer = small_pipe()
    os.set_blocking(writer, blocking)
    command.start(writer)
    wait_until_full(reader)
    assert os.get_blocking(writer) == blocking
    os.close(writer)
    assert drained(reader, 777) == TEXT
    os.close(reader)
    assert command.end() in (None, Counted(len(TEXT), 0))


def test_a_socket_with_a_slow_reader(command: Command) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
            command.start(theirs.fileno())
        assert drained(ours.fileno(), 777) == TEXT
    assert command.end() in (None, Counted(len(TEXT), 0))


def test_a_terminal_with_a_slow_reader(command: Command) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    command.start(theirs)
    os.close(theirs)
    assert drained(ours, 777) == TEXT
    os.close(ours)
    assert command.end() in (None, Counted(len(TEXT), 0))


def test_a_file(command: Command, tmp_path: Path) -> None:
    """The output begins at the file's current offset, as with a shell's `>>`."""
    with (tmp_path / "console").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        command.start(file.fileno())
        assert command.end() in (None, Counted(len(TEXT), 0))
    assert (tmp_path / "console").read_bytes() == b"before\n" + TEXT


# ---- the output is never read


def test_a_full_pipe_blocks_the_guest_but_not_a_signal(command: Command) -> None:
    reader, writer = small_pipe()
    process = command.start(writer)
    os.close(writer)
    wait_until_full(reader)
    process.send_signal(signal.SIGTERM)
    name = os.path.basename(command.path)
    counted = command.end(status=1, said=f"{name}: Exiting on signal 15\n")
    assert drained(reader, PIPE_BYTES) == TEXT[:PIPE_BYTES]
    os.close(reader)
    assert counted in (None, Counted(PIPE_BYTES, 0))
