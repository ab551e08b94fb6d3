"""KVM's request numbers: those of ioctl-opt, those that the build writes, and those of the compiler are
equal."""

from tender.backend import kvm_ioctls, kvm_requests
from tender.native import lib

TABLE = {name: value for name, value in vars(kvm_ioctls).items() if name.startswith("KVM_")}


def test_every_request_number_equals_the_compilers() -> None:
    assert {name: getattr(lib, name) for name in TABLE} == TABLE


def test_the_built_table_equals_the_source_table() -> None:
    written = {name: value for name, value in vars(kvm_requests).items() if name.startswith("KVM_")}
    assert written == TABLE


def test_every_request_that_the_compiler_knows_is_in_the_table() -> None:
    asked = {n for n in dir(lib) if n.startswith("KVM_") and not n.startswith(("KVM_CAP", "KVM_API"))}
    assert asked == set(TABLE)
