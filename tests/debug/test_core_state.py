"""What a core has for a restore: system registers, and the hypercall that is not finished; of live and of ended guests."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support import Guest, until_it_waits

from tender import CAPTURE, Image, Vm, VmConfig
from tender.debug.core import CoreFile
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.native import lib

Run = Any  # the fixtures of conftest.py
LIMIT_S = 120
DAY_NS = 86_400_000_000_000
CODE_SELECTOR = 8

pytestmark = pytest.mark.backends


def core_of(tender_cmd: list[str], pid: int, path: Path) -> CoreFile:
    done = subprocess.run(
        [*tender_cmd, "core", f"--output={path}", str(pid)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return CoreFile(str(path))


def assert_is_of_a_guest(parts: CpuParts) -> None:
    """The values of section 7 of the hvt contract, except for the bits that a guest may change."""
    control = parts.control()
    assert control["cr0"] & 0x80000001 == 0x80000001  # paging, protected mode
    assert control["cr3"] == lib.HVT_PML4_GPA
    assert control["cr4"] & 0x20  # PAE
    assert control["efer"] & 0x500 == 0x500  # LME, LMA
    assert parts.selectors()[1] == CODE_SELECTOR


def assert_waits_a_day(call: Unfinished | None, core: CoreFile, *, exact: bool = True) -> None:
    """exact: not for a stop that may have come between two instructions of the handler."""
    assert call is not None
    assert (call.number, call.name) == (lib.HVT_HYPERCALL_POLL, "poll")
    assert call.exact or not exact, core.path
    assert int.from_bytes(call.structure[:8], "little") == DAY_NS
    assert call.structure[:8] == core.read(call.gpa, 8)
    assert call.time_left_ns is not None and DAY_NS - LIMIT_S * 10**9 < call.time_left_ns < DAY_NS


def until_it_waits_in(vm: Vm) -> None:
    end = time.monotonic() + LIMIT_S
    while not vm.counters.hypercalls.get("poll"):
        assert time.monotonic() < end, "the guest does not wait"
    if vm.backend == "sandbox":  # on KVM the debugger itself lets a handler come to its wait
        until_it_waits(vm.pid)


@pytest.mark.parametrize("image", ["debug", "debug_nogate"])
def test_a_live_guest_in_a_poll_is_restorable(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path, image: str
) -> None:
    running = start_guest(image, "sleep", options=(f"--backend={backend}",))
    until_it_waits(running.pid)
    for number in range(2):  # a look does not change what the next one sees
        with core_of(tender_cmd, running.pid, tmp_path / f"core{number}") as core:
            assert_is_of_a_guest(core.cpu_parts())
            assert_waits_a_day(core.unfinished(), core)
    os.kill(running.pid, signal.SIGTERM)
    assert running.end()[0] == 1


def test_a_live_guest_in_a_console_write_says_how_much_is_written(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    size = 1 << 20
    process = subprocess.Popen(
        [*tender_cmd, f"--backend={backend}", "--mem=16", str(guest("debug")), "print", str(size)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        assert process.stdout
        said = process.stdout.read(64)
        assert said
        until_it_waits(process.pid)
        with core_of(tender_cmd, process.pid, tmp_path / "core") as core:
            call = core.unfinished()
        said += process.stdout.read(1 << 22)
        while more := process.stdout.read(1 << 22):
            said += more
    assert call is not None
    assert (call.name, call.time_left_ns) == ("puts", None)
    assert 0 < call.bytes_done < size
    assert (process.returncode, said) == (0, b"ready\n" + b"." * size + b"printed\n")


def test_a_live_guest_that_computes_is_in_no_hypercall(
    start_guest: Run, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    running = start_guest("debug", "spin", str(10**12), options=(f"--backend={backend}",))
    with core_of(tender_cmd, running.pid, tmp_path / "core") as core:
        if core.where() == "guest":
            assert core.unfinished() is None
        assert_is_of_a_guest(core.cpu_parts())
    os.kill(running.pid, signal.SIGTERM)
    assert running.end()[0] == 1


@pytest.mark.parametrize(
    ("options", "words", "status", "waits"),
    [
        (("--timeout=1",), ("sleep",), 1, True),
        ((), ("fault",), 255, False),
        ((), ("halt",), 1, False),
    ],
    ids=["time-limit", "abort", "fault"],
)
def test_only_a_guest_that_was_stopped_is_in_a_hypercall_at_its_end(
    guest: Guest,
    tender_cmd: list[str],
    backend: str,
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
    status: int,
    waits: bool,
) -> None:
    done = subprocess.run(
        [
            *tender_cmd,
            f"--backend={backend}",
            f"--core={tmp_path}",
            "--mem=16",
            *options,
            str(guest("debug")),
            *words,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    (name,) = os.listdir(tmp_path)
    with CoreFile(str(tmp_path / name)) as core:
        assert_is_of_a_guest(core.cpu_parts())
        if waits:
            assert_waits_a_day(core.unfinished(), core, exact=name == "running")
        else:
            assert core.unfinished() is None


def test_a_vm_of_the_library_begins_at_its_entry_point_and_is_stopped_in_its_poll(
    guest: Guest, backend: Any, tmp_path: Path
) -> None:
    with Image.open(guest("debug")) as image:
        with Vm(image, VmConfig(mem=16, args=["sleep"]), console=CAPTURE, backend=backend) as vm:
            begins = vm.registers()
            assert begins.rip == image.entry
            assert 15 << 20 < begins.rsp < 16 << 20
            vm.start(timeout=LIMIT_S)
            until_it_waits_in(vm)
            vm.core(tmp_path / "running")
            vm.stop()
            assert vm.wait(LIMIT_S).reason == "stopped"
            vm.core(tmp_path / "ended")
    for name in ("running", "ended"):
        with CoreFile(str(tmp_path / name)) as core:
            assert_is_of_a_guest(core.cpu_parts())
            assert_waits_a_day(core.unfinished(), core, exact=name == "running")
