"""`tender bench density`: live VMs of one image until a limit; boot time and memory as they grow in number.

One kind at a time, ours then each peer: one more VM until --max, until --reserve MiB are left of the machine's
memory, until a boot takes --slowdown times as long as at first, or until one is refused. Which of them it was is a
note. A boot is to its first console byte: in the library from the call of Vm(), of a peer from its spawn.
"""

import argparse
from statistics import median

from tender.bench import compare, facts, footprint
from tender.bench.fleet import Fleet, Refused
from tender.bench.memory import commands, make_fleet
from tender.bench.progress import Bar
from tender.bench.pyperf_format import MILLISECONDS

_WINDOW = 5  # boots whose median is compared with the first ones'
BOOT = "ms to the first console byte"
MEMORY = "KiB a VM, Pss of its process"
KERNEL = "KiB a VM, the whole machine's kernel memory"
Point = tuple[int, float]


class Grown:
    """How far one kind came: boot times, memory at some counts, and what stopped it."""

    def __init__(self) -> None:
        self.boots_ms: list[float] = []
        self.memory: list[Point] = []
        self.kernel: list[Point] = []
        self.limit = ""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench density", description="Boot VMs and keep them, until a limit; beside a peer."
    )
    p.add_argument(
        "image",
        nargs="?",
        help="a guest that says ready and waits: idle_guest.hvt (default: our own, compiled)",
    )
    p.add_argument("--max", type=compare.positive, default=1000, metavar="N", help="live VMs at most (1000)")
    p.add_argument(
        "--reserve", type=compare.positive, default=1024, metavar="MIB", help="memory to be left (1024)"
    )
    p.add_argument(
        "--slowdown",
        type=float,
        default=10.0,
        metavar="X",
        help="boots that take X times the first ones (10)",
    )
    p.add_argument("--mem", type=compare.positive, default=16, metavar="MIB", help="guest memory (16)")
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    p.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="'spt=solo5-spt {elf:.spt}'; repeat it",
    )
    compare.add_outputs(p)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError."""
    host = facts.host_facts(facts.find_checkout())
    image, others = commands(options)
    grown: dict[str, Grown] = {}
    for name in (options.backend, *others):
        with make_fleet(name, image, options, others) as fleet:
            grown[name] = grow(
                fleet, limit=options.max, reserve_kib=options.reserve << 10, slowdown=options.slowdown
            )
    series = {
        f"{name} {low}..{min(high, len(g.boots_ms))}": g.boots_ms[low - 1 : high]
        for name, g in grown.items()
        for low, high in _decades(len(g.boots_ms))
    }
    measured = compare.describe(
        "density",
        MILLISECONDS,
        series,
        comparisons(options.backend, list(others), series),
        conditions={
            "backend": options.backend,
            "max": options.max,
            "reserve MiB": options.reserve,
            "slowdown": options.slowdown,
            "MiB": options.mem,
        },
        notes=[f"{name}: {len(g.boots_ms)} live VMs: {g.limit}" for name, g in grown.items()],
        host=host,
    )
    measured["curves"] = {
        BOOT: {
            name: [(n + 1, g.boots_ms[n]) for n in range(len(g.boots_ms)) if is_checkpoint(n + 1)]
            for name, g in grown.items()
        },
        MEMORY: {name: g.memory for name, g in grown.items()},
        KERNEL: {name: g.kernel for name, g in grown.items()},
    }
    return measured


def grow(fleet: Fleet, *, limit: int, reserve_kib: int, slowdown: float) -> Grown:
    """One more VM until something stops it. Raises BenchError if not even one can be made."""
    grown = Grown()
    kernel_before = footprint.kernel_kib(footprint.meminfo())
    with Bar(limit) as bar:
        while True:
            n = len(grown.boots_ms)
            grown.limit = why_stop(
                grown.boots_ms,
                limit=limit,
                available=footprint.meminfo()["MemAvailable"],
                reserve=reserve_kib,
                slowdown=slowdown,
            )
            if grown.limit:
                break
            bar.step(f"{fleet.name}: {n + 1} live")
            try:
                grown.boots_ms.append(fleet.grow())
            except Refused as error:
                if not n:
                    raise
                grown.limit = f"refused: {error.message}"
                break
            if is_checkpoint(n + 1):
                _measure_memory(fleet, grown, kernel_before)
    if not is_checkpoint(len(grown.boots_ms)):
        _measure_memory(fleet, grown, kernel_before)
    return grown


def _measure_memory(fleet: Fleet, grown: Grown, kernel_before: int) -> None:
    n = len(grown.boots_ms)
    grown.memory.append((n, fleet.footprint().pss / n))
    grown.kernel.append((n, (footprint.kernel_kib(footprint.meminfo()) - kernel_before) / n))


def why_stop(boots_ms: "list[float]", *, limit: int, available: int, reserve: int, slowdown: float) -> str:
    """The limit that is reached, in words; empty if none is."""
    if len(boots_ms) >= limit:
        return "--max reached"
    if available < reserve:
        return f"--reserve reached: {available >> 10} MiB are left"
    if len(boots_ms) >= 2 * _WINDOW:
        first, last = median(boots_ms[:_WINDOW]), median(boots_ms[-_WINDOW:])
        if last >= slowdown * first:
            return f"--slowdown reached: a boot takes {last:.2f} ms, the first took {first:.2f}"
    return ""


def is_checkpoint(n: int) -> bool:
    """1, 2, 5, 10, 20, 50, ..."""
    while n and n % 10 == 0:
        n //= 10
    return n in (1, 2, 5)


def _decades(count: int) -> "list[tuple[int, int]]":
    """1..10, 11..100, 101..1000, ... as far as there are any."""
    found, low, high = [], 1, 10
    while low <= count:
        found.append((low, high))
        low, high = high + 1, high * 10
    return found


def comparisons(ours: str, others: "list[str]", series: compare.Series) -> "list[compare.Comparison]":
    return [
        compare.Comparison(name, other + name.removeprefix(ours))
        for name in series
        if name.split()[0] == ours
        for other in others
    ]
