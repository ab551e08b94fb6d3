"""Fixtures for every test: the guests' paths, the command, TAP interfaces, and the backends.

A test with the mark `backends` runs once on each backend, with the same body: once as kvm (that item needs a KVM, so it
also has the mark kvm) and once as sandbox. The body does not have to choose a backend: the fixture `backend` makes one
the default of the test. The library then uses it for "auto", and the command gets it by TENDER_BACKEND. A body names the
fixture `backend` only where the backends differ.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import Guest, TapInterface, ip, ocaml_images, take_backend, tap_offload

import tender

# A shell makes programs that it starts in the background ignore SIGINT, and nohup makes them ignore SIGHUP. Every command
# that a test starts would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("TENDER_BUILD", ROOT / "build"))

# One profile everywhere: Hypothesis chooses another one where CI is set. No example fails because of its time, and each run
# of a tree draws the same examples. The fuzzers look for new examples.
settings.register_profile(
    "tender",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tender")


@pytest.fixture(scope="session")
def guest() -> Guest:
    """A function: guest("echo") is the path of an example or of a test guest."""

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
    """The command as a user runs it."""
    return [str(Path(sys.executable).parent / "tender")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `backends` runs once on each backend."""
    if metafunc.definition.get_closest_marker("backends"):
        if "backend" not in metafunc.fixturenames:
            metafunc.fixturenames.append("backend")
        metafunc.parametrize(
            "backend", [pytest.param("kvm", marks=pytest.mark.kvm), pytest.param("sandbox")], indirect=True
        )


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend of every VM of this test that does not ask for another one: "kvm" or "sandbox"."""
    name: str = request.param
    monkeypatch.setenv("TENDER_BACKEND", name)
    take_backend(name, monkeypatch.setattr)
    return name


@pytest.fixture(autouse=True)
def _ambient_backend(request: pytest.FixtureRequest) -> None:
    """Sets up `backend` for a test that does not name it: pytest sets up only the fixtures that are named."""
    if request.node.get_closest_marker("backends"):
        request.getfixturevalue("backend")


@pytest.fixture(autouse=True)
def _kvm_is_there(request: pytest.FixtureRequest) -> None:
    """A KVM test without a KVM fails. It never passes because it did not run."""
    if request.node.get_closest_marker("kvm") and not os.environ.get("TENDER_KVM"):
        pytest.fail("needs a real /dev/kvm: run `make test`, or `tools/with_kvm -- pytest ...`")


@pytest.fixture(autouse=True)
def _network_is_ours(request: pytest.FixtureRequest) -> None:
    """A test that makes interfaces makes them in its own network namespace, never in the machine's."""
    if request.node.get_closest_marker("tap") and not os.environ.get("TENDER_NET"):
        pytest.fail("makes TAP interfaces: run `make test`, or `tools/with_net -- pytest ...`")


@pytest.fixture(autouse=True)
def _tap_cuts_datagrams(request: pytest.FixtureRequest) -> None:
    """A test marked `uso` needs UDP segmentation offload, which not every kernel's TAP has."""
    if request.node.get_closest_marker("uso") and tap_offload() != 15:
        pytest.skip("this kernel's TAP cannot cut UDP datagrams; that of Linux 6.2 can")


@pytest.fixture
def tap() -> Iterator[TapInterface]:
    """The interface tapt0 with 10.0.0.1/24, which is up. It is deleted after the test."""
    made = TapInterface("tapt0", "10.0.0.1")
    ip("tuntap", "add", made.name, "mode", "tap")
    try:
        ip("addr", "add", made.address + "/24", "dev", made.name)
        made.up()
        yield made
    finally:
        subprocess.run(["ip", "link", "del", made.name], capture_output=True, check=False)


FOREIGN = {
    "pair": "TENDER_SOLO5_ELFTOOL",
    "run_both": "TENDER_SOLO5_HVT",
    "hvt": "TENDER_HVT_DIR",
    "ocaml_image": "TENDER_HVT_DIR",
}
"""Fixtures that need something which this project does not build, and the variable that says where it is."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests that need Solo5's own tools, or unikernels of others, if there are none. They are not skipped."""
    absent = {fixture for fixture, variable in FOREIGN.items() if not os.environ.get(variable)}
    if not ocaml_images():  # a directory of other unikernels
        absent.add("ocaml_image")
    left_out = [item for item in items if absent & set(getattr(item, "fixturenames", ()))]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
