"""Each behaviour that the contract requires, shown by its own guest, which the library runs on each
backend."""

import os
import re
import struct
from pathlib import Path

import pytest
from support import Guest, with_note

from tender import CAPTURE, BlockFile, ExitReason, HostError, Image, NetFd, Vm, VmConfig, VmResult, run

pytestmark = pytest.mark.backends
BACKEND_NAME = {"kvm": "KVM", "sandbox": "sandbox"}
"""The name at the beginning of messages about a guest's mistake: the only part of them that depends on the
backend."""


def boot(path: Path, *args: str, mem: int = 32, timeout: float = 60, **devices: object) -> VmResult:
    """Runs the guest at `path` with its console captured."""
    config = VmConfig(mem=mem, args=args, **devices)  # type: ignore[arg-type]
    return run(path, config, console=CAPTURE, timeout=timeout)


def text(result: VmResult) -> str:
    assert result.console is not None
    return result.console.decode()


def test_hello_prints_its_arguments_and_ends_with_the_given_status(guest: Guest) -> None:
    result = boot(guest("hello"), "--status=7", "a", "")
    assert "Hello, World" in text(result)
    assert (result.reason, result.status, result.guest_status) == (ExitReason.EXIT, 7, 7)


@pytest.mark.parametrize("name", ["globals", "fpu", "heap", "tls_like"])
def test_a_guests_own_checks_pass(guest: Guest, name: str) -> None:
    result = boot(guest(name), mem=64)
    assert result.ok, text(result)


def test_clocks_advance_and_agree_and_polls_wait_until_their_timeout(guest: Guest) -> None:
    """The host decides how late a wake-up may be, and a busy host is late, so the slack is wide."""
    result = boot(guest("clock"), "--slack-ms=20000")
    assert result.ok, text(result)


@pytest.mark.parametrize("args", [(), ("one",), ("a", "", "b", ""), ("",), ("--like=option", "-x", "--")])
def test_the_command_line_arrives_as_it_was_given(guest: Guest, args: tuple[str, ...]) -> None:
    result = boot(guest("args"), *args)
    assert text(result).startswith(f"<{' '.join(args)}>\n")


def test_the_longest_command_line_arrives_complete(guest: Guest) -> None:
    word = "x" * 8191
    assert text(boot(guest("args"), word)).startswith(f"<{word}>\n")


@pytest.mark.parametrize(("status", "seen"), [(0, 0), (1, 1), (254, 254), (255, 255), (256, 0), (300, 44)])
def test_the_status_is_the_low_eight_bits_of_the_guests(guest: Guest, status: int, seen: int) -> None:
    result = boot(guest("exit_status"), str(status))
    assert (result.status, result.guest_status) == (seen, status)
    assert result.reason == (ExitReason.ABORT if status == 255 else ExitReason.EXIT)


def test_a_write_of_a_mebibyte_to_the_console_is_complete(guest: Guest) -> None:
    got = boot(guest("big_puts")).console
    line = [f"{i:05} {''.join(chr(97 + (i + j) % 26) for j in range(57))}\n" for i in range(16384)]
    assert got == "".join(line).encode()


@pytest.mark.parametrize("name", ["write_text", "write_rodata"])
def test_a_write_to_a_read_only_segment_stops_the_vm(guest: Guest, backend: str, name: str) -> None:
    result = boot(guest(name))
    assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)
    assert re.fullmatch(
        BACKEND_NAME[backend] + r": host/guest translation fault: rip=0x1[0-9a-f]{5}", result.message
    )
    assert "NOT STOPPED" not in text(result)


@pytest.mark.parametrize(("name", "address"), [("null_write", 8), ("far_write", 0x400000000)])
def test_a_wild_write_makes_the_guest_print_a_dump_and_end_with_255(
    guest: Guest, name: str, address: int
) -> None:
    result = boot(guest(name))
    assert (result.reason, result.status) == (ExitReason.ABORT, 255)
    assert "ABORT" in text(result) and f"{address:x}" in text(result)
    assert result.trap is not None and result.trap.cr2 == address
    assert 0x100000 <= result.trap.rip < 0x200000


