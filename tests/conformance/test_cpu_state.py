"""The processor's state as plain data (bindings/arch/x86_64/cpu_state.h), read from a machine and set in
it.

On KVM every part can be read while the guest does not run. In the sandbox only the general registers can be
read, and only after a guest ended by a fault. The sandbox accepts no state except its start state.
"""

import errno
import struct
from collections.abc import Iterator

import pytest
from bare import Bare
from support import Guest

from tender import CAPTURE, DISCARD, Image, Vm, VmConfig
from tender.native import CData, ffi, lib

MIB = 1 << 20
RSP, RDI = 4, 7
ES, CS, SS, DS, FS, GS = range(6)


@pytest.fixture
def vm(guest: Guest) -> Iterator[Vm]:
    config = VmConfig(mem=6)
    with Image.open(guest("hello")) as image, Vm(image, config, console=CAPTURE, backend="kvm") as made:
        yield made


def read_state(vm: Vm, parts: int = lib.CPU_ALL) -> CData:
    state = ffi.new("struct cpu_state *")
    assert lib.tn_cpu_state(vm._handle, parts, state) == 0
    assert state.known == parts
    return state


@pytest.mark.kvm
def test_before_the_first_run_it_is_the_start_state(vm: Vm, guest: Guest) -> None:
    state = read_state(vm)
    with Image.open(guest("hello")) as image:
        expected = {RSP: 6 * MIB - 8, RDI: 0x10000}
        assert list(state.general.gpr) == [expected.get(i, 0) for i in range(16)]
        assert (state.general.rip, state.general.rflags) == (image.entry, 2)
    assert [int(s.selector) for s in state.system.segment] == [0x10, 8, 0x10, 0x10, 0x10, 0x10]
    assert (state.system.cr3, state.system.gdtr.base, state.system.idtr.limit) == (0x2000, 0x1000, 0)
    assert {int(value) for value in (state.msrs.star, state.msrs.lstar, state.msrs.kernel_gs_base)} == {0}
    assert list(state.debug.dr) == [0] * 4
    assert state.fpu.xcr0 & 1
    fcw, fsw = struct.unpack_from("<HH", bytes(state.fpu.xsave))
    assert (fcw, fsw, struct.unpack_from("<I", bytes(state.fpu.xsave), 24)[0]) == (0x37F, 0, 0x1F80)


@pytest.mark.kvm
def test_each_part_of_the_state_can_be_set_and_read_back(vm: Vm) -> None:
    """Each part is set alone; the other parts stay as they were."""
    state = read_state(vm)
    state.general.gpr[0], state.general.gpr[15] = 0x1122334455667788, 0x99
    state.system.segment[FS].base, state.system.idtr.base, state.system.idtr.limit = 0x123000, 0x5000, 0xFFF
    state.msrs.kernel_gs_base, state.msrs.lstar = 0x777000, 0x100000
    state.debug.dr[2] = 0x100010
    state.fpu.xsave[160 + 16 * 3] = 0xAB  # xmm3
    for part in (lib.CPU_GENERAL, lib.CPU_SYSTEM, lib.CPU_MSRS, lib.CPU_DEBUG, lib.CPU_FPU):
        before = read_state(vm)
        assert lib.tn_cpu_state_set(vm._handle, part, state) == 0
        after = read_state(vm)
        for name, its in (
            ("general", lib.CPU_GENERAL),
            ("system", lib.CPU_SYSTEM),
            ("msrs", lib.CPU_MSRS),
            ("debug", lib.CPU_DEBUG),
            ("fpu", lib.CPU_FPU),
        ):
            expected = state if its == part else before
            place = ffi.typeof("struct cpu_state").fields
            kind = ffi.sizeof(dict(place)[name].type)
            found = ffi.buffer(ffi.addressof(after, name), kind)[:]
            assert found == ffi.buffer(ffi.addressof(expected, name), kind)[:], (name, part)


