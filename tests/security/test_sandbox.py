"""Hostile guests against the sandbox: ring-3 code in the handlers' own address space, which may write over their
data, jump to any of their instructions, and use the one `syscall` among them.

Each attack ends with a report that says what was done, or does no harm; it never hangs, and what lies outside of the
guest's descriptors stays as it was, which is looked at from outside. tests/guests/sandbox_attack does what its
arguments say (its head has the language).
"""

import errno
import os
import random
import re
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from support import Guest

from tender import CAPTURE, DISCARD, BlockFd, BlockFile, ExitReason, Image, NetFd, Vm, VmConfig, VmResult
from tender.backend.sandbox import PROGRAM, SandboxVm
from tender.native import ffi, lib

SMALL, LARGE = 1 << 20, 3 << 20
SECRET = b"what the parent keeps"
LIMIT = 20.0  # seconds; none of these takes one
STOP_GRACE = 0.2  # bindings/sandbox/watch.c

# bindings/sandbox/fds.h
FD_CONTROL, FD_STOP, FD_CONSOLE, FD_VM, FD_TEMPLATE, FD_NET, FD_SMALL, FD_LARGE = (
    120, 121, 122, 123, 124, 129, 194, 195,
)  # fmt: skip

# asm/unistd_64.h
READ, WRITE, RT_SIGRETURN, PREAD64, PWRITE64, SENDTO, EXIT_GROUP, PPOLL = 0, 1, 15, 17, 18, 44, 231, 271
ARCH_PRCTL, CLOCK_GETTIME, PWRITEV2, KILL = 158, 228, 328, 62
ALLOWED = {READ, WRITE, RT_SIGRETURN, PREAD64, PWRITE64, SENDTO, EXIT_GROUP, PPOLL, CLOCK_GETTIME, ARCH_PRCTL}
ALLOWED |= {PWRITEV2}
UPROBES = {
    335,
    336,
}  # uretprobe, uprobe: newer kernels do not ask filters, and refuse them but from a probe's page
LAST_CALL = 470

END_OF_A_GUEST = {
    ExitReason.EXIT,
    ExitReason.ABORT,
    ExitReason.TIMEOUT,
    ExitReason.TRANSLATION_FAULT,
    ExitReason.BAD_PORT,
    ExitReason.BAD_HYPERCALL,
    ExitReason.BAD_ACCESS,
    ExitReason.UNHANDLED_EXIT,
    ExitReason.UNSUPPORTED_INSTRUCTION,
    ExitReason.FORBIDDEN_SYSCALL,
    ExitReason.SANDBOX_FAULT,
    ExitReason.SANDBOX_DIED,
    ExitReason.HOST_ERROR,
}


def symbols_of(path: Path | str) -> dict[str, range]:
    """Where each name lies; what the compiler puts behind it (`state.lto_priv.0`) is left out."""
    with Path(path).open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {
            symbol.name.partition(".")[0]: range(symbol["st_value"], symbol["st_value"] + symbol["st_size"])
            for symbol in table.iter_symbols()
        }


def section_of(name: str) -> range:
    with Path(PROGRAM).open("rb") as file:
        section = ELFFile(file).get_section_by_name(name)
        assert section is not None
        return range(section["sh_addr"], section["sh_addr"] + section["sh_size"])


SYMBOLS = symbols_of(PROGRAM)
TEXT, BSS = section_of(".text"), section_of(".bss")
BASE = f"base={SYMBOLS['entry_patched'].start:#x}"
SHARED = f"[p+{SYMBOLS['shared_memory'].start:#x}]"


def at(symbol: str, offset: int = 0) -> str:
    """The address of the program's `symbol`, in the attacker's language."""
    return f"p+{SYMBOLS[symbol].start + offset:#x}"


def pattern(length: int) -> bytes:
    return random.Random(length).randbytes(length)


