"""A hostile guest: thousands of seeded calls. The monitor answers or stops it; it never crashes or is misled."""

import re
import socket
from pathlib import Path

import pytest
from support import Guest

from tender import CAPTURE, BlockFd, BlockFile, ExitReason, Image, NetFd, Tap, Vm, VmConfig, VmResult

pytestmark = pytest.mark.doors


def attack(image: Image, disk: Path, *args: str) -> VmResult:
    """One run of `hostile`, with the devices that it declares."""
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
            return vm.run(timeout=100)


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
    """One wild pointer or length a run; a draw that happens to be valid ends by itself."""
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
