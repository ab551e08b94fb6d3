"""`tender profile` samples a guest from outside: where it spends its time is found, and the guest does not notice."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import Guest

from tender import DISCARD, Image, Vm, VmConfig
from tender.watch.profile_formats import FORMATS

StartGuest = Callable[..., Any]  # conftest.py
Undebugged = Callable[..., tuple[int, bytes, bytes]]
FOREVER = "4000000000"
ROUNDS = "100000000"  # of debug.elf spin: longer than the sampler needs to start, on an emulated machine too
LIMIT_S = 120


def profile(tender_cmd: list[str], *words: str, status: int = 0) -> str:
    """Runs `tender profile` and returns its stdout; its stderr if it should fail."""
    done = subprocess.run(
        [*tender_cmd, "profile", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def shares(folded: str) -> dict[str, float]:
    """The share of the samples in which each function lies."""
    counts: dict[str, int] = {}
    total = 0
    for line in folded.splitlines():
        names, _, count = line.rpartition(" ")
        total += int(count)
        for name in set(names.split(";")):
            counts[name] = counts.get(name, 0) + int(count)
    return {name: count / total for name, count in counts.items()}


@pytest.mark.backends
def test_the_functions_that_compute_are_found_with_their_callers(
    start_guest: StartGuest, tender_cmd: list[str], tmp_path: Path
) -> None:
    run = start_guest("debug", "spin", FOREVER)
    file = tmp_path / "out.folded"
    said = profile(tender_cmd, "--seconds=3", "--rate=20", f"--output={file}", str(run.pid))
    assert f"process {run.pid}" in said and "samples in" in said
    found = shares(file.read_text())
    assert found["main"] == found["spin"] == 1.0
    assert found["walk"] > 0.3 and found["tick"] > 0.5


def test_without_a_file_a_table_tells_the_busiest_functions(
    start_guest: StartGuest, tender_cmd: list[str]
) -> None:
    run = start_guest("debug", "spin", FOREVER)
    lines = profile(tender_cmd, "--seconds=3", "--rate=20", str(run.pid)).splitlines()
    assert lines[2].split() == ["SELF", "TOTAL", "FUNCTION", "FILE"]
    rows = {line.split()[2]: line.split() for line in lines[3:]}
    assert rows["main"][1] == "100.0%" and rows["main"][3] == "main.c"
    assert lines[3].split()[2] in ("walk", "mix", "tick")


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_written_by_the_name_of_its_file(
    form: str, start_guest: StartGuest, tender_cmd: list[str], tmp_path: Path
) -> None:
    run = start_guest("debug", "spin", FOREVER)
    file = tmp_path / f"out{FORMATS[form][0]}"
    assert "written" in profile(tender_cmd, "--seconds=1", "--rate=10", "-o", str(file), str(run.pid))
    begins = {"svg": b"<svg", "speedscope": b"{", "pprof": b"\x1f\x8b"}
    assert file.read_bytes().startswith(begins.get(form, b""))
    assert form in ("pprof",) or b"walk" in file.read_bytes()


@pytest.mark.backends
def test_a_sampled_guest_does_what_it_does_alone(
    start_guest: StartGuest, undebugged: Undebugged, tender_cmd: list[str]
) -> None:
    run = start_guest("debug", "spin", ROUNDS)
    said = profile(tender_cmd, "--seconds=60", "--rate=50", str(run.pid))
    assert run.end() == undebugged("debug", "spin", ROUNDS)
    assert "the guest has ended after" in said


@pytest.mark.backends
def test_a_guest_that_waits_is_left_alone_unless_asked_for(
    start_guest: StartGuest, tender_cmd: list[str], tmp_path: Path
) -> None:
    run = start_guest("debug", "sleep")
    said = profile(tender_cmd, "--seconds=0.5", "--rate=10", str(run.pid))
    assert ": 0 samples" in said and "it waited at" in said
    file = tmp_path / "out.folded"
    profile(tender_cmd, "--seconds=1", "--rate=4", "--waits", f"--output={file}", str(run.pid))
    (line,) = file.read_text().splitlines()
    assert "main;" in line and "sleep_a_day" in line and ";[hypercall] " in line


def test_a_guest_whose_own_handler_gets_faults_is_not_held_up(
    start_guest: StartGuest, tender_cmd: list[str]
) -> None:
    """Each fault stops a traced guest in the sandbox; the sampler lets it go on at once, and not at the next sample."""
    run = start_guest("debug", "wedge")
    said = profile(tender_cmd, "--seconds=2", "--rate=5", str(run.pid))
    assert run.process.poll() is None
    assert "samples in 2." in said


@pytest.mark.backends
def test_an_interrupt_ends_it_early_with_what_there_is(
    start_guest: StartGuest, tender_cmd: list[str]
) -> None:
    run = start_guest("debug", "spin", FOREVER)
    process = subprocess.Popen(
        [*tender_cmd, "profile", "--seconds=3600", "--rate=10", str(run.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_tracer(run.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "samples in" in out) == (0, True), err
    assert run.process.poll() is None


@pytest.mark.backends
def test_a_sampler_that_is_killed_harms_no_guest(
    start_guest: StartGuest, undebugged: Undebugged, tender_cmd: list[str]
) -> None:
    run = start_guest("debug", "spin", ROUNDS)
    process = subprocess.Popen(
        [*tender_cmd, "profile", "--seconds=3600", "--rate=500", str(run.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.kill(wait_for_tracer(run.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, b"killed by signal 9" in err) == (1, True), err
    assert run.end() == undebugged("debug", "spin", ROUNDS)


def wait_for_tracer(pid: int) -> int:
    """Waits until a thread of a process is traced, and returns the tracer."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError):  # a thread that has just ended
                status = (thread / "status").read_text()
                if tracer := int(status.partition("TracerPid:")[2].split()[0]):
                    return tracer
    raise AssertionError("nobody traces it")


