"""Boot info, row by row, as the guest reads it at 0x10000: 56 bytes, then the manifest, then the command
line.

Rows with a network use --no-net-ring. test_ring.py has what boot info contains with a ring.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from bare import DATA, L_PUTS, MIB, PUTS, Bare
from elf_builder import MFT_RESERVED_FIRST, PF_R, Segment, abi_note, build_elf, manifest_note

from tender import BlockFile, ExitReason, Image, Vm, VmConfig

pytestmark = pytest.mark.backends

BOOT_INFO, MANIFEST = 0x10000, 0x10038
ENTRY = struct.Struct("<68sI16sQB7s")
COMMAND_LINE_BYTES = 8192
Solo5 = Callable[..., "CompletedProcess[Any]"]


def printer(length: int, devices: tuple[tuple[str, str], ...] = ()) -> Bare:
    """Returns a guest that prints this many bytes, beginning at boot info."""
    guest = Bare(devices)
    guest.call(PUTS, L_PUTS, BOOT_INFO, length)
    guest.halt()
    return guest


def fields(raw: bytes) -> dict[str, int]:
    names = (
        "mem_size",
        "kernel_end",
        "cpu_cycle_freq",
        "cmdline",
        "mft",
        "host_features",
        "guest_features",
        "net_ring",
    )
    return dict(zip(names, struct.unpack_from("<QQQQQIIQ", raw), strict=True))


def entries(raw: bytes) -> list[tuple[Any, ...]]:
    """Returns the entries of the manifest that follows boot info."""
    version, count = struct.unpack_from("<II", raw, MANIFEST - BOOT_INFO)
    assert version == 1
    return [ENTRY.unpack_from(raw, MANIFEST - BOOT_INFO + 8 + number * ENTRY.size) for number in range(count)]


def named(name: str) -> bytes:
    return name.encode().ljust(68, b"\0")


# ---- the 56 bytes


@pytest.mark.parametrize("mem", [2, 6, 4096])
def test_fields(mem: int) -> None:
    """Without a network no ring is offered: its bit and its address are 0, and so is the field that a guest
    may set."""
    guest = printer(56)
    seen = fields(guest.run(mem=mem).console)
    hz = seen.pop("cpu_cycle_freq")
    assert seen == {
        "mem_size": mem * MIB,
        "kernel_end": DATA + 4096,
        "cmdline": MANIFEST + 8 + 104,
        "mft": MANIFEST,
        "host_features": 0,
        "guest_features": 0,
        "net_ring": 0,
    }
    assert 10**8 < hz < 10**11


def test_the_address_of_boot_info_is_in_rdi() -> None:
    guest = Bare()
    seen = guest.structure("<Q", 0)
    guest.code(b"\x48\x89\x3c\x25" + struct.pack("<I", seen.gpa))  # mov %rdi, seen
    guest.halt()
    assert guest.run().at(seen) == (BOOT_INFO,)


def test_kernel_end_is_the_end_of_the_last_segment_with_file_bytes() -> None:
    """It is rounded up to whole pages and includes the memory after the file bytes. A separate bss segment
    does not count."""
    guest = printer(56)
    last = Segment(data=b"x", flags=PF_R, vaddr=0x180000, memsz=4097)
    bss = Segment(flags=PF_R, vaddr=0x190000, memsz=4096)
    elf = build_elf(segments=[*guest.segments(), last, bss], notes=guest.notes())
    assert fields(guest.run(elf).console)["kernel_end"] == 0x182000


def test_kernel_end_is_0_without_a_segment() -> None:
    """No code can run in such a VM, but the VM can be made."""
    elf = build_elf(notes=[abi_note(), manifest_note()])
    with Image.from_bytes(elf) as image, Vm(image, VmConfig(mem=2)) as vm:
        assert fields(vm.memory(BOOT_INFO, 56))["kernel_end"] == 0


def test_the_frequency_equals_the_one_that_kvm_reports(backend: str) -> None:
    """KVM reports it in kHz. In the sandbox it is the host's: test_vcpu_state.py compares that with a
    clock."""
    hz = fields(printer(56).run().console)["cpu_cycle_freq"]
    if backend == "kvm":
        assert hz % 1000 == 0
        assert hz == fields(printer(56).run(mem=4).console)["cpu_cycle_freq"]


# ---- the manifest


def test_the_manifest_describes_attached_devices_and_nothing_of_the_host(
    solo5: Solo5, tmp_path: Path
) -> None:
    """Attached flags and parameters are filled in. The fields for host descriptors and the padding are
    zero."""
    import socket

    guest = printer(56 + 8 + 4 * 104, (("service0", "net"), ("storage", "block"), ("spare", "block")))
    (tmp_path / "guest.hvt").write_bytes(guest.elf())
    for name, length in (("a.img", 8192), ("b.img", 65536)):
        (tmp_path / name).write_bytes(bytes(length))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        done = solo5(
            "--no-net-ring",
            f"--net:service0=@{theirs.fileno()}",
            "--net-mac:service0=02:00:00:00:00:0a",
            "--block:storage=a.img",
            "--block:spare=b.img",
            "--block-sector-size:spare=4096",
            "guest.hvt",
            pass_fds=[theirs.fileno()],
            text=False,
            errors=None,
        )
    assert done.returncode == 0, done.stderr
    assert struct.unpack_from("<IIQ", done.stdout, 40) == (0, 0, 0)
    assert struct.unpack_from("<QQ", done.stdout, 24) == (MANIFEST + 8 + 4 * 104, MANIFEST)
    none = bytes(7)
    assert entries(done.stdout) == [
        (named(""), MFT_RESERVED_FIRST, bytes(16), 0, 0, none),
        (named("service0"), 2, struct.pack("<6sH8x", b"\2\0\0\0\0\x0a", 1500), 0, 1, none),
        (named("storage"), 1, struct.pack("<QH6x", 8192, 512), 0, 1, none),
        (named("spare"), 1, struct.pack("<QH6x", 65536, 4096), 0, 1, none),
    ]


def test_a_manifest_of_63_devices_and_the_longest_command_line_fit(tmp_path: Path) -> None:
    """They take 14912 bytes in all, and zeros follow."""
    (tmp_path / "disk.img").write_bytes(bytes(512))
    devices = tuple((f"storage{number}", "block") for number in range(63))
    disks = {name: BlockFile(str(tmp_path / "disk.img"), read_only=True) for name, _ in devices}
    word = "x" * (COMMAND_LINE_BYTES - 1)
    raw = printer(0x5000, devices).run(args=(word,), block=disks).console
    cmdline = fields(raw)["cmdline"]
    assert cmdline == MANIFEST + 8 + 64 * 104
    assert [entry[0] for entry in entries(raw)[1:]] == [named(name) for name, _ in devices]
    assert raw[cmdline - BOOT_INFO :] == word.encode() + bytes(0x5000 - 14912 + 1)
    assert 56 + 8 + 64 * 104 + COMMAND_LINE_BYTES == 14912


# ---- the command line


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), b""),
        (("",), b""),
        (("", ""), b" "),
        (("a", "b"), b"a b"),
        (("a", "", "b", ""), b"a  b "),
        (("a b", '"c"', "d\\", "'e"), b'a b "c" d\\ \'e'),
        (("\udcff\x01", "é\t\n"), b"\xff\x01 \xc3\xa9\t\n"),
    ],
)
def test_the_command_line_is_words_joined_by_a_space_and_a_nul(args: tuple[str, ...], text: bytes) -> None:
    """Nothing is quoted or escaped, and nothing follows the NUL."""
    raw = printer(0x1000).run(args=args).console
    assert raw[fields(raw)["cmdline"] - BOOT_INFO :] == text.ljust(0x1000 - 56 - 8 - 104, b"\0")


def test_8191_bytes_are_the_longest_command_line(solo5: Solo5, tmp_path: Path) -> None:
    (tmp_path / "guest.hvt").write_bytes(printer(56 + 8 + 104 + COMMAND_LINE_BYTES).elf())
    done = solo5("guest.hvt", "y" * 8000, "z" * 190)
    assert (done.returncode, done.stdout[-8192:]) == (0, "y" * 8000 + " " + "z" * 190 + "\0")
    done = solo5("guest.hvt", "y" * 8000, "z" * 191)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "solo5-hvt: Guest command line too long (max=8191 characters)\n"


def test_the_rest_of_the_readable_low_mebibyte_is_zero() -> None:
    """There are only zeros from the end of the command line to where the backend's own part begins."""
    guest = Bare()
    guest.call(PUTS, L_PUTS, BOOT_INFO, 0x80000 - BOOT_INFO)
    guest.halt()
    ran = guest.run(args=("end",))
    assert ran.result.reason == ExitReason.EXIT
    at = fields(ran.console)["cmdline"] - BOOT_INFO + 3
    assert ran.console[at:] == bytes(0x80000 - BOOT_INFO - at)
