"""Runs solo5-hvt and Tender on the same files and compares them byte for byte: the state at the start, and
every ELF of the table of cases.

    TENDER_SOLO5_HVT=/path/to/solo5-hvt tools/with_kvm -- pytest -m kvm tests/conformance/test_against_solo5.py

Without the variable these tests are not collected (../conftest.py). They show that the rows of this
directory describe what solo5-hvt does; differential.py shows it for command lines. DIFFERS names each case
where the two differ, with the reason.
"""

import os
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bare import L_PUTS, MIB, PUTS, Bare
from elf_cases import ACCEPTED, REFUSED
from support import Guest

pytestmark = pytest.mark.kvm

NOTE_OF_OURS = "a broken Tender note makes the file refused here; solo5-hvt does not read such a note"
BSS = "the memory after a segment's file bytes is checked here"
DIFFERS = {
    "abi-descsz-7": "solo5-hvt reads past the end of a note that is too short for target and version",
    "abi-offset-past-end": "solo5-hvt uses the error of its read as a length",
    "phdr-past-end": "the same",
    "segment-9-offset-max": "the same",
    "bss-low": BSS,
    "bss-at-0": BSS,
    "bss-past-4-gib": BSS,
    "bss-overflow": BSS,
    "odd-bss-to-4-gib": BSS,
    "odd-device-names": "control characters in a name are not printed here",
    "segment-129": "the number of segments is limited here",
    "good-abi-version-1": "version 1 runs here",
    **dict.fromkeys((case.name for case in REFUSED if case.name.startswith("ext-")), NOTE_OF_OURS),
}

NORMAL = (
    (r"(?m)^\S*: WARNING: .*\n", ""),  # printed by a solo5-hvt that was built without its filter
    (r"rip=0x[0-9a-f]+", "rip=R"),
    (r" \(it is for [^)]*\)", ""),
    (r" \(.*\)$", ""),  # the values that break a rule: solo5-hvt prints some of them wrapped
)


@dataclass(frozen=True)
class Seen:
    status: int
    stdout: bytes
    stderr: str


@pytest.fixture
def run_both(
    tender_cmd: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Seen]]:
    """A function: run_both(ELF) is what solo5-hvt does with the file, and what Tender does."""
    monkeypatch.setenv("TENDER_BACKEND", "kvm")

    def run(elf: bytes, *words: str) -> list[Seen]:
        (tmp_path / "guest.hvt").write_bytes(elf)
        both = []
        for command in ([os.environ["TENDER_SOLO5_HVT"]], [*tender_cmd, "solo5-hvt"]):
            done = subprocess.run(
                [*command, "--mem=6", "guest.hvt", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                check=False,
                cwd=tmp_path,
            )
            stderr = done.stderr.decode("latin-1")
            for pattern, instead in NORMAL:
                stderr = re.sub(pattern, instead, stderr, flags=re.M)
            both.append(Seen(done.returncode, done.stdout, stderr))
        return both

    return run


RunBoth = Callable[..., list[Seen]]


def test_every_register_at_the_first_instruction(run_both: RunBoth, guest: Guest) -> None:
    theirs, ours = run_both(guest("first_state").read_bytes())
    assert theirs == ours and len(ours.stdout) == 0x600


def test_boot_info_manifest_and_command_line(run_both: RunBoth) -> None:
    guest = Bare()
    guest.call(PUTS, L_PUTS, 0x10000, 0x8000)
    guest.halt(3)
    theirs, ours = run_both(guest.elf(), "a", "", "b c")
    assert theirs == ours and (ours.status, len(ours.stdout)) == (3, 0x8000)


def test_gdt_and_page_tables(run_both: RunBoth) -> None:
    """Compares 0x1000 to 0x9000, which the guest reads through its own page tables."""
    guest = Bare()
    copy = guest.place(bytes(0x8000), align=4096)
    guest.cr3(guest.tables(6 * MIB))
    guest.code(b"\xbe" + struct.pack("<I", 0x1000) + b"\xbf" + struct.pack("<I", copy))  # mov to %esi, %edi
    guest.code("b900100000 f348a5")  # mov $0x1000, %ecx; rep movsq
    guest.call(PUTS, L_PUTS, copy, 0x8000)
    guest.halt()
    theirs, ours = run_both(guest.elf())
    assert theirs == ours and len(ours.stdout) == 0x8000


@pytest.mark.parametrize("case", [*REFUSED, *ACCEPTED], ids=lambda case: case.name)
def test_every_elf_of_the_table(run_both: RunBoth, case: "tuple[str, bytes]") -> None:
    name, data = case[:2]
    theirs, ours = run_both(data)
    if name in DIFFERS:
        assert theirs != ours, f"no longer differs: {DIFFERS[name]}"
    else:
        assert theirs == ours
