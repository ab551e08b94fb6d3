"""How a run ends, row by row, through both command lines: the line on stderr, and the status.

`tender run` prints the same line as `tender solo5-hvt`, under its own name, and may add hints. Where a
message begins with the backend's name, BACKEND stands for it. SIGINT, SIGTERM, other signals, and consoles
that are closed or full are in test_solo5_command_line.py and tests/contract/test_cli.py.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import BLOCK_READ, L_PUTS, MIB, PORT, PUTS, TEXT, WALLTIME, Bare
from support import Guest

backends = pytest.mark.backends
FRONTS = ("solo5-hvt", "run")
MEM = 4
BACKEND_NAME = {"kvm": "KVM", "sandbox": "sandbox"}
Front = Callable[[str], str]
Run = Callable[[str, bytes], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(front: Front, tender_cmd: list[str], tmp_path: Path) -> Run:
    """A function: start(FRONT, ELF) runs the file to its end through that command line."""

    def run(name: str, elf: bytes) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "guest.hvt").write_bytes(elf)
        command = [front(name)] if name == "solo5-hvt" else [*tender_cmd, "run"]
        return subprocess.run(
            [*command, f"--mem={MEM}", "guest.hvt"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )

    return run


def assert_end(done: "subprocess.CompletedProcess[str]", front: str, status: int, said: str) -> None:
    """Asserts this status and this line; `solo5-hvt` must print nothing else."""
    lines = done.stderr.splitlines()
    program = "solo5-hvt" if front == "solo5-hvt" else "tender"
    assert done.returncode == status, done.stderr
    assert lines[:1] == ([f"{program}: {said}"] if said else [])
    assert front == "run" or len(lines) <= 1


# ---- ends that the guest causes


@backends
@pytest.mark.parametrize("front_name", FRONTS)
@pytest.mark.parametrize(("given", "status"), [(0, 0), (83, 83), (255, 255), (0x1FE, 254)])
def test_halt(start: Run, front_name: str, given: int, status: int) -> None:
    """Stderr is empty, whatever the status. Only the guest writes to the console."""
    guest = Bare()
    guest.write(b"said\n")
    guest.halt(given)
    done = start(front_name, guest.elf())
    assert_end(done, front_name, status, "")
    assert (done.stdout, done.stderr) == ("said\n", "")


@backends
@pytest.mark.parametrize("front_name", FRONTS)
def test_a_trap_that_the_guest_handles(start: Run, guest: Guest, front_name: str) -> None:
    """The guest's handler prints the trap on the console and halts with 255. The tender prints nothing."""
    done = start(front_name, guest("null_write").read_bytes())
    assert_end(done, front_name, 255, "")
    assert "ABORT" in done.stdout and "#PF" in done.stdout


# ---- ends that the tender causes


def write_to_text() -> tuple[Bare, str]:
    guest = Bare()
    guest.store(TEXT, 1)
    return guest, f"BACKEND: host/guest translation fault: rip={TEXT + 10:#x}"  # after movabs $1, %rax


def hlt() -> tuple[Bare, str]:
    guest = Bare()
    guest.code("90 f4")
    return guest, f"BACKEND: unhandled exit: exit_reason=0x5, rip={TEXT + 2:#x}"


def triple_fault() -> tuple[Bare, str]:
    guest = Bare()
    guest.code("0f0b")  # ud2, and no IDT
    return guest, "BACKEND: unhandled exit: exit_reason=0x8, rip=ANY"


def port() -> tuple[Bare, str]:
    guest = Bare()
    guest.out(0x3F8, ord("x"))
    return guest, "Invalid guest port access: port=0x3f8"


def ring_kick_without_a_ring() -> tuple[Bare, str]:
    guest = Bare()
    guest.out(0x600, 0)
    return guest, "Invalid guest port access: port=0x600"


def hypercall() -> tuple[Bare, str]:
    guest = Bare()
    guest.out(PORT, 0)
    return guest, "Invalid guest hypercall: num=0"


def unattached_hypercall() -> tuple[Bare, str]:
    guest = Bare()
    guest.out(PORT + BLOCK_READ, 0x140000)
    return guest, f"Invalid guest hypercall: num={BLOCK_READ}"


