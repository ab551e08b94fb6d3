"""Writes the fuzzers' first inputs, one directory for each target.

elf_image     valid ELFs of several shapes, and one file for every rule that refuses
hypercall     every call, with lengths, handles and addresses at the edges, in the records of fuzz_hypercall.c
ring          entries, indices and false values, in the records of fuzz_ring.c
disk_guard    disks with capacities at the edges; writes in them, at their ends and past their ends
watch         what a sandbox process sends, in the right order and in wrong ones
resume        calls that wait: interrupted immediately, twice, between two pieces, and with a changed structure
net           frames with a header: plain, with a checksum to complete, and large; calls that receive or send them
reset         segments with all rights; pages written one by one, in runs and far away, then read and reset
request       command lines of both grammars
tcp_segments  segments of a connection, and frames that nearly are, in the records of fuzz_tcp_segments.c
emulate       a valid guest before each instruction that ring 3 may not execute

Usage: python tests/fuzz/make_seeds.py DIRECTORY   (from the top of the project)
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # last in the path: an installed tender comes first

from elf_cases import ACCEPTED, REFUSED  # noqa: E402


def hypercalls() -> Iterator[tuple[str, bytes]]:
    """One file for every number: eight records whose words are edges of handles, offsets, addresses
    and lengths.
    """
    words = (0, 1, 2, 512, 0xFFFFF, 0x100000, 0x190000, 0x1FFF00, 1 << 63, (1 << 64) - 1)
    for number in range(10):
        records = b""
        for i, (first, second) in enumerate(list(product(words, words))[number :: len(words)][:8]):
            body = struct.pack(
                "<QQQQQQ", i % 4, first, 0x190000 if i % 2 else second, 512 if i % 3 else second, 0, 0
            )
            records += struct.pack("<BxxxI", number, 0x180000 + i * 64) + body
        yield f"number-{number}", records
    for count, requests in product((0, 1, 7, 256, 257), (0x180000, 0x1FFFFF, 0x100000)):
        yield f"batch-{count}-{requests:x}", batch(count, requests)
        yield f"net-batch-{count}-{requests:x}", net_batch(count, requests)


def batch(count: int, requests: int) -> bytes:
    """Seven requests, stored from the address `requests` on, and the call of a batch of `count`."""
    parts = ((1, 0, 0x190000, 4096), (2, 4096, 0x190000, 4096), (1, 4096, 0x180000, 512), (3, 0, 0, 0),
             (2, 0, 0x1FFF00, 512), (4, 0, 0, 0), (1, 16383, 0x190000, 1 << 63))  # fmt: skip
    records = b""
    for i, (op, offset, data, length) in enumerate(parts):
        records += struct.pack("<BxxxI", 0x80, requests + 40 * i)
        records += struct.pack("<IiQQQQ", op, 0, 2, offset, data, length).ljust(48, b"\0")
    call = struct.pack("<QIIiI", requests, count, 0, 0, 0).ljust(48, b"\0")
    return records + struct.pack("<BxxxI", 16, 0x170000) + call


def net_batch(count: int, frames: int) -> bytes:
    """Six frames, stored from the address `frames` on, and calls that send and receive that many of
    them.
    """
    parts = (
        (0x190000, 60),
        (0x190000, 0),
        (0x180000, 1514),
        (0x1FFFF0, 64),
        (0x190000, 1 << 20),
        (0x100000, 60),
    )
    records = b""
    for i, (data, length) in enumerate(parts):
        records += struct.pack("<BxxxI", 0x80, frames + 32 * i)
        records += struct.pack("<QIi", data, length, 0).ljust(48, b"\0")
    for tx, rx in ((count, 0), (0, count), (count, count), (3, 2)):
        call = struct.pack("<QQIIIIQiI", 1, frames, tx, rx, 0, 0, 0, 0, 0)
        records += struct.pack("<BxxxI", 17, 0x170000) + call
    return records


def tcp_segments() -> Iterator[tuple[str, bytes]]:
    """Three segments, the last one shorter, and the net header of a large frame made of them; also
    with other flags.
    """
    net = struct.pack("<BBHHHH", 1, 1, 54, 100, 34, 16)
    for flags, doff in product((0x10, 0x11, 0x18, 0x02), (5, 8)):
        head = bytes(12) + b"\x08\x00" + b"\x45\x00" + struct.pack(">HHHBBH", 120 + 4 * doff, 7, 0, 64, 6, 0)
        head += bytes((10, 9, 0, 2, 10, 9, 0, 1)) + struct.pack(
            ">HHIIBBHHH", 80, 4000, 1, 2, doff << 4, flags, 9, 0, 0
        )
        head = head.ljust(34 + 4 * doff, b"\1")
        records = b"".join(
            struct.pack("<BH", 3, len(head) + payload) + head + bytes(payload) for payload in (100, 100, 40)
        )
        yield f"flags-{flags:x}-{doff}", net + records


def rings() -> Iterator[tuple[str, bytes]]:
    """A few entries with addresses and lengths at the edges, a tail that is true or false, and a call
    to serve them.
    """
    edges = (0, 0x10000, 0x100000, 0x180000, 0x1FFFC4, 0x200000, (1 << 64) - 1)
    for i, (tail, length) in enumerate(product((1, 4, 1024, 5000, 1 << 31), (0, 60, 2048, (1 << 32) - 1))):
        serve = 2 if i % 2 else 7  # in order, or like the worker
        entries = b"".join(
            struct.pack("<HHIIQII", 1, slot, 1 + (slot + i) % 3, slot % 3, data, length, slot)
            for slot, data in enumerate(edges)
        )
        scribble = struct.pack("<HHI", 3, 16 + i % 3, 0xFFFFFFF0)
        yield f"tail-{i}", entries + struct.pack("<HHIH", 4, 0, tail, serve) + scribble + b"\x02\0"


# One of each instruction that bindings/arch/x86_64/emulate.c knows. Operands are (%rbx), %ebx or the stack.
INSTRUCTIONS = """
0f0113 0f011b 0f0103 0f010b 0f0123 0f0133 0f013b 0f01f3 0f01e3 0f01d1 0f01f8 0f01c1 0f0003 0f000b 0f0013 0f001b
0f00d3 0f00db 0f00c3 0f00cb 0f06 0f08 0f09 0f20c3 0f22c3 0f20d3 0f22d3 0f22db 0f20e3 0f22e3 440f22c3 0f21fb 0f23f3
0f23fb 0f30 0f32 0f33 0fa1 0fa9 66 0fb223 480fb433 0fb50b 0fc733 8edb 8ee3 8e2b 8ed3 ca0800 48cb cb 48cf cf cc cd0e
cdff ec ef 66ef e480 6e f4 fa fb ff1b 48ff1b ff2b 48ff2b 640f0113 67420f015cab40 0f011d00000000 f00f0113 0f0b
"""


def emulations() -> Iterator[tuple[str, bytes]]:
    """For each instruction one guest, in the words of fuzz_emulate.c: stack, tables and operand are in
    its window.
    """
    window, data, gdt, idt, stack = 8, 0x400, 0x800, 0xA00, 0x1800
    for code in INSTRUCTIONS.split():
        words = [(0, 0)] * 40
        words[1] = words[18] = words[20] = words[25] = (window, gdt)  # rcx, GDT, IDT, TSS
        words[3] = (window, data)  # rbx
        words[4] = (window, stack)  # rsp
        words[16] = (window, 0)  # rip
        words[17] = (0, 2)
        words[19] = words[21] = (0, 0x1FF)
        words[20] = (window, idt)
        memory = bytearray(0x2000)
        memory[: len(code) // 2] = bytes.fromhex(code)
        struct.pack_into("<HQ", memory, data, 8, 8)
        struct.pack_into("<5Q", memory, stack, 0x102100, 8, 2, 0x103800, 0x10)
        struct.pack_into("<4Q", memory, gdt, 0, 0x00AF99000000FFFF, 0x00CF93000000FFFF, 0x0000890000000067)
        header = b"".join(struct.pack("<BH", *word) for word in words) + bytes([3, 0, 6, 8, 10, 11, 13, 14])
        yield code, header + bytes(memory)


def requests() -> Iterator[tuple[str, bytes]]:
    """A command line for each option of both grammars, one with all options, and one with more
    settings than usual.
    """
    net = ["--net:service0=tap0", "--net-mac:service0=02:00:00:00:00:01"]
    disks = ["--block:storage=d.img", "--block-sector-size:storage=512"]
    ours = [[*net, *disks], ["--net", "tap0", "--block=d.img:ro"], ["--net=a=@3", "--block:b=@4:rw"], ["--mem=64M"],
            ["--mem", "1G"], ["--timeout=250ms"], ["--timeout", "0.5s"], ["--backend=sandbox", "-q"], ["--no-net-ring"],
            ["--net-reattach"], ["--require=kvm,landlock"], [f"--block:d{i}=@{i}" for i in range(30)]]  # fmt: skip
    theirs = [
        [*net, *disks],
        ["--mem=32"],
        ["--no-net-ring"],
        ["--net-reattach"],
        ["--block:a=@4", "--block:b=x:ro", "--"],
    ]
    for solo5, lines in ((0, ours), (1, theirs)):
        for i, words in enumerate(lines):
            yield f"{solo5}-{i}", bytes([solo5]) + "\0".join([*words, "app.elf", "word"]).encode()
    yield "environment", b"\6" + b"\0".join((b"kvm", b"seccomp-filter", b"--", b"app.elf"))


def disk_guards() -> Iterator[tuple[str, bytes]]:
    """One disk with each capacity at an edge, then three of them among other devices; calls with every
    kind of edge.
    """
    capacities = (0, 1, 512, 0xFFFFFFFF, 1 << 32, (1 << 32) + 512, (1 << 63) - 1, (1 << 64) - 1)
    calls = b"".join(
        struct.pack("<BBBQQ", number, fd, edges, count, offset)
        for number, fd, edges in product((0, 1, 2, 4), (0, 1, 3), (0, 35, 200, 201))
        for count, offset in ((1, 1 << 33),)
    )
    for capacity in capacities:
        yield f"one-{capacity:x}", struct.pack("<BBQ", 1, 1, capacity) + calls
    kinds = (1, 4, 3, 1, 0, 1)
    devices = b"".join(struct.pack("<BQ", kind, capacities[i + 2]) for i, kind in enumerate(kinds))
    yield "several", bytes([len(kinds)]) + devices + calls
    yield "most", bytes([64]) + struct.pack("<BQ", 1, 4096) * 64 + calls


def watches() -> Iterator[tuple[str, bytes]]:
    """A guest's life for each kind of event, with and without a Python console; stops, signals and ends."""
    say, garbage, ready, report, stop, interrupt, close, end, ask, read, hear, run = range(12)
    begin = bytes([ready, 9, ask, 0, hear, 0])
    for console, kind in product((0, 1), range(19)):
        body = struct.pack("<IIIiiIQQQQ", 1, 0, 0, 0, 0, 0, 7, 0x100000, 16, 0)
        event = bytes([report, kind]) + body.ljust(268, b"\0")
        yield (
            f"event-{console}-{kind}",
            bytes([console]) + begin + event + bytes([say, 0, run, 0, hear, 0, run, 0]),
        )
    ends = {"stop": [stop, 0], "signal": [interrupt, 0], "close": [close, 0], "death": [end, 0, close, 0],
            "garbage": [garbage, 99], "late": [say, 1], "short": [ready, 0], "read": [read, 8, say, 0]}  # fmt: skip
    for name, words in ends.items():
        yield name, bytes([1]) + begin + bytes([*words, run, 0, hear, 0, run, 0])
        yield f"{name}-early", bytes([1]) + bytes([*words, ask, 0, run, 0])
        yield f"{name}-running", bytes([1]) + begin + bytes([interrupt, 0, run, 0, *words, run, 0])


