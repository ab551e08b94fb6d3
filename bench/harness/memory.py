"""`python bench memory`: the memory that idle guests of one image keep, beyond their own pages, compared with a peer.

The figures are those of N guests of each kind, divided by N:

    Pss       proportional set size: the bytes of a page are divided among the processes that map it
    Private   pages that only one process has: the cost of one more clone of the image
    Beyond    Pss without guest memory: the monitor's own memory
    Kernel    what the kernel allocated meanwhile (footprint.KERNEL_FIELDS). It is a difference of the whole machine, so it
              is only reported from KERNEL_FROM guests on
    Whole     Beyond and Kernel

The library's process counts with the memory by which it grew. A sandbox or a peer is a process of its own. Each kind is
measured alone, in ABBA order over the rounds.
"""

import argparse
import time

from harness import CHECKOUT, compare, compile, footprint
from harness.fleet import Fleet, LibraryFleet, PeerFleet
from harness.pyperf_format import Unit
from tender.bench import facts, peers, regimes
from tender.bench.progress import Bar
from tender.bench.regimes import rounds

FIELDS = ("Pss", "Private", "Beyond")
KERNEL_FROM = 10
UNIQUE_GOAL = 0.25  # of a peer's Pss


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench memory", description="Measure the memory of idle guests, compared with a peer."
    )
    p.add_argument(
        "image",
        nargs="?",
        help="a guest that prints ready and waits: idle_guest.hvt (default: our own build)",
    )
    p.add_argument(
        "--guests", type=counts, default=(1, 10, 100), metavar="N,N,...", help="guests of each (1,10,100)"
    )
    add_guest_options(p)
    compare.add_options(p, rounds=3, peer="spt=solo5-spt --mem=16 {elf:.spt}")
    return p


def add_guest_options(p: argparse.ArgumentParser) -> None:
    """Add the options of `memory` and `density` about the guest."""
    p.add_argument("--mem", type=regimes.positive, default=16, metavar="MIB", help="guest memory (16)")
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    p.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="WORD",
        help="an argument for the guest; may be repeated",
    )
    p.add_argument(
        "--ready",
        default="ready\n",
        metavar="TEXT",
        help="the text that a peer's guest prints when it is ready (ready, and a newline)",
    )


def counts(text: str) -> "tuple[int, ...]":
    """The numbers of guests of an option, in ascending order."""
    return tuple(sorted({regimes.positive(word) for word in text.split(",")}))


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def commands(options: argparse.Namespace) -> "tuple[str, dict[str, peers.Words]]":
    """The image, and the peers by name. Raises ConfigError, BenchError."""
    image = compile.image(options.image, "idle_guest")
    found = peers.parse(options.peer, image, taken=(options.backend,))
    return image, {name: peers.fill(words, {}, options.arg) for name, words in found.items()}


def make_fleet(name: str, image: str, options: argparse.Namespace, others: "dict[str, peers.Words]") -> Fleet:
    """A fleet of ours if the name is that of the backend, else of the peer."""
    if name == options.backend:
        held = getattr(options, "per_process", 0)
        return LibraryFleet(name, image, options.mem, options.backend, args=options.arg, held=held)
    return PeerFleet(name, others[name], options.mem, ready=options.ready)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
    host = facts.host_facts(CHECKOUT)
    image, others = commands(options)
    names = [options.backend, *others]
    series: compare.Series = {}
    with Bar(options.rounds * len(names) * max(options.guests)) as bar:
        for order in rounds(options.rounds, names):
            for name in order:
                with make_fleet(name, image, options, others) as fleet:
                    _fill(fleet, options.guests, series, bar)
    return compare.describe(
        "memory",
        Unit("KiB per guest", "byte", 1024),
        series,
        comparisons(options.backend, list(others), options.guests),
        conditions={
            "backend": options.backend,
            "guests of each": " ".join(map(str, options.guests)),
            "MiB": options.mem,
            "rounds": options.rounds,
        },
        notes=[
            f"Kernel is a difference of the whole machine: from {KERNEL_FROM} guests on, correct only if nothing else runs"
        ],
        host=host,
    )


def _fill(fleet: Fleet, wanted: "tuple[int, ...]", series: compare.Series, bar: Bar) -> None:
    kernel_before = footprint.kernel_kib(footprint.meminfo())
    for n in range(1, max(wanted) + 1):
        bar.step(f"{fleet.name}: {n}")
        fleet.grow()
        if n not in wanted:
            continue
        time.sleep(0.2)  # until the kernel has freed what a start leaves behind, for example by RCU
        found = fleet.footprint()
        _add(series, fleet.name, n, "Pss", found.pss)
        _add(series, fleet.name, n, "Private", found.private)
        if found.guest is None:
            continue
        beyond = found.pss - found.guest
        _add(series, fleet.name, n, "Beyond", beyond)
        if n >= KERNEL_FROM:
            kernel = footprint.kernel_kib(footprint.meminfo()) - kernel_before
            _add(series, fleet.name, n, "Kernel", kernel)
            _add(series, fleet.name, n, "Whole", beyond + kernel)


def _add(series: compare.Series, name: str, n: int, field: str, kib: float) -> None:
    series.setdefault(f"{name} {n} {field}", []).append(kib / n)


def comparisons(ours: str, others: "list[str]", wanted: "tuple[int, ...]") -> "list[compare.Comparison]":
    found = []
    for n in wanted:
        for name in others:
            found += [
                compare.Comparison(f"{ours} {n} {f}", f"{name} {n} {f}", goal=1.0 if f == "Pss" else None)
                for f in FIELDS
            ]
            if n >= KERNEL_FROM:
                found.append(compare.Comparison(f"{ours} {n} Private", f"{name} {n} Pss", goal=UNIQUE_GOAL))
    return found
