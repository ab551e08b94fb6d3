"""The checklist of Solo5's own test suite, row by row, with the unmodified unikernels that Solo5 builds.

    TENDER_HVT_DIR=/path/to/solo5/tests tools/with_net -- pytest -m "not kvm" tests/conformance/test_foreign_suite.py

The directory and everything below it is searched for test_NAME.hvt. Without the variable these tests are
not collected (../conftest.py). A row whose file is missing fails. Each row has the arguments of that suite,
including --mem=4096. Where KVM is emulated a flood is shorter than the suite's: FLOOD is its length. The
suite's row dumpcore is not here, and its row for the elftool is in test_elftool.py.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ip

pytestmark = pytest.mark.backends

Done = subprocess.CompletedProcess[str]
Front = Callable[[str], str]
Foreign = Callable[..., Done]

TRANSLATION_FAULT = "host/guest translation fault"
ENFORCED = {
    "xnow": {"kvm", "sandbox"},  # a write to text
    "rnow": {"kvm", "sandbox"},  # a write to constants
    "xnor": set(),  # reading execute-only text: x86 needs protection keys or EPT to forbid it
    "rnox": {"sandbox"},  # executing constants: the page tables of the start state do not forbid execution
    "wnox": {"sandbox"},  # executing data
}
FLOOD = 2000 if os.environ.get("TENDER_KVM") == "kvmbox" else 0
"""Pings of one flood where the processor is emulated, because the guest's own limits take too long there; 0
means the suite's number."""


@pytest.fixture(scope="module")
def hvt() -> Callable[[str], Path]:
    """A function: hvt("hello") is the path of test_hello.hvt."""
    top = Path(os.environ["TENDER_HVT_DIR"])
    found = {path.stem: path.resolve() for path in top.rglob("*.hvt")}

    def path(name: str) -> Path:
        assert name in found, f"no {name}.hvt below TENDER_HVT_DIR={top}"
        return found[name]

    return path


