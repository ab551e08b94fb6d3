"""Processes that say wrong things of themselves, and bad moments: who looks at a guest ends soon, with an error or not."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Guest as Images
from support import until_it_waits

from tender.debug import attach as attaching
from tender.debug import ptrace
from tender.debug.attach import attach, looking_at
from tender.debug.core import CoreFile, write_core
from tender.debug.find import Guest, guests_of
from tender.debug.report import capture
from tender.errors import TenderError
from tender.native import ffi

Run = Any  # the fixtures of conftest.py
LIMIT_S = 120
LOOK_LIMIT_S = 20

pytestmark = pytest.mark.backends


def look(guest: Guest, file: Path) -> str:
    """All that a core and a report need. Returns the error's message."""
    began = time.monotonic()
    try:
        with looking_at(guest) as target, file.open("w+b") as out:
            capture(target)
            write_core(target, out.fileno())
        with CoreFile(str(file)) as core:
            core.facts()
        said = ""
    except TenderError as error:
        said = error.message
        assert said
    assert time.monotonic() - began < LOOK_LIMIT_S
    return said


@pytest.fixture
def sleeper(start_guest: Run, backend: str) -> Iterator[Any]:
    running = start_guest("debug", "sleep", options=(f"--backend={backend}",))
    until_it_waits(running.pid)
    yield running


def test_a_forged_note_gives_an_error_or_less_knowledge(sleeper: Any, backend: str, tmp_path: Path) -> None:
    """Each number of the note is wrong once. The guest that it names may be any memory of that process."""
    (guest,) = guests_of(sleeper.pid)
    chance = random.Random(1)
    names = sorted(guest.note)
    for name in (
        names if backend == "sandbox" else chance.sample(names, 12)
    ):  # a look on emulated KVM takes a second
        number = chance.choice(
            (0, -1, 1, 1 << 31, 1 << 47, (1 << 63) - 1, -(1 << 63), chance.getrandbits(40))
        )
        look(replace(guest, note=guest.note | {name: number}), tmp_path / "core")
    for name in ("base", "shared_hva", "mem_bytes", "memory_hva"):
        for wrong in (0, (1 << 64) - 4096) if backend == "kvm" else (0, 4096, 1 << 32, (1 << 64) - 4096):
            change: dict[str, Any] = {name: wrong}
            look(replace(guest, **change), tmp_path / "core")
    assert look(guest, tmp_path / "core") == ""


def test_forged_shared_memory_gives_numbers_and_no_harm(sleeper: Any, backend: str, tmp_path: Path) -> None:
    (guest,) = guests_of(sleeper.pid)
    size, chance = ffi.offsetof("struct vm_shared", "held"), random.Random(2)
    for fill in (b"\xff" * size, *(chance.randbytes(size) for _ in range(20 if backend == "sandbox" else 4))):
        ptrace.write_memory(guest.pid, guest.shared_hva, fill)
        look(guest, tmp_path / "core")
    kind_at = ffi.offsetof("struct vm_shared", "event") + ffi.offsetof("struct vm_event", "kind")
    for kind in (*range(0, 40, 1 if backend == "sandbox" else 6), 1 << 31, (1 << 32) - 1):
        ptrace.write_memory(guest.pid, guest.shared_hva + kind_at, kind.to_bytes(4, "little"))
        look(guest, tmp_path / "core")
        for found in guests_of(sleeper.pid):
            assert found.pid == sleeper.pid


def test_forged_boot_info_gives_bounded_texts(sleeper: Any, backend: str, tmp_path: Path) -> None:
    (guest,) = guests_of(sleeper.pid)
    chance = random.Random(3)
    for _ in range(20 if backend == "sandbox" else 4):
        try:
            ptrace.write_memory(guest.pid, guest.memory_hva + 0x10000, chance.randbytes(4096))
        except TenderError:  # not writable: then the debugger's way
            ptrace.seize(sleeper.pid)
            ptrace.interrupt(sleeper.pid)
            ptrace.wait(sleeper.pid)
            ptrace.poke(sleeper.pid, guest.memory_hva + 0x10000, chance.randbytes(4096))
            ptrace.detach(sleeper.pid)
        look(guest, tmp_path / "core")


