"""Attaching devices: each failure names the thing, the value, and what to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from elf_builder import good_elf
from support import Guest, TapInterface, ip

from tender import BlockFile, DeviceError, Image, ManifestError, NetFd, Tap, Vm, VmConfig

pytestmark = [pytest.mark.backends, pytest.mark.tap]


def refusal(guest: Guest, name: str) -> DeviceError:
    with Image.open(guest("echo")) as image, pytest.raises(DeviceError) as refused:
        Vm(image, VmConfig(mem=8, net=Tap(name)))
    return refused.value


def follow(hint: str) -> None:
    """Runs the commands of a hint exactly as written. `sudo` runs its command, because the test is root."""
    _, colon, commands = hint.rpartition(": ")
    assert colon, hint
    done = subprocess.run(
        ["sh", "-c", f'sudo() {{ "$@"; }}; {commands}'], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), hint


def test_a_missing_tap(guest: Guest) -> None:
    error = refusal(guest, "tapnone")
    assert str(error) == "Could not attach interface: tapnone: No such file or directory"
    assert error.code == "tap-missing"
    follow(error.hint)
    with Image.open(guest("echo")) as image, Vm(image, VmConfig(mem=8, net=Tap("tapnone"))):
        pass
    ip("link", "del", "tapnone")


def test_a_tap_that_is_down(guest: Guest, tap: TapInterface) -> None:
    tap.down()
    error = refusal(guest, tap.name)
    assert str(error) == "Could not attach interface: tapt0: Network is down"
    assert error.hint == "switch it on: ip link set tapt0 up" and error.code == "tap-down"
    follow(error.hint)
    with Image.open(guest("echo")) as image, Vm(image, VmConfig(mem=8, net=Tap(tap.name))):
        pass


def test_a_tap_that_another_vm_has(guest: Guest, tap: TapInterface) -> None:
    with Image.open(guest("echo")) as image, Vm(image, VmConfig(mem=8, net=Tap(tap.name))):
        error = refusal(guest, tap.name)
    assert error.code == "tap-busy" and "another process" in error.hint


def test_an_interface_that_is_no_tap(guest: Guest) -> None:
    ip("link", "set", "lo", "up")
    assert refusal(guest, "lo").code == "tap-kind"


@pytest.mark.parametrize("name", ["tap%d", "a" * 16, "tap\udcff"])
def test_a_name_that_no_interface_can_have(guest: Guest, name: str) -> None:
    assert refusal(guest, name).errno


def test_one_tap_given_twice_to_one_guest(tap: TapInterface) -> None:
    elf = good_elf(devices=[("one", "net"), ("two", "net")])
    config = VmConfig(mem=8, net={"one": Tap(tap.name), "two": Tap(tap.name)})
    with Image.from_bytes(elf) as image, pytest.raises(DeviceError) as refused:
        Vm(image, config)
    assert str(refused.value).endswith("given to this guest twice, as one and as two")
    assert (refused.value.code, refused.value.hint) == ("tap-busy", "give two another one")


def test_a_tap_of_another_user(guest: Guest, tap: TapInterface) -> None:
    """Root may attach to any TAP, so user nobody makes the attempt. The error names the TAP's owner.

    The TAP has an owner: on some kernels anybody may attach to a TAP without one, on others nobody
    may.
    """
    if int(Path("/proc/self/uid_map").read_text().split()[2]) == 1:
        pytest.skip("tools/with_net was not started as root: its user namespace has no other user")
    ip("link", "del", tap.name)
    ip("tuntap", "add", tap.name, "mode", "tap", "user", "root")
    tap.up()
    program = (
        "import _socket, os, pwd  # imported with rights: user nobody may be unable to read the files\n"
        "from tender import DeviceError, Tap\n"
        "from tender.devices import net, opening\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for _ in range(2):\n"
        "    name = input()\n"
        "    try:\n"
        "        opening.open_device(Tap(name)).close()\n"
        "        print('attached', flush=True)\n"
        "    except DeviceError as error:\n"
        "        print(error.code, '|', error, '|', error.hint, flush=True)\n"
    )
    tun = Path("/dev/net/tun")
    mode = tun.stat().st_mode & 0o777
    tun.chmod(0o666)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd="/", env={**os.environ, "USER": "nobody"},
        ) as user:  # fmt: skip
            assert user.stdin and user.stdout
            user.stdin.write(f"{tap.name}\n")
            user.stdin.flush()
            code, message, hint = user.stdout.readline().strip().split(" | ")
            assert code == "tap-denied" and "Operation not permitted" in message
            assert hint.startswith("it belongs to root; make your own: sudo ip tuntap add tap")
            assert " user nobody && sudo ip link set " in hint
            own = hint.rpartition(" set ")[2].partition(" ")[0]
            assert own != tap.name
            follow(hint)
            user.stdin.write(f"{own}\n")
            user.stdin.flush()
            assert user.stdout.readline() == "attached\n"
            ip("link", "del", own)
    finally:
        tun.chmod(mode)
    assert user.returncode == 0


def test_a_descriptor_that_is_not_open(guest: Guest) -> None:
    with Image.open(guest("echo")) as image, pytest.raises(DeviceError, match=r"@987: Bad file descriptor"):
        Vm(image, VmConfig(mem=8, net=NetFd(987)))


@pytest.mark.parametrize(
    ("size", "sector", "message"),
    [
        (0, 512, "storage: Backing storage must be at least 1 block (512 bytes) in size"),
        (511, 512, "storage: Backing storage size must be block aligned (512 bytes)"),
        (6144, 4096, "storage: Backing storage size must be block aligned (4096 bytes)"),
    ],
)
def test_a_disk_of_the_wrong_size(guest: Guest, tmp_path: Path, size: int, sector: int, message: str) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(size))
    with Image.open(guest("disk")) as image, pytest.raises(DeviceError) as refused:
        Vm(image, VmConfig(mem=8, block=BlockFile(str(disk), sector_size=sector)))
    assert str(refused.value) == message


def test_a_disk_that_is_a_directory_a_fifo_or_missing(guest: Guest, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    with Image.open(guest("disk")) as image:
        for name, words in (
            ("fifo", "not a file or a block device"),
            ("dir", "Is a directory"),
            ("no", "No such"),
        ):
            with pytest.raises(DeviceError, match=f"Could not open block device: .*{name}: .*{words}"):
                Vm(image, VmConfig(mem=8, block=BlockFile(str(tmp_path / name))))


def test_a_path_with_spaces(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "my disk.img"
    disk.write_bytes(bytes(8192))
    with Image.open(guest("disk")) as image, Vm(image, VmConfig(mem=8, block=BlockFile(str(disk)))):
        pass


def test_a_device_left_out_is_named_with_what_to_add(guest: Guest) -> None:
    with Image.open(guest("nets_and_blocks")) as image, pytest.raises(ManifestError) as refused:
        Vm(image, VmConfig(mem=8))
    assert "Device 'service0' of type NET_BASIC declared but not attached." in str(refused.value)
    assert refused.value.missing == (
        ("service0", "net"), ("storage0", "block"), ("service1", "net"), ("storage1", "block"),
    )  # fmt: skip
    assert refused.value.hint == (
        "add: net={'service0': Tap(...), 'service1': Tap(...)}, "
        "block={'storage0': BlockFile(...), 'storage1': BlockFile(...)}"
    )
    assert "add: --net:service0=TAP --block:storage0=FILE" in refused.value.command_hint


def test_a_device_that_is_not_declared_is_named(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        with pytest.raises(ManifestError, match="Resource not declared in manifest: 'service0'"):
            Vm(image, VmConfig(mem=8, net={"service0": Tap("tap0")}))
        with pytest.raises(ManifestError, match="declares no net device"):
            Vm(image, VmConfig(mem=8, net=Tap("tap0")))


def test_an_unnamed_device_among_several_must_be_named(guest: Guest) -> None:
    with (
        Image.open(guest("two_nets")) as image,
        pytest.raises(ManifestError, match="2 net devices") as refused,
    ):
        Vm(image, VmConfig(mem=8, net=Tap("tap0")))
    assert refused.value.hint == "name one: net={'service0': Tap(...)}"
    assert refused.value.command_hint == "name one: --net:service0=TAP"
