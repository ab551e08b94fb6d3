"""Guests are found from outside, and the unwind tables of the sandbox's program lead to the guest."""

import os
import subprocess
import threading
from collections.abc import Callable
from errno import EPERM
from pathlib import Path
from typing import Any

import pytest
from support import Guest

from tender import DISCARD, Image, Vm, VmConfig
from tender.debug import find, ptrace
from tender.debug.symbols import Symbols
from tender.debug.target import DebugError

StartGuest = Callable[..., Any]  # conftest.py
FOREVER = "4000000000"


def test_the_guest_of_the_command_is_found_with_its_image(start_guest: StartGuest) -> None:
    running = start_guest("debug", "spin", FOREVER, options=("--backend=sandbox",))
    (guest,) = find.guests_of(running.pid)
    assert (guest.backend, guest.pid, guest.tid, guest.holder) == ("sandbox", *(running.pid,) * 3)
    assert Path(guest.image).samefile(running.path)
    assert guest.mem_bytes == 16 << 20
    assert guest in find.guests()


def test_no_path_of_the_host_is_in_the_memory_that_a_guest_can_read(start_guest: StartGuest) -> None:
    running = start_guest("debug", "spin", FOREVER, options=("--backend=sandbox",))
    directory = os.fsencode(running.path.parent)
    for map in find.maps_of(running.pid):
        if map.rights.startswith("r") and not map.name.startswith("[v"):
            assert directory not in ptrace.read_memory(running.pid, map.start, map.end - map.start), map.name


def test_the_guests_of_a_library_are_found_by_its_process_its_threads_and_their_own(guest: Guest) -> None:
    config = VmConfig(mem=16, args=("sleep",))
    with Image.open(guest("debug")) as image, Image.from_bytes(guest("debug").read_bytes()) as nameless:
        with (
            Vm(image, config, console=DISCARD, backend="sandbox") as one,
            Vm(nameless, config, console=DISCARD, backend="sandbox") as two,
        ):
            one.start()
            by_process = find.guests_of(os.getpid())
            assert {found.pid: found.image for found in by_process} == {
                one.pid: os.path.realpath(image.path),
                two.pid: "",
            }
            assert all(found.holder == os.getpid() for found in by_process)
            thread = threading.Thread(target=lambda: seen.append(find.guests_of(threading.get_native_id())))
            seen: list[object] = []
            thread.start()
            thread.join()
            assert seen == [by_process]
            assert one.pid
            assert find.guests_of(one.pid) == [found for found in by_process if found.pid == one.pid]
        with pytest.raises(DebugError, match="it runs no guest") as refused:
            find.guests_of(os.getpid())
        assert refused.value.code == "debug-no-guest"