def test_a_panic_ends_with_255(guest: Guest) -> None:
    result = boot(guest("panic"))
    assert result.status == 255 and "ABORT" in text(result)


@pytest.mark.parametrize(("name", "exit_reason"), [("triple", 8), ("hlt", 5)])
def test_an_unhandled_exit_ends_the_vm_with_its_number(
    guest: Guest, backend: str, name: str, exit_reason: int
) -> None:
    result = boot(guest(name))
    assert (result.reason, result.status) == (ExitReason.UNHANDLED_EXIT, 1)
    # the value of rip is not compared: on AMD, KVM resets the vCPU before it reports a triple fault
    assert re.fullmatch(
        rf"{BACKEND_NAME[backend]}: unhandled exit: exit_reason={exit_reason:#x}, rip=0x[0-9a-f]+",
        result.message,
    )


@pytest.mark.parametrize(
    ("port", "bits", "direction"),
    [(0x3F8, 32, ""), (0x3F8, 8, ""), (0x502, 8, ""), (0x502, 16, ""), (0x502, 32, "--in"), (0x600, 32, ""),
     (0x4FF, 32, ""), (0x509, 32, ""), (0, 8, "--in")],
)  # fmt: skip
def test_an_invalid_port_stops_the_vm(guest: Guest, port: int, bits: int, direction: str) -> None:
    words = [f"--port={port:#x}", f"--bits={bits}", *([direction] if direction else [])]
    result = boot(guest("bad_port"), *words)
    assert result.message == f"Invalid guest port access: port={port:#x}"
    assert (result.reason, result.status) == (ExitReason.BAD_PORT, 1)


def test_a_bss_of_64_mebibytes_is_zero(guest: Guest) -> None:
    assert boot(guest("bss_big"), mem=128).ok


def test_a_bss_that_does_not_fit_is_refused_before_start(guest: Guest) -> None:
    from tender import ImageError

    with pytest.raises(ImageError, match="falls outside of valid range") as refused:
        boot(guest("bss_big"), mem=32)
    assert re.fullmatch(r"give it more memory: mem=\d+ or more", refused.value.hint)
    assert re.fullmatch(r"give it more memory: --mem=\d+ or more", refused.value.command_hint)


@pytest.mark.parametrize("mem", [2, 4, 512, 4096])
def test_memory_from_2_mebibytes_to_4_gibibytes(guest: Guest, mem: int) -> None:
    """4096 MiB must work on a machine with less memory, because nothing is reserved."""
    assert boot(guest("hello"), mem=mem).ok


def test_63_block_devices(guest: Guest, tmp_path: Path) -> None:
    disks: dict[str, BlockFile] = {}
    for i in range(1, 64):
        path = tmp_path / f"{i}.img"
        path.write_bytes(bytes(4096))
        disks[f"disk{i}"] = BlockFile(str(path))
    result = boot(guest("max_devices"), block=disks)
    assert result.ok, text(result)


def test_edges_of_a_block_device(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(65536))
    result = boot(guest("block_edges"), block=BlockFile(str(disk)))
    assert result.ok, text(result)
    assert disk.stat().st_size == 65536


def test_devices_of_both_kinds_keep_their_handles_macs_and_sizes(guest: Guest, tmp_path: Path) -> None:
    import socket

    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for name, size in (("0", 8192), ("1", 65536)):
        (tmp_path / name).write_bytes(bytes(size))
    d.send(b"x" * 60)
    with a, b, c, d:
        result = boot(
            guest("nets_and_blocks"),
            net={
                "service1": NetFd(c.fileno(), mac="02:00:00:00:00:02", mtu=9000),
                "service0": NetFd(a.fileno(), mac="02:00:00:00:00:01"),
            },
            block={
                "storage0": BlockFile(str(tmp_path / "0")),
                "storage1": BlockFile(str(tmp_path / "1"), sector_size=4096),
            },
        )
    out = text(result)
    assert "service0 handle 1 net mac 02:00:00:00:00:01 mtu 1500\n" in out
    assert "storage0 handle 2 block capacity 8192 block_size 512\n" in out
    assert "service1 handle 3 net mac 02:00:00:00:00:02 mtu 9000\n" in out
    assert "storage1 handle 4 block capacity 65536 block_size 4096\n" in out
    assert "storage0 holds storage0" in out and "storage1 holds storage1" in out
    assert "ready 1 set 0x8" in out
    assert result.ok


