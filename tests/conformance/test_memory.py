"""Memory, row by row: its size, its cost, its content, and which parts of it a guest may access.

A row of the map boots a guest that reads or writes one address; the guest's handler distinguishes its own
page fault from a stop by the tender. Rounding and its messages are in test_solo5_command_line.py. With a
network and without a ring all of --mem belongs to the guest.
"""

import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from bare import DATA, HEAP, L_PUTS, MIB, PUTS, TEXT, Bare
from elf_builder import PF_R, Segment, build_elf

from tender import CAPTURE, ExitReason, Image, Vm, VmConfig

backends = pytest.mark.backends
kvm = pytest.mark.kvm
Solo5 = Callable[..., "CompletedProcess[Any]"]

MEM = 4
"""Memory in MiB of the guests that test the map."""
PF = 14
PRESENT, WRITE = 1, 2
"""Bits of a page fault's error code."""
DIRTY_OR_ACCESSED = 0x60
A_POLL_OF_NOTHING = 86400 * 10**9


# ---- its size


@backends
@pytest.mark.parametrize("mem", [2, 4, 510, 4096])
def test_exactly_the_requested_memory_exists(mem: int) -> None:
    """The last page can be written and read. The word after the end is a page fault."""
    guest = Bare()
    caught = guest.catch(PF)
    guest.store(mem * MIB - 4096, 0x1234)
    last = guest.load(mem * MIB - 4096)
    guest.load(mem * MIB)
    ran = guest.run(mem=mem)
    assert (ran.result.reason, ran.result.status) == (ExitReason.EXIT, 100 + PF)
    assert ran.at(last) == (0x1234,)
    assert (ran.at(caught.cr2), ran.at(caught.error_code)) == ((mem * MIB,), (0,))


@backends
@pytest.mark.parametrize(("asked", "mib"), [(2, 2), (3, 2), (64, 64), (4096, 4096), (4097, 4096)])
def test_memory_with_a_network_and_no_ring_has_the_requested_size(
    solo5: Solo5, tmp_path: Path, asked: int, mib: int
) -> None:
    guest = Bare([("service0", "net")])
    guest.call(PUTS, L_PUTS, 0x10000, 8)
    guest.halt()
    (tmp_path / "guest.hvt").write_bytes(guest.elf())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fd = theirs.fileno()
        words = ("--no-net-ring", f"--mem={asked}", f"--net:service0=@{fd}", "guest.hvt")
        done = solo5(*words, pass_fds=[fd], text=False, errors=None)
    assert (done.returncode, struct.unpack("<Q", done.stdout)) == (0, (mib * MIB,)), done.stderr
    said = f"solo5-hvt: adjusting memory to {mib * MIB} bytes\n" if asked != mib else ""
    assert done.stderr.decode() == said


# ---- its cost


def mappings(pid: int, least: int) -> list[dict[str, str]]:
    """Returns the mappings of a process of at least so many bytes, with the fields of /proc/PID/smaps."""
    found: list[dict[str, str]] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            found.append({"bytes": str(int(head[2], 16) - int(head[1], 16))})
        else:
            name, _, value = line.partition(":")
            found[-1][name] = value.strip()
    return [one for one in found if int(one["bytes"]) >= least]


@backends
def test_no_memory_is_reserved_in_advance() -> None:
    """With 4 GiB of memory nothing is accounted for in advance (no flag "ac"), and almost none of it is
    resident."""
    guest = Bare()
    guest.write(b"up")
    guest.call(3, "<QQi4x", A_POLL_OF_NOTHING, 0, 0)
    seen: list[dict[str, str]] = []
    with Image.from_bytes(guest.elf()) as image:

        def look(_: bytes) -> None:
            seen.extend(mappings(vm.pid, 1 << 30))  # all of it except the ends, which have small pages
            vm.stop()

        with Vm(image, VmConfig(mem=4096), console=look) as vm:
            assert vm.run(timeout=60).reason == ExitReason.STOPPED
    assert sum(int(one["bytes"]) for one in seen) > 4070 * MIB, seen
    for one in seen:
        assert "ac" not in one["VmFlags"].split(), one
        assert int(one["Rss"].split()[0]) < 1024, one