class Rig:
    """The guest's devices, and beside them what it must not reach: a pipe with something in it and a file, both
    inheritable, as a careless parent leaves them."""

    def __init__(self, image: Image, directory: Path) -> None:
        self.image = image
        self.small, self.large, self.victim = (directory / name for name in ("small", "large", "victim"))
        self.small.write_bytes(pattern(SMALL))
        self.large.write_bytes(pattern(LARGE))
        self.victim.write_bytes(SECRET)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.pipe_read, pipe_write = os.pipe()
        os.write(pipe_write, SECRET)
        self.victim_fd = os.open(self.victim, os.O_RDWR)
        self.small_fd = os.open(self.small, os.O_RDWR)
        self.open = [self.pipe_read, pipe_write, self.victim_fd, self.small_fd]
        for fd in self.open:
            os.set_inheritable(fd, True)

    def vm(self, *script: str, console: object = CAPTURE) -> Vm:
        config = VmConfig(
            mem=16,
            args=(BASE, *script),
            net={"service0": NetFd(self.theirs.fileno())},
            block={"small": BlockFile(str(self.small)), "large": BlockFile(str(self.large))},
        )
        return Vm(self.image, config, console=console, backend="sandbox")  # type: ignore[arg-type]

    def run(self, *script: str, console: object = CAPTURE, timeout: float = LIMIT) -> VmResult:
        with self.vm(*script, console=console) as vm:
            return vm.run(timeout=timeout)

    def check(self) -> None:
        """Nothing outside was read or changed."""
        assert os.read(self.pipe_read, 4096) == SECRET
        assert self.victim.read_bytes() == SECRET
        assert os.lseek(self.victim_fd, 0, os.SEEK_CUR) == 0
        assert self.small.stat().st_size == SMALL
        assert self.large.stat().st_size == LARGE

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        for fd in self.open:
            os.close(fd)


def held() -> tuple[list[str], int, list[str]]:
    """What a leak would add to: descriptors, threads, children."""
    tasks = os.listdir("/proc/self/task")
    children = [child for task in tasks for child in children_of(task)]
    return os.listdir("/proc/self/fd"), len(tasks) - threading.active_count(), children


def children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except OSError:  # it has ended meanwhile
        return []


@pytest.fixture(scope="module")
def image(guest: Guest) -> Iterator[Image]:
    with Image.open(guest("sandbox_attack")) as opened:
        yield opened


@pytest.fixture
def rig(image: Image, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(image, tmp_path)
    made.vm().close()  # the first one also starts the thread that makes them all, which stays
    before = held()
    try:
        yield made
        wait_until(lambda: held() == before)  # a thread that has said its last word takes a moment to be gone
        made.check()
    finally:
        made.close()


def text(result: VmResult) -> str:
    return (result.console or b"").decode()


def assert_killed_by_filter(result: VmResult) -> None:
    assert result.reason == ExitReason.SANDBOX_DIED, (result.message, text(result))
    assert "killed by its filter" in result.message
    assert result.status == 1


def assert_false_report(result: VmResult) -> None:
    assert result.reason == ExitReason.SANDBOX_FAULT, (result.message, text(result))
    assert "a false report" in result.message


# ---- the guest's own way to the kernel


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("syscall=1,1,b,5", "system call 1 (write)"),
        ("syscall=2,b,0,0", "system call 2 (open)"),
        ("syscall=39", "system call 39 (getpid)"),
        ("syscall=0x40000001,1,b,5", "no such call"),
        ("syscall=0xffffffffffffffff", "system call -1 (no such call)"),
        ("syscall=228,0,b", "system call 228 (clock_gettime)"),
    ],
)
def test_a_system_call_of_the_guests_own_is_named(rig: Rig, script: str, name: str) -> None:
    result = rig.run(script)
    assert result.reason == ExitReason.FORBIDDEN_SYSCALL, result.message
    assert name in result.message
    assert result.fault is not None
    assert result.fault.instruction.startswith("0f 05")


def test_the_32_bit_entry_is_named_or_is_the_guests_exception(rig: Rig) -> None:
    """A kernel without IA32 emulation raises #GP, which is the guest's."""
    result = rig.run("int80=4,1,0,5")
    if result.reason == ExitReason.FORBIDDEN_SYSCALL:
        assert "by the 32-bit entry" in result.message
    else:
        assert result.reason == ExitReason.ABORT
        assert "vector 128" in text(result) or "#GP" in text(result)


def test_sysenter_ends_the_guest(rig: Rig) -> None:
    """Intel's kernels enter, and the filter kills; AMD's processors know no such instruction in long mode."""
    result = rig.run("sysenter=4")
    if result.reason == ExitReason.ABORT:
        assert "#UD" in text(result)
    else:
        assert_killed_by_filter(result)


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_the_vsyscall_page_ends_the_guest(rig: Rig, entry: int) -> None:
    """Where the kernel has none, it is a page fault of the guest."""
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


# ---- the program's `syscall` instruction, with numbers and arguments of the guest's choice