def pointer() -> tuple[Bare, str]:
    guest = Bare()
    guest.call(PUTS, L_PUTS, 1 << 40, 77)
    return guest, f"Invalid guest access: gpa={1 << 40:#x}, sz=77 (hypercall puts, rip=ANY)"


def structure_pointer() -> tuple[Bare, str]:
    guest = Bare()
    guest.out(PORT + WALLTIME, MEM * MIB - 4)
    return guest, f"Invalid guest access: gpa={MEM * MIB - 4:#x}, sz=8 (hypercall walltime, rip=ANY)"


ENDS = (
    *(
        write_to_text,
        hlt,
        triple_fault,
        port,
        ring_kick_without_a_ring,
        hypercall,
        unattached_hypercall,
        pointer,
    ),
    structure_pointer,
)


@backends
@pytest.mark.parametrize("front_name", FRONTS)
@pytest.mark.parametrize("make", ENDS, ids=lambda make: make.__name__)
def test_a_run_that_the_tender_ends(
    start: Run, backend: str, front_name: str, make: Callable[[], tuple[Bare, str]]
) -> None:
    """The status is 1, and the message is the contract's. In the sandbox the message names the sandbox
    where it would name KVM."""
    guest, said = make()
    done = start(front_name, guest.elf())
    seen = done.stderr.replace(f"{BACKEND_NAME[backend]}: ", "BACKEND: ", 1)
    if "ANY" in said:
        seen = re.sub(r"rip=0x[0-9a-f]+", "rip=ANY", seen)
    done.stderr = seen
    assert_end(done, front_name, 1, said)


@backends
@pytest.mark.parametrize("front_name", FRONTS)
def test_output_before_such_an_end_is_kept(start: Run, front_name: str) -> None:
    guest = Bare()
    guest.write(b"before\n")
    guest.out(0x3F8, 0)
    guest.write(b"after\n")
    assert start(front_name, guest.elf()).stdout == "before\n"


# ---- KVM only: memory that does not exist, reached through the guest's own page tables


def mapped_too_far() -> Bare:
    guest = Bare()
    guest.cr3(guest.tables(2 * MEM * MIB))
    return guest


@pytest.mark.kvm
@pytest.mark.parametrize("front_name", FRONTS)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_memory_that_does_not_exist_is_an_unhandled_exit(
    start: Run, monkeypatch: pytest.MonkeyPatch, front_name: str, write: bool
) -> None:
    """KVM reports an MMIO exit, number 6, and there is no device at that address."""
    monkeypatch.setenv("TENDER_BACKEND", "kvm")
    guest = mapped_too_far()
    rip = guest.here + (20 if write else 0)  # KVM has already advanced past a write
    if write:
        guest.store((MEM + 2) * MIB, 1)
    else:
        guest.load((MEM + 2) * MIB)
    done = start(front_name, guest.elf())
    assert_end(done, front_name, 1, f"KVM: unhandled exit: exit_reason=0x6, rip={rip:#x}")


@pytest.mark.kvm
def test_code_that_does_not_exist_is_an_internal_error(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor cannot fetch the instruction, so KVM cannot emulate it either: suberror 1, a failed
    emulation."""
    monkeypatch.setenv("TENDER_BACKEND", "kvm")
    guest = mapped_too_far()
    guest.code(b"\xb8" + ((MEM + 2) * MIB).to_bytes(4, "little") + b"\xff\xe0")  # mov $..., %eax; jmp *%rax
    done = start("solo5-hvt", guest.elf())
    assert_end(done, "solo5-hvt", 1, "KVM: internal error exit: suberror=0x1")


@pytest.mark.parametrize("front_name", FRONTS)
def test_a_guest_that_loads_its_own_page_tables_ends_in_the_sandbox(
    start: Run, monkeypatch: pytest.MonkeyPatch, front_name: str
) -> None:
    """A guest in the sandbox has no page tables that it could change. The message names the instruction; it
    is not emulated."""
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    done = start(front_name, mapped_too_far().elf())
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"sandbox: a privileged instruction that is not emulated: rip={TEXT + 5:#x}, bytes 0f 22 d8"
        in done.stderr
    )