def test_a_second_debugger_is_refused_and_the_first_goes_on(
    sleeper: Any, tender_cmd: list[str], tmp_path: Path
) -> None:
    (guest,) = guests_of(sleeper.pid)
    target = attach(guest)
    try:
        before = target.registers()
        for words in (["core", "-o", str(tmp_path / "core")], ["report"], ["debug", "--stdio"]):
            done = subprocess.run(
                [*tender_cmd, *words, str(sleeper.pid)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            assert (done.returncode, done.stdout) == (1, ""), words
            assert f"process {sleeper.pid}" in done.stderr and "Traceback" not in done.stderr
        assert target.registers() == before
    finally:
        target.detach()
    assert os.listdir(tmp_path) == []
    assert look(guest, tmp_path / "core") == ""


def test_two_cores_at_once_are_two_cores_or_an_error(
    sleeper: Any, tender_cmd: list[str], tmp_path: Path
) -> None:
    both = [
        subprocess.Popen(
            [*tender_cmd, "core", "-o", str(tmp_path / name), str(sleeper.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in both:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode in (0, 1), err
        assert (process.returncode == 1) == (f"process {sleeper.pid}" in err)
    assert len(os.listdir(tmp_path)) == sum(it.returncode == 0 for it in both) >= 1
    for name in os.listdir(tmp_path):
        CoreFile(str(tmp_path / name)).close()


def test_another_process_with_the_same_number_is_not_touched(
    sleeper: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (guest,) = guests_of(sleeper.pid)
    monkeypatch.setattr(attaching, "born", lambda _: guest.born + 1)
    assert look(guest, tmp_path / "core") == f"process {guest.pid}: it has ended since it was looked up"


def test_without_proc_there_is_an_error_and_no_core(
    sleeper: Any, tender_cmd: list[str], tmp_path: Path
) -> None:
    for words in (["core", "-o", str(tmp_path / "core")], ["report"], ["debug", "--stdio"]):
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount -t tmpfs none /proc && exec "$@"',
                "sh",
                *tender_cmd,
                *words,
                str(sleeper.pid),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, ""), (words, done.stderr)
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr
        assert done.stderr.startswith("tender: ")
    assert os.listdir(tmp_path) == []


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("words", [("core", "-o"), ("report", "--html")], ids=["core", "report"])
def test_a_terminals_stop_does_not_leave_the_guest_in_its_stop(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path, words: tuple[str, str]
) -> None:
    """^Z comes at several moments. When the command stands still, the guest does not."""
    running = start_guest("leak", str(32 << 20), str(10**12), options=(f"--backend={backend}",), mem="64")
    until_it_waits(running.pid)
    for number, delay_ms in enumerate((100, 200, 300, 350, 400, 450, 500)):
        file = tmp_path / str(number)
        process = subprocess.Popen(
            [*tender_cmd, *words, str(file), str(running.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        timer = threading.Timer(delay_ms / 1000, process.send_signal, (signal.SIGTSTP,))
        timer.start()
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        timer.join()
        if os.WIFSTOPPED(status):
            assert state_of(running.pid) != "t"
            process.send_signal(signal.SIGCONT)
            assert process.wait(LIMIT_S) == 0
        else:
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
        assert process.stderr
        assert process.stderr.read() == b""
        process.stderr.close()
    os.kill(running.pid, signal.SIGTERM)
    assert running.end()[0] == 1


def test_a_guest_image_is_looked_at_in_a_process_that_ends_meanwhile(
    guest: Images, start_guest: Run, backend: str, tmp_path: Path
) -> None:
    """The process is killed at several moments of a look."""
    for delay_ms in (0, 1, 2, 5, 10, 20, 40):
        running = start_guest("debug", "sleep", options=(f"--backend={backend}",))
        (found,) = guests_of(running.pid)
        timer = threading.Timer(delay_ms / 1000, os.kill, (running.pid, signal.SIGKILL))
        timer.start()
        look(found, tmp_path / "core")
        timer.join()
        # We are its parent and its tracer, and the tracer's wait may take the status: then subprocess says 0.
        assert running.end()[0] in (-signal.SIGKILL, 0)
        assert not Path(f"/proc/{running.pid}").exists()


def test_a_guest_that_steps_itself_loses_no_step_to_a_look(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path, gdb: Run
) -> None:
    """TF and RF are the guest's own: cores are written and gdb comes and goes meanwhile."""
    rounds = 60_000 if backend == "sandbox" else 500_000
    running = start_guest("debug", "steps", str(rounds), options=(f"--backend={backend}",))
    for number in range(3):
        for guest in guests_of(running.pid):
            look(guest, tmp_path / "core")
        done = subprocess.run(
            [*tender_cmd, "core", "-o", str(tmp_path / str(number)), str(running.pid)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    target = f"| {tender_cmd[0]} debug --stdio {running.pid}"
    gdb("detach", image=running.path, target=target)
    assert running.end() == (0, f"ready\nsteps {2 * rounds + 2}\n".encode(), b"")
