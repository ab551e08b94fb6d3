"""The state at the first instruction, row by row, as a guest in assembly finds it
(tests/guests/first_state).

A guest cannot see the hidden parts of its segment registers: tests/native/test_kvm_machine.c compares those
in what KVM is given. The sandbox cannot set the processor's own registers. A row says where the sandbox
differs, and so does docs/sandbox.md.
"""

import struct

import pytest
from bare import L_POLL, L_WALLTIME, POLL, TEXT, WALLTIME, Bare, Placed, Ran
from support import Guest

from tender import CAPTURE, Image, Vm, VmConfig
from tender.native import ffi, lib

MIB = 1 << 20
MEM = 6  # MiB: not the default size
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
SYSTEM = ("rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "fs_base", "gs_base", "kernel_gs_base")
SELECTORS = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr")
STATE_BYTES = 0x600
RFLAGS_IF = 0x200
CR0_ET = 0x10
CR4_MCE = 0x40
UPPER_HALF = 1 << 63


class State:
    """The data that the guest stored, in the layout of its main.S."""

    def __init__(self, raw: bytes) -> None:
        assert len(raw) == STATE_BYTES, raw
        self.general = dict(zip(GENERAL, struct.unpack_from("<16Q", raw, 0), strict=True))
        self.system = dict(zip(SYSTEM, struct.unpack_from("<10Q", raw, 0x80), strict=True))
        self.selectors = dict(zip(SELECTORS, struct.unpack_from("<8H", raw, 0x80 + 80), strict=True))
        self.below_fs, self.fs_base_after, self.product = struct.unpack_from("<QQd", raw, 0x80 + 96)
        self.gdt_limit, self.gdt_base = struct.unpack_from("<HQ", raw, 0x100)
        self.idt_limit, self.idt_base = struct.unpack_from("<HQ", raw, 0x110)
        self.fxsave = raw[0x200:0x400]
        self.tls = struct.unpack_from("<Q", raw, 0x400)[0]


_SEEN: dict[str, State] = {}


@pytest.fixture
def state(guest: Guest, backend: str) -> State:
    """One boot on each backend serves all rows."""
    if backend not in _SEEN:
        with Image.open(guest("first_state")) as image, Vm(image, VmConfig(mem=MEM), console=CAPTURE) as vm:
            result = vm.run(timeout=60)
            assert result.ok and result.console is not None, result.message
        _SEEN[backend] = State(result.console)
    return _SEEN[backend]


backends = pytest.mark.backends


@backends
def test_general_registers(state: State) -> None:
    """RDI is the address of boot info, and RSP is the end of memory minus 8. All others are 0."""
    expected = dict.fromkeys(GENERAL, 0) | {"rdi": 0x10000, "rsp": MEM * MIB - 8}
    assert state.general == expected


@backends
def test_the_stack_is_aligned_as_after_a_call(state: State) -> None:
    assert (state.general["rsp"] + 8) % 16 == 0


@backends
def test_rflags(state: State, backend: str) -> None:
    """Interrupts are off. In the sandbox a guest sees the host's IF, which is always set, and no additional
    bit."""
    assert state.system["rflags"] == (2 if backend == "kvm" else 2 | RFLAGS_IF)


CONTROL = {"cr0": 0x80010021 | CR0_ET, "cr2": 0, "cr3": 0x2000, "cr4": 0x620, "cr8": 0, "efer": 0x500}


@backends
def test_control_registers(state: State, backend: str) -> None:
    """CR0: PE NE WP PG, and ET, which reads as set whatever is written. CR4: PAE OSFXSR OSXMMEXCPT, so no OSXSAVE.
    EFER: LME LMA, neither NXE nor SCE.

    kvm_amd runs a guest with the host's CR4.MCE and hides the bit when the guest reads CR4. QEMU 10's emulated processor
    does not let it hide the bit. The next test compares the value that KVM holds for the guest."""
    seen = {name: state.system[name] for name in CONTROL}
    if backend == "kvm":
        seen["cr4"] &= ~CR4_MCE
    assert seen == CONTROL


@pytest.mark.kvm
def test_control_registers_that_kvm_holds(guest: Guest) -> None:
    with Image.open(guest("first_state")) as image, Vm(image, VmConfig(mem=MEM), console=CAPTURE) as vm:
        held = ffi.new("struct cpu_state *")
        assert vm.run(timeout=60).ok
        assert lib.tn_cpu_state(vm._handle, lib.CPU_SYSTEM, held) == 0
    assert {name: int(getattr(held.system, name)) for name in CONTROL} == CONTROL


@backends
def test_segment_bases(state: State) -> None:
    assert [state.system[name] for name in ("fs_base", "gs_base", "kernel_gs_base")] == [0, 0, 0]


@backends
def test_selectors(state: State, backend: str) -> None:
    """In the sandbox `mov %cs,%ax` and `str` do not trap, so a guest sees the selectors of a process."""
    if backend == "kvm":
        data = dict.fromkeys(("ss", "ds", "es", "fs", "gs"), 0x10)
        assert state.selectors == {"cs": 8, **data, "ldt": 0, "tr": 0}
    else:
        data = dict.fromkeys(("ds", "es", "fs", "gs"), 0)
        assert state.selectors == {"cs": 0x33, "ss": 0x2B, **data, "ldt": 0, "tr": 0x40}


@backends
def test_descriptor_tables(state: State, backend: str) -> None:
    """In the sandbox `sgdt` and `sidt` do not trap to the handlers: a guest sees the host kernel's
    addresses, or the dummy values that the host kernel gives."""
    if backend == "kvm":
        assert (state.gdt_base, state.gdt_limit, state.idt_base, state.idt_limit) == (0x1000, 23, 0, 0)
    else:
        assert state.gdt_base >= UPPER_HALF and state.idt_base >= UPPER_HALF


@backends
def test_x87_and_sse_are_in_their_reset_state(state: State) -> None:
    """FCW is 0x37f, no exception flag is set, the stack is empty (an abridged tag word of 0), and MXCSR is
    0x1f80."""
    fcw, fsw, tags = struct.unpack_from("<HHB", state.fxsave)
    assert (fcw, fsw, tags) == (0x37F, 0, 0)
    assert struct.unpack_from("<I", state.fxsave, 24) == (0x1F80,)


@backends
def test_vector_registers_contain_no_host_data(state: State) -> None:
    x87 = [state.fxsave[at : at + 10] for at in range(32, 160, 16)]  # the bytes between them are reserved
    assert x87 == [bytes(10)] * 8
    assert state.fxsave[160 : 160 + 16 * 16] == bytes(16 * 16)  # xmm0 to xmm15


@backends
def test_sse_works_from_the_first_instruction(state: State) -> None:
    assert state.product == 4.5


@backends
def test_wrmsr_of_fs_base_sets_the_thread_pointer(state: State) -> None:
    assert (state.tls, state.below_fs) == (0x1122334455667788, 0x1122334455667788)
    assert state.fs_base_after & 15 == 0 and state.fs_base_after > TEXT


def stamp(guest: Bare) -> Placed:
    """Adds a reading of the counter: rdtsc; mov %eax, place; mov %edx, place + 4."""
    place = guest.structure("<Q", 0)
    guest.code(
        struct.pack("<2s3sI3sI", b"\x0f\x31", b"\x89\x04\x25", place.gpa, b"\x89\x14\x25", place.gpa + 4)
    )
    return place


def counter(ran: Ran, reading: Placed) -> int:
    return ran.at(reading)[0]


@backends
def test_rdtsc_does_not_trap() -> None:
    """The guest executes it 1000 times. halt is the only exit, no instruction is emulated, and the counter
    advances."""
    guest = Bare()
    first = stamp(guest)
    guest.code("b9e8030000 0f31 e2fc")  # mov $1000, %ecx; 1: rdtsc; loop 1b
    last = stamp(guest)
    guest.halt()
    ran = guest.run()
    counters = ran.result.counters
    assert ran.result.ok and sum(counters.hypercalls.values()) == 1
    assert (counters.exits, counters.emulated) == (1, 0)
    assert counter(ran, last) > counter(ran, first)


@backends
def test_the_counters_frequency_agrees_with_the_clock() -> None:
    """The guest reads walltime twice, 200 ms apart, each time between two readings of the counter. By the
    frequency in boot info, the time between the outer readings is not shorter than the clock's, and the
    time between the inner ones is not longer."""
    guest = Bare()
    hz = guest.load(0x10010)
    readings = []
    for timeout_ns in (0, 200_000_000):
        guest.call(POLL, L_POLL, timeout_ns, 0, 0)
        before = stamp(guest)
        walltime = guest.call(WALLTIME, L_WALLTIME, 0)
        readings.append((before, walltime, stamp(guest)))
    guest.halt()
    ran = guest.run()
    (ran_hz,) = ran.at(hz)
    (first, wall_first, first_after), (last, wall_last, last_after) = readings
    elapsed_ns = ran.at(wall_last)[0] - ran.at(wall_first)[0]
    shortest = counter(ran, last) - counter(ran, first_after)
    longest = counter(ran, last_after) - counter(ran, first)
    assert elapsed_ns > 150_000_000
    assert shortest * 10**9 / ran_hz * 0.999 <= elapsed_ns <= longest * 10**9 / ran_hz * 1.001
