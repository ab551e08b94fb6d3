"""KvmTarget: what the backend KVM has for itself. test_situations.py has what is alike on both backends."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
from support import Guest as FindGuest

from tender.debug import kvm_vcpu, ptrace
from tender.debug.find import Guest, guests_of
from tender.debug.guard import Journal
from tender.debug.kvm import KvmTarget, restore
from tender.debug.symbols import Symbols
from tender.debug.target import DebugError, Ended, Stop, Watch, Where
from tender.native import ffi

pytestmark = pytest.mark.kvm

LIMIT_S = 120
KVM = ("--backend=kvm",)
ROUNDS = "20000000"  # of debug.elf spin: two seconds in the AMD test VM
HIT = Stop(signal.SIGTRAP, Watch.SOFTWARE)
STEPPED = Stop(signal.SIGTRAP)
needs_debug_registers = pytest.mark.usefixtures("needs_debug_registers")  # conftest.py


@pytest.fixture
def address_of(guest: FindGuest) -> Callable[[str], int]:
    """A function: address_of("tick") is the address of a symbol of debug.elf."""
    symbols = Symbols.open(str(guest("debug")))

    def find(name: str) -> int:
        symbol = symbols.find(name)
        assert symbol, name
        return symbol.address

    return find


class Running(Protocol):
    """What start_guest() of conftest.py returns."""

    process: "subprocess.Popen[bytes]"
    pid: int
    path: Path

    def end(self) -> tuple[int, bytes, bytes]: ...


StartGuest = Callable[..., Running]
Undebugged = Callable[..., tuple[int, bytes, bytes]]
Attach = Callable[[Guest | int], KvmTarget]


@pytest.fixture
def attach() -> Iterator[Attach]:
    """A function: attach(pid) stops the only guest of a process. The guest goes on at the end of the test."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    with ExitStack() as stack:

        def start(of: Guest | int) -> KvmTarget:
            journal = Journal()
            journal.guest = guest = guests_of(of)[0] if isinstance(of, int) else of
            target = KvmTarget(guest, journal)
            stack.callback(target.detach)
            return target

        yield start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def wait(target: KvmTarget) -> Stop | Ended:
    """Waits until a running guest stops or ends."""
    end = time.monotonic() + LIMIT_S
    while (what := target.poll()) is None:
        left = end - time.monotonic()
        assert left > 0, "it neither stops nor ends"
        signal.sigtimedwait({signal.SIGCHLD}, min(left, 1))
    return what


def resume(target: KvmTarget) -> Stop | Ended:
    target.resume()
    return wait(target)


def stop(target: KvmTarget) -> Stop | Ended:
    target.interrupt()
    return wait(target)


def number(target: KvmTarget, address: int) -> int:
    return int.from_bytes(target.read(address, 8), "little")


# A process that is traced cannot be waited for by its parent as well: the statuses come from the target.


def finish(target: KvmTarget, running: Running) -> tuple[int | None, bytes, bytes]:
    """Lets the guest run to its end. Returns the status, the output and stderr."""
    while not isinstance(what := resume(target), Ended):
        assert target.where() is Where.ENDED, what
    _, out, err = running.end()
    return what.status, out, err


