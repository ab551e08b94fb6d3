"""Shared by the tests of hostile guests: the attacker's devices, the files that it must not reach, the addresses of
tender-sandbox in the attacker's language (tests/guests/sandbox_attack defines it), and how a run must end."""

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tender import CAPTURE, BlockFile, ExitReason, Image, NetFd, Vm, VmConfig, VmResult
from tender.backend.sandbox import PROGRAM

SMALL, LARGE = 1 << 20, 3 << 20
SECRET = b"what the parent keeps"
LIMIT = 20.0  # seconds; each of these runs takes less than one
STOP_GRACE = 0.2  # bindings/machine/sandbox/watch.c
SOON = 60.0  # a run that took less was ended by its time limit; a busy machine adds to it

# bindings/machine/sandbox/fds.h
FD_CONTROL, FD_STOP, FD_CONSOLE, FD_VM, FD_TEMPLATE, FD_STDERR, FD_NET, FD_SMALL, FD_LARGE = (
    120, 121, 122, 123, 124, 125, 129, 194, 195,
)  # fmt: skip

# asm/unistd_64.h
READ, WRITE, PREAD64, PWRITE64, SENDTO, EXIT_GROUP, PPOLL = 0, 1, 17, 18, 44, 231, 271
RT_SIGPROCMASK, RT_SIGRETURN = 14, 15
ARCH_PRCTL, CLOCK_GETTIME, PWRITEV2, KILL, FDATASYNC, READAHEAD = 158, 228, 328, 62, 75, 187
ALLOWED = {
    READ, WRITE, PREAD64, PWRITE64, SENDTO, EXIT_GROUP, PPOLL, CLOCK_GETTIME, ARCH_PRCTL, PWRITEV2,
    FDATASYNC, READAHEAD,
}  # fmt: skip
UPROBES = {335, 336}
"""uretprobe and uprobe: newer kernels do not ask the filter for them. They refuse both unless the call comes from a page
of a probe."""
LAST_CALL = 470

EXIT_REASONS_OF_A_GUEST = {
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
    """Returns the addresses of each symbol. The suffix that a compiler adds to a name (`state.lto_priv.0`) is removed."""
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
    """The guest's devices, and two things that it must not reach: a pipe that contains data, and a file. Both descriptors
    are inheritable, as a careless parent leaves them."""

    def __init__(self, image: Image, path: Path, directory: Path) -> None:
        self.image = image
        self.path = path
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
        """Asserts that nothing outside of the guest's devices was read or changed."""
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
    """Returns what a leak would add to: descriptors, the number of threads, and children. Threads of Python's threading are
    not counted, because a test's time limit uses one."""
    tasks = os.listdir("/proc/self/task")
    children = [child for task in tasks for child in children_of(task)]
    return os.listdir("/proc/self/fd"), len(tasks) - threading.active_count(), children


def children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except OSError:  # the thread has ended meanwhile
        return []


def text(result: VmResult) -> str:
    return (result.console or b"").decode()


def assert_killed_by_filter(result: VmResult) -> None:
    assert result.reason == ExitReason.SANDBOX_DIED, (result.message, text(result))
    assert "killed by its seccomp filter" in result.message
    assert result.status == 1


def assert_false_report(result: VmResult) -> None:
    assert result.reason == ExitReason.SANDBOX_FAULT, (result.message, text(result))
    assert "a false report" in result.message


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