@pytest.mark.parametrize("first", range(0, LAST_CALL, 94))
def test_every_call_but_those_allowed_is_killed_at_the_one_site(rig: Rig, first: int) -> None:
    """Arguments that would do harm: descriptors that a parent may have, its pid, a page of the guest's."""
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
    """x32's bit, negative ones, and one of which the kernel sees the lower half."""
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
        (SENDTO, (FD_CONTROL, FD_SMALL)),
        (PWRITEV2, (FD_CONTROL, FD_SMALL, FD_NET)),
    ],
)
def test_descriptors_that_are_not_for_this_are_killed(rig: Rig, number: int, also: tuple[int, ...]) -> None:
    """The parent's open pipe and file by their numbers there, too: they are not inherited, and not asked for."""
    for fd in (*FOREIGN, *also, *rig.open):
        assert_killed_by_filter(rig.run(f"call={number},{fd},b,16,0,0,0"))


def test_a_disk_that_is_read_only_to_the_guest_is_not_written(rig: Rig) -> None:
    """By a descriptor that may be written, as a parent may hand it down: only the handlers knew."""
    config = VmConfig(
        mem=16,
        args=(BASE, f"call={PWRITE64},{FD_SMALL},b,16,0"),
        net={"service0": NetFd(rig.theirs.fileno())},
        block={"small": BlockFd(rig.small_fd, read_only=True), "large": BlockFile(str(rig.large))},
    )
    with Vm(rig.image, config, console=CAPTURE, backend="sandbox") as vm:
        assert_killed_by_filter(vm.run(timeout=LIMIT))
    assert rig.small.read_bytes() == pattern(SMALL)


@pytest.mark.parametrize(
    "call", [f"{SENDTO},{FD_NET},b,60,0,b,16", f"{SENDTO},{FD_NET},b,60,0,0x100000000,2"]
)
def test_a_frame_cannot_be_sent_to_an_address(rig: Rig, call: str) -> None:
    assert_killed_by_filter(rig.run(f"call={call}"))
    rig.ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        rig.ours.recv(1)


