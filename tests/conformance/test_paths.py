"""The command without an interpreter, and Python's: a user cannot tell which one served."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.backends

Done = subprocess.CompletedProcess[str]


def by(launcher: str, command: Sequence[str | Path], **options: object) -> Done:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(word) for word in command],
        **{
            "capture_output": True,
            "text": True,
            "errors": "surrogateescape",
            "timeout": 60,
            "check": False,
            "stdin": subprocess.DEVNULL,
            "env": {**os.environ, "TENDER_LAUNCHER": launcher},
            **options,
        },
    )


def seen(done: Done) -> tuple[int, str, str]:
    """What a user sees, less where the host put something in this process, and what is left in registers of a guest's
    division by the counter's frequency, which each process measures to a few ppm; which ones, its compiler chooses."""
    placed = re.sub(r"0x7[0-9a-f]{11}\b", "0x7...", done.stderr)
    out, err = (
        re.sub(r"\b(r8|r9|r10) +(?:0x)?[0-9a-f]+", r"\1 <by frequency>", text)
        for text in (done.stdout, placed)
    )
    return done.returncode, out, err


# Words of `tender run`; the guest's name stands for its path.
RUNS: tuple[list[str], ...] = (
    ["exit_status", "3"],
    ["--mem=8", "args", "", "a  b", "\udcff", "--mem=1"],
    ["run", "--mem", "9", "--", "args", "x"],
    ["-q", "--mem=9M", "args", "x"],
    ["--mem=1G", "--timeout=30", "args", "x"],
    ["--mem=8", "--timeout=100ms", "spin"],
    ["--timeout=0.25", "--mem=8", "spin"],
    ["--mem=8", "traps", "--kind=divide"],
    ["--mem=8", "bad_port"],
    ["--mem=8", "bad_hypercall"],
    ["--mem=8", "write_text"],
    ["--mem=8", "write_rodata"],
    ["--mem=8", "null_write"],
    ["--mem=8", "far_write"],
    ["--mem=8", "hlt"],
    ["--mem=8", "triple"],
    ["--mem=8", "panic"],
    ["--mem=8", "exec_data"],
    ["--mem=8", "--block", "{disk}", "disk"],
    ["--mem=8", "--block:storage={disk}:rw", "--block-sector-size=4096", "disk"],
    ["--mem=8", "--block=storage={disk}", "disk"],
    ["--mem=8", "--block", "{disk}:ro", "disk", "--read-only"],
    # what cannot start
    ["--mem=8", "disk"],
    ["--mem=8", "--block=absent.img", "disk"],
    ["--mem=8", "--block:other={disk}", "disk"],
    ["--mem=8", "--net=tap0", "args"],
    ["--mem=8", "--net=nosuchtap", "echo"],
    ["--mem=0", "args"],
    ["--mem=8G", "args"],
    ["--frob", "args"],
    ["--mem=2", "bss_big"],
    ["--mem=8", "args", "x" * 8192],
    ["absent.elf"],
    [],
)
# What no two runs have alike is not asked for: the clock's readings.
GUESTS = {
    "exit_status", "args", "spin", "traps", "bad_port", "bad_hypercall", "write_text", "write_rodata",
    "null_write", "far_write", "hlt", "triple", "panic", "exec_data", "disk", "echo", "bss_big",
}  # fmt: skip


def words_of(words: Sequence[str], guest: Guest, disk: Path) -> list[str]:
    return [str(guest(word)) if word in GUESTS else word.format(disk=disk) for word in words]


@pytest.mark.parametrize(
    "words", RUNS, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode()
)
def test_a_run_looks_the_same_on_either_path(
    tender_cmd: list[str], guest: Guest, disk: Path, words: list[str]
) -> None:
    command = [*tender_cmd, *words_of(words, guest, disk)]
    assert seen(by("", command)) == seen(by("python", command))


SOLO5: tuple[list[str], ...] = (
    ["--mem=8", "args", "", "a  b"],
    ["--mem=9", "args"],
    ["--mem=8", "write_text"],
    ["--mem=8", "exec_data"],
    ["--block:storage={disk}", "--block-sector-size:storage=1024", "--mem=8", "--", "disk"],
    ["absent.elf"],
    ["{disk}"],
    ["--mem=2", "bss_big"],
    ["--mem=8", "disk"],
    ["--block:storage=absent.img", "disk"],
    ["--block:storage=/dev/null", "disk"],
    ["--mem=8", "args", "x" * 8192],
)


@pytest.mark.parametrize("words", SOLO5, ids=lambda words: " ".join(words)[:40])
def test_where_there_is_no_python_solo5_hvts_words_are_the_same(
    tender_cmd: list[str], guest: Guest, disk: Path, words: list[str]
) -> None:
    """TENDER_LAUNCHER=native: nothing is left to Python."""
    command = [*tender_cmd, "solo5-hvt", *words_of(words, guest, disk)]
    assert seen(by("native", command)) == seen(by("python", command))


def test_what_is_not_served_without_python_is_said(tender_cmd: list[str], guest: Guest) -> None:
    done = by("native", [*tender_cmd, "--stats", guest("args")])
    assert (done.returncode, done.stdout) == (1, "")
    assert "need Python" in done.stderr and done.stderr.count("\n") == 1


def test_a_plain_run_starts_no_interpreter(tender_cmd: list[str], guest: Guest, backend: str) -> None:
    """It is one process from the beginning, whose program maps no library: the command's, or the sandbox's in its place."""
    with subprocess.Popen([*tender_cmd, "--mem=8", guest("spin")], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None and running.stdout.read(1), "the guest has begun"
            maps = Path(f"/proc/{running.pid}/maps").read_text()
        finally:
            running.kill()
    assert (tender_cmd[0] if backend == "kvm" else "tender-sandbox") in maps
    assert ".so" not in maps and "python3" not in re.sub(r"\S*/tender\S*", "", maps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_on_either_path(
    tender_cmd: list[str], guest: Guest, number: signal.Signals
) -> None:
    for launcher in ("", "python"):
        running = subprocess.Popen(
            [*tender_cmd, "--mem=8", guest("sleep")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TENDER_LAUNCHER": launcher},
        )  # fmt: skip
        assert running.stdout is not None and running.stdout.read(1), "the guest has begun"
        running.send_signal(number)
        _, stderr = running.communicate(timeout=60)
        assert (running.returncode, stderr) == (1, f"tender: Exiting on signal {int(number)}\n")