def test_a_process_that_is_gone_or_has_no_guest_is_told_apart() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat:
        with pytest.raises(DebugError, match="it runs no guest"):
            find.guests_of(cat.pid)
        cat.kill()
    with pytest.raises(ptrace.Gone, match="there is no such process"):
        find.guests_of(cat.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_users_guest_is_refused_with_the_rule(start_guest: StartGuest) -> None:
    running = start_guest("debug", "spin", FOREVER, options=("--backend=sandbox",))
    told: list[str] = []
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(1000, 1000, 1000)
            find.guests_of(running.pid)
        except DebugError as error:
            os.write(writer, f"{error.errno} {error.message} / {error.hint}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told.append(file.read())
    os.waitpid(child, 0)
    assert told[0].startswith(f"{EPERM} process {running.pid}: it belongs to the user "), told
    assert told[0].endswith(f"sudo tender debug {running.pid}")


@pytest.mark.parametrize(
    "how", [("poll", "1000000000"), ("sleep",), ("privileged", "1000000000"), ("wedge",)]
)
def test_the_tables_lead_from_a_handler_to_the_guest(start_guest: StartGuest, how: tuple[str, ...]) -> None:
    """The thread is stopped at some hundred instructions, most of them the handlers'."""
    running = start_guest("debug", *how, options=("--backend=sandbox",))
    (guest,) = find.guests_of(running.pid)
    tables = Symbols.open(f"/proc/{guest.pid}/exe")
    image = Symbols.open(str(running.path))
    ptrace.seize(guest.tid)
    ptrace.interrupt(guest.tid)
    status = ptrace.wait(guest.tid)
    unwound = 0
    for _ in range(400):
        assert status
        unwound += _unwind(guest, tables, image)
        ptrace.step(guest.tid, status.stop if not status.event and status.stop != 5 else 0)
        status = ptrace.wait(guest.tid, block=how[0] != "sleep")
        if status is None:
            break
    assert unwound > (0 if how[0] == "sleep" else 20)


_DWARF = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip")


def _unwind(guest: find.Guest, tables: Symbols, image: Symbols) -> bool:
    """Whether the thread is in a handler, from which the tables lead to the guest."""
    state = ptrace.getregs(guest.tid)
    registers = {number: state[name] for number, name in enumerate(_DWARF)}
    if registers[16] < 1 << 32 or _has_no_table(guest, registers[16]):
        return False
    in_program = range(guest.base, guest.base + guest.note["program_end"])
    is_return = False
    for _ in range(32):
        assert registers[16] in in_program, hex(registers[16])
        was = registers[16] - guest.base
        caller = tables.caller(
            registers | {16: was},
            lambda address, length: ptrace.read_memory(guest.pid, address, length),
            is_return=is_return,
        )
        assert caller, f"{was:#x} has no caller"
        registers = caller
        is_return = was not in range(guest.note["entry_patched"], guest.note["entry_patched_end"])
        if registers[16] < 1 << 32:
            assert image.at(registers[16]) or registers[16] in range(0x10000, 0x100000), hex(registers[16])
            assert registers[7] < guest.mem_bytes
            return True
    raise AssertionError("the stack does not end")


def _has_no_table(guest: find.Guest, rip: int) -> bool:
    """Two jumps, one to the system call and one to the guest, and what is not the program's (the vDSO)."""
    code = ptrace.read_memory(guest.pid, rip, 6)
    target = rip + 5 + int.from_bytes(code[1:5], "little", signed=True)
    return (
        (code[0] == 0xE9 and target == guest.base + guest.note["syscall_instruction"])
        or code[:2] == b"\xff\x25"
        or not guest.base <= rip < guest.base + guest.note["program_end"]
    )


# ---- on KVM


@pytest.mark.kvm
def test_the_guest_of_the_command_on_kvm_is_found_where_it_runs(start_guest: StartGuest) -> None:
    running = start_guest("debug", "spin", FOREVER, options=("--backend=kvm",))
    (guest,) = find.guests_of(running.pid)
    assert (guest.backend, guest.pid, guest.tid, guest.holder) == ("kvm", *(running.pid,) * 3)
    assert Path(guest.image).samefile(running.path)
    assert guest.mem_bytes == 16 << 20
    assert os.readlink(f"/proc/{guest.pid}/fd/{guest.values['vcpu_fd']}").startswith("anon_inode:kvm-vcpu")
    places = {map.start: map for map in find.maps_of(guest.pid)}
    assert "kvm-vcpu" in places[guest.values["run_hva"]].name
    elf = Path(guest.image).read_bytes()
    assert ptrace.read_memory(guest.pid, guest.memory_hva + 0x100000, 16) in elf
    assert ptrace.read_memory(guest.pid, guest.base + guest.note["syscall"], 4) == b"\x0f\x05\xeb\xfe"


@pytest.mark.kvm
def test_the_vms_of_a_library_on_kvm_are_found_with_their_threads(guest: Guest) -> None:
    config = VmConfig(mem=16, args=("sleep",))
    with Image.open(guest("debug")) as image:
        with (
            Vm(image, config, console=DISCARD, backend="kvm") as one,
            Vm(image, config, console=DISCARD, backend="kvm"),
            Vm(image, config, console=DISCARD, backend="sandbox"),
        ):
            one.start()
            while not one.counters.exits:
                threading.Event().wait(0.001)
            found = find.guests_of(os.getpid())
            assert sorted(each.backend for each in found) == ["kvm", "kvm", "sandbox"]
            (tid,) = (each.tid for each in found if each.tid and each.backend == "kvm")
            assert tid != os.getpid()
            assert os.path.exists(f"/proc/self/task/{tid}")
            assert all(Path(each.image).samefile(image.path) for each in found)
        with pytest.raises(DebugError, match="it runs no guest"):
            find.guests_of(os.getpid())
