"""Compares the two backends: each guest ends the same way on both, to the last byte that does not depend on
a clock.

A case is a guest, its arguments, and what its devices contain; every guest has one. The reason, the
statuses, the message, the trap cookie, the console, the disks, the frames and the counters are compared. A
case names what may differ, and why. The sandbox does not have the network ring, so the ring is switched off
(test_ring.py).

    normal   regular expressions for text that depends on a clock, or on the host's processor
    counts   counters that depend on how fast host and guest are
    differs  the end in the sandbox, where the rules of the backends are not the same

The name of the backend in a message is replaced before the comparison.
"""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support import Guest, with_note

from tender import BackendLike, BlockFd, BlockFile, ExitReason, Image, NetFd, Tap, Vm, VmConfig

pytestmark = pytest.mark.kvm
ROOT = Path(__file__).resolve().parents[2]

Normal = tuple[tuple[str, str], ...]
COUNTED = (
    *("console_bytes", "console_lost_bytes"),
    *("net_rx_packets", "net_rx_bytes", "net_tx_packets", "net_tx_bytes", "net_tx_drops", "net_rx_errors"),
    *("block_reads", "block_read_bytes", "block_writes", "block_write_bytes", "block_errors"),
    *("net_batches", "block_flushes", "block_batches"),
)


@dataclass(frozen=True)
class Outcome:
    """Everything about an end that a user can see, and that a backend could get wrong."""

    reason: str
    status: int
    guest_status: int | None
    message: str
    trap: dict[str, int] | None
    console: str
    disks: tuple[bytes, ...]
    frames: tuple[bytes, ...]
    counters: dict[str, int]


@dataclass(frozen=True)
class Case:
    """One run. Every declared device is attached: a disk of zeros, or a socket that already contains
    `frames`."""

    guest: str
    args: tuple[str, ...] = ()
    mem: int = 16
    disk_bytes: int = 1 << 16
    frames: tuple[bytes, ...] = ()
    kind: socket.SocketKind = socket.SOCK_SEQPACKET
    stop_at: bytes = (
        b""  # stopped from another thread after the console has this and `answers` frames have come
    )
    answers: int = 0
    normal: Normal = ()
    counts: frozenset[str] = frozenset()
    gate: bool = (
        True  # False: the feature is removed from the note, so that each call site of the library is patched
    )
    differs: dict[str, object] = field(default_factory=dict, hash=False)
    why: str = ""

    @property
    def name(self) -> str:
        return " ".join((self.guest, *self.args, *([] if self.gate else ["(no gate)"])))


def ethernet(kind: int, payload: bytes) -> bytes:
    return bytes.fromhex("020000000001 0200000000aa") + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(protocol: int, payload: bytes) -> bytes:
    def header(check: int) -> bytes:
        addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, check) + addresses

    return ethernet(0x0800, header(checksum(header(0))) + payload)


def ping(data: bytes) -> bytes:
    return ipv4(
        1, struct.pack("!BBHHH", 8, 0, checksum(struct.pack("!BBHHH", 8, 0, 0, 1, 1) + data), 1, 1) + data
    )


ARP = ethernet(
    0x0806,
    struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex("0200000000aa 0a000001 000000000000 0a000002"),
)
UDP = ipv4(17, struct.pack("!HHHH", 5000, 7, 8 + 11, 0) + b"hello, echo")
TO_ECHO = (ARP, ping(bytes(range(56))), UDP)
TO_BE_SENT_BACK = (bytes(14), bytes(range(60)), b"\xa5" * 1514, bytes(14) + b"QUIT")

