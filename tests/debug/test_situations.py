"""A debugger's target: a guest is stopped, looked into, changed and left, whatever it does at that moment.

One table of situations times what is done, on both backends. The output and the status are those of a run that nobody
looks at. What only one backend can do:

    sandbox  a fault of the guest is a stop before its own handler has it. On KVM the processor calls that handler, and
             nothing of KVM is left with that.
    sandbox  a call site of a hypercall that is patched is one instruction, and has no inside
    KVM      hardware breakpoints need a processor that has debug exceptions for guests: not every emulated one has

test_kvm_debug.py, test_kills.py have more of KVM, and of debuggers that are killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import Guest as FindGuest

from tender.debug.attach import attach as attach_to
from tender.debug.find import Guest, guests_of
from tender.debug.guard import Journal
from tender.debug.symbols import Symbols
from tender.debug.target import DebugError, Ended, Stop, Target, Watch, Where

pytestmark = pytest.mark.backends

LIMIT_S = 120
HIT = Stop(signal.SIGTRAP, Watch.SOFTWARE)
STEPPED = Stop(signal.SIGTRAP)
ROUNDS = "20000000"  # of debug.elf spin: about a second
WAITS = "500"
LANES = {
    "sandbox": "4000000000",
    "kvm": "300000000",
}  # of debug.elf vectors: a second, also on an emulated machine
STEPS = {"sandbox": 60, "kvm": 10}  # on an emulated machine each takes 20 ms and more

StartGuest = Callable[..., Any]  # conftest.py
Undebugged = Callable[..., tuple[int, bytes, bytes]]
Attach = Callable[[Guest | int], Target]


class Situation(NamedTuple):
    """What a guest does when the debugger comes.

    Attributes:
        guest: Its name.
        what: Its first argument.
        amounts: Its second one on each backend: a second or more, also on an emulated processor.
        stack: The functions of its stack.
        called: One that it calls again and again; empty: none.
    """

    guest: str
    what: str
    amounts: dict[str, str]
    stack: tuple[str, ...]
    called: str = ""

    def words(self, backend: str) -> tuple[str, str, str]:
        return self.guest, self.what, self.amounts[backend]


BOTTOM = ("main", "guest_start", "_start")
SITUATIONS = {
    "computes": Situation(
        "debug", "spin", {"sandbox": ROUNDS, "kvm": ROUNDS}, ("spin", *BOTTOM), called="tick"
    ),
    "waits by the gate": Situation(
        "debug", "poll", {"sandbox": WAITS, "kvm": WAITS}, ("wait", *BOTTOM), called="wait_once"
    ),
    "waits by a call site of its own": Situation(
        "debug_nogate", "poll", {"sandbox": WAITS, "kvm": WAITS}, ("wait", *BOTTOM), called="wait_once"
    ),
    "computes in vector registers": Situation("debug", "vectors", LANES, ("vectors", *BOTTOM)),
    "executes what only ring 0 may": Situation(
        "debug", "privileged", {"sandbox": "300000", "kvm": "50000000"}, ("privileged", *BOTTOM)
    ),
}
situations = pytest.mark.parametrize("situation", SITUATIONS.values(), ids=list(SITUATIONS))
calls = pytest.mark.parametrize(
    "situation",
    [it for it in SITUATIONS.values() if it.called],
    ids=[name for name, it in SITUATIONS.items() if it.called],
)


@pytest.fixture
def attach() -> Iterator[Attach]:
    """A function: attach(pid) stops the only guest of a process. The guest goes on at the end of the test."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    with ExitStack() as stack:

        def start(of: Guest | int) -> Target:
            target = attach_to(guests_of(of)[0] if isinstance(of, int) else of, Journal())
            stack.callback(target.detach)
            return target

        yield start
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def wait(target: Target) -> Stop | Ended:
    """Waits until a running guest stops or ends."""
    end = time.monotonic() + LIMIT_S
    while (what := target.poll()) is None:
        left = end - time.monotonic()
        assert left > 0, "it neither stops nor ends"
        signal.sigtimedwait({signal.SIGCHLD}, min(left, 0.1))
    return what


def resume(target: Target) -> Stop | Ended:
    target.resume()
    return wait(target)


def stop(target: Target) -> Stop | Ended:
    target.resume()
    target.interrupt()
    return wait(target)


def functions(symbols: Symbols, target: Target) -> list[str]:
    return [frame.function for frame in symbols.backtrace(target.registers(), target.read)]


def functions_within(symbols: Symbols, target: Target, name: str) -> list[str]:
    """Returns the stack once a function is in it: after its first line of output the guest is still on its way there."""
    end = time.monotonic() + LIMIT_S
    while name not in (found := functions(symbols, target)):
        assert time.monotonic() < end, found
        assert stop(target) == Stop(signal.SIGINT)
    return found