@backends
def test_memory_outside_of_the_image_is_zero() -> None:
    """All of 32 MiB is zero except the file's bytes: the memory after each segment, and from the last
    segment to the end."""
    guest = Bare()
    ends: list[Any] = []
    for start, end in ((0x1C0000, 32 * MIB - 4096), (0x140000 - 4096, 0x140000)):
        left = guest.structure("<QQ", 1, 1)
        ends.append(left)
        guest.code(b"\xbf" + struct.pack("<I", start) + b"\xb9" + struct.pack("<I", (end - start) // 8))
        guest.code("31c0 f348af")  # xor %eax, %eax; repe scasq
        guest.code(b"\x48\x89\x0c\x25" + struct.pack("<I", left.gpa))  # mov %rcx, left
        guest.code(b"\x0f\x94\x04\x25" + struct.pack("<I", left.gpa + 8))  # sete left + 8
    guest.halt()
    ran = guest.run(mem=32)
    assert ran.result.ok and [ran.at(left) for left in ends] == [(0, 1)] * 2


@backends
def test_a_second_vm_gets_zeroed_memory() -> None:
    guest = Bare()
    seen = guest.load(HEAP)
    guest.store(HEAP, 0x5EC2E7)
    guest.halt()
    with Image.from_bytes(guest.elf()) as image:
        for _ in range(2):
            with Vm(image, VmConfig(mem=2), console=CAPTURE) as vm:
                assert vm.run(timeout=60).ok
                assert vm.memory(seen.gpa, 8) == bytes(8)
                assert vm.memory(HEAP, 8) == struct.pack("<Q", 0x5EC2E7)


# ---- the map

NOT_PRESENT = [
    *(0, 8, 0xFF8, 0x1000, 0x2000, 0x8000, 0xF000, 0xFFF8),
    *(MEM * MIB, MEM * MIB + 0x1000, 512 * MIB, 0xFFFFF000, 1 << 32, 0x400000000, 0x7FFFF000000),
]
READABLE = [0x10000, 0x10038, 0x7FFF8, 0xFFFF8 - 0x100, TEXT, DATA - 8, HEAP, MEM * MIB - 4096]


@backends
@pytest.mark.parametrize("gpa", NOT_PRESENT, ids=hex)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_access_to_missing_memory_is_the_guests_page_fault(gpa: int, write: bool) -> None:
    """These are the first 64 KiB and everything from the end of memory on. The error code says that no page
    is present."""
    guest = Bare()
    caught = guest.catch(PF)
    if write:
        guest.store(gpa, 1)
    else:
        guest.load(gpa)
    ran = guest.run(mem=MEM)
    assert (ran.result.reason, ran.result.status) == (ExitReason.EXIT, 100 + PF), ran.result.message
    assert (ran.at(caught.cr2), ran.at(caught.error_code)) == ((gpa,), (WRITE * write,))


@backends
def test_all_mapped_memory_can_be_read() -> None:
    """Execute-only text can be read too: this processor has no way to refuse that."""
    guest = Bare()
    guest.catch(PF)
    for gpa in READABLE:
        guest.load(gpa)
    guest.halt()
    assert guest.run(mem=MEM).result.ok


@backends
@pytest.mark.parametrize("gpa", [0x10000, 0x10038, 0x20000, 0x7F000, 0xFE000, 0xFFFF8], ids=hex)
def test_a_write_to_the_low_mebibyte_is_the_guests_page_fault(gpa: int) -> None:
    """The guest gets a page fault, with the error code's bit for a present page."""
    guest = Bare()
    caught = guest.catch(PF)
    guest.store(gpa, 1)
    ran = guest.run(mem=MEM)
    assert (ran.result.reason, ran.result.status) == (ExitReason.EXIT, 100 + PF), ran.result.message
    assert (ran.at(caught.cr2), ran.at(caught.error_code)) == ((gpa,), (PRESENT | WRITE,))


@backends
@pytest.mark.parametrize("flags", [PF_R, 0], ids=["constants", "nothing"])
def test_a_write_to_a_segment_that_is_not_writable_ends_the_run(flags: int) -> None:
    """The run ends even if the guest has a handler: its own page tables allow the write, and the mapping
    below them does not."""
    guest = Bare()
    guest.catch(PF)
    guest.store(0x180000, 1)
    guest.halt()
    segment = Segment(data=b"constant", flags=flags, vaddr=0x180000)
    elf = build_elf(segments=[*guest.segments(), segment], notes=guest.notes())
    result = guest.run(elf, mem=MEM).result
    assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)


@backends
def test_a_write_to_text_ends_the_run() -> None:
    guest = Bare()
    guest.catch(PF)
    guest.store(TEXT, 1)
    guest.halt()
    result = guest.run(mem=MEM).result
    assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)


