"""`python bench density`: live VMs of one image until a limit; boot time and memory as they grow in number.

One kind at a time, ours then each peer: one more VM until --max, until --reserve MiB are left of the machine's
memory, or --tasks of the processes and threads it may have, until boots take --slowdown times as long as at first, or
until one is refused. Which of them it was is a note. A boot is to its first console byte: in the library from the call
of Vm(), of a peer from its spawn. All end before the next kind begins, and it is an error if a process of theirs does not.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness import CHECKOUT, compare, footprint
from harness.fleet import HELD_MAX, Fleet, Refused
from harness.memory import add_guest_options, commands, make_fleet
from harness.pyperf_format import MILLISECONDS
from tender.bench import facts, regimes
from tender.bench.progress import Bar

_WINDOW = 20  # boots whose median is compared with the first ones', and is a point of the curve
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
        prog="python bench density", description="Boot VMs and keep them, until a limit; beside a peer."
    )
    p.add_argument(
        "image",
        nargs="?",
        help="a guest that says ready and waits: idle_guest.hvt (default: our own, compiled)",
    )
    p.add_argument("--max", type=regimes.positive, default=1000, metavar="N", help="live VMs at most (1000)")
    p.add_argument(
        "--reserve", type=regimes.positive, default=1024, metavar="MIB", help="memory to be left (1024)"
    )
    p.add_argument(
        "--tasks",
        type=regimes.positive,
        default=1000,
        metavar="N",
        help="processes and threads that the machine is to have space for (1000)",
    )
    p.add_argument(
        "--slowdown",
        type=float,
        default=10.0,
        metavar="X",
        help="boots that take X times the first ones (10)",
    )
    p.add_argument(
        "--per-process",
        type=regimes.positive,
        default=0,
        metavar="N",
        help=f"VMs that one process of the library holds ({HELD_MAX['sandbox']}; kvm: {HELD_MAX['kvm']})",
    )
    add_guest_options(p)
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
    host = facts.host_facts(CHECKOUT)
    image, others = commands(options)
    grown: dict[str, Grown] = {}
    for name in (options.backend, *others):
        with make_fleet(name, image, options, others) as fleet:
            limits = Limits(options.max, options.reserve << 10, options.tasks, options.slowdown)
            grown[name] = grow(fleet, limits)
        fleet.assert_gone()
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
            "reserve tasks": options.tasks,
            "slowdown": options.slowdown,
            "VMs a process": options.per_process or HELD_MAX[options.backend],
            "MiB": options.mem,
        },
        notes=[f"{name}: {len(g.boots_ms)} live VMs: {g.limit}" for name, g in grown.items()],
        host=host,
    )
    measured["curves"] = {
        BOOT: {name: curve(g.boots_ms) for name, g in grown.items()},
        MEMORY: {name: g.memory for name, g in grown.items()},
        KERNEL: {name: g.kernel for name, g in grown.items()},
    }
    return measured


@dataclass(frozen=True)
class Limits:
    """Where growing stops, but for a VM that is refused."""

    vms: int
    reserve_kib: int
    tasks: int
    slowdown: float


def grow(fleet: Fleet, limits: Limits) -> Grown:
    """One more VM until something stops it. Raises BenchError if not even one can be made."""
    grown = Grown()
    kernel_before = footprint.kernel_kib(footprint.meminfo())
    with Bar(limits.vms) as bar:
        while True:
            n = len(grown.boots_ms)
            grown.limit = why_stop(
                grown.boots_ms,
                limits,
                available=footprint.meminfo()["MemAvailable"],
                tasks_left=tasks_left(),
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


def tasks_left() -> "int | None":
    """How many processes and threads more this machine, or our cgroup, has space for; None if it does not tell."""
    running = (facts.text_of("/proc/loadavg") or "").split()
    found = []
    if len(running) > 3 and "/" in running[3]:
        in_use = int(running[3].partition("/")[2])
        for name in ("pid_max", "threads-max"):
            text = facts.text_of(f"/proc/sys/kernel/{name}") or ""
            found += [int(text) - in_use] if text.isdigit() else []
    for line in (facts.text_of("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):  # v2, v1; what lies above may be lower
            group = Path(f"/sys/fs/cgroup{'/pids' if controllers else ''}{path}")
            most, now = facts.text_of(group / "pids.max") or "", facts.text_of(group / "pids.current") or ""
            found += [int(most) - int(now)] if most.isdigit() and now.isdigit() else []
    return min(found, default=None)


def why_stop(boots_ms: "list[float]", limits: Limits, *, available: int, tasks_left: "int | None") -> str:
    """The limit that is reached, in words; empty if none is."""
    if len(boots_ms) >= limits.vms:
        return "--max reached"
    if available < limits.reserve_kib:
        return f"--reserve reached: {available >> 10} MiB are left"
    if tasks_left is not None and tasks_left < limits.tasks:
        return f"--tasks reached: space for {tasks_left} processes and threads is left"
    if len(boots_ms) >= 2 * _WINDOW:
        first, last = median(boots_ms[:_WINDOW]), median(boots_ms[-_WINDOW:])
        if last >= limits.slowdown * first:
            return f"--slowdown reached: a boot takes {last:.2f} ms, the first took {first:.2f}"
    return ""


def curve(boots_ms: "list[float]") -> "list[Point]":
    """At each checkpoint, and at the end, the median of the boots that led there; of fewer than twenty, of all."""
    counts = [n for n in range(1, len(boots_ms) + 1) if is_checkpoint(n) or n == len(boots_ms)]
    return [(n, median(boots_ms[max(0, n - _WINDOW) : n])) for n in counts]


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
