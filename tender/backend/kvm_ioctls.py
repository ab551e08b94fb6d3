"""The KVM requests that Tender makes, built with ioctl-opt and the sizes of the compiled structures.

This table is the source; the build writes its values to `kvm_requests.py`, which is what the run road
imports. A test compares every one with the value that the compiler sees in <linux/kvm.h>.
"""

from collections.abc import Callable

from ioctl_opt import IO, IOC, IOC_READ, IOC_WRITE

KVMIO = 0xAE

Sizeof = Callable[[str], int]


def requests(sizeof: Sizeof) -> dict[str, int]:
    """Every request by name; `sizeof` gives the bytes of a C type, as `ffi.sizeof` does."""
    return {
        # /dev/kvm
        "KVM_GET_API_VERSION": IO(KVMIO, 0x00),
        "KVM_CREATE_VM": IO(KVMIO, 0x01),
        "KVM_CHECK_EXTENSION": IO(KVMIO, 0x03),
        "KVM_GET_VCPU_MMAP_SIZE": IO(KVMIO, 0x04),
        "KVM_GET_SUPPORTED_CPUID": IOC(IOC_READ | IOC_WRITE, KVMIO, 0x05, sizeof("struct kvm_cpuid2")),
        # a VM
        "KVM_CREATE_VCPU": IO(KVMIO, 0x41),
        "KVM_SET_USER_MEMORY_REGION": IOC(
            IOC_WRITE, KVMIO, 0x46, sizeof("struct kvm_userspace_memory_region")
        ),
        "KVM_X86_SET_MSR_FILTER": IOC(IOC_WRITE, KVMIO, 0xC6, sizeof("struct kvm_msr_filter")),
        # a vCPU
        "KVM_RUN": IO(KVMIO, 0x80),
        "KVM_GET_REGS": IOC(IOC_READ, KVMIO, 0x81, sizeof("struct kvm_regs")),
        "KVM_SET_REGS": IOC(IOC_WRITE, KVMIO, 0x82, sizeof("struct kvm_regs")),
        "KVM_GET_SREGS": IOC(IOC_READ, KVMIO, 0x83, sizeof("struct kvm_sregs")),
        "KVM_SET_SREGS": IOC(IOC_WRITE, KVMIO, 0x84, sizeof("struct kvm_sregs")),
        "KVM_SET_SIGNAL_MASK": IOC(IOC_WRITE, KVMIO, 0x8B, sizeof("struct kvm_signal_mask")),
        "KVM_SET_CPUID2": IOC(IOC_WRITE, KVMIO, 0x90, sizeof("struct kvm_cpuid2")),
        "KVM_ENABLE_CAP": IOC(IOC_WRITE, KVMIO, 0xA3, sizeof("struct kvm_enable_cap")),
        "KVM_GET_TSC_KHZ": IO(KVMIO, 0xA3),
    }