@backends
def test_a_read_of_a_segment_without_any_right_ends_the_run() -> None:
    guest = Bare()
    guest.catch(PF)
    guest.load(0x180000)
    guest.halt()
    segment = Segment(data=b"nothing", flags=0, vaddr=0x180000)
    elf = build_elf(segments=[*guest.segments(), segment], notes=guest.notes())
    result = guest.run(elf, mem=MEM).result
    assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)


@backends
def test_memory_outside_of_segments_can_be_written() -> None:
    guest = Bare()
    guest.catch(PF)
    places = [DATA - 4096, HEAP, MEM * MIB - 4096]
    for number, gpa in enumerate(places):
        guest.store(gpa, number + 1)
    seen = [guest.load(gpa) for gpa in places]
    guest.halt()
    ran = guest.run(mem=MEM)
    assert [ran.at(one) for one in seen] == [(1,), (2,), (3,)], ran.result.message


# ---- the page tables, which exist only on KVM


def expected_tables(mem_bytes: int) -> dict[str, list[int]]:
    """Returns every entry of 0x1000 to 0x9000 as the contract defines it."""
    large = [number << 21 | 0x83 if number << 21 < mem_bytes else 0 for number in range(2048)]
    small = []
    for number in range(512):
        gpa = number << 12
        small.append(0 if gpa < 0x10000 else gpa | 1 if gpa < 0x100000 else gpa | 3)
    return {
        "gdt": [0, 0x00AF99000000FFFF, 0x00CF93000000FFFF, *[0] * 509],
        "pml4": [0x3003, *[0] * 511],
        "pdpt": [0x4003, 0x5003, 0x6003, 0x7003, *[0] * 508],
        "pd": [0x8003, *large[1:]],
        "pt": small,
    }


def in_words(raw: bytes, mask: int) -> dict[str, list[int]]:
    gdt = list(struct.unpack_from("<512Q", raw))
    words = [word & mask for word in struct.unpack("<4096Q", raw)]
    return {
        "gdt": gdt,
        "pml4": words[512:1024],
        "pdpt": words[1024:1536],
        "pd": words[1536:3584],
        "pt": words[3584:],
    }


@kvm
@pytest.mark.parametrize("mem", [2, 6, 1024, 4096])
def test_every_bit_of_the_start_page_tables(mem: int) -> None:
    with Image.from_bytes(Bare().elf()) as image, Vm(image, VmConfig(mem=mem), backend="kvm") as vm:
        assert in_words(vm.memory(0x1000, 0x8000), (1 << 64) - 1) == expected_tables(mem * MIB)
        assert vm.memory(0, 0x1000) == bytes(0x1000)
        assert vm.memory(0x9000, 0x7000) == bytes(0x7000)


@kvm
def test_the_start_page_tables_as_a_guest_reads_them() -> None:
    """The start state's tables are not mapped for the guest, so it loads its own page tables and copies
    them. Bits that the processor sets are ignored."""
    guest = Bare()
    copy = guest.place(bytes(0x8000), align=4096)
    guest.cr3(guest.tables(MEM * MIB))
    guest.code(b"\xbe" + struct.pack("<I", 0x1000) + b"\xbf" + struct.pack("<I", copy))  # mov to %esi, %edi
    guest.code("b900100000 f348a5")  # mov $0x1000, %ecx; rep movsq
    guest.halt()
    with Image.from_bytes(guest.elf()) as image, Vm(image, VmConfig(mem=MEM), backend="kvm") as vm:
        assert vm.run(timeout=60).ok
        seen = in_words(vm.memory(copy, 0x8000), ~DIRTY_OR_ACCESSED)
    assert seen == expected_tables(MEM * MIB)


@kvm
def test_a_guest_that_maps_the_low_pages_itself_may_write_them() -> None:
    """They belong to the guest, and contain nothing of the tender's."""
    guest = Bare()
    guest.cr3(guest.tables(MEM * MIB))
    guest.store(0x8, 0x77)
    seen = guest.load(0x8)
    guest.halt()
    with Image.from_bytes(guest.elf()) as image, Vm(image, VmConfig(mem=MEM), backend="kvm") as vm:
        assert vm.run(timeout=60).ok
        assert vm.memory(seen.gpa, 8) == struct.pack("<Q", 0x77)