def resumes() -> Iterator[tuple[str, bytes]]:
    """Each call that can be interrupted, with each console, and what may happen during the interruption."""
    changed = bytes([5, 1]) + struct.pack("<Q", 33)
    happenings = {"nothing": b"", "signals": b"\1\1\1", "reader": b"\3\3\3", "changed": changed}
    for console, number, how in product(range(3), range(6), (3, 0x1F, 0xFF)):
        for name, bytes_meanwhile in happenings.items():
            one = struct.pack("<BBH", 0xC0 | number, how, 0x3EB) + bytes_meanwhile
            yield f"{console}-{number}-{how}-{name}", bytes([console]) + one * 2


def headed_frames() -> Iterator[tuple[str, bytes]]:
    """For each kind of header: a frame on the wire, and the calls that receive and send such a frame."""
    headers = {"plain": (0, 0, 0, 0, 0, 0), "sum": (1, 0, 34, 0, 34, 6), "odd": (1, 0, 34, 0, 33, 7),
               "valid": (2, 0, 0, 0, 0, 0),
               "tcp4": (1, 1, 54, 1448, 34, 16), "tcp6": (1, 0x84, 74, 1448, 54, 16), "udp": (1, 5, 42, 512, 34, 6),
               "past": (1, 0, 34, 0, 65535, 65535), "nonsense": (255, 255, 65535, 0, 0, 0)}  # fmt: skip
    for (name, header), offload, length in product(headers.items(), (0, 1, 15), (0, 60, 150, 241)):
        calls = ((0, length), (2, 241), (0, length), (0x2B, 241), (0, length), (0x4B, length), (1, length))
        steps = b"".join(struct.pack("<BHBBBHHHH", what, 0x137, bytes_, *header) for what, bytes_ in calls)
        ones = struct.pack("<BHBBBHHHH", 0, 0xFF00, length, *header)  # its checksum is the other zero
        for features in (0, 1):
            yield f"{name}-{offload}-{length}-{features}", bytes([offload, features]) + ones + steps