def finish(target: Target, running: Any) -> tuple[int | None, bytes, bytes]:
    """Lets the guest run to its end under the debugger. Returns its status, its output and stderr."""
    while not isinstance(what := resume(target), Ended):
        assert target.where() is Where.ENDED, what
    _, out, err = running.end()
    return what.status, out, err


def address(symbols: Symbols, name: str) -> int:
    symbol = symbols.find(name)
    assert symbol, name
    return symbol.address


@situations
def test_a_debugged_guest_does_what_an_undebugged_one_does(
    situation: Situation, backend: str, start_guest: StartGuest, attach: Attach, undebugged: Undebugged
) -> None:
    running = start_guest(*situation.words(backend))
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    stack = functions_within(symbols, target, situation.stack[0])
    assert tuple(stack[-len(situation.stack) :]) == situation.stack, stack
    assert target.facts().arguments == " ".join(situation.words(backend)[1:])
    for _ in range(STEPS[backend]):
        assert target.step() == STEPPED
        assert target.where() is Where.GUEST
    if situation.called:
        called = address(symbols, situation.called)
        target.insert(Watch.SOFTWARE, called, 1)
        for _ in range(3):
            assert resume(target) == HIT
            assert target.registers().rip == called
            assert functions(symbols, target)[0] == situation.called
        for _ in range(STEPS[backend]):
            assert target.step() in (STEPPED, HIT)
        target.remove(Watch.SOFTWARE, called, 1)
    assert stop(target) == Stop(signal.SIGINT)
    assert finish(target, running) == undebugged(*situation.words(backend))


@calls
@pytest.mark.usefixtures("needs_debug_registers")
def test_hardware_breakpoints_and_watchpoints_hit(
    situation: Situation, backend: str, start_guest: StartGuest, attach: Attach, undebugged: Undebugged
) -> None:
    running = start_guest(*situation.words(backend))
    symbols = Symbols.open(str(running.path))
    called, ticks = address(symbols, situation.called), address(symbols, "ticks")
    target = attach(running.pid)
    functions_within(symbols, target, situation.stack[0])
    target.insert(Watch.WRITE, ticks, 8)
    assert resume(target) == Stop(signal.SIGTRAP, Watch.WRITE, ticks)
    target.remove(Watch.WRITE, ticks, 8)
    target.insert(Watch.HARDWARE, called, 1)
    for _ in range(2):
        assert resume(target) == Stop(signal.SIGTRAP, Watch.HARDWARE)
        assert target.registers().rip == called
    target.remove(Watch.HARDWARE, called, 1)
    assert finish(target, running) == undebugged(*situation.words(backend))


@situations
def test_a_debugger_that_leaves_leaves_nothing_behind(
    situation: Situation, backend: str, start_guest: StartGuest, attach: Attach, undebugged: Undebugged
) -> None:
    running = start_guest(*situation.words(backend))
    symbols = Symbols.open(str(running.path))
    for _ in range(10):
        target = attach(running.pid)
        target.insert(Watch.SOFTWARE, address(symbols, situation.called or "invalid"), 1)
        target.insert(Watch.WRITE, address(symbols, "ticks"), 8)
        target.step()
        target.resume()
        target.detach()
    assert running.end() == undebugged(*situation.words(backend))


FAULTS = {
    "fault": (signal.SIGSEGV, "total", "value_of"),
    "divide": (signal.SIGFPE, "divide", "divide"),
    "invalid": (signal.SIGILL, "invalid", "invalid"),
}


