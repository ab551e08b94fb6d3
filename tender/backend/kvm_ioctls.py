"""The KVM requests that Tender makes in Python, built with ioctl-opt.

This table is the source; the build writes its values to `kvm_requests.py`, which is what an installation imports, where
there is no ioctl-opt. A test compares every one with the value that the compiler sees in <linux/kvm.h>.
"""

from ioctl_opt import IO

KVMIO = 0xAE

KVM_GET_API_VERSION = IO(KVMIO, 0x00)
KVM_CREATE_VM = IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = IO(KVMIO, 0x03)