HELLO: Normal = ((r"wall \d+\.\d{9} s, up \d+\.\d{9} s, counter \d+ Hz", "wall W, up U, counter C"),)
RESET_ON_AMD: Normal = ((r"rip=0x[0-9a-f]+", "rip=R"),)
FLOOD: Normal = ((r"\A(?:f{63}\n)+f*\Z", "lines of f"),)
DUMP: Normal = (
    # the start divides by the counter's frequency, known to a few ppm; these registers hold remains of the division
    (r"\br8  [0-9a-f]{16}", "r8  <by frequency>"),
    (r"\br9     [0-9a-f]{16}", "r9     <by frequency>"),
    (r"\br10 [0-9a-f]{16}", "r10 <by frequency>"),
    # RF, bit 16: a processor sets it in the frame of a fault, and so does KVM when it injects one. QEMU's
    # emulation does not.
    (r"(rflags 0{11})[01]([0-9a-f]{4})", r"\1.\2"),
)
CALLED: Normal = (
    *DUMP,
    (r"\br11 [0-9a-f]{16}", "r11 <by the call>"),
)  # a hypercall by the gate may change r11
RF = 1 << 16
POLLS = frozenset({"poll", "walltime"})

CASES = [
    Case("hello", ("--status=7", "a", ""), normal=HELLO),
    Case("hello_nogate", ("one",), normal=HELLO),
    Case("echo", frames=TO_ECHO, stop_at=b"10.0.0.2/24", answers=3,
        counts=POLLS | {"net_read", "net_batch", "net_batches"}),
    Case("disk"),
    Case("disk", ("--read-only",)),
    Case("block_sparse", disk_bytes=8 << 20, stop_at=b"read 8\n", counts=POLLS),
    Case("args", ("a", "", "b  c", "\udcff")),
    *(Case("bad_hypercall", (f"--number={n}",)) for n in (0, 4, 5, 6, 7, 9, 0x1F)),
    *(
        Case("bad_port", (f"--port={port:#x}", f"--bits={bits}", *direction))
        for port, bits, direction in (
            (0x3F8, 32, ()), (0x3F8, 8, ()), (0x502, 8, ()), (0x502, 16, ()), (0x502, 32, ("--in",)),
            (0x600, 32, ()), (0x4FF, 32, ()), (0x509, 32, ()), (0, 8, ("--in",)), (0x3F8, 16, ("--in",)),
        )
    ),
    Case("big_puts"),
    Case("block_batch_wild"),
    Case("block_edges"),
    Case("block_load", ("--batch",)),
    Case("block_load", ("--batch", "--read-only")),
    Case("block_trap", stop_at=b"reads", counts=frozenset({"block_read", "block_reads", "block_read_bytes"})),
    Case("bss_big", mem=128),
    Case("clock", ("--slack-ms=20000",), normal=((r"\d{2,}", "N"), (r"in \d+ calls", "in N calls")),
        counts=POLLS | {"console_bytes"}),
    Case("cpu", ("--tls",)),
    *(Case("cpu", (f"--rdmsr={msr:#x}",)) for msr in (0x1B, 0x277, 0xC0000080)),
    *(Case("cpu", (f"--wrmsr={msr:#x}", "--value=0x200000")) for msr in (0xC0000100, 0xC0000101, 0xC0000102)),
    *(Case("cpu", (f"--rdmsr={msr:#x}",), normal=DUMP) for msr in (0x48, 0x480, 0xC0010117)),
    *(Case("cpu", (f"--wrmsr={msr:#x}",), normal=DUMP) for msr in (0x10, 0x48, 0x1A0)),
    Case(
        "exec_data",
        differs={"reason": ExitReason.TRANSLATION_FAULT, "status": 1, "guest_status": None, "console": ""},
        why="the sandbox maps data without the right to execute it; the start state under KVM has no such right",
    ),
    *(Case("exit_status", (n,)) for n in ("0", "1", "254", "255", "256", "300")),
    Case("debug", ("spin", "1000")),
    Case("debug", ("poll", "3"), counts=POLLS),
    Case("debug", ("sleep",), stop_at=b"ready", counts=POLLS),
    Case("debug", ("print", "100000")),
    *(Case("debug", (fault,), normal=CALLED) for fault in ("fault", "divide", "invalid")),
    Case("debug", ("wedge",), stop_at=b"ready"),
    Case("debug", ("vectors", "1000")),
    Case("debug", ("privileged", "3")),
    Case("debug", ("halt",)),
    Case("debug_nogate", ("poll", "3"), counts=POLLS),
    Case("bug_null", ("kitchen", "attic"), normal=CALLED),
    Case("bug_heap", ("a" * 40, "b")),
    Case("bug_loop", ("b", "a")),
    Case("leak", ("1048576", "1000"), counts=POLLS),
    Case("far_write", normal=DUMP),
    Case("flood", stop_at=b"f" * 63, normal=FLOOD, counts=frozenset({"puts", "console_bytes"})),
    Case("fpu"),
    Case("leftovers"),
    Case("gate"),
    Case("gate", ("--wild",)),
    Case("globals"),
    Case("heap"),
    Case("heap", ("--overrun",)),
    Case("heap", ("--double-free",)),
    Case("hlt"),
    *(
        Case("hostile", ("--mode=survivable", f"--seed={seed}", "--calls=2000"), kind=socket.SOCK_DGRAM)
        for seed in (1, 2)
    ),
    *(
        Case("hostile", ("--mode=wild", f"--seed={seed}"), kind=socket.SOCK_DGRAM, gate=gate)
        for seed in range(1, 31)
        for gate in (True, False)
    ),
    Case("hello", ("--status=7", "a", ""), normal=HELLO, gate=False),
    Case("gate", gate=False),
    Case("gate", ("--wild",), gate=False),
    Case("block_edges", gate=False),
    Case("block_load", ("--batch",), gate=False),
    Case("max_devices", disk_bytes=4096),
    Case("net_batch", ("tx", "--count=5")),
    Case("net_offload", ("lies",)),
    Case("net_rx_poll", frames=TO_BE_SENT_BACK),
    Case("net_tx"),
    Case("net_tx", ("--count=5", "--size=60")),
    Case("nets_and_blocks", frames=(bytes(60),)),
    Case("null_write", normal=DUMP),
    Case("panic"),
    Case("ring", ("none",)),
    Case("sleep", stop_at=b"ready", counts=POLLS),
    Case("spin", stop_at=b"ready"),
    Case("tls_like"),
    *(
        Case("traps", (f"--kind={kind}",), normal=DUMP)
        for kind in (
            *("divide", "debug", "breakpoint", "opcode", "protection", "page", "fetch", "simd"),
            *("double", "nested", "bare"),
        )
    ),
    Case(
        "traps",
        ("--kind=interrupt",),
        differs={
            "reason": ExitReason.FORBIDDEN_SYSCALL,
            "status": 1,
            "guest_status": None,
            "trap": None,
            "console": "",
        },
        why="for a process int 0x80 is a system call of the host, and the filter ends a process that makes it",
    ),
    Case("triple", normal=RESET_ON_AMD, why="on AMD, KVM resets the vCPU before it reports a triple fault"),
    Case("two_nets", frames=(bytes(60),)),
    Case("write_rodata"),
    Case("write_text"),
]  # fmt: skip


