"""Hostile guests that make system calls: by instructions of their own, and by the program's one
`syscall`, to which they can jump with all registers under their control.
"""

import errno
import os
import re
import struct
import time

import pytest
from elf_builder import PF_R, PF_W, PF_X, Segment, abi_note, build_elf, manifest_note
from sandbox_rig import (
    ALLOWED,
    ARCH_PRCTL,
    CLOCK_GETTIME,
    EXIT_GROUP,
    EXIT_REASONS_OF_A_GUEST,
    FD_CONSOLE,
    FD_CONTROL,
    FD_NET,
    FD_SMALL,
    FD_STOP,
    FD_TEMPLATE,
    FD_VM,
    FDATASYNC,
    KILL,
    LAST_CALL,
    LIMIT,
    PPOLL,
    PREAD64,
    PWRITE64,
    PWRITEV2,
    READ,
    READAHEAD,
    RT_SIGPROCMASK,
    RT_SIGRETURN,
    SENDTO,
    SMALL,
    SOON,
    STOP_GRACE,
    UPROBES,
    WRITE,
    Rig,
    assert_killed_by_filter,
    at,
    symbols_of,
    text,
)
from support import Guest

from tender import DISCARD, ExitReason, Image, Vm, VmConfig

DONTWAIT_NOSIGNAL = 0x40 | 0x4000  # linux/socket.h
RWF_NOWAIT = 8  # linux/fs.h

# ---- system calls by the guest's own instructions


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("syscall=1,1,b,5", "system call 1 (write)"),
        ("syscall=2,b,0,0", "system call 2 (open)"),
        ("syscall=39", "system call 39 (getpid)"),
        ("syscall=0x40000001,1,b,5", "no such call"),
        ("syscall=0xffffffffffffffff", "system call -1 (no such call)"),
        ("syscall=228,0,b", "system call 228 (clock_gettime)"),
        ("syscall=335", "system call 335"),
    ],
)
def test_a_system_call_by_the_guests_own_instruction_is_named(rig: Rig, script: str, name: str) -> None:
    result = rig.run(script)
    assert result.reason == ExitReason.FORBIDDEN_SYSCALL, result.message
    assert name in result.message
    assert result.fault is not None
    assert result.fault.instruction.startswith("0f 05")


def test_uprobe_is_named_or_refused_by_the_kernel(rig: Rig) -> None:
    """Since 6.18 Linux asks no filter about this call, and refuses it except from a page of its own."""
    result = rig.run("syscall=336")
    if result.reason == ExitReason.EXIT:
        assert f"call = {-errno.ENXIO}" in text(result)
    else:
        assert result.reason == ExitReason.FORBIDDEN_SYSCALL, result.message
        assert "system call 336" in result.message


def test_the_32_bit_entry_is_named_or_is_the_guests_exception(rig: Rig) -> None:
    """A kernel without IA32 emulation raises #GP, which goes to the guest."""
    result = rig.run("int80=4,1,0,5")
    if result.reason == ExitReason.FORBIDDEN_SYSCALL:
        assert "by the 32-bit entry" in result.message
    else:
        assert result.reason == ExitReason.ABORT
        assert "vector 128" in text(result) or "#GP" in text(result)


def test_sysenter_ends_the_guest(rig: Rig) -> None:
    """On Intel the kernel is entered, and the filter kills. AMD's processors do not have this
    instruction in long mode.
    """
    result = rig.run("sysenter=4")
    if result.reason == ExitReason.ABORT:
        assert "#UD" in text(result)
    else:
        assert_killed_by_filter(result)


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_the_vsyscall_page_ends_the_guest(rig: Rig, entry: int) -> None:
    """Where the kernel has no such page, the access is a page fault of the guest."""
    result = rig.run(f"vsyscall={entry}")
    if result.reason == ExitReason.ABORT:
        assert "#PF" in text(result)
    else:
        assert_killed_by_filter(result)


@pytest.mark.parametrize(("vector", "word"), [(3, "#BP"), (0x41, "#GP")])
def test_an_interrupt_goes_through_the_guests_own_table(rig: Rig, vector: int, word: str) -> None:
    result = rig.run(f"interrupt={vector}")
    assert result.reason == ExitReason.ABORT
    assert word in text(result)


# ---- the program's `syscall` instruction, with numbers and arguments that the guest chooses


