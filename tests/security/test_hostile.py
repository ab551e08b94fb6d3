"""A hostile guest: thousands of seeded calls. The monitor answers or stops it; it never crashes or is misled."""

import os
import re
import socket
import time
from pathlib import Path

import pytest
from support import Guest

from tender import CAPTURE, BlockFd, BlockFile, ExitReason, Image, NetFd, Tap, Vm, VmConfig, VmResult

pytestmark = pytest.mark.backends


# `make hostile-long` sets another number. Other seeds make other calls.
CALLS = int(os.environ.get("HOSTILE_CALLS", "20000"))
FIRST_SEED = int(os.environ.get("HOSTILE_SEED", "1"))
CALLS_OF_A_VM = 1_000_000
RSS_GROWTH_MAX = 64 << 20


def attack(image: Image, disk: Path, *args: str, timeout: float = 100) -> VmResult:
    """Runs `hostile` once, with the devices that it declares."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        net: dict[str, Tap | NetFd] = {
            d.name: NetFd(theirs.fileno()) for d in image.devices if d.kind == "net"
        }
        block: dict[str, BlockFile | BlockFd] = {
            d.name: BlockFile(str(disk)) for d in image.devices if d.kind == "block"
        }
        config = VmConfig(mem=16, args=args, net=net, block=block)
        with Vm(image, config, console=CAPTURE) as vm:
            return vm.run(timeout=timeout)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_odd_calls_are_answered(guest: Guest, disk: Path, seed: int) -> None:
    with Image.open(guest("hostile")) as image:
        result = attack(image, disk, "--mode=survivable", f"--seed={seed}", "--calls=3000")
    assert result.console is not None
    assert result.ok and b"SURVIVED calls=3000" in result.console, (result.message, result.console[-500:])
    assert disk.stat().st_size == 1 << 20


STOPS = re.compile(
    r"Invalid guest access: gpa=0x[0-9a-f]+, sz=\d+ \(hypercall \w+, rip=0x[0-9a-f]+\)"
    r"|Invalid guest hypercall: num=\d+|Invalid guest port access: port=0x[0-9a-f]+"
)


def test_every_wild_access_stops_the_guest_with_its_reason(guest: Guest, disk: Path) -> None:
    """Each run uses one wild pointer or length. A run whose random values happen to be valid ends by
    itself.
    """
    stopped = 0
    with Image.open(guest("hostile")) as image:
        for seed in range(1, 121):
            result = attack(image, disk, "--mode=wild", f"--seed={seed}")
            if result.reason in (ExitReason.BAD_ACCESS, ExitReason.BAD_HYPERCALL, ExitReason.BAD_PORT):
                assert STOPS.fullmatch(result.message), result.message
                assert result.status == 1
                stopped += 1
            else:
                assert result.reason == ExitReason.EXIT and result.status == 0, (seed, result.console)
    assert stopped > 60


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(0)
def test_calls_without_end_leave_the_monitor_as_it_was(guest: Guest, disk: Path) -> None:
    """The guest compares each answer with the ABI and checks its memory. This test checks the process."""
    mode = ("--mode=survivable", "--no-waits")
    with Image.open(guest("hostile")) as image:
        assert attack(
            image, disk, *mode, "--calls=1000"
        ).ok  # whatever is created only once exists from now on
        before, resident = descriptors(), resident_bytes()
        for i, start in enumerate(range(0, CALLS, CALLS_OF_A_VM)):
            calls = min(CALLS_OF_A_VM, CALLS - start)
            result = attack(image, disk, *mode, f"--seed={FIRST_SEED + i}", f"--calls={calls}", timeout=3600)
            assert result.console is not None
            assert result.ok and f"SURVIVED calls={calls}".encode() in result.console, result.console[-500:]
            assert sum(result.counters.hypercalls.values()) >= calls
            print(f"{start + calls} calls of {CALLS}", flush=True)
        # On KVM a thread that nobody waits for may be about to close the last machine, before and
        # after the loop.
        deadline = time.monotonic() + 60
        while not descriptors() <= before:
            assert time.monotonic() < deadline, descriptors() - before
        assert resident_bytes() - resident < RSS_GROWTH_MAX
        assert disk.stat().st_size == 1 << 20
        assert attack(image, disk, "--mode=survivable", "--calls=1000").ok
    with Image.open(guest("hello")) as image, Vm(image, VmConfig(mem=16), console=CAPTURE) as vm:
        good = vm.run(timeout=100)
    assert good.ok and good.console