def test_a_hypercall_is_one_step_and_its_end_can_be_stepped_to(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    running = start_guest("debug", "poll", "300", options=KVM)
    target = attach(running.pid)
    target.insert(Watch.SOFTWARE, address_of("wait_once"), 1)
    assert resume(target) == HIT
    target.remove(Watch.SOFTWARE, address_of("wait_once"), 1)
    ticks = number(target, address_of("ticks"))
    calls = target.facts().counters["hypercalls"]
    assert isinstance(calls, dict)
    for _ in range(200):  # to the end of this round
        assert target.step() == STEPPED
        if number(target, address_of("ticks")) != ticks:
            break
    later = target.facts().counters["hypercalls"]
    assert isinstance(later, dict)
    assert later["poll"] == calls["poll"] + 1
    assert finish(target, running)[:2] == (0, b"ready\nwaited 300\n")


def test_inside_a_hypercall_registers_are_read_and_not_written(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    target = attach(start_guest("debug", "sleep", options=KVM).pid)
    if target.where() is Where.GUEST:  # it has printed and is on its way
        target.resume()
        while stop(target) == Stop(signal.SIGINT) and target.where() is Where.GUEST:
            target.resume()
    assert target.where() is Where.HYPERCALL
    assert Symbols.open(str(target.facts().image)).at(target.registers().rip)
    with pytest.raises(DebugError, match="inside a hypercall"):
        target.set_registers(target.registers())
    target.kill()
    assert wait(target) == Ended(None, signal.SIGKILL)


def test_registers_are_written_at_an_instruction(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    target = attach(start_guest("debug", "spin", ROUNDS, options=KVM).pid)
    target.insert(Watch.SOFTWARE, address_of("tick"), 1)
    assert resume(target) == HIT
    wanted = target.registers()._with(r15=0x1234567890ABCDEF, fs_base=0x7000, gs_base=0x8000)
    target.set_registers(wanted)
    assert target.registers() == wanted
    assert target.step() == STEPPED
    assert target.registers().r15 == 0x1234567890ABCDEF
    assert (target.registers().fs_base, target.registers().gs_base) == (0x7000, 0x8000)


@pytest.mark.parametrize("bad", [{"rip": 1 << 50}, {"fs_base": 1 << 60}, {"rflags": 1 << 17 | 2}])
def test_values_that_no_guest_may_have_are_refused(
    start_guest: StartGuest, attach: Attach, bad: dict[str, int], address_of: Callable[[str], int]
) -> None:
    target = attach(start_guest("debug", "spin", ROUNDS, options=KVM).pid)
    target.insert(Watch.SOFTWARE, address_of("tick"), 1)
    assert resume(target) == HIT
    before = target.registers()
    with pytest.raises(DebugError, match=r"address|8086"):
        target.set_registers(before._with(**bad))
    assert target.registers() == before


def test_a_hlt_of_the_guest_itself_ends_its_run_as_without_a_debugger(
    start_guest: StartGuest,
    attach: Attach,
    address_of: Callable[[str], int],
    undebugged: Undebugged,
    guest: FindGuest,
) -> None:
    running = start_guest("debug", "spin", ROUNDS, options=KVM)
    target = attach(running.pid)
    target.write(address_of("tick"), b"\xf4")
    assert resume(target) == Stop(signal.SIGABRT)
    assert target.where() is Where.ENDED
    assert target.facts().reason == "unhandled-exit"
    with pytest.raises(DebugError, match="at its end"):
        target.set_registers(target.registers())
    status, _, err = finish(target, running)
    expected, _, told = undebugged("debug", "halt", options=KVM)
    assert status == expected == 1
    assert err.partition(b"rip=")[0] == told.partition(b"rip=")[0]
    assert err.endswith(b"rip=%#x\n" % (address_of("tick") + 1))


def test_facts_and_memory_are_those_of_the_run(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    running = start_guest("debug", "spin", ROUNDS, options=KVM)
    target = attach(running.pid)
    facts = target.facts()
    assert (facts.backend, facts.pid, facts.image, facts.mem_bytes) == (
        "kvm",
        running.pid,
        str(running.path),
        16 << 20,
    )
    assert (facts.reason, facts.status, len(facts.digest)) == ("live", None, 64)
    text = [it for it in target.mappings() if it.flags == 5]
    assert any(it.start <= address_of("tick") < it.end for it in text)
    assert [it.start for it in target.mappings()][1:] == [it.end for it in target.mappings()][:-1]
    touched = target.touched()
    assert sum(end - start for start, end in touched) < 2 << 20
    at = 0
    for start, end in [*touched, (16 << 20, 16 << 20)]:
        assert not any(target.read(at, start - at))
        at = end


def test_a_signal_that_comes_while_the_guest_is_stopped_ends_it_later(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    running = start_guest("debug", "spin", "2000000000", options=KVM)
    target = attach(running.pid)
    target.insert(Watch.SOFTWARE, address_of("tick"), 1)
    assert resume(target) == HIT
    os.kill(running.pid, signal.SIGTERM)
    target.remove(Watch.SOFTWARE, address_of("tick"), 1)
    status, _, err = finish(target, running)
    assert (status, err) == (1, b"tender: Exiting on signal 15\n")


IDLE = """
import sys
from tender import Image, Vm, VmConfig
with Image.open(sys.argv[1]) as image, Vm(image, VmConfig(mem="16M"), console="capture", backend="kvm") as vm:
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_vm_that_does_not_run_is_refused(guest: FindGuest) -> None:
    words = [sys.executable, "-P", "-c", IDLE, str(guest("debug"))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        found = guests_of(process.pid)
        with pytest.raises(DebugError, match="does not run now"):
            KvmTarget(found[0])
        process.kill()


SYSTEM_CALLS = 16
"""A little more than a guest makes between two tries at a breakpoint whose debugger was killed."""


def test_a_guard_may_come_at_each_system_call_of_a_guest_that_tries_a_breakpoint_again(
    start_guest: StartGuest,
    address_of: Callable[[str], int],
    undebugged: Undebugged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start_guest("debug", "spin", ROUNDS, options=KVM)
    found, tick = guests_of(running.pid)[0], address_of("tick")
    tries = found.shared_hva + ffi.offsetof("struct vm_shared", "told_tries")

    def stay(tid: int, _: int = 0) -> None:
        """In place of ptrace.seize(): the thread is traced, and stops with EVENT_STOP before it executes anything."""
        ptrace.interrupt(tid)
        ptrace.cont(tid)

    for stops in range(SYSTEM_CALLS):
        journal = Journal()
        if (child := os.fork()) == 0:
            journal.guest = found
            target = KvmTarget(found, journal)
            target.insert(Watch.SOFTWARE, tick, 1)
            target.resume()
            target._wait()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        while not any(ptrace.read_memory(found.pid, tries, 4)):
            assert running.process.poll() is None, (stops, running.end())
        ptrace.seize(found.tid, ptrace.O_TRACESYSGOOD)
        ptrace.interrupt(found.tid)
        ptrace.wait(found.tid)
        for _ in range(stops):
            ptrace.cont_to_syscall(found.tid)
            ptrace.wait(found.tid)
        with monkeypatch.context() as patched:
            patched.setattr(ptrace, "seize", stay)
            restore(found, journal)
        assert running.process.poll() is None, (stops, running.end())
    assert running.end() == undebugged("debug", "spin", ROUNDS, options=KVM)


@pytest.mark.parametrize(
    ("what", "amount", "places"),
    [("spin", "100000000", ("tick", "walk")), ("poll", "3000", ("wait_once", "poll_wait"))],
)
def test_attaching_and_leaving_again_and_again_harms_no_guest(
    start_guest: StartGuest,
    attach: Attach,
    address_of: Callable[[str], int],
    what: str,
    amount: str,
    places: tuple[str, ...],
) -> None:
    dice = random.Random(what)
    running = start_guest("debug", what, amount, options=KVM)
    for _ in range(20):
        target = attach(running.pid)
        for place in places:
            target.insert(Watch.SOFTWARE, address_of(place), 1)
        for _ in range(dice.randrange(3)):
            assert resume(target) == HIT
        target.resume()
        target.detach()
    status, out, _ = running.end()
    assert status == 0
    assert out.endswith(b"waited 3000\n" if what == "poll" else b"\n")


@needs_debug_registers
def test_hardware_breakpoints_and_watchpoints_hit(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    running = start_guest("debug", "spin", ROUNDS, options=KVM)
    target = attach(running.pid)
    ticks = address_of("ticks")
    target.insert(Watch.WRITE, ticks, 8)
    before = number(target, ticks)
    assert resume(target) == Stop(signal.SIGTRAP, Watch.WRITE, ticks)
    assert number(target, ticks) == before + 1
    target.remove(Watch.WRITE, ticks, 8)
    target.insert(Watch.HARDWARE, address_of("tick"), 1)
    for _ in range(2):
        assert resume(target) == Stop(signal.SIGTRAP, Watch.HARDWARE)
        assert target.registers().rip == address_of("tick")
    assert target.step() == STEPPED
    target.remove(Watch.HARDWARE, address_of("tick"), 1)
    target.insert(Watch.ACCESS, ticks, 8)
    assert resume(target) == Stop(signal.SIGTRAP, Watch.ACCESS, ticks)
    target.remove(Watch.ACCESS, ticks, 8)
    assert finish(target, running)[0] == 0


def test_there_are_four_hardware_breakpoints(
    start_guest: StartGuest, attach: Attach, address_of: Callable[[str], int]
) -> None:
    target = attach(start_guest("debug", "spin", ROUNDS, options=KVM).pid)
    target.insert(Watch.SOFTWARE, address_of("tick"), 1)
    assert resume(target) == HIT
    for i in range(4):
        target.insert(Watch.WRITE, address_of("ticks") + 64 * i & -8, 8)
    with pytest.raises(DebugError, match="all 4"):
        target.insert(Watch.ACCESS, address_of("ticks") & -8, 4)
    target.remove(Watch.WRITE, address_of("ticks") + 64 & -8, 8)
    with pytest.raises(DebugError, match="1, 2, 4 or 8"):
        target.insert(Watch.ACCESS, address_of("ticks") & -8, 3)
    target.insert(Watch.ACCESS, address_of("ticks") & -8, 4)


def test_the_structures_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    """An offset that is wrong would be found late, as a guest that goes astray."""
    ours = {
        "KVM_RUN": kvm_vcpu.KVM_RUN,
        "KVM_GET_REGS": kvm_vcpu.KVM_GET_REGS,
        "KVM_SET_GUEST_DEBUG": kvm_vcpu.KVM_SET_GUEST_DEBUG,
        "KVM_GET_XSAVE": kvm_vcpu.KVM_GET_XSAVE,
        "KVM_SET_XSAVE": kvm_vcpu.KVM_SET_XSAVE,
        "KVM_EXIT_UNKNOWN": kvm_vcpu.EXIT_UNKNOWN,
        "KVM_EXIT_IO": kvm_vcpu.EXIT_IO,
        "KVM_EXIT_HLT": kvm_vcpu.EXIT_HLT,
        "KVM_EXIT_INTR": kvm_vcpu.EXIT_INTR,
        "KVM_GUESTDBG_ENABLE": kvm_vcpu.DEBUG_ENABLE,
        "KVM_GUESTDBG_SINGLESTEP": kvm_vcpu.DEBUG_SINGLESTEP,
        "KVM_GUESTDBG_USE_HW_BP": kvm_vcpu.DEBUG_USE_HW,
        "KVM_SYNC_X86_REGS": kvm_vcpu.SYNC_REGS,
        "KVM_SYNC_X86_SREGS": kvm_vcpu.SYNC_SREGS,
        "offsetof(struct kvm_run, immediate_exit)": kvm_vcpu.IMMEDIATE_EXIT,
        "offsetof(struct kvm_run, exit_reason)": kvm_vcpu.EXIT_REASON,
        "offsetof(struct kvm_run, debug.arch)": kvm_vcpu.DEBUG_EXIT,
        "offsetof(struct kvm_run, debug.arch.dr6)": kvm_vcpu.DEBUG_EXIT + 16,
        "offsetof(struct kvm_run, kvm_valid_regs)": kvm_vcpu.VALID,
        "offsetof(struct kvm_run, kvm_dirty_regs)": kvm_vcpu.DIRTY,
        "offsetof(struct kvm_run, s.regs.regs)": kvm_vcpu.REGS,
        "offsetof(struct kvm_run, s.regs.sregs)": kvm_vcpu.SREGS,
        "sizeof(struct kvm_regs)": kvm_vcpu.REGS_STRUCT.size,
        "sizeof(struct kvm_sregs)": kvm_vcpu.SREGS_BYTES,
        "offsetof(struct kvm_sregs, fs.base)": kvm_vcpu.FS_BASE,
        "offsetof(struct kvm_sregs, gs.base)": kvm_vcpu.GS_BASE,
        "offsetof(struct kvm_sregs, cr4)": kvm_vcpu.CR4,
        "sizeof(struct kvm_guest_debug)": kvm_vcpu.GUEST_DEBUG.size,
        "offsetof(struct kvm_guest_debug, arch)": 8,
        "sizeof(struct kvm_xsave)": kvm_vcpu.XSAVE_BYTES,
        **{f"offsetof(struct kvm_regs, {name})": 8 * at for at, name in enumerate(kvm_vcpu.GENERAL)},
    }
    code = "".join(f'printf("%ld\\n", (long)({name}));' for name in ours)
    (tmp_path / "it.c").write_text(
        f"#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {code} }}\n"
    )
    subprocess.run(["cc", tmp_path / "it.c", "-o", tmp_path / "it"], check=True)
    done = subprocess.run([tmp_path / "it"], check=True, capture_output=True, text=True)
    assert dict(zip(ours, map(int, done.stdout.split()), strict=True)) == ours
