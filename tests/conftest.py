"""Fixtures for every test: where the guests are, the command, TAP interfaces, and the refusal to skip KVM."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Guest, TapInterface, ip

import tender

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("TENDER_BUILD", ROOT / "build"))


@pytest.fixture(scope="session")
def guest() -> Guest:
    """guest("echo"): the path of an example or a test guest."""

    def find(name: str) -> Path:
        installed = Path(tender.__file__).parent / "guests" / f"{name}.elf"
        built = BUILD / "tests" / "guests" / f"{name}.elf"
        for path in (installed, built):
            if path.exists():
                return path
        raise LookupError(f"no guest {name}: neither {installed} nor {built}; run make build")

    return find


@pytest.fixture(scope="session")
def tender_cmd() -> list[str]:
    """The command as a user has it."""
    return [str(Path(sys.executable).parent / "tender")]


@pytest.fixture(autouse=True)
def _kvm_is_there(request: pytest.FixtureRequest) -> None:
    """A KVM test without a KVM fails: it never passes by not running."""
    if request.node.get_closest_marker("kvm") and not os.environ.get("TENDER_KVM"):
        pytest.fail("needs a real /dev/kvm: run `make test`, or `tools/with_kvm -- pytest ...`")


@pytest.fixture
def tap() -> Iterator[TapInterface]:
    """tapt0 with 10.0.0.1/24, up; gone afterwards."""
    made = TapInterface("tapt0", "10.0.0.1")
    ip("tuntap", "add", made.name, "mode", "tap")
    try:
        ip("addr", "add", made.address + "/24", "dev", made.name)
        made.up()
        yield made
    finally:
        subprocess.run(["ip", "link", "del", made.name], capture_output=True, check=False)