def resets() -> Iterator[tuple[str, bytes]]:
    """The same pages with and without the kernel's list of written pages, in a few layouts of segments."""
    steps = {
        "one": b"\0\x30\1\7\3\0\0\0",
        "run": b"\x40\0\1\xc8\3\0\0\0",
        "far": b"\xc0\0\6\xff\x42\0\1\x40\3\0\0\0\x80\0\7\1",
        "apart": b"".join(struct.pack("<BHB", 0, 0x100 + 2 * i, i) for i in range(40)),
    }
    layouts = (b"", b"\x10\3\x11\1\x20\2", b"\2\0\4\4\6\3\7\2\1\1")
    for unasked, layout, (name, body) in product((0, 1), layouts, steps.items()):
        yield f"{unasked}-{len(layout)}-{name}", bytes([unasked, len(layout) // 2]) + layout + body


def main() -> int:
    """Writes one file for each case. Returns the process's status."""
    if len(sys.argv) != 2:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    targets = {
        "elf_image": [*ACCEPTED, *((name, data) for name, data, _ in REFUSED)],
        "hypercall": list(hypercalls()),
        "ring": list(rings()),
        "tcp_segments": list(tcp_segments()),
        "emulate": list(emulations()),
        "request": list(requests()),
        "disk_guard": list(disk_guards()),
        "watch": list(watches()),
        "resume": list(resumes()),
        "net": list(headed_frames()),
        "reset": list(resets()),
        "patch": [("two_sites", bytes([8, 0, 0, 0, 0]) + bytes.fromhex("ba01050000efba02050000ef"))],
    }
    for target, seeds in targets.items():
        directory = Path(sys.argv[1]) / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            (directory / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
