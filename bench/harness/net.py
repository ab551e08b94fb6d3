"""`python bench net`: the cost of a frame for a guest, by each transport, compared with a peer that runs the same program.

The program is bench/net_guest.c, which measures itself: frames written, frames read from a queue that was filled
before, and both. So no generator is part of the figure, or can be its bottleneck. Only `pong` is measured here: one
frame there and back at a time, over a packet socket, including the wake-ups of both sides.

A transport is a way to move frames into the guest and out: a row of `transports` in net_guest.c and a name in TRANSPORTS
here. "call" is one hypercall per frame, and the only transport that a peer has.

A round is each mode and size once for each subject, in ABBA order. It needs a network namespace of its own.
"""

import argparse
import errno
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from harness import CHECKOUT, compare, compile
from harness.pyperf_format import Unit
from tender.bench import facts, peers, regimes
from tender.bench.boot import tender_command
from tender.bench.progress import Bar
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError

TAP = "tapbench0"
ETHERTYPE = 0x88B5
CASES = (("tx", 64), ("tx", 1514), ("rx", 64), ("rx", 1514), ("echo", 64), ("serve", 64), ("pong", 64))
TRANSPORTS = ("call",)
FILLED = ("rx", "echo", "serve")
_LIMIT_S = 30
_TRIES = 3  # on a busy machine the queue may be filled too late, and is then filled again
_UDP_SEGMENT = 103  # linux/udp.h
_MERGED = 44  # packets in a frame with offload: net_ways_guest.c
_SOL_PACKET, _QDISC_BYPASS, _IGNORE_OUTGOING = 263, 20, 23  # linux/if_packet.h


class _Late(Exception):
    """The guest found the queue empty before all frames had come."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench net",
        description="Measure a guest's frames per second, compared with a peer. Run it with `tools/with_net --`.",
    )
    p.add_argument(
        "image", nargs="?", help="net_guest.hvt of bench/build_solo5_guests (default: our own build)"
    )
    p.add_argument(
        "--frames", type=regimes.positive, default=10000, metavar="N", help="frames per sample (10000)"
    )
    p.add_argument(
        "--transport",
        action="append",
        choices=TRANSPORTS,
        help="how frames go in and out; may be repeated (default: each)",
    )
    p.add_argument(
        "--case",
        action="append",
        metavar="MODE:SIZE",
        type=case,
        help="tx:64, pong:64; may be repeated (default: each)",
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=20, peer="spt=solo5-spt --net:service0={tap} {elf:.spt} {args}")
    return p


def case(text: str) -> "tuple[str, int]":
    """The mode and the size of an option's MODE:SIZE."""
    mode, _, size = text.partition(":")
    if mode not in {m for m, _ in CASES} or not size.isdigit() or not 60 <= int(size) <= 1514:
        modes = ", ".join(dict.fromkeys(m for m, _ in CASES))
        raise argparse.ArgumentTypeError(f"{text}: not MODE:SIZE with MODE {modes} and SIZE 60 to 1514")
    return mode, int(size)


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
    host = facts.host_facts(CHECKOUT)
    subjects = commands(options)
    cases = options.case or list(CASES)
    series, conditions = sample(options, subjects, cases)
    return compare.describe(
        "net",
        Unit("thousand frames per second (pong: round trips)", "second", 1e-3, rate=True),
        series,
        comparisons(list(subjects), cases),
        conditions=conditions,
        host=host,
    )


def sample(
    options: argparse.Namespace,
    subjects: "Mapping[str, peers.Words]",
    cases: "Sequence[tuple[str, int]]",
    takes_part: "Callable[[str, str], bool]" = lambda name, mode: True,
) -> "tuple[compare.Series, dict[str, object]]":
    """Frames per second of every subject in each of its cases, interleaved; and the conditions of the measurement."""
    cpus = sorted(os.sched_getaffinity(0))
    series: compare.Series = {}
    steps = sum(takes_part(name, mode) for name in subjects for mode, _ in cases)
    make_tap(options.frames + 100)
    try:
        with Bar((1 + options.rounds) * steps) as bar:
            for number, order in enumerate(rounds(1 + options.rounds, list(subjects))):
                for mode, size in cases:
                    for name in order:
                        if not takes_part(name, mode):
                            continue
                        bar.step(f"{mode} {size} {name}")
                        rate = measure(subjects[name], mode, size, options.frames, cpus)
                        if number:  # the first round is a warm-up
                            series.setdefault(f"{mode} {size} {name}", []).append(rate)
    finally:
        remove_tap()
    return series, {
        "backend": options.backend,
        "frames per sample": options.frames,
        "rounds": options.rounds,
        "guest's cpu": cpus[-1],
        "sender's cpu": cpus[0],
    }


def comparisons(names: "list[str]", cases: "Sequence[tuple[str, int]]" = CASES) -> "list[compare.Comparison]":
    """Compares each of ours with each peer, and with our own "call"."""
    ours = [name for name in names if name.partition("-")[0] == "tender"]
    others = [name for name in names if name not in ours]
    found = []
    for mode, size in cases:
        for name in ours:
            found += [
                compare.Comparison(f"{mode} {size} {name}", f"{mode} {size} {peer}", goal=1.0, at_least=True)
                for peer in others
            ]
            if name != "tender" and "tender" in ours:
                found.append(compare.Comparison(f"{mode} {size} {name}", f"{mode} {size} tender"))
    return found