@pytest.mark.parametrize("first", range(0, LAST_CALL, 94))
def test_every_call_except_those_allowed_is_killed_at_the_one_syscall_instruction(
    rig: Rig, first: int
) -> None:
    """The arguments would do harm: descriptors that a parent may have, its pid, a page of the guest."""
    for number in range(first, first + 94):
        if number in UPROBES:
            result = rig.run(f"call={number}")
            if result.reason == ExitReason.SANDBOX_FAULT:
                assert "SIGILL" in result.message
            elif result.reason == ExitReason.EXIT:
                assert f"call = {-errno.ENXIO}" in text(result)
            else:
                assert_killed_by_filter(result)
        elif number not in ALLOWED:
            assert_killed_by_filter(rig.run(f"call={number},1,b,4096,7,1,1"))


@pytest.mark.parametrize(
    "number", [0x40000000 | WRITE, 0x40000000 | 520, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 32 | 2, (1 << 64) - 1, 512]
)
def test_odd_numbers_of_calls_are_killed(rig: Rig, number: int) -> None:
    """Numbers with x32's bit, negative ones, and one whose lower half alone the kernel sees."""
    assert_killed_by_filter(rig.run(f"call={number:#x},1,b,16"))


def test_the_parent_cannot_be_killed(rig: Rig) -> None:
    for call in (
        f"{KILL},{os.getpid()},9",
        f"{KILL},0xffffffffffffffff,9",
        f"{KILL},0,9",
        "234,1,1,9",
        "200,1,9",
    ):
        assert_killed_by_filter(rig.run(f"call={call}"))


FOREIGN = (0, 1, 2, 3, FD_STOP, FD_VM, FD_TEMPLATE, 127, 256, 0xFFFFFFFF, 1 << 31)


@pytest.mark.parametrize(
    ("number", "also"),
    [
        (READ, (FD_CONSOLE, FD_SMALL)),
        (WRITE, (FD_SMALL,)),
        (PREAD64, (FD_CONTROL, FD_CONSOLE, FD_NET)),
        (PWRITE64, (FD_CONTROL, FD_CONSOLE, FD_NET)),
        (FDATASYNC, (FD_CONTROL, FD_CONSOLE, FD_NET)),
        (READAHEAD, (FD_CONTROL, FD_CONSOLE, FD_NET)),
        (SENDTO, (FD_CONTROL, FD_SMALL)),
        (PWRITEV2, (FD_CONTROL, FD_SMALL, FD_NET)),
    ],
)
def test_a_call_with_a_descriptor_that_it_is_not_for_is_killed(
    rig: Rig, number: int, also: tuple[int, ...]
) -> None:
    """These include the parent's open pipe and file, by their numbers there. They are not inherited,
    and no rule allows them.
    """
    for fd in (*FOREIGN, *also, *rig.open):
        assert_killed_by_filter(rig.run(f"call={number},{fd},b,16,0,0,0"))


@pytest.mark.parametrize(
    "call",
    [
        f"{SENDTO},{FD_NET},b,60,{DONTWAIT_NOSIGNAL},b,16",
        f"{SENDTO},{FD_NET},b,60,{DONTWAIT_NOSIGNAL},0x100000000,2",
    ],
)
def test_a_frame_cannot_be_sent_to_an_address(rig: Rig, call: str) -> None:
    assert_killed_by_filter(rig.run(f"call={call}"))
    rig.ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.ours.recv(1)


ODD_CLOCKS = (*range(2, 17), *((~pid << 3 | kind) & 0xFFFFFFFF for pid in (0, 1) for kind in (2, 3, 6)))


@pytest.mark.parametrize(
    "calls",
    [
        [f"{SENDTO},{fd},b,60,{DONTWAIT_NOSIGNAL ^ 1 << bit},0,0" for bit in range(32) for fd in (FD_NET, FD_CONSOLE)],
        [f"{PWRITEV2},{FD_CONSOLE},b+64,1,0xffffffffffffffff,0,{RWF_NOWAIT ^ 1 << bit}" for bit in range(32)],
        [f"{CLOCK_GETTIME},{clock},b" for clock in ODD_CLOCKS],
    ],
    ids=["sendto", "pwritev2", "clock_gettime"],
)  # fmt: skip
def test_each_flag_and_each_clock_that_the_program_does_not_use_is_killed(rig: Rig, calls: list[str]) -> None:
    """Out-of-band data and signals to a reader, writes over the content of an appended file, the time
    of other processes.
    """
    for call in calls:
        assert_killed_by_filter(rig.run(f"call={call}"))
    rig.ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.ours.recv(1)