FOR_THE_SANDBOX = {
    "sandbox_attack",  # attacks parts that only the sandbox has
    "sandbox_state",  # uses AVX without turning it on; on KVM a guest must turn it on first
}


def test_every_guest_has_a_case() -> None:
    there = {path.parent.name for path in (ROOT / "tests" / "guests").glob("*/main.c")}
    there |= {path.stem for path in (ROOT / "guest_kernel" / "examples").glob("*.c")}
    assert {case.guest for case in CASES} == there - FOR_THE_SANDBOX
    assert there >= FOR_THE_SANDBOX


def received(ours: socket.socket) -> Iterator[bytes]:
    """Yields the frames that are in the socket. The guest has ended, and its end is closed."""
    while True:
        try:
            frame = ours.recv(1 << 17)
        except BlockingIOError:  # a datagram socket reports no end of file
            return
        except ConnectionResetError:  # reported once, before the frames, if the guest left frames unread
            continue
        if not frame:
            return
        yield frame


def run_case(case: Case, backend: BackendLike, path: Path, where: Path) -> Outcome:
    where.mkdir()
    console = bytearray()
    sockets: list[tuple[socket.socket, socket.socket]] = []
    net: dict[str, Tap | NetFd] = {}
    block: dict[str, BlockFile | BlockFd] = {}
    disks: list[Path] = []
    data = path.read_bytes() if case.gate else with_note(path, 1, 0)
    with Image.from_bytes(data) as image:
        for device in image.devices:
            if device.kind == "net":
                ours, theirs = socket.socketpair(socket.AF_UNIX, case.kind)
                sockets.append((ours, theirs))
                net[device.name] = NetFd(theirs.fileno(), mac=f"02:00:00:00:00:{device.handle:02x}")
            else:
                disks.append(where / device.name)
                disks[-1].write_bytes(bytes(case.disk_bytes))
                block[device.name] = BlockFile(str(disks[-1]), read_only="--read-only" in case.args)
        for frame in case.frames:
            sockets[0][0].send(frame)
        said = threading.Event()

        def hear(piece: bytes) -> None:
            console.extend(piece)
            if case.stop_at and case.stop_at in console:
                said.set()

        config = VmConfig(mem=case.mem, args=case.args, net=net, block=block, net_ring="off")
        vm = Vm(image, config, console=hear, backend=backend)
    frames: list[bytes] = []
    with vm:
        vm.start(timeout=100)
        if case.stop_at:
            assert said.wait(60)
            for _ in range(case.answers):
                sockets[0][0].settimeout(60)
                frames.append(sockets[0][0].recv(1 << 17))
            vm.stop()
        result = vm.wait()
    assert result.backend == backend
    for ours, theirs in sockets:
        theirs.close()
        ours.setblocking(False)
        frames += received(ours)
        ours.close()
    text = console.decode("utf-8", "surrogateescape")
    message = result.message.replace(f"{'KVM' if backend == 'kvm' else backend}: ", "BACKEND: ")
    for pattern, normal in case.normal:
        text = re.sub(pattern, normal, text)
        message = re.sub(pattern, normal, message)
    trap = None
    if result.trap is not None:
        trap = {name: int(getattr(result.trap, name)) for name in result.trap.__slots__}
        trap["rflags"] &= ~RF
    counters = {name: getattr(result.counters, name) for name in COUNTED} | result.counters.hypercalls
    return Outcome(
        reason=result.reason,
        status=result.status,
        guest_status=result.guest_status,
        message=message,
        trap=trap,
        console=text,
        disks=tuple(disk.read_bytes() for disk in disks),
        frames=tuple(frames),
        counters={name: count for name, count in counters.items() if name not in case.counts},
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_guest_ends_the_same_way_on_both_backends(case: Case, guest: Guest, tmp_path: Path) -> None:
    kvm = run_case(case, "kvm", guest(case.guest), tmp_path / "kvm")
    sandbox = run_case(case, "sandbox", guest(case.guest), tmp_path / "sandbox")
    if case.differs:
        assert replace(sandbox, message="", counters={}) == replace(
            kvm,
            message="",
            counters={},
            **case.differs,  # type: ignore[arg-type]
        ), case.why
        assert sandbox != kvm, f"the backends no longer differ: {case.why}"
    else:
        assert sandbox == kvm


def test_both_backends_report_the_same_counter_frequency(guest: Guest) -> None:
    """KVM reports it in kHz; the sandbox may have measured it."""
    hz = {}
    with Image.open(guest("hello")) as image:
        for backend in ("kvm", "sandbox"):
            with Vm(image, VmConfig(mem=8), backend=backend) as vm:
                (hz[backend],) = struct.unpack("<Q", vm.memory(0x10010, 8))
    assert abs(hz["kvm"] - hz["sandbox"]) < hz["kvm"] / 1000