@pytest.mark.parametrize("sector", [512, 4096])
def test_disk_verifies_what_it_wrote(guest: Guest, tmp_path: Path, sector: int) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    result = boot(guest("disk"), block=BlockFile(str(disk), sector_size=sector))
    assert result.ok, text(result)
    assert disk.read_bytes() != bytes(1 << 20)
    assert result.counters.block_writes >= (1 << 20) // sector
    again = boot(guest("disk"), "--verify", block=BlockFile(str(disk), sector_size=sector, read_only=True))
    assert again.ok, text(again)


def test_disk_fails_loudly_on_a_changed_disk(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    assert boot(guest("disk"), block=BlockFile(str(disk))).ok
    with disk.open("r+b") as file:
        file.seek(512 * 77 + 13)
        file.write(b"\xa5\x5a\xa5")
    result = boot(guest("disk"), "--verify", block=BlockFile(str(disk)))
    assert result.status == 1 and "FAILED block 77" in text(result)


def test_a_read_only_disk_refuses_writes_and_is_unchanged(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(1 << 16))
    before = disk.read_bytes()
    disk.chmod(0o444)
    result = boot(guest("disk"), "--read-only", block=BlockFile(str(disk), read_only=True))
    assert result.ok, text(result)
    assert result.counters.block_errors > 0 and disk.read_bytes() == before


def test_a_disk_that_is_truncated_gives_the_guest_an_error(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 16))
    assert boot(guest("disk"), block=BlockFile(str(disk))).ok
    with Image.open(guest("disk")) as image:
        config = VmConfig(mem=32, block=BlockFile(str(disk), read_only=True), args=("--verify",))
        with Vm(image, config, console=CAPTURE) as vm:
            os.truncate(disk, 4096)
            result = vm.run(timeout=60)
    assert result.status == 1 and result.counters.block_errors > 0, text(result)


def test_frames_that_cannot_be_sent_are_dropped_and_counted(guest: Guest) -> None:
    import socket

    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    b.close()  # no receiver any more: EPIPE on each write
    with a:
        result = boot(guest("net_tx"), "--count=5", "--size=60", net=NetFd(a.fileno()))
    assert "size 60 sent 5 ok 5 refused 0" in text(result)
    assert result.counters.net_tx_drops == 5 and result.ok


def test_frames_pass_unchanged_both_ways_over_a_descriptor(guest: Guest) -> None:
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(120)
    frames = [os.urandom(size) for size in (14, 60, 61, 1500, 1514)]
    with ours, theirs, Image.open(guest("net_rx_poll")) as image:
        with Vm(image, VmConfig(mem=16, net=NetFd(theirs.fileno())), console=CAPTURE) as vm:
            vm.start(timeout=60)
            for frame in frames:
                ours.send(frame)
                assert ours.recv(65536) == frame
            ours.send(bytes(14) + b"QUIT")
            result = vm.wait()
    assert result.ok
    assert result.counters.net_rx_packets == len(frames) + 1
    assert result.counters.net_tx_bytes == sum(map(len, frames))


def test_a_frame_longer_than_the_buffer_is_dropped_and_counted(guest: Guest) -> None:
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(120)
    with ours, theirs, Image.open(guest("net_rx_poll")) as image:
        config = VmConfig(mem=16, args=("--buffer=100",), net=NetFd(theirs.fileno()))
        with Vm(image, config, console=CAPTURE) as vm:
            vm.start(timeout=60)
            for size in (200, 101, 100):
                ours.send(bytes(range(size)))
            assert ours.recv(65536) == bytes(range(100))
            ours.send(bytes(14) + b"QUIT")
            result = vm.wait()
    assert result.ok
    assert result.counters.net_rx_drops == 2 and result.counters.net_rx_packets == 2