def commands(options: argparse.Namespace) -> "dict[str, peers.Words]":
    """Ours, one for each transport, then the peers. {args} is still a word of each. Raises ConfigError, BenchError."""
    ours = tender_command()
    if ours is None:
        raise BenchError("tender: the command is not installed in this Python's environment")
    image = compile.image(options.image, "net_guest")
    machine_options = (f"--backend={options.backend}", "--mem=16", f"--net:service0={TAP}")
    found: dict[str, peers.Words] = {}
    for transport in options.transport or TRANSPORTS:
        if transport == "call":
            found["tender"] = (*ours, *machine_options, image, "{args}")
        else:
            found[f"tender-{transport}"] = (*ours, *machine_options, image, "{args}", transport)
    for name, words in peers.parse(options.peer, image, wants=("tap", "args"), taken=found).items():
        found[name] = tuple(word.replace("{tap}", TAP) for word in words)
    return found


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def make_tap(queue: int) -> None:
    """Make TAP and set it up, in a namespace that has no other interface. Raises BenchError."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if others:
        raise BenchError(
            f"net: this is not a network namespace of its own: it has the interface {others[0]}",
            hint="run it with `tools/with_net --`",
        )
    _ip("tuntap", "add", TAP, "mode", "tap")
    _ip("link", "set", TAP, "addrgenmode", "none")  # so that the kernel sends no frames of its own
    _ip("link", "set", TAP, "txqueuelen", str(queue), "up")


def remove_tap() -> None:
    _ip("link", "del", TAP)


def measure(words: peers.Words, mode: str, size: int, frames: int, cpus: "list[int]") -> float:
    count = frames // 10 if mode == "pong" else frames
    filled = peers.fill(words, {}, (mode, str(size), str(count)))
    for _ in range(_TRIES):
        try:
            return _run(filled, mode, size, count, cpus)
        except _Late:
            continue
    raise BenchError(f"{words[0]}: {mode}: the queue could not be filled in time: the machine is too busy")


def _run(words: peers.Words, mode: str, size: int, count: int, cpus: "list[int]") -> float:
    os.sched_setaffinity(0, {cpus[-1]})  # the child inherits it
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, {cpus[0]} if len(cpus) > 1 else set(cpus))
    assert process.stdout
    text, own = b"", 0.0
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            text = _until(process.stdout.fileno(), b"ready\n")
            if mode in FILLED or mode == "pong":  # a bound socket also gets a copy of each frame that is sent
                sender.bind((TAP, ETHERTYPE))
            if mode == "bulk-rx":
                _fill_bulk(size, count)
            elif mode in FILLED:
                _fill(sender, size, count)
            elif mode == "pong":
                own = _ping(sender, size, count)
        text += _until(process.stdout.fileno(), b"")
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        raise _Late from error  # the guest has ended, so no process reads the frames
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        os.sched_setaffinity(0, set(cpus))
    if b"too early" in text:
        raise _Late
    return 1e6 / own if own else rate(text.decode("utf-8", "replace"), mode, size, count, status)


def rate(text: str, mode: str, size: int, count: int, status: int) -> float:
    """Thousand frames per second, from the line that the guest printed. Raises BenchError if there is none."""
    for line in text.splitlines():
        if line.startswith(f"{mode} {size} {count} "):
            return count * 1e6 / int(line.split()[3])
    raise BenchError(f"{mode} {size}: ended with {status}: {text.strip().splitlines()[-1:]}")


def _until(fd: int, wanted: bytes) -> bytes:
    """Read until `wanted` has come; if `wanted` is empty, until the end."""
    text = b""
    limit = facts.limit_s(_LIMIT_S)
    end = time.monotonic() + (limit or 0)
    while not wanted or wanted not in text:
        left = None if limit is None else max(0.0, end - time.monotonic())
        if not select.select([fd], [], [], left)[0]:
            raise BenchError(f"still running after {_LIMIT_S} s; it printed {text!r}")
        piece = os.read(fd, 65536)
        if not piece:
            break
        text += piece
    return text


def _frame(size: int) -> bytes:
    head = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + ETHERTYPE.to_bytes(2, "big")
    return head + bytes(size - len(head))


def _fill(sender: socket.socket, size: int, count: int) -> None:
    sender.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
    frame = _frame(size)
    send = sender.send
    for _ in range(count):
        send(frame)


def _fill_bulk(size: int, count: int) -> None:
    """Fill the queue with the host's own datagrams: 44 per call, which reach a guest with offload as one frame."""
    payload = size - 42
    _ip("addr", "add", "10.9.0.1/24", "dev", TAP)
    try:
        _ip("neigh", "replace", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "dev", TAP, "nud", "permanent")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, payload)
            udp.connect(("10.9.0.2", 9))
            data = bytes(_MERGED * payload)
            for _ in range(-(-count // _MERGED)):
                udp.send(data)
    finally:
        _ip("addr", "flush", "dev", TAP)


def send_frames(size: int, count: int) -> None:
    """Fill the queue of TAP. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((TAP, ETHERTYPE))
        _fill(sender, size, count)


def _ping(sender: socket.socket, size: int, count: int) -> float:
    """The median nanoseconds of `count` round trips."""
    sender.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    sender.settimeout(facts.limit_s(_LIMIT_S))
    frame, times = _frame(size), []
    for _ in range(count):
        start = time.monotonic_ns()
        sender.send(frame)
        sender.recv(2048)
        times.append(time.monotonic_ns() - start)
    return median(times)
