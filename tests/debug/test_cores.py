"""Cores of real guests, on both backends: what stock tools read in them, and that the guest goes on unharmed."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import Guest, until_it_waits

from tender import CAPTURE, Image, Vm, VmConfig
from tender.debug.core import CoreFile

Run = Any  # the fixtures of conftest.py
LIMIT_S = 120

pytestmark = pytest.mark.backends


def run_with_core(
    tender_cmd: list[str], backend: str, folder: Path, *words: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*tender_cmd, f"--backend={backend}", "--mem=16", f"--core={folder}", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "words", "status", "reason"),
    [
        ((), ("fault",), 255, "abort"),
        (("--stats",), ("fault",), 255, "abort"),
        (("--timeout=1",), ("sleep",), 1, "timeout"),
        ((), ("halt",), 1, "unhandled-exit"),
    ],
    ids=["abort", "abort-by-python", "time-limit", "fault"],
)
def test_an_abnormal_end_writes_one_core(
    guest: Guest,
    tender_cmd: list[str],
    backend: str,
    tmp_path: Path,
    gdb: Run,
    options: tuple[str, ...],
    words: tuple[str, ...],
    status: int,
    reason: str,
) -> None:
    done = run_with_core(tender_cmd, backend, tmp_path, *options, str(guest("debug")), *words)
    assert done.returncode == status, done.stderr
    (name,) = os.listdir(tmp_path)
    assert f"tender: core: {tmp_path / name}\n" in done.stderr
    with CoreFile(str(tmp_path / name)) as core:
        assert core.facts().backend == backend
        assert core.facts().reason == reason
    said = gdb(f"core-file {tmp_path / name}", "bt", image=guest("debug"))
    assert "warning" not in said
    assert re.search(r"^#\d+ .*\bmain \(", said, re.M), said


def test_a_guest_that_panics_stands_where_it_panicked(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path, gdb: Run
) -> None:
    words = ("one", "two", "three-is-much-too-long-for-a-line", "four")
    done = run_with_core(tender_cmd, backend, tmp_path, str(guest("bug_heap")), *words)
    assert done.returncode == 255, done.stderr
    (name,) = os.listdir(tmp_path)
    with CoreFile(str(tmp_path / name)) as core:
        assert core.facts().fault is None
        assert core.fault_registers() == core.registers()
    said = gdb(f"core-file {tmp_path / name}", "bt", image=guest("bug_heap"))
    assert "SIGABRT" in said
    assert re.search(r"^#0 .*\bguest_exit \(", said, re.M), said
    assert re.search(r"^#\d+ .*\blog_free \(", said, re.M), said


def test_sigquit_writes_one_also_of_a_background_job_of_a_script(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    """Whose shell has it ignored."""
    with subprocess.Popen(
        [*tender_cmd, f"--backend={backend}", "--mem=16", f"--core={tmp_path}", guest("debug"), "sleep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGQUIT, signal.SIG_IGN),
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGQUIT)
            _, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 1
    (name,) = os.listdir(tmp_path)
    assert f"tender: core: {tmp_path / name}\n" in err.decode()


def test_an_ordinary_end_writes_none(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    done = run_with_core(tender_cmd, backend, tmp_path, str(guest("debug")), "spin", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == []


def test_a_core_of_a_running_guest_leaves_it_unharmed(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path, gdb: Run
) -> None:
    running = start_guest("debug", "poll", "10000", options=(f"--backend={backend}",))
    core = tmp_path / "core"
    done = subprocess.run(
        [*tender_cmd, "core", "-o", str(core), str(running.pid)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{core}: ")
    said = gdb(f"core-file {core}", "bt", "p ticks", "info files", image=running.path)
    assert "warning" not in said
    assert re.search(r"^#\d+ .*\bmain \(", said, re.M), said
    status, out, err = running.end()
    assert (status, out, err) == (0, b"ready\nwaited 10000\n", b"")


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM], ids=["SIGQUIT", "SIGTERM"])
def test_sigquit_writes_a_core_and_sigterm_does_not(
    start_guest: Run, backend: str, tmp_path: Path, number: signal.Signals
) -> None:
    running = start_guest("debug", "sleep", options=(f"--backend={backend}", f"--core={tmp_path}"))
    os.kill(running.pid, number)
    status, _, err = running.end()
    assert status == 1
    assert f"Exiting on signal {number}".encode() in err
    assert len(os.listdir(tmp_path)) == (number == signal.SIGQUIT)


def test_a_vm_of_the_library_gives_registers_and_a_core(guest: Guest, backend: Any, tmp_path: Path) -> None:
    with Image.open(guest("debug")) as image:
        with Vm(image, VmConfig(mem=16, args=["poll", "300"]), console=CAPTURE, backend=backend) as vm:
            vm.start(timeout=LIMIT_S)
            assert vm.registers().rsp < 16 << 20
            vm.core(tmp_path / "running")
            result = vm.wait()
            assert (result.reason, result.console) == ("exit", b"ready\nwaited 300\n")
            vm.core(tmp_path / "ended")
    for name in ("running", "ended"):
        with CoreFile(str(tmp_path / name)) as core:
            assert core.facts().backend == backend
            assert core.read(0x100000, 4) == b"\x7fELF" or core.read(0x100000, 4096).strip(b"\0")


def test_dumpcore_of_solo5_names_its_file_last(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*tender_cmd, "solo5-hvt", f"--dumpcore={tmp_path}", str(guest("debug")), "fault"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TENDER_BACKEND": backend},
    )
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 255, said
    found = re.search(r"core\.solo5-hvt\.[0-9]*$", said, re.M)
    assert found and os.listdir(tmp_path) == [found[0]], said


@pytest.fixture
def core(guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path) -> Path:
    """A core of an aborted guest."""
    (folder := tmp_path / "cores").mkdir()
    done = run_with_core(tender_cmd, backend, folder, str(guest("debug")), "fault")
    assert done.returncode == 255, done.stderr
    return folder / os.listdir(folder)[0]


def test_core_open_starts_gdb_with_the_image(core: Path, tender_cmd: list[str]) -> None:
    done = subprocess.run(
        [*tender_cmd, "core", "open", str(core), "-nx", "-batch", "-ex", "bt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^#\d+ .*\bmain \(", done.stdout, re.M), done.stdout


def test_core_open_refuses_another_image(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    image = tmp_path / "app.elf"
    image.write_bytes(guest("debug").read_bytes())
    (folder := tmp_path / "cores").mkdir()
    assert run_with_core(tender_cmd, backend, folder, str(image), "fault").returncode == 255
    (name,) = os.listdir(folder)
    for newer, said in ((b"newer", "not the file that this guest ran"), (None, "cannot be found")):
        if newer is None:
            image.unlink()
        else:
            image.write_bytes(image.read_bytes() + newer)
        done = subprocess.run(
            [*tender_cmd, "core", "open", str(folder / name)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert str(image) in done.stderr and said in done.stderr


def test_eu_stack_reads_the_threads(core: Path) -> None:
    """It finds no image for the addresses: it looks for a dynamic linker's list, which a guest does not have."""
    done = subprocess.run(
        ["eu-stack", f"--core={core}"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    with CoreFile(str(core)) as read:
        places = [read.fault_registers().rip, read.registers().rip]
    assert re.findall(r"^#0 +0x([0-9a-f]+)", done.stdout, re.M) == [f"{it:016x}" for it in places], (
        done.stdout
    )


def test_of_a_guest_that_was_killed_nothing_is_left(start_guest: Run, backend: str, tmp_path: Path) -> None:
    running = start_guest("debug", "sleep", options=(f"--backend={backend}", f"--core={tmp_path}"))
    os.kill(running.pid, signal.SIGKILL)
    status, _, err = running.end()
    assert status == -signal.SIGKILL
    assert b"--core: no core: the guest's process was killed, and the guest's state is gone with it\n" in err
    assert os.listdir(tmp_path) == []


SMALL_DISK = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs -o size=1M none "$0" && { "$@"; status=$?; ls -A "$0"; exit $status; }',
)
"""A directory with 1 MiB, whose content is listed at the end."""


def test_a_full_disk_is_an_error_that_leaves_no_file_and_the_guest_goes_on(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    running = start_guest("leak", str(4 << 20), str(10**12), options=(f"--backend={backend}",))
    until_it_waits(running.pid)
    done = subprocess.run(
        [*SMALL_DISK, str(tmp_path), *tender_cmd, "core", "-o", str(tmp_path / "core"), str(running.pid)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert first == f"tender: core: {tmp_path / 'core'}: No space left on device"
    assert hint.startswith("tender: hint: a core takes as much as the guest has touched")
    os.kill(running.pid, signal.SIGTERM)
    assert running.end()[0] == 1


def test_a_full_disk_at_the_end_changes_no_status_and_leaves_no_file(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    run = (f"--backend={backend}", f"--core={tmp_path}", "--mem=16", "--timeout=3", "--console=none")
    done = subprocess.run(
        [*SMALL_DISK, str(tmp_path), *tender_cmd, *run, str(guest("leak")), str(4 << 20), str(10**12)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    _, first, hint = done.stderr.splitlines()
    assert first == f"tender: --core: no core: {tmp_path}: No space left on device"
    assert hint.startswith("tender: hint: a core takes as much as the guest has touched")


def test_a_directory_that_is_missing_is_refused_before_the_guest_runs(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    done = run_with_core(tender_cmd, backend, tmp_path / "absent", str(guest("debug")), "fault")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"tender: core: {tmp_path}/absent: No such file or directory\n"
        f"tender: hint: make the directory first: mkdir -p {tmp_path}/absent\n"
    )


def test_a_large_guest_has_a_core_soon_and_memory_of_it_in_the_right_places(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    """64 MiB of 4 GiB are touched: the file has holes, and the time does not depend on them."""
    options = (f"--backend={backend}",)
    running = start_guest("leak", str(64 << 20), str(10**12), options=options, mem="4096")
    until_it_waits(running.pid)
    done = subprocess.run(
        [*tender_cmd, "core", "-o", str(tmp_path / "core"), str(running.pid)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    about = os.stat(tmp_path / "core")
    assert about.st_size == 4 << 30
    assert 64 << 20 <= about.st_blocks * 512 < 80 << 20
    with CoreFile(str(tmp_path / "core")) as core:
        touched = sum(end - start for start, end in core.touched())
        assert 64 << 20 <= touched < 80 << 20
    os.kill(running.pid, signal.SIGTERM)
    assert running.end()[0] == 1