def test_a_peer_that_goes_away_does_not_make_the_guest_spin(guest: Guest) -> None:
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, Image.open(guest("net_rx_poll")) as image:
        with Vm(image, VmConfig(mem=16, net=NetFd(theirs.fileno())), console=CAPTURE) as vm:
            ours.close()
            result = vm.run(timeout=4)
    assert result.reason == ExitReason.TIMEOUT
    assert result.counters.hypercalls["poll"] < 20


def test_the_start_state_is_the_contracts(guest: Guest, backend: str) -> None:
    """Reads boot info, the copy of the manifest and the page tables from the guest's memory before it runs.

    In the sandbox a guest has no page tables: addresses that a guest may not read are not mapped.
    """
    with Image.open(guest("hello")) as image, Vm(image, VmConfig(mem=8, args=("a", "b"))) as vm:
        mem, kernel_end, hz, cmdline, mft, features, _, ring = struct.unpack(
            "<QQQQQIIQ", vm.memory(0x10000, 56)
        )
        assert (mem, kernel_end, features, ring) == (8 << 20, image.kernel_end, 0, 0)
        assert hz > 10**8 and mft == 0x10038
        assert vm.memory(cmdline, 4) == b"a b\0"
        assert struct.unpack("<II", vm.memory(mft, 8)) == (1, 1)
        if backend == "sandbox":
            for gpa in (0, 0x2000, 0xFFF8):
                with pytest.raises(HostError, match=f"memory: {gpa:#x} cannot be read"):
                    vm.memory(gpa, 8)
            return
        assert struct.unpack("<Q", vm.memory(0x2000, 8)) == (0x3003,)
        pds = struct.unpack("<512Q", vm.memory(0x4000, 4096))
        assert pds[:5] == (0x8003, 0x200083, 0x400083, 0x600083, 0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("divide", "#DE"),
        ("opcode", "#UD"),
        ("protection", "#GP"),
        ("page", "#PF"),
        ("fetch", "#PF"),
        ("double", "#DF"),
    ],
)
def test_a_trap_is_dumped_by_the_guest_and_ends_with_255(guest: Guest, kind: str, name: str) -> None:
    result = boot(guest("traps"), f"--kind={kind}")
    assert (result.reason, result.status) == (ExitReason.ABORT, 255)
    assert f"trap: {name}" in text(result) and f"ABORT: {name}" in text(result)


def test_a_trap_inside_the_trap_handler_does_not_loop(guest: Guest) -> None:
    result = boot(guest("traps"), "--kind=nested")
    assert result.status == 255 and "inside the trap handler" in text(result)


def test_whether_data_is_executable_follows_the_contract_of_the_backend(guest: Guest, backend: str) -> None:
    """On KVM W^X forbids writing to text, but not executing data: EFER.NXE is off in the start state.

    The sandbox is stricter: a page can be executed only if its segment says so.
    """
    result = boot(guest("exec_data"))
    if backend == "kvm":
        assert result.ok and "returned 7" in text(result)
    else:
        assert (result.reason, result.status) == (ExitReason.TRANSLATION_FAULT, 1)
        assert re.fullmatch(r"sandbox: host/guest translation fault: rip=0x10[0-9a-f]{4}", result.message)
        assert text(result) == ""


def test_each_of_two_networks_has_a_bit_in_the_ready_set(guest: Guest) -> None:
    import socket

    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    pairs[1][0].send(b"x" * 60)
    result = boot(guest("two_nets"), net={f"service{i}": NetFd(pairs[i][1].fileno()) for i in range(2)})
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    assert result.ok and "ready 1 set 0x4" in text(result), text(result)
    assert "service0 frames 0" in text(result) and "service1 frames 1" in text(result)


def test_capture_keeps_the_last_mebibyte_and_counts_the_lost_bytes(guest: Guest) -> None:
    result = boot(guest("flood"), timeout=1.0)
    assert result.console is not None and result.reason == ExitReason.TIMEOUT
    lost = result.counters.console_lost_bytes
    assert len(result.console) + lost == result.counters.console_bytes
    assert len(result.console) <= 1 << 20


