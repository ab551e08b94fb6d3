"""The installed tender-sandbox: its code and its sections decide what a guest can find in it."""

import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from tender.backend.sandbox import PROGRAM

R_X86_64_RELATIVE = 8


@pytest.fixture(scope="module")
def listing() -> list[str]:
    """The program's instructions, one per line: mnemonic and operands."""
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", PROGRAM], capture_output=True, text=True, check=True
    )
    return [line.partition("\t")[2] for line in done.stdout.splitlines() if "\t" in line]


def test_the_program_needs_no_interpreter_and_no_library() -> None:
    with Path(PROGRAM).open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_DYN"
        assert not [s for s in elf.iter_segments() if s["p_type"] == "PT_INTERP"]
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                assert not list(section.iter_tags("DT_NEEDED"))


def test_the_program_has_only_relocations_that_it_applies_itself() -> None:
    with Path(PROGRAM).open("rb") as file:
        kinds = {
            relocation["r_info_type"]
            for section in ELFFile(file).iter_sections()
            if isinstance(section, RelocationSection)
            for relocation in section.iter_relocations()
        }
    assert kinds <= {R_X86_64_RELATIVE}


def test_no_segment_is_both_written_and_executed() -> None:
    with Path(PROGRAM).open("rb") as file:
        for segment in ELFFile(file).iter_segments():
            assert segment["p_flags"] & 3 != 3, segment["p_type"]


def test_the_program_has_one_system_call_instruction(listing: list[str]) -> None:
    assert [line.split()[0] for line in listing].count("syscall") == 1
    assert not [line for line in listing if re.match(r"(sysenter|int )", line)]


def test_the_program_does_not_use_vector_registers_or_thread_local_storage(listing: list[str]) -> None:
    found = [line for line in listing if re.search(r"%([xyz]mm|k[0-7]\b|fs:|gs:|st\b)", line)]
    assert found == []


def test_there_is_no_return_between_a_frame_and_its_system_call() -> None:
    """After a system call each return would be predicted wrongly, so the path of a frame uses jumps in both
    directions."""
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", PROGRAM], capture_output=True, text=True, check=True
    )
    code: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"[0-9a-f]+ <(\w+)[^>]*>:$", line):
            lines = code.setdefault(found[1], [])
        elif "\t" in line:
            lines.append(line.partition("\t")[2])
    for name in (
        "entry_patched",
        "handle_hypercall",
        "handle_net_write",
        "handle_net_read",
        "syscall_instruction",
    ):
        assert code[name], name
        assert not [line for line in code[name] if re.match(r"(repz? )?ret", line)], name