def test_allowed_calls_with_odd_arguments_are_answered_by_the_kernel(rig: Rig) -> None:
    read_end, write_end = os.pipe()
    bad = "0xffff800000000000"
    calls = {
        f"{WRITE},{FD_CONSOLE},{bad},16": -14,
        f"{WRITE},{FD_CONSOLE},m,16": -14,
        f"{WRITE},{FD_CONSOLE},0,16": -14,
        f"{PWRITEV2},{FD_CONSOLE},{bad},1,0xffffffffffffffff,0,0": -14,
        f"{PWRITEV2},{FD_CONSOLE},b,0xffff,0xffffffffffffffff,0,0": -22,
        f"{PPOLL},b,0xffffffff,0,0,8": -22,
        f"{PPOLL},b,66,0,0,8": -22,
        f"{PPOLL},{bad},1,0,0,8": -14,
        f"{PPOLL},0,0,{bad},0,8": -14,
        f"{PREAD64},{FD_SMALL},{bad},512,0": -14,
        f"{PREAD64},{FD_SMALL},b,512,0x8000000000000000": -22,
        f"{PREAD64},{FD_SMALL},b,512,{SMALL}": 0,
        f"{PREAD64},255,b,512,0": -9,
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


def test_a_wait_for_ever_in_the_kernel_is_ended(rig: Rig) -> None:
    started = time.monotonic()
    result = rig.run(f"call={PPOLL},0,0,0,0,8", timeout=0.1)
    assert result.reason == ExitReason.TIMEOUT
    assert time.monotonic() - started < 0.1 + STOP_GRACE + 1.0


def frame(
    rip: int, *, mask: int = (1 << 64) - 1, cs: int = 0x33, stack: tuple[int, int, int] = (0, 2, 0)
) -> str:
    """The part of a signal's frame that rt_sigreturn(2) reads: struct ucontext of asm/ucontext.h, in hexadecimal."""
    sp, flags, size = stack
    registers = struct.pack("<16Q", *([0] * 15), 0x140000)  # r8 .. rcx, rsp
    return (
        struct.pack("<QQQiiQ", 0, 0, sp, flags, 0, size)
        + registers
        + struct.pack("<QQHHHHQQQQQ", rip, 0x202, cs, 0, 0, 0x2B, 0, 0, 0, 0, 0)
        + bytes(64)
        + struct.pack("<Q", mask)
    ).hex()


@pytest.fixture(scope="module")
def spin_here(guest: Guest) -> int:
    return symbols_of(guest("sandbox_attack"))["spin_here"].start


def test_a_guest_that_blocks_every_signal_is_still_stopped(rig: Rig, spin_here: int) -> None:
    """A forged return from a signal sets the mask; the monitor does not rely on signals that can be blocked."""
    started = time.monotonic()
    result = rig.run(f"poke=b,{frame(spin_here)}", f"goto={at('signal_return')},b", timeout=0.2)
    assert result.reason == ExitReason.TIMEOUT, result.message
    assert 0.2 + STOP_GRACE <= time.monotonic() - started < 0.2 + STOP_GRACE + 1.0


@pytest.mark.parametrize(
    "forged",
    [
        frame(0),  # nothing is there, and SIGSEGV is blocked
        frame(0xFFFF_8000_0000_0000),
        frame(0x100000, cs=0x23),  # compatibility mode
        frame(0x100000, cs=0x10),  # the kernel's segment
        frame(0, mask=0, stack=(0x140000, 0, 0x1000)),  # an alternate stack that is too small
        frame(0, mask=0, stack=(0xFFFF_8000_0000_0000, 0, 0x10000)),
        frame(0, mask=0),
        "ff" * 440,
    ],
)
def test_a_forged_return_from_a_signal_ends_the_guest(rig: Rig, forged: str) -> None:
    result = rig.run(f"poke=b+4096,{forged}", f"goto={at('signal_return')},b+4096", timeout=5)
    assert result.reason in END_OF_A_GUEST - {ExitReason.EXIT, ExitReason.TIMEOUT}, result.message


def test_a_disk_does_not_grow(rig: Rig) -> None:
    """Each by its own end, also the smaller of two."""
    for fd, size in ((FD_SMALL, SMALL), (FD_LARGE, LARGE)):
        for offset, length in (
            (size, 1),
            (size - 8, 16),
            (1 << 40, 16),
            ((1 << 63) - 16, 8),
            (size - 8, 1 << 63),
        ):
            result = rig.run(f"call={PWRITE64},{fd},b,{length:#x},{offset:#x}")
            if result.reason == ExitReason.EXIT:  # refused, or cut at the end
                assert int(text(result).split()[2]) in (-27, -22, -14, 8)
            else:
                assert_killed_by_filter(result)
            assert rig.small.stat().st_size == SMALL
            assert rig.large.stat().st_size == LARGE


def test_a_disk_does_not_grow_beside_a_console_in_a_file(rig: Rig, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for offset in (SMALL, LARGE, 1 << 40):
        for fd in (FD_SMALL, FD_LARGE):
            rig.run(f"call={PWRITE64},{fd},b,16,{offset}", console=log)
    assert rig.small.stat().st_size == SMALL
    assert rig.large.stat().st_size == LARGE


def test_a_disk_beyond_4_gib_is_guarded_to_the_byte(rig: Rig) -> None:
    """Two halves of a number, a borrow between them."""
    size = (4 << 30) + 4096
    with rig.large.open("r+b") as file:
        file.truncate(size)
    allowed = [(size - 8192, 8192), (size - 1, 1), ((4 << 30) - 1, 4097), (size, 0)]
    killed = [
        (size - 8191, 8192),
        (size, 1),
        (size - 4096, 8192),
        (4 << 30, 4097),
        (0, size + 1),
        (1 << 32 | size, 1),
    ]
    for offset, length in allowed:
        result = rig.run(f"call={PWRITE64},{FD_LARGE},b,{length},{offset}")
        assert text(result) == f"call = {length}\ndone\n", (offset, length, result.message)
    for offset, length in killed:
        assert_killed_by_filter(rig.run(f"call={PWRITE64},{FD_LARGE},b,{length},{offset}"))
    assert rig.large.stat().st_size == size
    os.truncate(rig.large, LARGE)  # what the rig will look for


def test_what_stands_in_a_consoles_file_cannot_be_written_over(rig: Rig, tmp_path: Path) -> None:
    """A console only grows, at its end: a file that is not opened to be appended to, as by a shell's `>`."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"before the guest\n")
        file.flush()
        iovec = struct.pack("<Q", 0x200000).hex()
        for offset in (0, 3, 1 << 32, 1 << 40, 0xFFFFFFFF, 0xFFFFFFFF00000000):
            result = rig.run(
                "poke=b,58585858", f"poke=b+64,{iovec}", f"call={PWRITEV2},{FD_CONSOLE},b+64,1,{offset:#x},0,0",
                console=file.fileno(),
            )  # fmt: skip
            assert_killed_by_filter(result)
    assert log.read_bytes() == b"before the guest\n"


# ---- jumps into the handlers


JUMPS = int(os.environ.get("TENDER_JUMPS", "150"))


@pytest.mark.parametrize("seed", [1, 2])
def test_jumps_into_the_handlers_end_or_are_ended(rig: Rig, seed: int) -> None:
    """Any offset of the program's text, every register the attacker's. A jump may find an end that the handlers
    report, the guest's own exit among them."""
    draw = random.Random(seed)
    reasons: dict[str, int] = {}
    for _ in range(JUMPS):
        offset = draw.choice(TEXT)
        script = f"jump=p+{offset:#x},{draw.getrandbits(32)}"
        try:
            result = rig.run(script, timeout=1.5)
        except BaseException as error:
            raise AssertionError(script) from error
        assert result.reason in END_OF_A_GUEST, (script, result.message)
        reasons[result.reason] = reasons.get(result.reason, 0) + 1
    assert reasons[ExitReason.SANDBOX_FAULT] > JUMPS // 5, reasons


def test_jumps_to_each_function_with_sound_registers_of_a_call(rig: Rig) -> None:
    """Aimed ones: the beginning of each function in the program, with registers that may be pointers."""
    functions = sorted(name for name, place in SYMBOLS.items() if place.start in TEXT and name.isidentifier())
    assert len(functions) > 20
    for name in functions:
        for seed in (1, 2):
            result = rig.run(f"jump={at(name)},{seed}", timeout=1.5)
            assert result.reason in END_OF_A_GUEST, (name, result.message)


# ---- writes over the handlers' memory


DATA = {
    "everything": BSS,
    "the_vm": SYMBOLS["the_vm"],
    "system registers": SYMBOLS["state"],
    "handler stack": range(SYMBOLS["handler_stack"].start, SYMBOLS["handler_stack_top"].start),
    "trap stack": SYMBOLS["trap_stack"],
    "way back": range(SYMBOLS["guest_rsp"].start, SYMBOLS["guest_rsp"].start + 24),
    "shared memory": SYMBOLS["shared_memory"],
    "auxiliary": SYMBOLS["auxiliary"],
    "clock": SYMBOLS["vdso_clock_gettime"],
}


VM_DATA = f"{at('the_vm')},{len(SYMBOLS['the_vm'])}"


@pytest.mark.parametrize("after", ["site", "gate", "out", "interrupt=3", "spin"])
@pytest.mark.parametrize("name", list(DATA))
def test_noise_over_the_handlers_data_is_reported_or_harmless(rig: Rig, name: str, after: str) -> None:
    place = DATA[name]
    for seed in range(4):
        script = (f"noise=p+{place.start:#x},{len(place)},{seed}", after, "say=alive")
        result = rig.run(*script, timeout=0.5)
        assert result.reason in END_OF_A_GUEST, (script, result.message)


def test_handlers_that_are_told_of_other_descriptors_are_killed(rig: Rig) -> None:
    """The console's number in their data, exchanged for another one."""
    read_end, write_end = os.pipe()
    try:
        for fd in (0, 1, FD_STOP, FD_VM, FD_SMALL, rig.victim_fd, rig.open[1]):
            script = f"replace={VM_DATA},{FD_CONSOLE},{fd}"
            assert_killed_by_filter(rig.run(script, "say=out", console=write_end))
    finally:
        os.close(read_end)
        os.close(write_end)


def test_handlers_whose_disks_are_exchanged_stay_with_the_guests_own(rig: Rig) -> None:
    """The numbers of the two disks, exchanged: both are the guest's, and neither grows."""
    result = rig.run(f"replace={VM_DATA},{FD_SMALL},{FD_LARGE}")
    assert "replaced 1" in text(result)


# ---- false reports


def event_bytes(**fields: int) -> bytes:
    event = ffi.new("struct vm_event *")
    for name, value in fields.items():
        setattr(event, name, value)
    return bytes(ffi.buffer(event))


EVENT_AT = ffi.offsetof("struct vm_shared", "event")


def report(**fields: int) -> tuple[str, ...]:
    """The script that writes an event into the shared page and tells of it, then spins."""
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
    "unknown": {"kind": 18},
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
def test_a_report_that_cannot_be_true_is_called_one(rig: Rig, name: str) -> None:
    assert_false_report(rig.run(*report(**IMPOSSIBLE[name])))


def test_a_piece_of_console_that_nobody_asked_for_is_a_false_report(rig: Rig) -> None:
    """The console is a descriptor here, or nothing: the handlers never hand pieces to the monitor."""
    for console in (DISCARD, rig.victim_fd):
        assert_false_report(rig.run(*report(kind=lib.EVENT_CONSOLE, gpa=0, len=16), console=console))


EXTREMES = (0, 1, 255, (1 << 31) - 1, -1, -(1 << 31))


def test_what_a_guest_may_claim_is_reported_as_it_stands(rig: Rig) -> None:
    """Ends that a guest can bring about by itself: a claim is as good as the deed. None may confuse the monitor."""
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
        assert result.reason in END_OF_A_GUEST
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


def test_words_that_the_program_does_not_say_are_a_false_report(rig: Rig) -> None:
    assert_false_report(rig.run("poke=b,78", f"call={WRITE},{FD_CONTROL},b,1", "spin"))


def test_a_second_word_behind_the_first_changes_nothing(rig: Rig) -> None:
    """The run has ended with the first; `vm` answers as after any end."""
    event = event_bytes(kind=lib.EVENT_HALT, status=3).hex()
    with rig.vm(f"poke={SHARED}+{EVENT_AT},{event}", "events=5", "spin") as vm:
        assert vm.run(timeout=LIMIT).status == 3
        assert len(vm.memory(0x100000, 4096)) == 4096


EMPTY_PIECE = event_bytes(kind=lib.EVENT_CONSOLE, gpa=0, len=0).hex()


def test_a_guest_that_reads_no_answer_is_ended(rig: Rig) -> None:
    """Until the monitor's answers have no room: it does not wait for that."""
    result = rig.run(f"poke={SHARED}+{EVENT_AT},{EMPTY_PIECE}", "events=0xffffffffffff", timeout=LIMIT)
    assert_false_report(result)


@pytest.mark.parametrize("ahead", [1, 200])
def test_a_guest_that_has_always_something_to_say_is_stopped(rig: Rig, ahead: int) -> None:
    started = time.monotonic()
    result = rig.run(f"poke={SHARED}+{EVENT_AT},{EMPTY_PIECE}", f"chatter={ahead}", timeout=0.2)
    assert result.reason == ExitReason.TIMEOUT, result.message
    assert time.monotonic() - started < 0.2 + STOP_GRACE + 1.0


def test_a_guest_that_has_ended_does_nothing_more(rig: Rig) -> None:
    """It says that it halted, and goes on sending: the wire falls silent all the same."""
    event = event_bytes(kind=lib.EVENT_HALT).hex()
    with rig.vm(f"poke={SHARED}+{EVENT_AT},{event}", "events=1", "spin") as vm:
        assert vm.run(timeout=LIMIT).status == 0
        assert isinstance(vm._door, SandboxVm)
        pid = vm._door.pid
        wait_until(lambda: state_of(pid) in "tT")
        before = cpu_ticks(pid)
        time.sleep(0.1)  # ten ticks' worth of spinning
        assert cpu_ticks(pid) == before
        assert vm.memory(0xFFF00, 8) != bytes(8)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ---- stacks and flags


ENDS = ("0", "1", "8", "m", "m+8", "0xffffffffffffffff", "0x8000000000000000", "0x100000", "0xfff08")


@pytest.mark.parametrize(
    "rsp",
    [
        *ENDS,
        at("trap_stack"),
        at("trap_stack", 8),
        at("trap_stack", 0x800),
        at("trap_stack", 0x8000),
        at("trap_stack", 0x10000),
        at("handler_stack"),
        at("handler_stack", 0x10000),
    ],
)
@pytest.mark.parametrize("target", ["0", "handlers", "gate"])
def test_a_fault_on_any_stack_is_reported(rig: Rig, rsp: str, target: str) -> None:
    """Also on the stack that signals are handled on, which then overflows. The gate pops its return address."""
    where = {"0": "0", "handlers": at("system_call"), "gate": "0xff010"}[target]
    result = rig.run(f"goto={where},{rsp}", timeout=2)
    assert result.reason in END_OF_A_GUEST - {ExitReason.EXIT, ExitReason.TIMEOUT}, result.message


CF, PF, DF, AC, NT, ID = 1, 4, 1 << 10, 1 << 18, 1 << 14, 1 << 21


@pytest.mark.parametrize("flags", [0, CF | PF, DF, AC, NT, DF | AC | NT | CF, ID])
def test_flags_outlive_a_hypercall(rig: Rig, flags: int) -> None:
    """A site and a trapped `out` keep them all, but for AC and NT by a signal; the gate is a function."""
    result = rig.run(f"flags={flags | 0x202:#x}")
    assert result.ok, (result.message, text(result))
    found = re.search(r"flags = (\S+) (\S+) (\S+)", text(result))
    assert found
    site, out, gate = (int(word, 16) for word in found.groups())
    assert site & (CF | PF | DF | ID) == flags & (CF | PF | DF | ID)
    assert out & (CF | PF | DF | ID) == flags & (CF | PF | DF | ID)
    assert not gate & DF


def test_alignment_checks_do_not_reach_a_ring_0_program(rig: Rig) -> None:
    """CR0.AM is not set, so the flag means nothing; in ring 3 it would, to the guest and to the handlers."""
    result = rig.run("odd")
    assert result.ok, (result.message, text(result))


def test_single_steps_are_the_guests_own_exception(rig: Rig) -> None:
    result = rig.run(f"flags={0x302:#x}")
    assert result.reason == ExitReason.ABORT
    assert "#DB" in text(result)


def test_rights_by_protection_keys_end_the_guest_or_mean_nothing(rig: Rig) -> None:
    """WRPKRU, where the processor has it, takes the handlers' rights to their own memory."""
    result = rig.run("pkru=0xffffffff", "site", timeout=2)
    assert result.reason in END_OF_A_GUEST - {ExitReason.TIMEOUT}


# ---- memory


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("0x100000", ExitReason.TRANSLATION_FAULT),  # text
        ("0x80000", ExitReason.ABORT),  # stubs, and all below 1 MiB: read-only in the guest's own tables
        ("0xff010", ExitReason.ABORT),
        ("0xfff00", ExitReason.ABORT),
        ("0xfe000", ExitReason.ABORT),
        ("0x10000", ExitReason.ABORT),
        ("0x14000", ExitReason.ABORT),
        ("0x1000", ExitReason.ABORT),
        ("m", ExitReason.ABORT),
        (at("the_call"), ExitReason.ABORT),  # the handlers' text
        (at("filter_code"), ExitReason.ABORT),
        ("0xffffffffff600000", ExitReason.ABORT),
        ("0x7fffffffe000", ExitReason.ABORT),
    ],
)
def test_what_is_not_the_guests_to_write_is_not_written(rig: Rig, where: str, reason: str) -> None:
    result = rig.run(f"poke={where},90", "say=WRITTEN")
    assert result.reason == reason, (result.message, text(result))
    assert "WRITTEN" not in text(result)


