"""Each standard descriptor is closed, without a reader, full or on a full disk: every command ends
with its own status.
"""

import errno
import fcntl
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fake_guest import guest_of_elf
from sandbox_rig import wait_until
from support import Guest

from tender.debug.core import save_core

LIMIT = 60
PIPE, FAILED = 141, 1


@contextmanager
def _no_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yields the pipe's reader and its writer."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextmanager
def _full_disk() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


STATES = {"closed": None, "no reader": _no_reader, "full disk": _full_disk}

# words ({name}: a guest), status, and whether the answer goes to stdout: then a failed write is reported
COMMANDS: dict[str, tuple[list[str], int, bool]] = {
    "run": (["--mem=5", "{hello}"], 0, False),
    "its status": (["{exit_status}", "3"], 3, False),
    "fault": (["{write_text}"], 1, False),
    "json": (["--json", "{exit_status}", "3"], 3, False),
    "json to stdout": (["--json=-", "{exit_status}", "3"], 3, False),
    "stats": (["--stats", "-v", "{exit_status}", "3"], 3, False),
    "console to stderr": (["--console=fd:2", "{hello}"], 0, False),
    "no image": (["/absent"], 1, False),
    "no words": ([], 1, False),
    "wrong option": (["--frob", "{hello}"], 1, False),
    "help": (["--help"], 0, True),
    "help of a command": (["help", "inspect"], 0, True),
    "version": (["--version"], 0, True),
    "solo5": (["solo5-hvt", "--mem=5", "{hello}"], 0, False),
    "solo5 help": (["solo5-hvt", "--help"], 1, False),
    "solo5 version": (["solo5-hvt", "--version"], 0, False),
    "inspect": (["inspect", "--symbols", "{hello}"], 0, True),
    "inspect json": (["inspect", "--json", "{hello}"], 0, True),
    "inspect of no image": (["inspect", "/etc/passwd"], 1, False),
    "audit": (["audit", "{hello}"], 0, True),
    "audit json": (["audit", "--json", "{hello}"], 0, True),
    "audit of no image": (["audit", "/etc/passwd"], 1, False),
    "doctor": (["doctor", "--filter"], 0, True),
    "sdk": (["sdk"], 0, True),
    "bench": (["bench", "--help"], 0, True),
    "bench of one": (["bench", "boot", "--help"], 0, True),
    "bench, refused": (["bench", "flood"], 1, False),
    "bench of one, refused": (["bench", "boot", "--frob"], 2, False),
    "elftool": (["solo5-elftool", "query-abi", "{hello}"], 0, True),
    "elftool help": (["solo5-elftool", "--help"], 0, True),
    "elftool manifest": (["solo5-elftool", "gen-manifest", "{manifest}", "-"], 0, True),
    "elftool, refused": (["solo5-elftool", "query-abi", "/absent"], 1, False),
    "debug help": (["debug", "--help"], 0, True),
    "debug of no process": (["debug", "2147483647"], 1, False),
    "debug of no guest": (["debug", "--stdio", "{shell}"], 1, False),
    "debug, refused": (["debug", "--frob"], 1, False),
    "core help": (["core", "--help"], 0, True),
    "core of no process": (["core", "2147483647"], 1, False),
    "core of no guest": (["core", "{shell}"], 1, False),
    "core, refused": (["core", "--frob"], 1, False),
    "core open, refused": (["core", "open", "/etc/passwd"], 1, False),
    "report": (["report", "{core}"], 0, True),
    "report json": (["report", "--json", "{core}"], 0, True),
    "report html": (["report", "--html=/dev/null", "{core}"], 0, False),
    "report of no core": (["report", "/etc/passwd"], 1, False),
    "report of no guest": (["report", "{shell}"], 1, False),
}


