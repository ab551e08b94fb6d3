"""Hostile guests that send to the monitor themselves: false events in the shared page, bytes on the
control socket.
"""

import json
import subprocess
import time
from pathlib import Path

import pytest
from sandbox_rig import (
    BASE,
    EXIT_REASONS_OF_A_GUEST,
    FD_CONTROL,
    LIMIT,
    SHARED,
    SOON,
    WRITE,
    Rig,
    assert_false_report,
    cpu_ticks,
    state_of,
    wait_until,
)

from tender import DISCARD, ExitReason
from tender.backend.sandbox import SandboxVm
from tender.native import ffi, lib

# ---- false reports


def event_bytes(**fields: int) -> bytes:
    event = ffi.new("struct vm_event *")
    for name, value in fields.items():
        setattr(event, name, value)
    return bytes(ffi.buffer(event))


EVENT_AT = ffi.offsetof("struct vm_shared", "event")


def report(**fields: int) -> tuple[str, ...]:
    """Returns the script that writes an event into the shared page, signals it to the monitor, and
    then spins.
    """
    return (
        f"poke={SHARED}+{EVENT_AT},{event_bytes(**fields).hex()}",
        "events=1",
        "spin",
    )


IMPOSSIBLE = {
    "none": {"kind": lib.EVENT_NONE},
    "stopped": {"kind": lib.EVENT_STOPPED},
    "interrupted": {"kind": lib.EVENT_INTERRUPTED},
    "entry failure": {"kind": lib.EVENT_ENTRY_FAILURE, "detail": 1},
    "internal error": {"kind": lib.EVENT_INTERNAL_ERROR},
    "died": {"kind": lib.EVENT_PROCESS_DIED, "detail": 9},
    "set-up failed": {"kind": lib.EVENT_SETUP_FAILED, "number": 5, "os_error": 1},
    "network of a guest that has none": {"kind": lib.EVENT_NETWORK},
    "unknown": {"kind": 19},
    "huge": {"kind": 0xFFFFFFFF},
    "console of 2^63": {"kind": lib.EVENT_CONSOLE, "gpa": 0x100000, "len": 1 << 63},
    "console of 1 MiB and 1": {"kind": lib.EVENT_CONSOLE, "gpa": 0x100000, "len": (1 << 20) + 1},
    "access by call 0": {"kind": lib.EVENT_BAD_ACCESS, "number": 0},
    "access by call 9": {"kind": lib.EVENT_BAD_ACCESS, "number": 9},
    "access by call 4e9": {"kind": lib.EVENT_BAD_ACCESS, "number": 4_000_000_000},
    "long instruction": {"kind": lib.EVENT_UNSUPPORTED_INSTRUCTION, "instruction_bytes": 17},
    "longer instruction": {"kind": lib.EVENT_FORBIDDEN_SYSCALL, "instruction_bytes": 0xFFFFFFFF},
    "long instruction of an access": {
        "kind": lib.EVENT_BAD_ACCESS,
        "number": 1,
        "registers_valid": 1,
        "instruction_bytes": 0xFFFFFFFF,
    },
}


@pytest.mark.parametrize("name", list(IMPOSSIBLE))
def test_a_report_that_cannot_be_true_is_called_false(rig: Rig, name: str) -> None:
    assert_false_report(rig.run(*report(**IMPOSSIBLE[name])))


def test_a_piece_of_console_that_nobody_asked_for_is_a_false_report(rig: Rig) -> None:
    """Here the console is a descriptor or nothing, so the handlers never pass pieces to the monitor."""
    for console in (DISCARD, rig.victim_fd):
        assert_false_report(rig.run(*report(kind=lib.EVENT_CONSOLE, gpa=0, len=16), console=console))


EXTREMES = (0, 1, 255, (1 << 31) - 1, -1, -(1 << 31))


def test_what_a_guest_may_claim_is_reported_unchanged(rig: Rig) -> None:
    """These are ends that a guest can cause by itself, so a claim is as good as the end. None may confuse the monitor."""
    most = {"rip": (1 << 64) - 1, "gpa": (1 << 64) - 1, "len": (1 << 64) - 1, "detail": (1 << 64) - 1}
    for extreme in EXTREMES:
        result = rig.run(*report(kind=lib.EVENT_HALT, status=extreme, cookie_valid=0xFFFFFFFF, **most))
        assert result.status == extreme & 0xFF
        result = rig.run(*report(kind=lib.EVENT_HOST_ERROR, os_error=extreme, **most))
        assert result.reason == ExitReason.HOST_ERROR
    for kind, reason in (
        (lib.EVENT_TRANSLATION_FAULT, ExitReason.TRANSLATION_FAULT),
        (lib.EVENT_BAD_PORT, ExitReason.BAD_PORT),
        (lib.EVENT_BAD_HYPERCALL, ExitReason.BAD_HYPERCALL),
        (lib.EVENT_UNHANDLED_EXIT, ExitReason.UNHANDLED_EXIT),
        (lib.EVENT_UNSUPPORTED_INSTRUCTION, ExitReason.UNSUPPORTED_INSTRUCTION),
        (lib.EVENT_FORBIDDEN_SYSCALL, ExitReason.FORBIDDEN_SYSCALL),
        (lib.EVENT_HANDLER_FAULT, ExitReason.SANDBOX_FAULT),
    ):
        claim = dict(most, number=0xFFFFFFFF, port=0xFFFFFFFF, registers_valid=1, instruction_bytes=16)
        result = rig.run(*report(kind=kind, **claim))
        assert (result.reason, result.status) == (reason, 1)


