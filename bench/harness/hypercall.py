"""`python bench hypercall`: what a hypercall costs by trap, patched call site and gate, beside a bare system call.

A round is a run of the guest (bench/hypercall_guest.c) and one of the yardstick without and with the sandbox's
seccomp filter (bench/bare_calls.c), in ABBA order, all on one CPU. A sample is cycles of the time stamp counter
a call, over --calls calls in a row.

Behind KVM there are two yardsticks more, KVM_RUN in a loop around a guest that does nothing but `out`
(bench/bare_kvm.c): `exit raw` in the 64-bit mode that every guest of the ABI is in, `exit real` in real mode, whose exits
KVM serves in fewer instructions. A peer runs the same image, on a TAP and a file; of its TAP nothing is compared.
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
        description="Measure a hypercall in cycles, by each way it can take, beside a bare system call.",
    )
    p.add_argument(
        "--calls", type=regimes.positive, default=20000, metavar="N", help="calls a sample (20000)"
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=30, peer=PEER)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError."""
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
                        if number:  # the first warms
                            add(series, name, text, options.calls)
    tsc_hz = int(lib.tn_tsc_hz())
    return compare.describe(
        "hypercall",
        Unit("cycles of the time stamp counter a call", "second", 1 / tsc_hz),
        series,
        comparisons(list(others), backend=options.backend),
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
    """Lines "KIND WAY CYCLES" of the guest or a peer, "KIND CYCLES" of a yardstick, a sample each."""
    for line in text.splitlines():
        *what, cycles = line.split()
        if not what or what[0] not in (*KINDS, "exit") or not cycles.isdigit():
            continue  # a peer's own words
        name = " ".join(what if of == "guest" else [*what, of])
        series.setdefault(name, []).append(int(cycles) / calls)


def comparisons(others: Sequence[str] = (), *, backend: str = "sandbox") -> "list[compare.Comparison]":
    """A bare system call is what a hypercall should cost in the sandbox; behind KVM it is a bare exit."""
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
            f"{result.counters.trapped_hypercalls} hypercalls came by trap, not {expected}: the ways are not what they say"
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
        raise BenchError(f"{words[0]}: still running after 60 s: ended") from error
    if done.returncode:
        wrong = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BenchError(f"{words[0]}: ended with {done.returncode}: {' '.join(wrong)}")
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
