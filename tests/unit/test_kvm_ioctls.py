"""KVM's request numbers: ioctl-opt's, the ones written out by the build, and the compiler's are the same; and what
an answer to one means.
"""

import errno
import os
from types import SimpleNamespace

import pytest

from tender.backend import kvm, kvm_requests
from tender.backend.kvm import KvmVm
from tender.backend.kvm_ioctls import requests
from tender.errors import HostError
from tender.native import ffi, lib

TABLE = requests(ffi.sizeof)


def test_every_request_is_the_compilers() -> None:
    assert {name: getattr(lib, name) for name in TABLE} == TABLE


def test_the_build_wrote_the_table_as_it_is() -> None:
    written = {name: value for name, value in vars(kvm_requests).items() if name.startswith("KVM_")}
    assert written == TABLE


def test_every_request_the_compiler_was_asked_for_is_in_the_table() -> None:
    asked = {n for n in dir(lib) if n.startswith("KVM_") and not n.startswith(("KVM_CAP", "KVM_API"))}
    assert asked == set(TABLE)


def test_a_kernel_without_an_msr_filter_is_no_error_and_any_other_refusal_is() -> None:
    """What is no KVM refuses the request as a KVM does that does not know it: ENOTTY."""
    vm = KvmVm.__new__(KvmVm)
    with open("/dev/null", "rb") as no_kvm:
        vm._filter_msrs(no_kvm.fileno())
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(HostError, match=r"KVM: ioctl \(X86_SET_MSR_FILTER\) failed: Bad file descriptor"):
        vm._filter_msrs(closed)


def test_a_kernel_that_cannot_enforce_features_is_no_error_and_any_other_refusal_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KVM answers EINVAL for a capability that it does not know, and that alone is let pass."""
    vm = KvmVm.__new__(KvmVm)
    monkeypatch.setattr(
        kvm,
        "lib",
        SimpleNamespace(KVM_CAP_ENFORCE_PV_FEATURE_CPUID=190, tn_ioctl_ptr=lambda *_: -errno.EINVAL),
    )
    vm._enforce_shown_features(0)
    monkeypatch.undo()
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(
        HostError, match=r"KVM: ioctl \(ENABLE_CAP \(ENFORCE_PV_FEATURE_CPUID\)\) failed: Bad file"
    ):
        vm._enforce_shown_features(closed)