def test_data_is_not_executed(rig: Rig) -> None:
    for where in ("b", "m+0xfffffffffffff000", "0x10000"):
        result = rig.run("poke=b,c3", f"goto={where},b+4096")
        assert result.reason == ExitReason.TRANSLATION_FAULT, (where, result.message)
    for where in (at("the_vm"), at("handler_stack"), SHARED):
        result = rig.run(f"goto={where},b+4096")
        assert result.reason in (ExitReason.SANDBOX_FAULT, ExitReason.ABORT), (where, result.message)


def test_memory_cannot_be_unmapped_moved_or_made_executable(rig: Rig) -> None:
    for call in (
        "11,b,4096",
        "25,b,4096,8192,1",
        "10,b,4096,7",
        "28,b,4096,4",
        "12,0",
        "9,0,4096,7,0x22",
        "329,b,4096,7,0",
    ):
        assert_killed_by_filter(rig.run(f"call={call}"))


# ---- resources


def test_a_guest_that_spins_is_stopped_and_gone_after_close(rig: Rig) -> None:
    vm = rig.vm("spin")
    assert isinstance(vm._door, SandboxVm)
    pid = vm._door.pid
    with vm:
        assert vm.run(timeout=0.1).reason == ExitReason.TIMEOUT
    assert not Path(f"/proc/{pid}").exists()


