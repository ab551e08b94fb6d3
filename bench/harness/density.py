"""`python bench density`: boot time and memory while live VMs of one image grow in number, until a limit.

It measures one kind at a time, ours and then each peer. It starts one more VM until one of these limits is reached, and
a note names the limit: there are --max VMs; only --reserve MiB of the machine's memory are left; the machine may have
only --tasks more processes and threads; boots take --slowdown times as long as the first ones; a VM is refused. A boot
ends with its first console byte. It begins in the library with the call of Vm(), and for a peer with its spawn. All VMs
of a kind end before the next kind begins. It is an error if one of their processes does not end.
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

_WINDOW = 20  # so many boots give a point of the curve, and are compared with as many first boots
BOOT = "ms to the first console byte"
MEMORY = "KiB per VM, Pss of its process"
KERNEL = "KiB per VM, the whole machine's kernel memory"
Point = tuple[int, float]


class Grown:
    """The result for one kind: boot times, memory at some numbers of VMs, and the limit."""

    def __init__(self) -> None:
        self.boots_ms: list[float] = []
        self.memory: list[Point] = []
        self.kernel: list[Point] = []
        self.limit = ""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench density",
        description="Boot VMs and keep them, until a limit; also those of a peer.",
    )
    p.add_argument(
        "image",
        nargs="?",
        help="a guest that prints ready and waits: idle_guest.hvt (default: our own build)",
    )
    p.add_argument("--max", type=regimes.positive, default=1000, metavar="N", help="live VMs at most (1000)")
    p.add_argument(
        "--reserve",
        type=regimes.positive,
        default=1024,
        metavar="MIB",
        help="stop with this memory left (1024)",
    )
    p.add_argument(
        "--tasks",
        type=regimes.positive,
        default=1000,
        metavar="N",
        help="stop with space for so many more processes and threads (1000)",
    )
    p.add_argument(
        "--slowdown",
        type=float,
        default=10.0,
        metavar="X",
        help="stop when boots take X times as long as the first ones (10)",
    )
    p.add_argument(
        "--per-process",
        type=regimes.positive,
        default=0,
        metavar="N",
        help=f"VMs in one process of the library ({HELD_MAX['sandbox']}; kvm: {HELD_MAX['kvm']})",
    )
    add_guest_options(p)
    p.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="'spt=solo5-spt {elf:.spt}'; may be repeated",
    )
    compare.add_outputs(p)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
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
            "VMs per process": options.per_process or HELD_MAX[options.backend],
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
    """Where growing stops, unless a VM is refused earlier."""

    vms: int
    reserve_kib: int
    tasks: int
    slowdown: float


def grow(fleet: Fleet, limits: Limits) -> Grown:
    """Start one more VM until a limit is reached. Raises BenchError if not even one VM can be started."""
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
    """The number of processes and threads for which this machine, or our cgroup, has space. None if unknown."""
    running = (facts.text_of("/proc/loadavg") or "").split()
    found = []
    if len(running) > 3 and "/" in running[3]:
        in_use = int(running[3].partition("/")[2])
        for name in ("pid_max", "threads-max"):
            text = facts.text_of(f"/proc/sys/kernel/{name}") or ""
            found += [int(text) - in_use] if text.isdigit() else []
    for line in (facts.text_of("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):  # cgroup v2, v1; a parent group may have a lower limit
            group = Path(f"/sys/fs/cgroup{'/pids' if controllers else ''}{path}")
            most, now = facts.text_of(group / "pids.max") or "", facts.text_of(group / "pids.current") or ""
            found += [int(most) - int(now)] if most.isdigit() and now.isdigit() else []
    return min(found, default=None)


def why_stop(boots_ms: "list[float]", limits: Limits, *, available: int, tasks_left: "int | None") -> str:
    """The limit that is reached, as text; "" if none is."""
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
    """At each checkpoint, and at the end, the median of the last twenty boots, or of all if they are fewer."""
    counts = [n for n in range(1, len(boots_ms) + 1) if is_checkpoint(n) or n == len(boots_ms)]
    return [(n, median(boots_ms[max(0, n - _WINDOW) : n])) for n in counts]


def is_checkpoint(n: int) -> bool:
    """1, 2, 5, 10, 20, 50, ..."""
    while n and n % 10 == 0:
        n //= 10
    return n in (1, 2, 5)


def _decades(count: int) -> "list[tuple[int, int]]":
    """The ranges 1..10, 11..100, 101..1000 and so on, up to `count`."""
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
