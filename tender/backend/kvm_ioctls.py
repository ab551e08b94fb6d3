"""The KVM requests that Tender makes, built with ioctl-opt and the sizes of the compiled structures.

This table is the source; the build writes its values to `kvm_requests.py`, which is what the run road
imports. A test compares every one with the value that the compiler sees in <linux/kvm.h>.
"""

from collections.abc import Callable

from ioctl_opt import IO, IOC, IOC_WRITE

KVMIO = 0xAE

Sizeof = Callable[[str], int]


def requests(sizeof: Sizeof) -> dict[str, int]:
    """Every request by name; `sizeof` gives the bytes of a C type, as `ffi.sizeof` does."""
    return {
        # /dev/kvm
        "KVM_GET_API_VERSION": IO(KVMIO, 0x00),
        "KVM_CREATE_VM": IO(KVMIO, 0x01),
        "KVM_CHECK_EXTENSION": IO(KVMIO, 0x03),
        # a VM
        "KVM_SET_USER_MEMORY_REGION": IOC(
            IOC_WRITE, KVMIO, 0x46, sizeof("struct kvm_userspace_memory_region")
        ),
    }
