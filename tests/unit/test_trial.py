"""The doctor's trial unikernel: its bytes agree with its listing, and its verdicts name the step."""

import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tender.backend import trial
from tender.cli import host_facts
from tender.config import VmConfig
from tender.image import Image
from tender.vm import Vm

MS = 1_000_000


def stamps(digits: str, loop_ms: float = 1.0) -> dict[str, int]:
    loop = int(loop_ms * MS)
    return {digit: 100 * MS + (0 if digit == "0" else loop) for digit in digits}


def test_the_bytes_are_equal_to_the_assembled_listing(tmp_path: Path) -> None:
    assembler = shutil.which("as")
    assert assembler, "binutils are needed to build tender"
    text = "".join(line.partition("|")[2] + "\n" for line in trial.LISTING.splitlines())
    (tmp_path / "trial.s").write_text(".intel_syntax noprefix\n" + text)
    subprocess.run([assembler, "--64", "trial.s", "-o", "trial.o"], cwd=tmp_path, check=True, timeout=60)
    subprocess.run(["objcopy", "-O", "binary", "trial.o", "trial.bin"], cwd=tmp_path, check=True, timeout=60)
    assert trial.code() == (tmp_path / "trial.bin").read_bytes()


def test_the_gate_points_to_the_handler() -> None:
    before = trial.LISTING.partition("| page_fault:")[0]
    assert len(b"".join(bytes.fromhex(line.partition("|")[0]) for line in before.splitlines()[:-1])) == (
        trial.PAGE_FAULT_OFFSET
    )


def test_the_trial_is_an_image_without_devices() -> None:
    with Image.from_bytes(trial.elf()) as image:
        assert (image.entry, image.devices) == (trial.CODE_GPA, ())
        assert [segment.start for segment in image.segments] == [trial.CODE_GPA, trial.DATA_GPA]


def test_the_sandbox_does_every_step() -> None:
    """Its far return is made with the stack at the end of memory. AMD's processors read past that stack."""
    memory, printed = VmConfig(mem=4), bytearray()
    with (
        Image.from_bytes(trial.elf()) as image,
        Vm(image, memory, backend="sandbox", console=printed.extend) as vm,
    ):
        result = vm.run(timeout=trial.TIMEOUT_S)
    assert (bytes(printed), result.message, result.status) == (b"012345", "", 0)
    assert (result.counters.guest_faults, result.counters.trapped_hypercalls) == (1, 0)


def test_a_kvm_that_does_all_steps_fast_enough_is_usable() -> None:
    assert trial.verdict(stamps("012345"), 0, "") == ""


@pytest.mark.parametrize(
    ("digits", "loop_ms", "status", "message", "expected"),
    [
        (
            "",
            0,
            None,
            "KVM: entry failure",
            "it cannot do this: enter the guest and print: KVM: entry failure",
        ),
        (
            "0",
            0,
            None,
            "",
            "emulates every instruction in software: a loop of 1,000,000 turns was not done after 20 s",
        ),
        (
            "012345",
            900,
            0,
            "",
            "emulates every instruction in software: a loop of 1,000,000 turns took 900 ms",
        ),
        ("01", 1, 2, "", "wrong result: SSE arithmetic"),
        ("012", 1, 3, "", "wrong result: the FS base and a load through it"),
        (
            "01234",
            1,
            None,
            "KVM: unhandled exit: exit_reason=0x8, rip=0x1",
            "it cannot do this: a page fault through an IDT of the guest's own:"
            " KVM: unhandled exit: exit_reason=0x8, rip=0x1",
        ),
        ("01234", 1, None, "", "a page fault through an IDT of the guest's own: not done after 20 s"),
        ("012345", 1, None, "KVM: ioctl (RUN) failed: Bad address", "the trial ended with status None"),
    ],
)
def test_an_unusable_kvm_is_reported_with_the_failed_step(
    digits: str, loop_ms: float, status: int | None, message: str, expected: str
) -> None:
    assert expected in trial.verdict(stamps(digits, loop_ms), status, message)


def clocks(wall_ms: int, cpu_ms: int) -> SimpleNamespace:
    """Returns clocks of a machine on which so much of either time passes between two readings."""
    wall_clock, cpu = itertools.count(0, wall_ms * MS), itertools.count(0, cpu_ms * MS)
    return SimpleNamespace(monotonic_ns=lambda: next(wall_clock), process_time_ns=lambda: next(cpu))


@pytest.mark.parametrize(("cpu_ms", "fit"), [(1, True), (900, False)])
def test_a_busy_machine_is_not_mistaken_for_an_emulator(
    monkeypatch: pytest.MonkeyPatch, cpu_ms: int, fit: bool
) -> None:
    """The trial waits for its turn like any program, so only the processor time that it used counts."""
    monkeypatch.setattr(host_facts, "time", clocks(wall_ms=60_000, cpu_ms=cpu_ms))
    found = host_facts.run_trial("sandbox")
    if fit:
        assert (found.error, found.value[:15]) == ("", "a unikernel ran")
    else:
        assert found.error.endswith(
            "emulates every instruction in software: a loop of 1,000,000 turns took 900 ms"
        )