def test_a_flood_to_a_slow_reader_is_stopped(rig: Rig) -> None:
    read_end, write_end = os.pipe()
    try:
        started = time.monotonic()
        result = rig.run("flood", console=write_end, timeout=0.2)
        assert result.reason == ExitReason.TIMEOUT
        assert time.monotonic() - started < 0.2 + STOP_GRACE + 1.0
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_handler_that_is_made_to_loop_is_ended(rig: Rig) -> None:
    """`jmp .` does not stand in the program; the guest calls the kick's place instead: a read that waits for ever."""
    started = time.monotonic()
    result = rig.run(f"call={READ},{FD_CONTROL},b,1", timeout=0.2)
    assert result.reason == ExitReason.TIMEOUT
    assert time.monotonic() - started < 0.2 + STOP_GRACE + 1.0


# ---- from outside


def running(rig: Rig) -> tuple[Vm, int]:
    vm = rig.vm("say=up", "spin", console=DISCARD)
    assert isinstance(vm._door, SandboxVm)
    vm.start()
    wait_until(lambda: vm.counters.hypercalls["puts"] > 0)
    return vm, vm._door.pid


def test_a_running_sandbox_has_no_rights(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["Threads"].strip() == "1"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max processes +0 +0 ", limits)
        assert re.search(r"Max open files +65 +65 ", limits)
        assert re.search(rf"Max file size +{LARGE} +{LARGE} ", limits)
        vm.stop()
        result = vm.wait(LIMIT)
        assert result is not None and result.reason == ExitReason.STOPPED


def test_a_running_sandbox_holds_the_descriptors_it_was_given_and_no_other(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        fds = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        assert fds == {FD_CONTROL, FD_STOP, FD_NET, FD_SMALL, FD_LARGE}
        for fd, path in ((FD_SMALL, rig.small), (FD_LARGE, rig.large)):
            assert os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), path.stat())