def test_the_flags_and_clocks_that_the_program_uses_are_answered(rig: Rig) -> None:
    result = rig.run(
        f"call={SENDTO},{FD_NET},b,60,{1 << 32 | DONTWAIT_NOSIGNAL:#x},0,0",  # the kernel takes 32 bits
        f"call={CLOCK_GETTIME},0,b", f"call={CLOCK_GETTIME},1,b",
    )  # fmt: skip
    assert result.ok, result.message
    assert re.findall(r"call = (-?\d+)", text(result)) == ["60", "0", "0"]
    assert rig.ours.recv(64) == bytes(60)


@pytest.mark.parametrize(
    ("number", "name"), [(CLOCK_GETTIME, "clock_gettime"), (39, "getpid"), (WRITE, "write")]
)
def test_a_call_in_the_last_two_bytes_below_4_gib_is_the_guests_own(number: int, name: str) -> None:
    """The call would return to 4 GiB, which is not an address of the guest."""
    code = b"\xb8" + struct.pack("<I", number) + bytes.fromhex("31ff be00003000 bbfeffffff ffe3")
    elf = build_elf(
        segments=[
            Segment(data=code, flags=PF_X),
            Segment(data=bytes(16), flags=PF_R | PF_W, vaddr=0x300000),
            Segment(data=b"\x90" * 4094 + b"\x0f\x05", flags=PF_X, vaddr=0xFFFFF000),
        ],
        notes=[abi_note(), manifest_note([])],
    )
    with (
        Image.from_bytes(elf) as image,
        Vm(image, VmConfig(mem=4096), console=DISCARD, backend="sandbox") as vm,
    ):
        result = vm.run(timeout=LIMIT)
        assert result.reason == ExitReason.FORBIDDEN_SYSCALL, result.message
        assert f"({name})" in result.message
        assert vm.memory(0x300000, 16) == bytes(16)


def test_allowed_calls_with_odd_arguments_are_answered_by_the_kernel(rig: Rig) -> None:
    read_end, write_end = os.pipe()
    bad = "0xffff800000000000"
    calls = {
        f"{WRITE},{FD_CONSOLE},{bad},16": -14,
        f"{WRITE},{FD_CONSOLE},m,16": -14,
        f"{WRITE},{FD_CONSOLE},0,16": -14,
        f"{PWRITEV2},{FD_CONSOLE},{bad},1,0xffffffffffffffff,0,{RWF_NOWAIT}": -14,
        f"{PWRITEV2},{FD_CONSOLE},b,0xffff,0xffffffffffffffff,0,{RWF_NOWAIT}": -22,
        f"{PPOLL},b,0xffffffff,0,0,8": -22,
        f"{PPOLL},b,66,0,0,8": -22,
        f"{PPOLL},{bad},1,0,0,8": -14,
        f"{PPOLL},0,0,{bad},0,8": -14,
        f"{PREAD64},{FD_SMALL},{bad},512,0": -14,
        f"{PREAD64},{FD_SMALL},b,512,0x8000000000000000": -22,
        f"{PREAD64},{FD_SMALL},b,512,{SMALL}": 0,
        f"{PREAD64},255,b,512,0": -9,
        f"{FDATASYNC},{FD_SMALL}": 0,
        f"{FDATASYNC},255": -9,
        f"{READAHEAD},{FD_SMALL},0xffffffffffffffff,0xffffffffffffffff": -22,
        f"{READAHEAD},{FD_SMALL},0,0x7fffffffffffffff": 0,
        f"{READAHEAD},255,0,4096": -9,
        f"{READ},191,b,512": -9,
        f"{ARCH_PRCTL},0x1002,0xffff800000000000": -1,
        f"{CLOCK_GETTIME},0,{bad}": -14,
    }
    try:
        result = rig.run(*(f"call={call}" for call in calls), console=write_end)
        said = os.read(read_end, 65536).decode()
    finally:
        os.close(read_end)
        os.close(write_end)
    assert result.ok, result.message
    assert [int(n) for n in re.findall(r"call = (-?\d+)", said)] == list(calls.values())