@pytest.mark.parametrize("version", [1, 2])
def test_abi_versions_1_and_2_run_the_same_way(guest: Guest, version: int) -> None:
    """The hypercalls are the same; version 1 only marks an older layout of TLS in the file."""
    data = bytearray(guest("hello").read_bytes())
    at = data.index(b"Solo5\0\0\0\x01\0\0\0\x02\0\0\0") + 12
    data[at] = version
    with Image.from_bytes(bytes(data)) as image:
        assert image.abi_version == version
        assert run(image, VmConfig(mem=8), console=CAPTURE).ok


def test_the_gate_is_granted_on_request_and_its_slots_are_functions(guest: Guest) -> None:
    result = boot(guest("gate"))
    assert text(result) == "gate: granted\ngate: printed by its slot\ngate: OK\n"
    assert result.ok
    assert result.counters.hypercalls["walltime"] == 1004
    assert result.counters.hypercalls["poll"] == 1


@pytest.mark.parametrize(("version", "features"), [(1, 0), (1, 2), (1, 0xFFFFFFFE), (0, 1), (2, 1)])
def test_the_gate_is_not_granted_without_a_request_in_a_known_version(
    guest: Guest, version: int, features: int
) -> None:
    with Image.from_bytes(with_note(guest("gate"), version, features)) as image:
        result = run(image, VmConfig(mem=8), console=CAPTURE, timeout=60)
    assert text(result) == "gate: none\ngate: OK\n"
    assert result.ok


def test_unknown_features_are_not_granted(guest: Guest) -> None:
    with Image.from_bytes(with_note(guest("gate"), 1, 0xFFFFFFFF)) as image, Vm(image, VmConfig(mem=8)) as vm:
        assert struct.unpack("<4sIIIQ", vm.memory(0xFFE00, 24)) == (b"TNDX", 1, 15, 0, 0xFF000)


def test_without_the_note_the_gate_page_is_zero_and_the_guest_runs(guest: Guest, backend: str) -> None:
    """The last 256 bytes of the gate page belong to the backend. On KVM they are zeros too."""
    promised = 0xF00 if backend == "sandbox" else 0x1000
    with Image.open(guest("hello_nogate")) as image:
        for mem in (8, 16):
            with Vm(image, VmConfig(mem=mem, args=("--status=7",)), console=CAPTURE) as vm:
                assert vm.memory(0xFF000, promised) == bytes(promised)
                result = vm.run(timeout=60)
                assert "Hello, World" in text(result) and result.status == 7


def test_every_memory_size_of_an_image_has_the_gate(guest: Guest, backend: str) -> None:
    """The template of the second size is a copy of the first. A slot is `mov %edi,%eax; mov $0x501,%edx`,
    followed by the backend's exit from the guest: `out %eax,(%dx); ret`, or a jump into the program.
    """
    way_out = {"kvm": "efc3", "sandbox": "ff2425"}[backend]
    with Image.open(guest("hello")) as image:
        for mem in (8, 16):
            with Vm(image, VmConfig(mem=mem)) as vm:
                assert vm.memory(0xFFE00, 4) == b"TNDX"
                assert vm.memory(0xFF010, 10).startswith(bytes.fromhex("89f8ba01050000" + way_out))


@pytest.mark.parametrize(("features", "low", "high"), [(1, 0xFF020, 0xFF030), (0, 0x100000, 0x200000)])
def test_the_guest_library_calls_through_the_gate_if_it_is_granted(
    guest: Guest, features: int, low: int, high: int
) -> None:
    with Image.from_bytes(with_note(guest("gate"), 1, features)) as image:
        result = run(image, VmConfig(mem=8, args=("--wild",)), console=CAPTURE, timeout=60)
    assert result.reason == ExitReason.BAD_ACCESS
    rip = re.search(r"hypercall puts, rip=(0x[0-9a-f]+)", result.message)
    assert rip and low <= int(rip[1], 16) < high, result.message