def test_noise_over_the_whole_shared_memory_is_reported_or_harmless(rig: Rig) -> None:
    for seed in range(40):
        result = rig.run(f"noise={SHARED},0x1000,{seed}", "events=1", "spin", timeout=1)
        assert result.reason in EXIT_REASONS_OF_A_GUEST
        assert isinstance(repr(result), str)


def test_false_counters_and_times_are_only_numbers(rig: Rig) -> None:
    end = ffi.sizeof("struct vm_counters") + ffi.sizeof("struct vm_timeline")
    with rig.vm(f"poke={SHARED},{'ff' * end}") as vm:
        result = vm.run(timeout=LIMIT)
        assert result.ok
        assert result.counters.net_rx_bytes == (1 << 64) - 1
        assert isinstance(result.boot.since_start_ms("first_exit"), float)
        assert vm.counters.hypercalls["poll"] == (1 << 64) - 1


def test_a_guest_that_writes_over_the_configuration_changes_nothing(rig: Rig) -> None:
    result = rig.run(f"noise={SHARED}+0x1000,0x3000,1", "site", "gate", "out")
    assert result.ok, result.message


# ---- the control socket


def test_a_byte_that_the_program_never_sends_is_a_false_report(rig: Rig) -> None:
    assert_false_report(rig.run("poke=b,78", f"call={WRITE},{FD_CONTROL},b,1", "spin"))


def test_a_second_byte_after_the_first_changes_nothing(rig: Rig) -> None:
    """The run has ended with the first byte. `vm` answers as after any end."""
    event = event_bytes(kind=lib.EVENT_HALT, status=3).hex()
    with rig.vm(f"poke={SHARED}+{EVENT_AT},{event}", "events=5", "spin") as vm:
        assert vm.run(timeout=LIMIT).status == 3
        assert len(vm.memory(0x100000, 4096)) == 4096


EMPTY_PIECE = event_bytes(kind=lib.EVENT_CONSOLE, gpa=0, len=0).hex()


def test_a_guest_that_reads_no_answer_is_ended(rig: Rig) -> None:
    """The guest goes on until there is no space for the monitor's answers. The monitor does not wait
    for that space.
    """
    result = rig.run(f"poke={SHARED}+{EVENT_AT},{EMPTY_PIECE}", "events=0xffffffffffff", timeout=LIMIT)
    assert_false_report(result)


@pytest.mark.parametrize("ahead", [1, 200])
def test_a_guest_that_never_stops_reporting_is_stopped(rig: Rig, ahead: int) -> None:
    started = time.monotonic()
    result = rig.run(f"poke={SHARED}+{EVENT_AT},{EMPTY_PIECE}", f"chatter={ahead}", timeout=0.2)
    assert result.reason == ExitReason.TIMEOUT, result.message
    assert time.monotonic() - started < SOON


def test_a_guest_that_has_ended_does_nothing_more(rig: Rig) -> None:
    """The guest reports that it halted, and goes on sending. Nevertheless its process stops."""
    event = event_bytes(kind=lib.EVENT_HALT).hex()
    with rig.vm(f"poke={SHARED}+{EVENT_AT},{event}", "events=1", "spin") as vm:
        assert vm.run(timeout=LIMIT).status == 0
        assert isinstance(vm._machine, SandboxVm)
        pid = vm.pid
        wait_until(lambda: state_of(pid) in "tT")
        before = cpu_ticks(pid)
        time.sleep(0.1)  # ten ticks' worth of spinning
        assert cpu_ticks(pid) == before
        assert vm.memory(0xFFF00, 8) != bytes(8)


# ---- the command


@pytest.mark.parametrize("name", ["a claim", "noise", *IMPOSSIBLE])
def test_the_command_reports_any_event_in_its_own_words(
    rig: Rig, tender_cmd: list[str], tmp_path: Path, name: str
) -> None:
    """Console in a file, JSON, counters and hints: everything that the command writes from a report."""
    if name == "noise":
        script: tuple[str, ...] = (f"noise={SHARED},0x1000,3", "events=1", "spin")
    elif name == "a claim":
        claim = {"rip": (1 << 64) - 1, "registers_valid": 1, "instruction_bytes": 16, "number": 0xFFFFFFFF}
        script = report(kind=lib.EVENT_FORBIDDEN_SYSCALL, **claim)
    else:
        script = report(**IMPOSSIBLE[name])
    net = rig.theirs.fileno()
    words = [
        *tender_cmd, "--backend=sandbox", "--mem=16", "--json", "--stats", "--timeout=120", f"--net=@{net}",
        f"--console={tmp_path / 'log'}", f"--block:small={rig.small}", f"--block:large={rig.large}",
        str(rig.path), BASE, *script,
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, pass_fds=[net], timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    reason = json.loads(done.stderr.splitlines()[-1])["reason"]
    assert reason in ({ExitReason.SANDBOX_FAULT} if name in IMPOSSIBLE else EXIT_REASONS_OF_A_GUEST)