@pytest.mark.backends
def test_a_vm_of_the_library_is_sampled_by_its_process(
    guest: Guest, tender_cmd: list[str], backend: str
) -> None:
    with Image.open(guest("debug")) as image:
        config = VmConfig(mem=16, args=("spin", FOREVER))
        with Vm(image, config, console=DISCARD, backend=backend) as vm:  # type: ignore[arg-type]
            vm.start()
            while not vm.counters.hypercalls["puts"]:
                assert vm.pid
            said = profile(tender_cmd, "--seconds=2", "--rate=10", str(os.getpid()))
            vm.stop()
    assert "samples in" in said and "tick" in said


REFUSED = {
    "no process": (["2147483647"], "2147483647"),
    "no guest": ([str(os.getppid())], "guest"),
    "no number": (["me"], "`me' is not the number of a process"),
    "no word": ([], "one PID is needed"),
    "seconds": (["--seconds=0", "1"], "--seconds=0: a number of seconds from 0.01 to 86400 is needed"),
    "rate": (["--rate=1e9", "1"], "--rate=1e9: a number of samples a second from 0.1 to 2000 is needed"),
    "format": (["--format=xml", "1"], "--format=xml: the formats are svg, folded, speedscope, pprof, perf"),
    "ending": (["--output=x", "1"], "x: name the format: --format=svg|folded|speedscope|pprof|perf"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_word_is_refused_with_its_value(what: str, tender_cmd: list[str]) -> None:
    words, told = REFUSED[what]
    assert told in profile(tender_cmd, *words, status=1)


def test_a_file_that_cannot_be_written_is_told(start_guest: StartGuest, tender_cmd: list[str]) -> None:
    run = start_guest("debug", "spin", FOREVER)
    told = profile(
        tender_cmd, "--seconds=0.2", "--rate=20", "--output=/no/such/dir/a.svg", str(run.pid), status=1
    )
    assert "profile: /no/such/dir/a.svg: No such file or directory" in told
    assert run.process.poll() is None