def test_the_kernel_is_not_asked_to_change_another_segment_base_than_fs_and_gs(rig: Rig) -> None:
    for code in (0x1011, 0x1012, 0x1022, 0x1023, 0x2001, 0x4001, 0x5001, 0):
        assert_killed_by_filter(rig.run(f"call={ARCH_PRCTL},{code:#x},b"))


def test_a_process_that_exits_by_itself_is_reported(rig: Rig) -> None:
    result = rig.run(f"call={EXIT_GROUP},7")
    assert result.reason == ExitReason.SANDBOX_DIED
    assert "exited with status 7 instead of reporting an end" in result.message


def test_an_endless_wait_in_the_kernel_is_ended(rig: Rig) -> None:
    started = time.monotonic()
    result = rig.run(f"call={PPOLL},0,0,0,0,8", timeout=0.1)
    assert result.reason == ExitReason.TIMEOUT
    assert time.monotonic() - started < SOON


ZEROES = 0x150000  # guest memory after the image; valid as vector registers


def frame(rip: int, *, cs: int = 0x33, flags: int = 0x202, vectors: int = 0) -> str:
    """Returns, in hexadecimal, the part of a signal's frame from which registers are restored: struct
    ucontext of asm/ucontext.h. `vectors` is the address of the vector registers.
    """
    general = struct.pack("<16Q", *([0] * 15), 0x140000)  # r8 .. rcx, rsp
    return (
        bytes(40) + general + struct.pack("<QQHHHHQQQQQ", rip, flags, cs, 0, 0, 0x2B, 0, 0, 0, 0, vectors)
    ).hex()


@pytest.fixture(scope="module")
def spin_here(guest: Guest) -> int:
    return symbols_of(guest("sandbox_attack"))["spin_here"].start


def test_no_call_blocks_a_signal(rig: Rig) -> None:
    assert_killed_by_filter(rig.run(f"call={RT_SIGRETURN}"))
    assert_killed_by_filter(rig.run(f"call={RT_SIGPROCMASK},2,b,0,8"))
    assert_killed_by_filter(rig.run("poke=b,ffffffffffffffff", f"call={PPOLL},0,0,0,b,8"))


def test_a_forged_return_from_a_signal_continues_at_its_address_and_blocks_nothing(
    rig: Rig, spin_here: int
) -> None:
    started = time.monotonic()
    forged = frame(spin_here, vectors=ZEROES)
    result = rig.run(f"poke=b,{forged}", f"goto={at('signal_return')},b", timeout=1)
    assert result.reason == ExitReason.TIMEOUT, result.message
    assert 1 <= time.monotonic() - started < SOON


def test_a_guest_that_claims_to_be_reporting_is_still_stopped(rig: Rig) -> None:
    """A stop waits for a report that is being made. The monitor does not wait forever."""
    started = time.monotonic()
    result = rig.run(f"poke={at('reporting')},01", "spin", timeout=1)
    assert result.reason == ExitReason.TIMEOUT, result.message
    assert 1 + STOP_GRACE <= time.monotonic() - started < SOON


@pytest.mark.parametrize(
    "forged",
    [
        frame(0),  # the vector registers are at address 0
        frame(0, vectors=ZEROES),  # there is no code at rip
        frame(0xFFFF_8000_0000_0000, vectors=ZEROES),
        frame(0x100000, cs=0x10, vectors=ZEROES),  # the kernel's segment
        frame(0, vectors=0xFFFF_8000_0000_0000),
        frame(0, vectors=ZEROES + 8),  # not aligned
        "ff" * 440,
    ],
)
def test_a_forged_return_from_a_signal_ends_the_guest(rig: Rig, forged: str) -> None:
    result = rig.run(f"poke=b+4096,{forged}", f"goto={at('signal_return')},b+4096")
    assert result.reason in EXIT_REASONS_OF_A_GUEST - {ExitReason.EXIT, ExitReason.TIMEOUT}, result.message


def test_a_guest_that_returns_to_compatibility_mode_gains_nothing(rig: Rig) -> None:
    forged = frame(0x100000, cs=0x23, vectors=ZEROES)
    result = rig.run(f"poke=b+4096,{forged}", f"goto={at('signal_return')},b+4096", timeout=1)
    assert result.reason in EXIT_REASONS_OF_A_GUEST - {ExitReason.EXIT}, result.message
