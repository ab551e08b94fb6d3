"""`python bench hypercall`: the cost of a hypercall by trap, by patched call site and by gate, and of a system call.

A round is a run of the guest (bench/hypercall_guest.c), and a run of the program it is compared with (bench/bare_calls.c)
without and with the sandbox's seccomp filter, in ABBA order, all on one CPU. A sample is the cycles of the time stamp
counter per call, over --calls calls in a row.

With KVM there are two more comparisons: KVM_RUN in a loop around a guest that only executes `out` (bench/bare_kvm.c).
`exit raw` does that in the 64-bit mode that every guest of the ABI is in. `exit real` does it in real mode, whose exits
take KVM fewer instructions. A peer runs the same image, with a TAP and a file. Its TAP is not compared.
"""

import argparse
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from harness import CHECKOUT, compare, compile, net
from harness.pyperf_format import Unit
from tender.annotations import CAPTURE
from tender.bench import facts, peers, regimes
from tender.bench.child import error_line
from tender.bench.progress import Bar
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError
from tender.config import BlockFile, NetFd, VmConfig
from tender.image import Image
from tender.native import lib
from tender.vm import Vm

KINDS = ("walltime", "net_read", "block_read")
WAYS = ("trap", "patched", "gate")
YARDSTICKS = ("plain", "filtered")
RAW, REAL = "raw", "real"
GOAL = 1.3
RAW_GOAL = 1.05
PEER = "hvt=solo5-hvt --mem=16 --net:service={tap} --block:storage={disk} {elf} {args}"
PEER_KINDS = ("walltime", "block_read")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench hypercall",
        description="Measure a hypercall in cycles, by each way it can take, compared with a bare system call.",
    )
    p.add_argument(
        "--calls", type=regimes.positive, default=20000, metavar="N", help="calls per sample (20000)"
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=30, peer=PEER)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
    guest, bare = compile.guest("hypercall_guest"), compile.filtered("bare_calls")
    host = facts.host_facts(CHECKOUT)
    cpu = compare.pin()
    series: compare.Series = {}
    others = peers.parse(
        options.peer, str(guest), wants=("tap", "disk", "args"), taken=("guest", RAW, REAL, *YARDSTICKS)
    )
    with ExitStack() as stack, tempfile.NamedTemporaryFile() as disk, Image.open(guest) as image:
        if others:
            net.make_tap(10)
            stack.callback(net.remove_tap)
        disk.write(bytes(4096))
        disk.flush()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        with near, far:
            config = VmConfig(
                mem=16, args=(str(options.calls),), net=NetFd(near.fileno()), block=BlockFile(disk.name)
            )
            measure: dict[str, Callable[[], str]] = {
                "guest": partial(_run_guest, image, config, options),
                **{y: partial(_run_bare, bare, options.calls, near, disk.fileno(), y) for y in YARDSTICKS},
            }
            if options.backend == "kvm":
                raw = (str(compile.program("bare_kvm")), str(options.calls))
                measure[RAW] = partial(_run_command, raw)
                measure[REAL] = partial(_run_command, (*raw, REAL))
            for name, words in others.items():
                filled = peers.fill(words, {"tap": net.TAP, "disk": disk.name}, (str(options.calls),))
                measure[name] = partial(_run_command, filled)
            with Bar((1 + options.rounds) * len(measure)) as bar:
                for number, order in enumerate(rounds(1 + options.rounds, list(measure))):
                    for name in order:
                        bar.step(name)
                        text = measure[name]()
                        if number:  # the first round is a warm-up
                            add(series, name, text, options.calls)
    tsc_hz = int(lib.tn_tsc_hz())
    return compare.describe(
        "hypercall",
        Unit("cycles of the time stamp counter per call", "second", 1 / tsc_hz),
        series,
        comparisons(list(others), backend=options.backend),
        conditions={
            "backend": options.backend,
            "calls per sample": options.calls,
            "rounds": options.rounds,
            "cpu": cpu,
            "tsc_hz": tsc_hz,
        },
        notes=["walltime / plain compares with clock_gettime() of the vDSO, which is not a system call"],
        host=host,
    )


def add(series: compare.Series, of: str, text: str, calls: int) -> None:
    """Add a sample for each line: "KIND WAY CYCLES" of the guest or a peer, "KIND CYCLES" of a yardstick."""
    for line in text.splitlines():
        *what, cycles = line.split()
        if not what or what[0] not in (*KINDS, "exit") or not cycles.isdigit():
            continue  # a message of the peer itself
        name = " ".join(what if of == "guest" else [*what, of])
        series.setdefault(name, []).append(int(cycles) / calls)


def comparisons(others: Sequence[str] = (), *, backend: str = "sandbox") -> "list[compare.Comparison]":
    """In the sandbox, a hypercall is compared with a bare system call. With KVM, with a bare exit."""
    found = [
        compare.Comparison(
            f"{kind} {way}",
            f"{kind} {y}",
            goal=GOAL if backend == "sandbox" and way != "trap" and kind != "walltime" else None,
        )
        for kind in KINDS
        for way in WAYS
        for y in YARDSTICKS
    ]
    found += [compare.Comparison(f"{kind} filtered", f"{kind} plain") for kind in KINDS]
    found += [compare.Comparison(f"walltime {way}", f"exit {RAW}", goal=RAW_GOAL) for way in WAYS]
    found += [compare.Comparison(f"walltime {way}", f"exit {REAL}") for way in WAYS]
    return found + [
        compare.Comparison(f"{kind} trap", f"{kind} trap {other}", goal=1.0)
        for kind in PEER_KINDS
        for other in others
    ]


def _run_guest(image: Image, config: VmConfig, options: argparse.Namespace) -> str:
    with Vm(image, config, console=CAPTURE, backend=options.backend) as vm:
        result = vm.run(timeout=facts.limit_s(60))
    if result.status or result.console is None:
        raise BenchError(f"the guest ended with {result.reason}: {result.message}")
    expected = len(KINDS) * 2 * options.calls if options.backend == "sandbox" else 0
    if result.counters.trapped_hypercalls != expected:
        raise BenchError(
            f"{result.counters.trapped_hypercalls} hypercalls came by trap, not {expected}: the ways are not as named"
        )
    return result.console.decode()


def _run_command(words: "tuple[str, ...]") -> str:
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=facts.limit_s(60),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{words[0]}: killed because it still ran after 60 s") from error
    if done.returncode:
        raise BenchError(
            f"{words[0]}: ended with {done.returncode}: {error_line(done.stderr or done.stdout)}"
        )
    return done.stdout


def _run_bare(program: Path, calls: int, near: socket.socket, disk: int, yardstick: str) -> str:
    fds = (near.fileno(), disk)
    words = [str(program), str(calls), *map(str, fds), yardstick]
    done = subprocess.run(words, pass_fds=fds, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(
            f"{program.name} {yardstick}: ended with {done.returncode} {os.fsdecode(done.stderr)}"
        )
    return done.stdout