@pytest.fixture
def foreign(front: Front, hvt: Callable[[str], Path], tmp_path: Path) -> Foreign:
    """A function: foreign("blk", OPTIONS...) runs test_blk as that suite does, with stderr merged into
    stdout."""

    def run(name: str, *options: str, args: tuple[str, ...] = (), mem: int = 4096) -> Done:
        return subprocess.run(
            [front("solo5-hvt"), f"--mem={mem}", *options, "--", str(hvt(f"test_{name}")), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="latin-1",
            timeout=60,
            check=False,
            cwd=tmp_path,
        )

    return run


def succeeded(done: Done) -> None:
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout


def aborted(done: Done) -> None:
    assert (done.returncode, "ABORT" in done.stdout) == (255, True), done.stdout


# ---- the processor and memory


def test_hello(foreign: Foreign) -> None:
    succeeded(foreign("hello", args=("Hello_Solo5",)))


def test_quiet(foreign: Foreign) -> None:
    done = foreign("quiet", args=("--solo5:quiet",))
    succeeded(done)
    assert "Solo5:" not in done.stdout


def test_output_is_complete(foreign: Foreign) -> None:
    """The guest writes 72 lines at once. Each line states the length of the text up to its own end. The
    28th of 73 lines is left out."""
    done = foreign("output", args=("--solo5:quiet",))
    lines: list[str] = []
    length = 0
    while len(lines) < 73:
        digits = len(str(length + 55)) if length + 55 < 100 else len(str(length + 56 + (length + 57 > 1000)))
        length += 53 + digits
        lines.append(f"**** Solo5 standalone test_output **** ({length} characters)\n")
    del lines[27]
    assert (done.returncode, done.stdout) == (0, "".join(lines))


@pytest.mark.parametrize("name", ["globals", "tls", "fpu", "time"])
def test_guests_that_must_succeed(foreign: Foreign, name: str) -> None:
    succeeded(foreign(name))


@pytest.mark.parametrize("name", ["exception", "zeropage", "notls", "ssp"])
def test_guests_that_must_abort(foreign: Foreign, name: str) -> None:
    aborted(foreign(name))


@pytest.mark.parametrize("name", ENFORCED)
def test_each_backend_enforces_its_page_permissions(foreign: Foreign, backend: str, name: str) -> None:
    done = foreign(name)
    assert done.returncode == 1, done.stdout
    if backend in ENFORCED[name]:
        assert TRANSLATION_FAULT in done.stdout and "FAILURE" not in done.stdout
    else:
        assert TRANSLATION_FAULT not in done.stdout and "FAILURE" in done.stdout


# ---- disks


@pytest.mark.parametrize("options", [(), ("--block-sector-size:storage=4096",)], ids=["512", "4096"])
def test_blk(foreign: Foreign, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "storage.img").write_bytes(bytes(4 << 20))
    succeeded(foreign("blk", "--block:storage=storage.img", *options))


@pytest.mark.parametrize(
    ("length", "sector", "said"),
    [
        (6144, 4096, "Backing storage size must be block aligned"),
        (1563, 521, "Block size must be a multiple of 2"),
        (256, 256, "Block size must be a multiple of 2 greater than or equal 512"),
    ],
    ids=["misaligned", "odd", "too small"],
)
def test_bad_disks_are_refused(foreign: Foreign, tmp_path: Path, length: int, sector: int, said: str) -> None:
    (tmp_path / "storage.img").write_bytes(bytes(length))
    done = foreign("blk", "--block:storage=storage.img", f"--block-sector-size:storage={sector}")
    assert (done.returncode, said in done.stdout) == (1, True), done.stdout


def test_mft_maxdevices(foreign: Foreign, tmp_path: Path) -> None:
    for number in range(63):
        (tmp_path / f"storage{number}.img").write_bytes(bytes(4096))
    succeeded(foreign("mft_maxdevices", *(f"--block:storage{n}=storage{n}.img" for n in range(63))))


# ---- the file


def test_buggyelf(front: Front, hvt: Callable[[str], Path]) -> None:
    command = [front("solo5-hvt"), str(hvt("buggyelf"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "note does not fall within valid size" in done.stderr) == (1, True), done.stderr


def test_a_unikernel_cannot_be_executed(hvt: Callable[[str], Path]) -> None:
    """Its interpreter does not exist, so the host's kernel refuses to execute it. Our unikernels are built
    the same way."""
    command = ["sh", "-c", '"$0"', str(hvt("test_hello"))]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 127


# ---- networks


@pytest.fixture
def taps() -> Iterator[None]:
    """The interfaces tap100 and tap101 with addresses, and tap102 with a larger MTU."""
    made = [("tap100", "10.0.0.1/24", 1500), ("tap101", "10.1.0.1/24", 1500), ("tap102", "", 9000)]
    try:
        for name, address, mtu in made:
            ip("tuntap", "add", name, "mode", "tap")
            ip("link", "set", name, "mtu", str(mtu))
            if address:
                ip("addr", "add", address, "dev", name)
            ip("link", "set", name, "up")
        yield
    finally:
        for name, _, _ in made:
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


def flood(
    front: Front, words: list[str], serving: int, pings: dict[str, int], *options: str
) -> tuple[int, str, str]:
    """Runs a guest, waits until it has printed `serving` times that it serves, and sends `pings` pings to
    each address.

    Returns its status, its output, and the output of `ping`.
    """
    process = subprocess.Popen(
        [front("solo5-hvt"), "--mem=4096", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="latin-1",
    )
    with process:
        assert process.stdout
        said = ""
        while said.count("Serving ping") < serving:
            line = process.stdout.readline()
            assert line, said
            said += line
        floods = [
            subprocess.Popen(
                ["ping", "-fq", "-w", "55", "-c", str(count), *options, to], text=True, stdout=subprocess.PIPE
            )
            for to, count in pings.items()
        ]
        ping_output = "".join(one.communicate(timeout=60)[0] for one in floods)
        if FLOOD:
            process.send_signal(signal.SIGTERM)
        try:
            said += process.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said += process.communicate()[0]
    return process.returncode, said, ping_output


def judge(status: int, said: str, ping_output: str, floods: int) -> None:
    """Asserts the end of a flood. A flood of full length reaches the guest's own limit, which ends it. A
    shorter flood must lose nothing, and SIGTERM ends the guest."""
    if FLOOD:
        seen = re.findall(r"(\d+) packets transmitted, (\d+) received", ping_output)
        assert seen == [(str(FLOOD), str(FLOOD))] * floods, ping_output
        assert (status, "Exiting on signal 15" in said) == (1, True), said
        assert "FAILURE" not in said and "CORRUPT" not in said
    else:
        assert (status, "SUCCESS" in said) == (0, True), said + ping_output


@pytest.mark.tap
@pytest.mark.usefixtures("taps")
def test_net(front: Front, hvt: Callable[[str], Path]) -> None:
    words = ["--net:service0=tap100", "--", str(hvt("test_net")), "limit"]
    judge(*flood(front, words, 1, {"10.0.0.2": FLOOD or 100_000}), floods=1)


@pytest.mark.tap
@pytest.mark.usefixtures("taps")
def test_net_2if(front: Front, hvt: Callable[[str], Path]) -> None:
    nets = ["--net:service0=tap100", "--net:service1=tap101"]
    pings = {"10.0.0.2": FLOOD or 50_000, "10.1.0.2": FLOOD or 50_000}
    judge(*flood(front, [*nets, "--", str(hvt("test_net_2if")), "limit"], 2, pings), floods=2)


@pytest.mark.tap
@pytest.mark.usefixtures("taps")
def test_net_mtu(foreign: Foreign) -> None:
    done = foreign("net_mtu", "--net:service0=tap102")
    succeeded(done)
    assert "MTU is 9000" in done.stdout


@pytest.mark.tap
@pytest.mark.usefixtures("taps")
def test_net_ring(front: Front, hvt: Callable[[str], Path]) -> None:
    words = ["--net:service0=tap100", "--", str(hvt("test_net_ring"))]
    judge(*flood(front, words, 1, {"10.0.0.2": FLOOD or 10_000}, "-p", "deadbeef"), floods=1)
