"""The native path and Python's path of the command: a user cannot tell which one served a run."""

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
    """Returns what a user sees, without what differs between processes: addresses that the host chose, and
    registers that hold the remains of a guest's division by the counter's frequency. Each process measures
    that frequency to a few ppm, and the guest's compiler chooses the registers."""
    placed = re.sub(r"0x7[0-9a-f]{11}\b", "0x7...", done.stderr)
    out, err = (
        re.sub(r"\b(r8|r9|r10) +(?:0x)?[0-9a-f]+", r"\1 <by frequency>", text)
        for text in (done.stdout, placed)
    )
    return done.returncode, out, err


# Words of `tender run`; a guest's name stands for its path.
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
# Guests that print the clock's readings are left out, because no two runs print the same.
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
def test_without_python_solo5_hvt_prints_the_same_messages(
    tender_cmd: list[str], guest: Guest, disk: Path, words: list[str]
) -> None:
    """TENDER_LAUNCHER=native makes the command do everything without Python."""
    command = [*tender_cmd, "solo5-hvt", *words_of(words, guest, disk)]
    assert seen(by("native", command)) == seen(by("python", command))


def test_an_option_that_needs_python_is_reported_without_it(tender_cmd: list[str], guest: Guest) -> None:
    done = by("native", [*tender_cmd, "--stats", guest("args")])
    assert (done.returncode, done.stdout) == (1, "")
    assert "need Python" in done.stderr and done.stderr.count("\n") == 1


def test_a_plain_run_starts_no_interpreter(tender_cmd: list[str], guest: Guest, backend: str) -> None:
    """From the beginning it is one process whose program maps no library: the command's program, or the
    sandbox's, which replaces it."""
    with subprocess.Popen([*tender_cmd, "--mem=8", guest("spin")], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None and running.stdout.read(1), "the guest has not begun"
            maps = Path(f"/proc/{running.pid}/maps").read_text()
        finally:
            running.kill()
    assert (tender_cmd[0] if backend == "kvm" else "tender-sandbox") in maps
    assert ".so" not in maps and "python3" not in re.sub(r"\S*/tender\S*", "", maps)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_guest_on_either_path(
    tender_cmd: list[str], guest: Guest, number: signal.Signals
) -> None:
    for launcher in ("", "python"):
        running = subprocess.Popen(
            [*tender_cmd, "--mem=8", guest("sleep")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TENDER_LAUNCHER": launcher},
        )  # fmt: skip
        assert running.stdout is not None and running.stdout.read(1), "the guest has not begun"
        running.send_signal(number)
        _, stderr = running.communicate(timeout=60)
        assert (running.returncode, stderr) == (1, f"tender: Exiting on signal {int(number)}\n")