@pytest.mark.parametrize(("number", "called", "function"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_ends_the_guest_by_its_own_handler_and_is_a_stop_before_it_in_the_sandbox(
    number: int, called: str, function: str, backend: str, start_guest: StartGuest, attach: Attach
) -> None:
    running = start_guest("debug", "poll", "100")
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    # The guest is sent into the function that faults: it comes back from there to its own handler only.
    target.insert(Watch.SOFTWARE, address(symbols, "wait_once"), 1)
    assert resume(target) == HIT
    target.remove(Watch.SOFTWARE, address(symbols, "wait_once"), 1)
    target.set_registers(target.registers()._with(rip=address(symbols, called), rdi=0, rsi=2))
    if backend == "sandbox":
        assert resume(target) == Stop(number)
        assert functions(symbols, target)[0] == function
    assert resume(target) == Stop(signal.SIGABRT)
    assert target.where() is Where.ENDED
    fault = target.facts().fault
    assert fault
    there = target.registers()._with(rip=fault["rip"])
    assert symbols.backtrace(there, target.read)[0].function == function
    assert resume(target) == Ended(255)
    assert b"trap:" in running.end()[1]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_stopped_process_stays_stopped_until_it_is_continued(
    start_guest: StartGuest, attach: Attach, undebugged: Undebugged
) -> None:
    running = start_guest("debug", "spin", ROUNDS)
    pid = guests_of(running.pid)[0].pid
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + LIMIT_S
    while state_of(pid) != "T":
        assert time.monotonic() < end
    target = attach(running.pid)
    assert functions(Symbols.open(str(running.path)), target)[-1] == "_start"
    assert stop(target) == Stop(signal.SIGINT)
    target.detach()
    while state_of(pid) != "T":
        assert time.monotonic() < end
    os.kill(pid, signal.SIGCONT)
    assert running.end() == undebugged("debug", "spin", ROUNDS)


def test_a_console_write_that_blocks_is_seen_with_its_stack(
    start_guest: StartGuest, attach: Attach, undebugged: Undebugged
) -> None:
    running = start_guest("debug", "print", "1000000")
    target = attach(running.pid)
    symbols = Symbols.open(str(running.path))
    functions_within(symbols, target, "console_write")
    while target.where() is not Where.HYPERCALL:
        assert stop(target) == Stop(signal.SIGINT)
    assert functions(symbols, target)[-4:] == ["print", "main", "guest_start", "_start"]
    with pytest.raises(DebugError, match="inside a hypercall"):
        target.set_registers(target.registers())
    target.detach()
    assert running.end() == undebugged("debug", "print", "1000000")


def test_a_wedged_guest_is_seen(backend: str, start_guest: StartGuest, attach: Attach) -> None:
    running = start_guest("debug", "wedge")
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    for _ in range(2):
        if backend == "sandbox":
            assert resume(target) == Stop(signal.SIGILL)
        assert functions_within(symbols, target, "invalid")[0] == "invalid"
    target.kill()
    assert resume(target) == Ended(None, signal.SIGKILL)


def test_memory_shows_the_image_and_takes_what_is_written(start_guest: StartGuest, attach: Attach) -> None:
    running = start_guest("debug", "poll", WAITS)
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    called, ticks = address(symbols, "wait_once"), address(symbols, "ticks")
    text = symbols.elf.text(called, 16)
    target.insert(Watch.SOFTWARE, called, 1)
    assert target.read(called, 16) == text
    target.write(called, text)  # the breakpoint stays
    for _ in range(2):
        assert resume(target) == HIT
    target.remove(Watch.SOFTWARE, called, 1)
    assert target.read(called, 16) == text
    left = int(WAITS) - int.from_bytes(target.read(ticks, 8), "little")
    target.write(ticks, (7).to_bytes(8, "little"))
    assert target.read(ticks, 8) == (7).to_bytes(8, "little")
    assert target.read(16 << 20, 1) == b""
    with pytest.raises(DebugError, match=r"not all the guest's|no guest memory"):
        target.write((16 << 20) - 4, bytes(8))
    with pytest.raises(DebugError, match=r"has no code or data|no guest memory"):
        target.insert(Watch.SOFTWARE, 16 << 20, 1)
    assert resume(target) == Stop(signal.SIGINT)
    assert target.read(ticks, 8) == (7 + left).to_bytes(8, "little")


def test_a_hypercall_is_one_step(backend: str, start_guest: StartGuest, attach: Attach) -> None:
    """By the instruction that the image has for it: a call site of its own, which the sandbox patches as a whole."""
    running = start_guest("debug_nogate", "poll", WAITS)
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    start = address(symbols, "gate_poll")
    text = symbols.elf.text(start, 64)
    site = start + text.index(b"\xba\x03\x05\x00\x00\xef")  # mov $0x503,%edx; out: hypercall 3 is poll
    at, after = (site, site + 6) if backend == "sandbox" else (site + 5, site + 6)
    if backend == "sandbox":
        for inner in range(1, 6):
            with pytest.raises(DebugError, match="inside of the hypercall"):
                target.insert(Watch.SOFTWARE, site + inner, 1)
    target.insert(Watch.SOFTWARE, at, 1)
    assert target.read(start, len(text)) == text
    assert resume(target) == HIT
    assert target.registers().rip == at
    assert target.step() == STEPPED
    assert target.registers().rip == after
    target.write(site - 1, target.read(site - 1, 8))  # unchanged: the call site stays as it is
    assert resume(target) == HIT
    assert target.registers().rip == at


def test_vector_registers_are_read_and_written(backend: str, start_guest: StartGuest, attach: Attach) -> None:
    running = start_guest("debug", "vectors", LANES[backend])
    target = attach(running.pid)
    functions_within(Symbols.open(str(running.path)), target, "vectors")
    lanes = 160 + 16 * 5  # XMM5 in the area of FXSAVE; Intel SDM volume 1, 10.5.1
    while target.registers().xsave[lanes : lanes + 8] != (3).to_bytes(8, "little"):  # before the loop
        target.step()
    for _ in range(9):
        target.step()
    assert target.registers().xsave[lanes : lanes + 16] == (3).to_bytes(8, "little") + (5).to_bytes(
        8, "little"
    )
    xsave = bytearray(target.registers().xsave)
    xsave[lanes : lanes + 32] = bytes(32)  # and XMM6, the sum
    target.set_registers(target.registers()._with(xsave=bytes(xsave)))
    assert target.registers().xsave[lanes : lanes + 32] == bytes(32)
    assert finish(target, running)[:2] == (0, b"ready\nlanes 0 0\n")


def test_the_end_is_a_stop_with_the_state_still_there(start_guest: StartGuest, attach: Attach) -> None:
    running = start_guest("debug", "poll", WAITS)
    symbols = Symbols.open(str(running.path))
    target = attach(running.pid)
    assert resume(target) == Stop(signal.SIGINT)
    assert target.where() is Where.ENDED
    assert functions(symbols, target)[-1] == "_start"
    assert target.read(address(symbols, "ticks"), 8) == int(WAITS).to_bytes(8, "little")
    facts = target.facts()
    assert (facts.reason, facts.status, facts.arguments) == ("exit", 0, f"poll {WAITS}")
    assert resume(target) == Ended(0)


LIBRARY = """
import sys, threading
from tender import Image, Vm, VmConfig
def tell(vm):
    result = vm.wait()
    print(result.reason, result.status, result.console.decode().split(), flush=True)
with Image.open(sys.argv[1]) as image:
    config = VmConfig(mem="16M", args=sys.argv[2:])
    vms = [Vm(image, config, console="capture") for _ in range(2)]
    for vm in vms:
        vm.start()
    tellers = [threading.Thread(target=tell, args=(vm,)) for vm in vms]
    for teller in tellers:
        teller.start()
    print("ready", flush=True)
    for teller in tellers:
        teller.join()
"""


def test_a_breakpoint_in_one_of_two_guests_of_an_image_is_only_there(
    guest: FindGuest, attach: Attach, undebugged: Undebugged
) -> None:
    _, out, _ = undebugged("debug", "spin", ROUNDS)
    path = guest("debug")
    tick = address(Symbols.open(str(path)), "tick")
    words = [sys.executable, "-P", "-c", LIBRARY, str(path), "spin", ROUNDS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        end = time.monotonic() + LIMIT_S
        while len(found := [it for it in guests_of(process.pid) if it.tid]) < 2:
            assert time.monotonic() < end
        target = attach(found[0])
        target.insert(Watch.SOFTWARE, tick, 1)
        for _ in range(3):
            assert resume(target) == HIT
            assert target.step() == STEPPED
        lines = [process.stdout.readline()]  # of the other one, which ends
        assert resume(target) == HIT
        target.remove(Watch.SOFTWARE, tick, 1)
        target.detach()
        lines.append(process.stdout.readline())
        assert process.wait(LIMIT_S) == 0
    assert lines == [f"exit 0 {out.decode().split()}\n"] * 2


@pytest.mark.parametrize("name", ["computes", "waits by the gate"])
def test_gdb_attaches_breaks_steps_watches_and_leaves(
    name: str,
    backend: str,
    start_guest: StartGuest,
    gdb: Callable[..., str],
    tender_cmd: list[str],
    undebugged: Undebugged,
    has_debug_registers: bool,
) -> None:
    situation = SITUATIONS[name]
    times = {"sandbox": 4, "kvm": 1}[backend]  # gdb starts slowly
    words = (situation.guest, situation.what, str(times * int(situation.amounts[backend])))
    running = start_guest(*words)
    if (
        backend == "kvm"
    ):  # on an emulated machine it starts too slowly; here a stopped guest can run under a debugger
        os.kill(running.pid, signal.SIGSTOP)
    session = gdb(
        f"tbreak {situation.called}",
        "continue",
        "backtrace",
        "finish",
        "stepi 20",
        *(("watch ticks", "continue") if has_debug_registers else ()),
        "delete",
        "detach",
        image=running.path,
        target=f"| {tender_cmd[0]} debug --stdio {running.pid}",
    )
    os.kill(running.pid, signal.SIGCONT)
    assert f"Temporary breakpoint 1, {situation.called} (" in session
    assert f" in {situation.stack[0]} (rounds=" in session
    if has_debug_registers:
        assert "Hardware watchpoint 2: ticks" in session and "New value = " in session
    assert "detached" in session
    assert running.end() == undebugged(*words)
