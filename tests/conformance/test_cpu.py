"""The processor that a guest sees: which CPUID leaves it can read, and which model-specific registers it
has."""

import re
import subprocess
from pathlib import Path

import pytest
from support import Guest

from tender import CAPTURE, ExitReason, VmConfig, VmResult, run
from tender.native import ffi, lib


def asked(guest: Guest, *args: str) -> VmResult:
    return run(guest("cpu"), VmConfig(mem=8, args=args), console=CAPTURE, timeout=60)


def text(result: VmResult) -> str:
    assert result.console is not None
    return result.console.decode()


def leaves(guest: Guest, *wanted: str) -> dict[str, tuple[int, int, int, int]]:
    """Returns EAX, EBX, ECX and EDX for each "LEAF.INDEX"."""
    result = asked(guest, *(f"--cpuid={leaf}" for leaf in wanted))
    assert result.ok, result.message
    found: dict[str, tuple[int, int, int, int]] = {}
    for line in text(result).splitlines():
        name, *registers = line.removeprefix("cpuid ").split()
        eax, ebx, ecx, edx = (int(register, 16) for register in registers)
        found[name] = (eax, ebx, ecx, edx)
    assert len(found) == len(wanted)
    return found


# ---- CPUID; in the sandbox it is the host's own (docs/sandbox.md)


@pytest.mark.kvm
def test_cpuid_on_kvm_offers_no_nested_virtualisation_and_no_enclaves(guest: Guest) -> None:
    """The host of these tests offers nested SVM or VMX. Without it the first lines would prove nothing."""
    flags = host_flags()
    assert flags & {"svm", "vmx"}
    seen = leaves(guest, "1.0", "7.0", "0x12.0", "0x12.1", "0x80000001.0", "0x8000000a.0")
    assert not seen["0x1.0"][2] & (1 << 5 | 1 << 6)  # VMX, SMX
    assert not seen["0x7.0"][1] & 1 << 2 and not seen["0x7.0"][2] & 1 << 30  # SGX, its launch control
    assert not seen["0x80000001.0"][2] & (1 << 2 | 1 << 12)  # SVM, SKINIT
    for leaf in ("0x12.0", "0x12.1", "0x8000000a.0"):
        assert seen[leaf] == (0, 0, 0, 0)


@pytest.mark.kvm
def test_cpuid_on_kvm_has_kvms_signature_and_none_of_its_features(guest: Guest) -> None:
    seen = leaves(guest, "0x40000000.0", "0x40000001.0")
    name = b"".join(register.to_bytes(4, "little") for register in seen["0x40000000.0"][1:])
    assert name == b"KVMKVMKVM\0\0\0"
    assert seen["0x40000001.0"][0] == seen["0x40000001.0"][3] == 0


KVM_ENOSYS = 1000  # linux/kvm_para.h
KICK_CPU, SEND_IPI, SCHED_YIELD, MAP_GPA_RANGE = 5, 10, 11, 12


