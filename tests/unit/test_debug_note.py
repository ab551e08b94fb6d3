"""The debug note: the three files that carry it, and its reader on any bytes."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tender import native
from tender.backend.sandbox import PROGRAM
from tender.debug.note import VERSION, parse, read_note
from tender.native import ffi

COMMON = {
    "version",
    "vm_memory_hva",
    "vm_memory_bytes",
    "vm_shared",
    "shared_bytes",
    "shared_event",
    "shared_held",
    "shared_trace_on",
    "shared_trace_head",
    "shared_trace_limit",
    "shared_registers_until",
    "trace_records",
    "vm_trace",
}
HOLDER = {
    "vms",
    "vm_next",
    "vm_link",
    "vm_process",
    "vm_thread",
    "vm_machine",
    "vm_image",
    "syscall",
    "machine_ops",
}
KVM = {"kvm_vcpu_fd", "kvm_vm_fd", "kvm_run"}
SANDBOX = {
    *(
        "the_vm",
        "end_run",
        "trap_stack",
        "handler_stack_top",
        "guest_rsp",
        "guest_rip",
        "entry_patched",
        "entry_gate",
    ),
    *("syscall_instruction", "system_call_return", "signal_return", "signal_return_leaves", "enter_guest"),
    *("program_start", "program_end", "config", "config_mem_bytes", "trace"),
}
_native = Path(native.__file__).with_name("_native.abi3.so")
FILES = {
    "command": (shutil.which("tender") or "", COMMON | HOLDER | KVM),
    "library": (str(_native), COMMON | HOLDER | KVM),
    "sandbox": (PROGRAM, COMMON | SANDBOX),
}


def note_of(path: Path) -> dict[str, int]:
    """The note as a loader would place it: in these files, what is loaded first lies at its offset in the file."""
    data = path.read_bytes()
    return read_note(lambda address, length: data[address : address + length], 0)[0]


@pytest.mark.parametrize(("path", "names"), FILES.values(), ids=FILES)
def test_a_file_carries_the_note_also_when_it_is_stripped(path: str, names: set[str], tmp_path: Path) -> None:
    note = note_of(Path(path))
    assert names <= set(note)
    assert note["version"] == VERSION
    assert note["shared_bytes"] == ffi.sizeof("struct vm_shared")
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, path], check=True)
    assert note_of(stripped) == note


def test_the_addresses_of_the_sandbox_are_those_of_its_symbols() -> None:
    symbols = dict[str, int]()
    for line in subprocess.run(
        ["nm", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    note = note_of(Path(PROGRAM))
    same = {"program_start": "__ehdr_start", "program_end": "_end", "return_thunk": "__x86_return_thunk"}
    for name in SANDBOX - {"config", "config_mem_bytes", "trace"}:
        assert note[name] == symbols[same.get(name, name)], name


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_any_bytes_are_read_as_a_note(data: bytes, vaddr: int) -> None:
    assert isinstance(parse(data, vaddr), dict)


@given(st.binary(max_size=300))
def test_any_memory_is_read_as_a_program(data: bytes) -> None:
    memory = b"\x7fELF\x02\x01" + data
    note, _ = read_note(
        lambda address, length: memory[address : address + length] if address >= 0 else b"", 0
    )
    assert note == {}


def test_a_note_that_is_cut_off_has_the_facts_before_the_cut() -> None:
    fact = b"\7\0\0\0\x0a\0\0\0\1\0\0\0TENDER\0\0" + (5).to_bytes(8, "little") + b"a\0\0\0"
    assert parse(fact, 0) == {"a": 5}
    assert parse(fact + fact[:-4], 0) == {"a": 5}
    assert parse(fact[:20], 0) == {}