@pytest.mark.kvm
def test_a_guest_runs_from_the_state_that_was_set() -> None:
    """The entry is a hlt. The new state continues after it, at a halt with a status of its own."""
    guest = Bare()
    guest.code("f4")
    guest.halt(7)
    with (
        Image.from_bytes(guest.elf()) as image,
        Vm(image, VmConfig(mem=6), console=DISCARD, backend="kvm") as vm,
    ):
        state = read_state(vm, lib.CPU_GENERAL)
        state.general.rip += 1
        assert lib.tn_cpu_state_set(vm._handle, lib.CPU_GENERAL, state) == 0
        assert vm.run(timeout=60).guest_status == 7


@pytest.mark.kvm
def test_after_the_run_the_state_is_the_guests_last_one(vm: Vm) -> None:
    assert vm.run(timeout=60).ok
    state = read_state(vm, lib.CPU_GENERAL | lib.CPU_SYSTEM)
    assert 0xFF000 <= state.general.rip < 0x100000  # it made its halt through the gate page
    assert state.system.cr3 == 0x2000


@pytest.mark.backends
def test_the_state_of_a_running_or_closed_vm_is_refused(guest: Guest, backend: str) -> None:
    state = ffi.new("struct cpu_state *")
    with Image.open(guest("spin")) as image, Vm(image, VmConfig(mem=6), console=DISCARD) as vm:
        vm.start(timeout=60)
        assert lib.tn_cpu_state(vm._handle, lib.CPU_GENERAL, state) == -errno.EBUSY
        assert lib.tn_cpu_state_set(vm._handle, lib.CPU_GENERAL, state) == -errno.EBUSY
        vm.stop()
        vm.wait(60)
        vm.close()
        assert lib.tn_cpu_state(vm._handle, lib.CPU_GENERAL, state) == -errno.ESTALE
        assert lib.tn_cpu_state_set(vm._handle, lib.CPU_GENERAL, state) == -errno.ESTALE


def test_a_sandbox_knows_the_general_registers_of_a_fault_and_nothing_else() -> None:
    guest = Bare()
    guest.code("b8 44332211 0f01c1")  # mov $0x11223344, %eax; vmcall, which is not emulated
    state = ffi.new("struct cpu_state *")
    with (
        Image.from_bytes(guest.elf()) as image,
        Vm(image, VmConfig(mem=6), console=DISCARD, backend="sandbox") as vm,
    ):
        assert lib.tn_cpu_state(vm._handle, lib.CPU_ALL, state) == -errno.ENODATA
        assert lib.tn_cpu_state_set(vm._handle, lib.CPU_GENERAL, state) == -errno.EOPNOTSUPP
        result = vm.run(timeout=60)
        assert result.reason == "unsupported-instruction"
        assert lib.tn_cpu_state(vm._handle, lib.CPU_ALL, state) == 0
        assert state.known == lib.CPU_GENERAL
        assert state.general.gpr[0] == 0x11223344
        assert state.general.rip == image.entry + 5


@pytest.mark.backends
def test_writable_guest_memory_can_be_written_and_text_cannot(guest: Guest, backend: str) -> None:
    """Data that is written before the run is what the guest finds. A write to text is refused, and the text
    stays as it is."""
    bare = Bare()
    place = bare.structure("<Q", 1)
    loaded = bare.load(place.gpa)
    bare.halt()
    with Image.from_bytes(bare.elf()) as image, Vm(image, VmConfig(mem=6), console=DISCARD) as vm:
        value = struct.pack("<Q", 0x1122334455667788)
        assert lib.tn_write(vm._handle, place.gpa, value, len(value)) == len(value)
        text = vm.memory(image.entry, 8)
        assert lib.tn_write(vm._handle, image.entry, value, len(value)) == -errno.EFAULT
        assert vm.memory(image.entry, 8) == text
        assert vm.run(timeout=60).ok
        assert struct.unpack("<Q", vm.memory(loaded.gpa, 8)) == (0x1122334455667788,)
        vm.close()
        assert lib.tn_write(vm._handle, place.gpa, value, len(value)) == -errno.ESTALE