@pytest.mark.kvm
@pytest.mark.parametrize("number", [0, 2, 3, 4, KICK_CPU, 6, 7, 8, SEND_IPI, SCHED_YIELD, MAP_GPA_RANGE, 13])
def test_kvms_own_hypercalls_for_hidden_features_are_refused(guest: Guest, number: int) -> None:
    """The command refuses them too. Two calls belong to no feature and are not in the list: 1 does nothing,
    and 9 pairs the clocks that a guest can read."""
    refused = f"kvm call {number} {-KVM_ENOSYS}\n"
    result = asked(guest, f"--kvm-call={number}")
    assert result.ok and text(result) == refused
    command = ["tender", "--backend=kvm", "--mem=8", str(guest("cpu")), f"--kvm-call={number}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, refused, "")


def host_flags() -> frozenset[str]:
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return frozenset(line.partition(":")[2].split())


@pytest.mark.backends
def test_cpuid_shows_the_hosts_computing_features(guest: Guest) -> None:
    seen = leaves(guest, "1.0", "7.0", "0x80000001.0", "0x80000007.0")
    one, seven, extended = seen["0x1.0"], seen["0x7.0"], seen["0x80000001.0"]
    bits = {
        "tsc": one[3] >> 4, "sse2": one[3] >> 26, "pni": one[2], "pclmulqdq": one[2] >> 1,
        "ssse3": one[2] >> 9, "sse4_1": one[2] >> 19, "sse4_2": one[2] >> 20, "popcnt": one[2] >> 23,
        "aes": one[2] >> 25, "xsave": one[2] >> 26, "avx": one[2] >> 28, "rdrand": one[2] >> 30,
        "fsgsbase": seven[1], "avx2": seven[1] >> 5, "bmi2": seven[1] >> 8, "rdseed": seven[1] >> 18,
        "adx": seven[1] >> 19, "sha_ni": seven[1] >> 29, "nx": extended[3] >> 20,
    }  # fmt: skip
    flags = host_flags()
    assert {name: bool(value & 1) for name, value in bits.items()} == {name: name in flags for name in bits}
    assert flags & {"rdrand", "aes", "ssse3"}, "this host has no feature that could be hidden by mistake"


@pytest.mark.kvm
def test_more_than_100_cpuid_leaves_are_accepted(guest: Guest) -> None:
    """solo5-hvt has space for 100 leaves; KVM itself accepts 256."""
    assert asked(guest, "--tls").ok  # fills the table with the host's leaves, which KVM reports
    table = lib.tn_kvm_cpuid()
    own, size, head = int(table.nent), ffi.sizeof("struct kvm_cpuid_entry2"), ffi.sizeof("struct kvm_cpuid2")
    assert size == 40
    entries = ffi.cast("struct kvm_cpuid_entry2 *", ffi.cast("char *", table) + head)
    for i in range(own, 256):
        entries[i].function, entries[i].flags = 0x8F000000 + i, 0
    table.nent = 256
    try:
        assert asked(guest, "--tls", "--cpuid=1.0").ok
    finally:
        table.nent = own


# ---- model-specific registers


@pytest.mark.backends
def test_fs_base_is_the_guests_own(guest: Guest) -> None:
    """Solo5's bindings write it at the start and at each switch of thread-local storage."""
    result = asked(guest, "--tls")
    assert result.ok and text(result) == "tls OK\n"


@pytest.mark.backends
@pytest.mark.parametrize(
    ("msr", "value"), [(0x1B, 0), (0x277, 0x0007040600070406), (0xC0000080, 0x500), (0xC0000102, 0)]
)
def test_a_register_that_describes_the_guests_state_can_be_read(guest: Guest, msr: int, value: int) -> None:
    result = asked(guest, f"--rdmsr={msr:#x}")
    assert result.ok and text(result) == f"rdmsr {msr:#x} {value:#x}\n"


@pytest.mark.backends
def test_the_time_stamp_counter_can_be_read_as_a_register(guest: Guest) -> None:
    result = asked(guest, "--rdmsr=0x10")
    assert result.ok and re.fullmatch(r"rdmsr 0x10 0x[0-9a-f]+\n", text(result))


@pytest.mark.backends
@pytest.mark.parametrize("value", [0x501, 0xD00])
def test_efer_can_be_written(guest: Guest, value: int) -> None:
    """NXE lets a guest protect its own data from being executed. SCE has no use here, and no effect either."""
    result = asked(guest, "--wrmsr=0xc0000080", f"--value={value:#x}")
    assert result.ok and text(result).endswith(f"rdmsr 0xc0000080 {value:#x}\n")


DENIED = {
    "FEATURE_CONTROL": 0x3A,
    "SPEC_CTRL": 0x48,
    "microcode's revision": 0x8B,
    "MTRR_CAP": 0xFE,
    "machine checks": 0x179,
    "MISC_ENABLE": 0x1A0,
    "DEBUGCTL": 0x1D9,
    "VMX_BASIC": 0x480,
    "KVM's clock": 0x4B564D01,
    "KVM's old clock": 0x12,
    "x2APIC's identity": 0x802,
    "AMD's first counter": 0xC0010000,
    "HWCR": 0xC0010015,
    "VM_CR": 0xC0010114,
    "VM_HSAVE_PA": 0xC0010117,
    "Hyper-V's identity": 0x40000000,
    "none at all": 0x7FFFFFFF,
}


@pytest.mark.backends
@pytest.mark.parametrize("way", ["--rdmsr", "--wrmsr"])
@pytest.mark.parametrize("name", DENIED)
def test_access_to_a_register_that_no_guest_needs_raises_gp(guest: Guest, way: str, name: str) -> None:
    result = asked(guest, f"{way}={DENIED[name]:#x}")
    assert (result.reason, result.status) == (ExitReason.ABORT, 255), text(result)
    assert "trap: #GP" in text(result) and result.trap is not None and result.trap.error_code == 0


@pytest.mark.backends
@pytest.mark.parametrize("msr", [0x10, 0x1B, 0x277])
def test_a_register_that_can_only_be_read_refuses_another_value(guest: Guest, msr: int) -> None:
    result = asked(guest, f"--wrmsr={msr:#x}", "--value=0x0101010101010101")
    assert result.status == 255 and "trap: #GP" in text(result)