def words_of(words: list[str], guest: Guest, directory: Path) -> list[str]:
    manifest = directory / "manifest.json"
    manifest.write_text('{"type": "solo5.manifest", "version": 1, "devices": []}')
    own = {"{manifest}": str(manifest), "{shell}": str(os.getpid())}
    if "{core}" in words:
        own["{core}"] = str(directory / "core")
        save_core(guest_of_elf(guest("hello"), "main"), path=own["{core}"])
    return [
        own[word] if word in own else str(guest(word[1:-1])) if word.startswith("{") else word
        for word in words
    ]


def environment(launcher: str) -> dict[str, str]:
    return {**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"}


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("stream", [0, 1, 2])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_standard_descriptor_is_unusable(
    command: str, stream: int, state: str, launcher: str,
    tender_cmd: list[str], guest: Guest, tmp_path: Path,
) -> None:  # fmt: skip
    words, status, answers = COMMANDS[command]
    make = STATES[state]
    if stream == 1 and answers and state != "closed":
        status = PIPE if state == "no reader" else FAILED
    if stream == 1 and answers and state == "closed":
        status = PIPE
    streams: list[int] = [subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE]

    def run(close: bool) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*tender_cmd, *words_of(words, guest, tmp_path)],
            stdin=streams[0], stdout=streams[1], stderr=streams[2], text=True, timeout=LIMIT, check=False,
            env=environment(launcher), preexec_fn=(lambda: os.close(stream)) if close else None,
        )  # fmt: skip

    if make is None:
        done = run(close=True)
    else:
        with make() as fd:
            streams[stream] = fd
            done = run(close=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in (done.stderr or "") and "internal error" not in (done.stderr or "")
    if stream == 1 and answers and state == "full disk":
        assert "stdout: No space left on device" in done.stderr


# ---- stdout fails in each way that a write can fail

WRITE_ERRORS = (
    *(
        "EPERM",
        "EIO",
        "ENXIO",
        "EBADF",
        "ENOMEM",
        "EACCES",
        "ENODEV",
        "EINVAL",
        "EFBIG",
        "ENOSPC",
        "EROFS",
        "EPIPE",
    ),
    *(
        "EDQUOT",
        "ESTALE",
        "ECONNRESET",
        "ENOTCONN",
        "EDESTADDRREQ",
        "ENOBUFS",
        "ETIMEDOUT",
        "EHOSTUNREACH",
        "EREMOTEIO",
    ),
)
FILTER = Path(__file__).resolve().parents[1] / "inherited_filter.py"
ANSWERS = [command for command, (_, _, answers) in COMMANDS.items() if answers]


def assert_unanswered(done: "subprocess.CompletedProcess[str]", number: int) -> None:
    """The command writes a line with the error and has a status for it. It writes nothing where the
    reader has gone.
    """
    if number == errno.EPIPE:
        assert (done.returncode, done.stderr) == (PIPE, "")
    else:
        assert (done.returncode, done.stderr) == (FAILED, f"tender: stdout: {os.strerror(number)}\n")


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("name", WRITE_ERRORS)
@pytest.mark.parametrize("command", ["version", "inspect"])
def test_an_answer_that_cannot_be_written(
    command: str, name: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    number = getattr(errno, name)
    done = subprocess.run(
        [
            sys.executable,
            FILTER,
            f"-write:{number}@1",
            f"-pwritev2:{number}@1",
            *tender_cmd,
            *words_of(COMMANDS[command][0], guest, tmp_path),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
        env=environment(launcher),
    )  # fmt: skip
    assert done.stdout == ""
    assert_unanswered(done, number)


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("command", [*ANSWERS, "doctor"])
def test_an_answer_that_reaches_the_limit_of_a_files_size(
    command: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """`ulimit -f` with space for ten bytes of the answer. The kernel sends SIGXFSZ, which would end a
    program.
    """
    words = ["doctor"] if command == "doctor" else words_of(COMMANDS[command][0], guest, tmp_path)
    most = 8 << 20  # enough for an image in memory, which is a file too
    with open(tmp_path / "answer", "wb") as file:
        file.seek(most - 10)
        done = subprocess.run(
            [*tender_cmd, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, text=True,
            timeout=LIMIT, check=False, env=environment(launcher),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )  # fmt: skip
    assert_unanswered(done, errno.EFBIG)
    assert (tmp_path / "answer").stat().st_size == most


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("command", ANSWERS)
def test_an_answer_to_a_terminal_that_has_gone(
    command: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    os.close(master)
    done = subprocess.run(
        [*tender_cmd, *words_of(COMMANDS[command][0], guest, tmp_path)],
        stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE, text=True, timeout=LIMIT, check=False,
        env=environment(launcher),
    )  # fmt: skip
    os.close(slave)
    assert_unanswered(done, errno.EIO)


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("command", ANSWERS)
def test_an_answer_waits_for_space_in_a_nonblocking_pipe(
    command: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """O_NONBLOCK belongs to the open file, so any process that shares the file may have set it."""
    words = [*tender_cmd, *words_of(COMMANDS[command][0], guest, tmp_path)]
    whole = subprocess.run(
        words, capture_output=True, timeout=LIMIT, check=True, env=environment(launcher)
    ).stdout
    reader, writer = os.pipe()
    filled = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * filled)
    os.set_blocking(writer, False)
    running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=writer, env=environment(launcher))
    os.close(writer)
    with open(reader, "rb") as text:
        assert text.read()[filled:] == whole
    assert running.wait(LIMIT) == 0


@pytest.mark.parametrize("launcher", ["", "native", "python"])
@pytest.mark.parametrize(
    "words", [["{hello}"], ["solo5-hvt", "{hello}"], ["--json", "{hello}"]], ids=" ".join
)
@pytest.mark.parametrize("limit", [4, 5, 6, 7, 8, 16, 64])
def test_too_few_descriptors_are_reported(
    limit: int, words: list[str], launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """`ulimit -n` allows so few descriptors that an interpreter hardly starts."""
    done = subprocess.run(
        [*tender_cmd, *words_of(words, guest, tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
        env=environment(launcher), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    program = words[0] if words[0] == "solo5-hvt" else "tender"
    assert done.stderr.startswith(f"{program}: ") and "internal error" not in done.stderr


# ---- a full pipe, which would hold up a write forever

ENDS_BY_ITSELF: dict[str, tuple[list[str], int]] = {
    # one line before the guest starts, and none at its end
    "memory is adjusted": (["--mem=5", "{exit_status}", "3"], 3),
    "solo5, memory is adjusted": (["solo5-hvt", "--mem=5", "{exit_status}", "3"], 3),
    "phases": (["-v", "--timeout=4", "{exit_status}", "3"], 3),
    # Lines after the guest's end, to which the time limit applies too. The guest ends long before
    # the limit is over.
    "time over": (["--timeout=0.1", "{spin}"], 1),
    "fault, and time over": (["--timeout=4", "{write_text}"], 1),
    "json, and time over": (["--timeout=4", "--json", "{exit_status}", "3"], 3),
    "stats, and time over": (["--timeout=4", "--stats", "{exit_status}", "3"], 3),
}


@pytest.mark.parametrize("launcher", ["", "python"])
def test_a_full_stderr_neither_prevents_a_run_nor_outlasts_a_time_limit(
    launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """The commands run side by side, because each waits some seconds."""
    with ExitStack() as stack:
        running = {}
        for command, (words, _) in ENDS_BY_ITSELF.items():
            _, writer = stack.enter_context(full_pipe())
            running[command] = stack.enter_context(
                subprocess.Popen(
                    [*tender_cmd, *words_of(words, guest, tmp_path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=writer,
                    env=environment(launcher),
                )
            )
            stack.callback(running[command].kill)
        ended = {command: process.wait(LIMIT) for command, process in running.items()}
    assert ended == {command: status for command, (_, status) in ENDS_BY_ITSELF.items()}


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_error_that_nobody_reads(
    number: signal.Signals, launcher: str, tender_cmd: list[str]
) -> None:
    """The signal may come at any moment: the native command blocks it until Python handles it. The
    commands run side by side, because each waits a second.
    """
    if launcher == "python" and number == signal.SIGTERM:
        launcher = ""  # the same path, reached by an error
    with ExitStack() as stack:
        running = {}
        for words in ([], ["--frob", "x"], ["/absent"], ["solo5-hvt", "/absent"]):
            _, writer = stack.enter_context(full_pipe())
            command = stack.enter_context(
                subprocess.Popen(
                    [*tender_cmd, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=writer,
                    env=environment(launcher),
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15]),
                )
            )
            stack.callback(command.kill)
            running[" ".join(words)] = command
            command.send_signal(number)
        ended = {words: command.wait(LIMIT) for words, command in running.items()}
    assert ended == dict.fromkeys(running, 1)


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("front", [[], ["solo5-hvt"]])
@pytest.mark.parametrize("is_read", [False, True])
def test_the_last_line_waits_for_a_reader_but_not_forever(
    is_read: bool, front: list[str], launcher: str, tender_cmd: list[str], guest: Guest
) -> None:
    with full_pipe() as (reader, writer):
        running = subprocess.Popen(
            [*tender_cmd, *front, "--mem=8", str(guest("sleep"))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer, env=environment(launcher),
        )  # fmt: skip
        with running:
            assert running.stdout is not None and running.stdout.read(1), "the guest has begun"
            running.send_signal(signal.SIGTERM)
            text = b""
            while is_read and not text.endswith(b"\n"):
                text += os.read(reader, 1 << 16)
            assert running.wait(LIMIT) == 1
        if is_read:
            program = front[0] if front else "tender"
            assert text.lstrip(b"x").decode() == f"{program}: Exiting on signal 15\n"


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["inspect", "{hello}"], ["solo5-hvt", "--version"]]
)
def test_a_command_without_a_guest_ends_by_a_signal_as_any_other(
    words: list[str], launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    with full_pipe() as (_, writer):
        running = subprocess.Popen(
            [*tender_cmd, *words_of(words, guest, tmp_path)],
            stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=environment(launcher),
        )  # fmt: skip
        running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT) in (
            -signal.SIGTERM,
            1,
        )  # 1: before the command knows what it is asked to do


@pytest.mark.parametrize(
    ("front", "by"),
    [(front, by) for by in ("SIGTERM", "SIGINT") for front in ("tender", "solo5-hvt")]
    + [("tender", "timeout")],
)
def test_an_error_after_the_last_step_of_a_start_waits_no_longer_than_others(
    front: str, by: str, tender_cmd: list[str], guest: Guest
) -> None:
    """By then the process has given up its rights and blocked all signals. Then it tries to execute
    a program, which is refused.
    """
    words = [*([] if front == "tender" else [front]), *(["--timeout=0.1"] if by == "timeout" else [])]
    with full_pipe() as (reader, writer), subprocess.Popen(
        [*tender_cmd, *words, str(guest("hello"))],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer, env=environment(""),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
    ) as running:  # fmt: skip
        try:
            limits = Path(f"/proc/{running.pid}/limits")
            wait_until(lambda: re.search(r"Max stack size +65536 +65536 ", limits.read_text()) is not None)
            if by != "timeout":
                running.send_signal(getattr(signal, by))
            assert running.wait(LIMIT) == 1
        finally:
            running.kill()
        os.set_blocking(reader, False)
        assert os.read(reader, 1 << 16).strip(b"x") == b""


def test_an_error_after_the_last_step_of_a_start_names_the_program(
    tender_cmd: list[str], guest: Guest
) -> None:
    done = subprocess.run(
        [*tender_cmd, str(guest("hello"))],
        capture_output=True, text=True, timeout=LIMIT, check=False, env=environment(""),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
    )  # fmt: skip
    refused, hint = done.stderr.splitlines()
    assert (done.returncode, hint) == (
        1,
        "tender: hint: the limit of open files may be below 512: ulimit -n 1024",
    )
    assert re.fullmatch(r"tender: sandbox: /.*/tender-sandbox: Invalid argument", refused)
