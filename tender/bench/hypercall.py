"""`tender bench hypercall`: what a hypercall costs by trap, patched site and gate, beside a bare system call.

A round is a run of the guest (bench/hypercall_guest.c) and one of the yardstick without and with the sandbox's
seccomp filter (bench/bare_calls.c), in ABBA order, all on one CPU. A sample is cycles of the time stamp counter
a call, over --calls calls in a row.
"""

import argparse
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tender.bench import compare, compile, facts
from tender.bench.progress import Bar
from tender.bench.pyperf_format import Unit
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError
from tender.config import BlockFile, NetFd, VmConfig
from tender.image import Image
from tender.native import lib
from tender.vm import CAPTURE, Vm

KINDS = ("walltime", "net_read", "block_read")
WAYS = ("trap", "patched", "gate")
YARDSTICKS = ("plain", "filtered")
GOAL = 1.3


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench hypercall",
        description="Measure a hypercall in cycles, by each way it can take, beside a bare system call.",
    )
    p.add_argument(
        "--calls", type=compare.positive, default=20000, metavar="N", help="calls a sample (20000)"
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=30)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError; BenchError outside of a checkout, where the yardstick's source is."""
    checkout = facts.find_checkout()
    if checkout is None:
        raise BenchError("hypercall: the yardstick is in bench/ of a checkout", hint="run it from there")
    guest, bare = compile.guest(checkout, "hypercall_guest"), compile.filtered(checkout, "bare_calls")
    host = facts.host_facts(checkout)
    cpu = compare.pin()
    series: compare.Series = {}
    with tempfile.NamedTemporaryFile() as disk, Image.open(guest) as image:
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
            with Bar((1 + options.rounds) * len(measure)) as bar:
                for number, order in enumerate(rounds(1 + options.rounds, list(measure))):
                    for name in order:
                        bar.step(name)
                        text = measure[name]()
                        if number:  # the first warms
                            add(series, name, text, options.calls)
    tsc_hz = int(lib.tn_tsc_hz())
    return compare.describe(
        "hypercall",
        Unit("cycles of the time stamp counter a call", "second", 1 / tsc_hz),
        series,
        comparisons(),
        conditions={
            "backend": options.backend,
            "calls a sample": options.calls,
            "rounds": options.rounds,
            "cpu": cpu,
            "tsc_hz": tsc_hz,
        },
        notes=["walltime / plain is to a clock_gettime() by the vDSO: no system call"],
        host=host,
    )


def add(series: compare.Series, of: str, text: str, calls: int) -> None:
    """Lines "KIND WAY CYCLES" of the guest, "KIND CYCLES" of a yardstick, a sample each."""
    for line in text.splitlines():
        *what, cycles = line.split()
        name = " ".join(what if of == "guest" else [*what, of])
        series.setdefault(name, []).append(int(cycles) / calls)


def comparisons() -> "list[compare.Comparison]":
    found = [
        compare.Comparison(
            f"{kind} {way}", f"{kind} {y}", goal=GOAL if way != "trap" and kind != "walltime" else None
        )
        for kind in KINDS
        for way in WAYS
        for y in YARDSTICKS
    ]
    return found + [compare.Comparison(f"{kind} filtered", f"{kind} plain") for kind in KINDS]


def _run_guest(image: Image, config: VmConfig, options: argparse.Namespace) -> str:
    with Vm(image, config, console=CAPTURE, backend=options.backend) as vm:
        result = vm.run(timeout=facts.limit_s(60))
    if result.status or result.console is None:
        raise BenchError(f"the guest ended with {result.reason}: {result.message}")
    expected = len(KINDS) * 2 * options.calls if options.backend == "sandbox" else 0
    if result.counters.trapped_hypercalls != expected:
        raise BenchError(
            f"{result.counters.trapped_hypercalls} hypercalls came by trap, not {expected}: the ways are not what they say"
        )
    return result.console.decode()


def _run_bare(program: Path, calls: int, net: socket.socket, disk: int, yardstick: str) -> str:
    fds = (net.fileno(), disk)
    words = [str(program), str(calls), *map(str, fds), yardstick]
    done = subprocess.run(words, pass_fds=fds, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(
            f"{program.name} {yardstick}: ended with {done.returncode} {os.fsdecode(done.stderr)}"
        )
    return done.stdout
