"""A file that a command or a caller names to be read or written is judged by its kind before use, and
is never waited for.
"""

import fcntl
import json
import os
import pty
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import Guest

from tender import BlockFile, Image, Vm, VmConfig
from tender.errors import TenderError

LIMIT = 60  # seconds, for work that takes milliseconds
KEPT: ExitStack


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    global KEPT
    with ExitStack() as KEPT:
        yield


def _kept_open(fd: int) -> int:
    KEPT.callback(os.close, fd)
    return fd


def _fifo(directory: Path) -> str:
    os.mkfifo(directory / "fifo")
    return str(directory / "fifo")


def _fifo_read(directory: Path) -> str:
    path = _fifo(directory)
    _kept_open(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return path


def _fifo_written(directory: Path) -> str:
    path = _fifo(directory)
    _kept_open(os.open(path, os.O_RDWR))
    return path


def _socket(directory: Path) -> str:
    path = str(directory / "socket")
    KEPT.enter_context(socket.socket(socket.AF_UNIX)).bind(path)
    return path


def _terminal(_: Path) -> str:
    master, slave = pty.openpty()
    _kept_open(master)
    _kept_open(slave)
    return os.ttyname(slave)


def _pipe(_: Path) -> str:
    """Like <(...) of a shell: a pipe named by a descriptor, which this process keeps open for the
    command.
    """
    reader, writer = os.pipe()
    _kept_open(writer)
    return f"/proc/{os.getpid()}/fd/{_kept_open(reader)}"


DIRECTORY = "Is a directory"
NO_FILE, NO_OUTPUT, NO_DISK = "Not a file: it is ", "Not a file, pipe, ", "not a file or a block device"
SOCKET = "It is a socket"
# kind: its path; the error about it as an image, as a console or report, and as a disk ("": it works)
KINDS: dict[str, tuple[Callable[[Path], str], str, str, str]] = {
    "FIFO": (_fifo, NO_FILE, "that nobody reads", NO_DISK),
    "FIFO that is read": (_fifo_read, NO_FILE, "", NO_DISK),
    "FIFO that is written": (_fifo_written, NO_FILE, "", NO_DISK),
    "pipe": (_pipe, NO_FILE, "", NO_DISK),
    "directory": (str, DIRECTORY, DIRECTORY, DIRECTORY),
    "socket": (_socket, SOCKET, SOCKET, "No such device or address"),
    "terminal": (_terminal, NO_FILE, "", NO_DISK),
    "/dev/zero": (lambda _: "/dev/zero", NO_FILE, "", NO_DISK),
    "/dev/full": (lambda _: "/dev/full", NO_FILE, "", NO_DISK),
    "missing": (lambda path: f"{path}/a/b", "No such file", "No such file", "No such file"),
}


@pytest.fixture(params=KINDS)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    make, image, output, disk = KINDS[request.param]
    return make(tmp_path), {"image": image, "output": output, "disk": disk}


def run(launcher: str, *words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        words, capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("launcher", ["native", "", "python"])
@pytest.mark.parametrize("front", [[], ["--timeout=30"], ["solo5-hvt"]])
def test_an_image_is_judged_by_its_kind(
    named: tuple[str, dict[str, str]], launcher: str, front: list[str], tender_cmd: list[str]
) -> None:
    done = run(launcher, *tender_cmd, *front, named[0])
    program = front[0] if front == ["solo5-hvt"] else "tender"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{program}: {named[0]}: ") and named[1]["image"] in done.stderr


@pytest.mark.parametrize(
    "command", [["inspect"], ["inspect", "--symbols"], *(["solo5-elftool", f"query-{q}"] for q in ("abi", "manifest"))]
)  # fmt: skip
def test_an_image_that_is_only_examined_is_judged_by_its_kind(
    named: tuple[str, dict[str, str]], command: list[str], tender_cmd: list[str]
) -> None:
    done = run("", *tender_cmd, *command, named[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{named[0]}: " in done.stderr and named[1]["image"] in done.stderr


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("option", ["--console", "--json"])
def test_a_console_and_a_report_are_judged_by_their_kind(
    named: tuple[str, dict[str, str]], launcher: str, option: str, tender_cmd: list[str], guest: Guest
) -> None:
    reason = named[1]["output"]
    done = run(launcher, *tender_cmd, "--mem=8", f"{option}={named[0]}", str(guest("exit_status")), "3")
    if reason:
        assert (done.returncode, done.stdout) == (1, "")
        assert named[0] in done.stderr and reason in done.stderr
    else:
        assert done.returncode == 3
        assert done.stderr == ("" if option == "--console" or named[0] != "/dev/full"
                               else "tender: --json=/dev/full: No space left on device\n")  # fmt: skip


@pytest.mark.parametrize("launcher", ["native", "", "python"])
@pytest.mark.parametrize("front", [["--block=storage={}"], ["solo5-hvt", "--block:storage={}"]])
@pytest.mark.parametrize("suffix", ["", ":ro"])
def test_a_disk_is_judged_by_its_kind(
    named: tuple[str, dict[str, str]],
    launcher: str,
    front: list[str],
    suffix: str,
    tender_cmd: list[str],
    guest: Guest,
) -> None:
    if suffix and front[0] == "solo5-hvt":
        return  # that front has no such suffix
    words = [word.format(named[0] + suffix) for word in front]
    done = run(launcher, *tender_cmd, *words, str(guest("disk")))
    assert (done.returncode, done.stdout) == (1, "")
    reason = (
        NO_DISK if suffix and named[1]["disk"] == DIRECTORY else named[1]["disk"]
    )  # open for reading works
    assert f"Could not open block device: {named[0]}: {reason}" in done.stderr


def test_the_library_judges_by_kind(named: tuple[str, dict[str, str]], guest: Guest) -> None:
    name, reasons = named
    with pytest.raises(TenderError, match=reasons["image"]):
        Image.open(name)
    with Image.open(guest("disk")) as image, pytest.raises(TenderError, match=reasons["disk"]):
        Vm(image, VmConfig(block=BlockFile(name)), backend="sandbox")
    with Image.open(guest("hello")) as image:
        if reasons["output"]:
            with pytest.raises(TenderError, match=reasons["output"]):
                Vm(image, console=Path(name), backend="sandbox")
        else:
            with Vm(image, console=Path(name), backend="sandbox") as vm:
                result = vm.run(timeout=LIMIT)
            assert (result.reason, result.status) == ("exit", 0)


def test_fifos_and_files_get_the_same_console_and_report(
    tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """Console and report go to FIFOs and files alike. An older, longer report leaves nothing behind."""
    texts = {}
    for kind in ("fifo", "file"):
        readers = []
        for name in ("console", "report"):
            path = tmp_path / f"{name}-{kind}"
            if kind == "fifo":
                os.mkfifo(path)
                readers.append(_kept_open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
            else:
                path.write_text("old " * 1000 if name == "report" else "")
                readers.append(_kept_open(os.open(path, os.O_RDONLY)))
        done = run("", *tender_cmd, f"--console={tmp_path}/console-{kind}", f"--json={tmp_path}/report-{kind}",
                   str(guest("args")), "one", "two")  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")  # the guest counts its words
        console, report = (os.read(fd, 1 << 16) for fd in readers)
        assert json.loads(report)["status"] == 2
        texts[kind] = console
    assert texts["fifo"] == texts["file"] != b""


# ---- descriptors that --console and --json name


def _opened(flags: int) -> Callable[[Path], int]:
    def opened(directory: Path) -> int:
        (directory / "file").touch()
        return _kept_open(os.open(directory / "file", flags))

    return opened


def _end_of_pipe(end: int) -> Callable[[Path], int]:
    def opened(_: Path) -> int:
        ends = [_kept_open(fd) for fd in os.pipe()]
        return ends[end]

    return opened


def _pair(_: Path) -> int:
    ours, theirs = socket.socketpair()
    KEPT.enter_context(ours)
    return KEPT.enter_context(theirs).fileno()


def _sealed(_: Path) -> int:
    fd = _kept_open(os.memfd_create("report", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return fd


DESCRIPTORS: dict[str, tuple[Callable[[Path], int], str]] = {
    "file": (_opened(os.O_WRONLY), ""),
    "file, read and written": (_opened(os.O_RDWR), ""),
    "file, appending": (_opened(os.O_WRONLY | os.O_APPEND), ""),
    "file, read-only": (_opened(os.O_RDONLY), "O_RDONLY"),
    "file, by name alone": (_opened(os.O_PATH), "O_PATH"),
    "memfd": (lambda _: _kept_open(os.memfd_create("report")), ""),
    "memfd, sealed": (_sealed, "F_SEAL_WRITE"),
    "directory": (lambda path: _kept_open(os.open(path, os.O_RDONLY)), DIRECTORY),
    "pipe, its writer": (_end_of_pipe(1), ""),
    "pipe, its reader": (_end_of_pipe(0), "O_RDONLY"),
    "socket": (_pair, ""),
    "socket without a peer": (
        lambda _: KEPT.enter_context(socket.socket(socket.AF_UNIX)).fileno(),
        "not connected",
    ),
    "/dev/null": (lambda _: _kept_open(os.open("/dev/null", os.O_RDWR)), ""),
    "eventfd": (lambda _: _kept_open(os.eventfd(0)), NO_OUTPUT),
    "closed": (lambda _: 987, "Bad file descriptor"),
}


@pytest.mark.parametrize("row", DESCRIPTORS)
@pytest.mark.parametrize("option", ["--console", "--json"])
def test_a_descriptor_is_judged_before_the_guest_runs(
    row: str, option: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    opened, reason = DESCRIPTORS[row]
    fd = opened(tmp_path)
    done = run("", *tender_cmd, f"{option}=fd:{fd}", str(guest("exit_status")), "3",
               pass_fds=[fd] if fd != 987 else [])  # fmt: skip
    assert done.stdout == ""
    if reason:
        assert done.returncode == 1
        assert f"{option}=fd:{fd}: " in done.stderr and reason in done.stderr and "hint: " in done.stderr
    else:
        assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("option", ["--console", "--json"])
def test_the_commands_own_descriptors_cannot_be_named(
    option: str, tender_cmd: list[str], guest: Guest
) -> None:
    for fd in range(3, 12):
        done = run("", *tender_cmd, f"{option}=fd:{fd}", str(guest("hello")))
        assert done.returncode == 1 and f"{option}=fd:{fd}: Bad file descriptor" in done.stderr


def test_a_hyphen_is_stdout(tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    done = run("", *tender_cmd, "--json=-", "--console=none", str(guest("hello")), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["reason"] == "exit"
    done = run("", *tender_cmd, "--console=-", str(guest("hello")), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    done = run("", *tender_cmd, "--json=./-", str(guest("hello")), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["-"]
