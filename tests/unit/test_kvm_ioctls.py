"""KVM's request numbers: ioctl-opt's, the ones written out by the build, and the compiler's are the same."""

from tender.backend import kvm_ioctls, kvm_requests
from tender.native import lib

TABLE = {name: value for name, value in vars(kvm_ioctls).items() if name.startswith("KVM_")}


def test_every_request_is_the_compilers() -> None:
    assert {name: getattr(lib, name) for name in TABLE} == TABLE


def test_the_build_wrote_the_table_as_it_is() -> None:
    written = {name: value for name, value in vars(kvm_requests).items() if name.startswith("KVM_")}
    assert written == TABLE


def test_every_request_the_compiler_was_asked_for_is_in_the_table() -> None:
    asked = {n for n in dir(lib) if n.startswith("KVM_") and not n.startswith(("KVM_CAP", "KVM_API"))}
    assert asked == set(TABLE)