NAMESPACES = {
    "user namespace": "user",
    "network namespace": "net",
    "mount namespace": "mnt",
    "pid namespace": "pid",
    "ipc namespace": "ipc",
}


def test_a_running_sandbox_is_in_namespaces_of_its_own_with_an_empty_root(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        assert isinstance(vm._door, SandboxVm)
        given = vm._door.isolation
        for name, short in NAMESPACES.items():
            ours, theirs = os.readlink(f"/proc/self/ns/{short}"), os.readlink(f"/proc/{pid}/ns/{short}")
            assert (ours != theirs) == (name in given), name
        if "empty root directory" in given:
            """The kernel's list of the process's own descriptors, which no one can put a file into."""
            own = sorted(os.listdir(f"/proc/{pid}/fdinfo"))
            assert sorted(os.listdir(f"/proc/{pid}/root")) == sorted(os.listdir(f"/proc/{pid}/cwd")) == own


def test_this_host_gives_every_wall(rig: Rig) -> None:
    """What clone(2) allows here, tried by another program, is what the sandbox has."""
    done = subprocess.run(
        ["unshare", "--user", "--net", "--mount", "--pid", "--ipc", "--fork", "true"], check=False
    )
    vm = rig.vm()
    with vm:
        assert isinstance(vm._door, SandboxVm)
        if done.returncode == 0:
            assert set(NAMESPACES) | {"empty root directory"} == set(vm._door.isolation)
        elif os.geteuid() == 0:
            assert "network namespace" in vm._door.isolation


def test_a_sandbox_cannot_be_looked_into_by_its_own_user(rig: Rig) -> None:
    """Not dumpable: its memory and descriptors belong to root's processes alone."""
    vm, pid = running(rig)
    with vm:
        assert os.stat(f"/proc/{pid}/mem").st_uid in (0, 65534)


UNPRIVILEGED = """
    import os, socket, sys
    from tender import CAPTURE, Image, NetFd, Vm, VmConfig
    assert os.geteuid() != 0 and "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
    image, kind = sys.argv[1], sys.argv[2]
    net = {"service0": NetFd(int(sys.argv[3]))} if kind == "net" else {}
    with Image.open(image) as opened:
        args = ("--count=1",) if kind == "net" else ()
        with Vm(opened, VmConfig(mem=16, net=net, args=args), console=CAPTURE, backend="sandbox") as vm:
            print(vm._door.isolation, flush=True)
            vm.start()
            if kind == "net":
                sys.stdin.read(1)
                vm.stop()
            result = vm.wait(20)
            print(result.reason, result.message, result.console, result.counters.net_tx_packets)
            assert vm.memory(0x100000, 16)
"""


def unprivileged(*args: str, fds: tuple[int, ...] = ()) -> "subprocess.Popen[str]":
    """Python without root and without a capability, with the package that these tests use."""
    code = ["-c", textwrap.dedent(UNPRIVILEGED), *args]
    drop = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]
    words = [*(drop if os.geteuid() == 0 else []), sys.executable, *code]
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=fds,
    )
