"""`python bench goals`, `make bench`: each goal of this project on this machine: its value, met or missed, or why not.

    measurements   other benchmarks, each a process of its own with --json; they have few samples, so they take minutes
    goals          a figure of one measurement, and the bound it should meet; or why there is no figure

The sandbox is measured on this host, in wall-clock time. KVM is measured on this host in wall-clock time if its KVM
passes the doctor's trial, and otherwise in the test VM, where the clock counts instructions. Peers come from a built
Solo5 tree: --solo5, or TENDER_BENCH_SOLO5. goal_plan.py decides which commands measure what, and where.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import CHECKOUT, compare, picture
from harness.goal_plan import Plan
from tender.bench import facts, report
from tender.bench.progress import Bar
from tender.bench.subjects import BenchError
from tender.errors import TenderError

Measured = dict[str, Any]
_LIMIT_S = 900


class Goal:
    """`figure` computes the value from the result object of `measurement`.

    The value should be at most `goal`, or with `at_least` at least `goal`. needs_peer: there is no value without a peer.
    unmeasured: why the value cannot be measured yet.
    """

    def __init__(
        self,
        text: str,
        goal: float,
        *,
        at_least: bool = False,
        measurement: str = "",
        figure: "Callable[[Measured], float] | None" = None,
        needs_peer: bool = False,
        unmeasured: str = "",
        unit: str = "x",
    ) -> None:
        self.text = text
        self.goal = goal
        self.at_least = at_least
        self.measurement = measurement
        self.figure = figure
        self.needs_peer = needs_peer
        self.unmeasured = unmeasured
        self.unit = unit

    def met(self, value: float) -> bool:
        return value >= self.goal if self.at_least else value <= self.goal


class Row:
    """The result for a goal: its value, or why there is no value."""

    def __init__(self, goal: Goal, *, value: "float | None" = None, why: str = "") -> None:
        self.goal = goal
        self.value = value
        self.why = why

    @property
    def verdict(self) -> str:
        if self.value is None:
            return f"not measured: {self.why}"
        return "met" if self.goal.met(self.value) else "missed"

    def to_dict(self) -> "dict[str, object]":
        return {
            "goal": self.goal.text,
            "bound": self.goal.goal,
            "at_least": self.goal.at_least,
            "unit": self.goal.unit,
            "measurement": self.goal.measurement,
            "value": self.value,
            "verdict": self.verdict,
        }


# ---- figures


def ratio(
    of: str, to: str, *points: str, regime: int = 0, inverse: bool = False
) -> Callable[[Measured], float]:
    """A ratio from a benchmark's result: of subjects at points (boot, run), or of series."""

    def take(measured: Measured) -> float:
        found = measured["regimes"][regime]["ratios"] if "regimes" in measured else measured["ratios"]
        for r in found:
            if (r["of"], r["to"]) == (of, to) and (not points or (r["of_point"], r["to_point"]) == points):
                return float(1 / r["value"] if inverse else r["value"])
        raise LookupError(f"no ratio of {of} to {to}")

    return take


def extreme(
    choose: "Callable[[list[float]], float]", figures: "Sequence[Callable[[Measured], float]]"
) -> Callable[[Measured], float]:
    """The worst of several figures: `max` if less is better, `min` if more is better."""
    return lambda measured: choose([figure(measured) for figure in figures])


def counted(name: str, *, inverse: bool = False) -> Callable[[Measured], float]:
    """A ratio from `python bench boot --count`."""

    def take(measured: Measured) -> float:
        ratios = measured["counted"]["ratios"]
        if name not in ratios:
            raise LookupError(f"no ratio {name}: {'; '.join(measured['counted']['notes'])}")
        value = float(ratios[name]["value"])
        return 1 / value if inverse else value

    return take


def less(of: str, floor: str, to: str) -> Callable[[Measured], float]:
    """A figure of `run`: the time of `of` to its first byte less that of `floor`, divided by the whole time of `to`.

    All times are medians.
    """

    def take(measured: Measured) -> float:
        found = {s["name"]: s["summary_ms"] for s in measured["regimes"][0]["subjects"]}
        missing = {of, floor, to} - set(found)
        if missing:
            raise LookupError(f"no {', '.join(sorted(missing))}")
        first = [found[name]["first_console"]["median"] for name in (of, floor)]
        return float((first[0] - first[1]) / found[to]["console_eof"]["median"])

    return take


def series(name: str) -> Callable[[Measured], float]:
    """The median of a series. A difference of the whole machine's memory may be 0 or less, which is not a value."""

    def take(measured: Measured) -> float:
        if name not in measured["series"]:
            raise LookupError(f"no series {name}")
        value = float(measured["series"][name]["summary"]["median"])
        if value <= 0:
            raise LookupError(f"{name} is {value:.0f}: other programs on this machine influenced it")
        return value

    return take


def _slowdown(measured: Measured) -> float:
    """The median boot of the last decade of live VMs, divided by that of the first decade."""
    summaries = [entry["summary"]["median"] for entry in measured["series"].values()]
    if len(summaries) < 2:
        raise LookupError("too few live VMs")
    return float(summaries[-1] / summaries[0])


_HYPERCALLS = [
    ratio(f"{kind} {way}", f"{kind} plain")
    for kind in ("net_read", "block_read")
    for way in ("patched", "gate")
]
_REQUESTS = [f"{direction} seq" for direction in ("read", "write")]


def _ready_ms(name: str, point: str = "first_exit") -> Callable[[Measured], float]:
    """The median milliseconds of a subject to a point, back to back."""

    def take(measured: Measured) -> float:
        for subject in measured["regimes"][0]["subjects"]:
            if subject["name"] == name:
                return float(subject["summary_ms"][point]["median"])
        raise LookupError(f"no boots of {name}")

    return take


def _live(measured: Measured) -> float:
    """The number of live VMs when the limit was reached."""
    return float(sum(entry["summary"]["n"] for entry in measured["series"].values()))


def _requests(size: int, peer: str) -> Callable[[Measured], float]:
    return extreme(min, [ratio(f"{r} {size} tender", f"{r} {size} {peer}") for r in _REQUESTS])


def _frames(peer: str, *cases: str) -> Callable[[Measured], float]:
    return extreme(min, [ratio(f"{case} tender", f"{case} {peer}") for case in cases])


_KVM_CASES = tuple((mode, size) for size in (64, 1514) for mode in ("tx", "rx", "echo"))

GOALS = (
    Goal("boot, library, KVM / the least a C program needs", 1.15, measurement="kvm boot",
         figure=counted("library / minimal C")),
    Goal("boot, library to first exit, KVM: solo5-hvt's first byte / it", 4.0, at_least=True,
         measurement="kvm boot", figure=counted("library / hvt", inverse=True), needs_peer=True),
    Goal("boot, library to first exit, KVM", 0.25, measurement="kvm times", figure=_ready_ms("library"), unit="ms"),
    Goal("boot, library to first exit, KVM: an image of 16 MiB / of 64 KiB", 1.05, measurement="kvm size",
         figure=ratio("library 16 MiB", "library 64 KiB")),
    Goal("boot, library to first exit, sandbox: an image of 16 MiB / of 64 KiB", 1.05, measurement="sandbox size",
         figure=ratio("library 16 MiB", "library 64 KiB")),
    Goal("boot, command to first byte, KVM: solo5-hvt's / it", 2.0, at_least=True, measurement="kvm boot",
         figure=counted("command / hvt", inverse=True), needs_peer=True),
    Goal("run, command to reaped, KVM: solo5-hvt's / it", 5.0, at_least=True, measurement="kvm run",
         figure=ratio("tender", "hvt", "reaped", "reaped", inverse=True), needs_peer=True),
    Goal("boot, library to first byte, sandbox: solo5-spt's / it", 1.0, at_least=True, measurement="sandbox boot",
         figure=ratio("library", "spt", "console_seen", "console_seen", inverse=True), needs_peer=True),
    Goal("boot, command to first byte, sandbox: solo5-spt's / it", 1.0, at_least=True, measurement="sandbox run",
         figure=ratio("tender", "spt", "first_console", "first_console", inverse=True), needs_peer=True),
    Goal("run, command to reaped, sandbox: solo5-spt's / it", 1.0, at_least=True, measurement="sandbox run",
         figure=ratio("tender", "spt", "reaped", "reaped", inverse=True), needs_peer=True),
    Goal("run, command through Python to first byte, less the native one's / python -I -S -c pass", 1.15,
         measurement="sandbox run", figure=less("python-path", "tender", "python")),
    Goal("run, `python -m tender` to first byte, less the native one's / python -c pass, with site", 1.15,
         measurement="sandbox run", figure=less("module", "tender", "site")),
    Goal("boot from a pool to first exit, KVM: solo5-hvt's first byte / it", 20.0, at_least=True,
         measurement="kvm boot", figure=counted("pool / hvt", inverse=True), needs_peer=True),
    Goal("boot from a pool to first exit, KVM", 0.05, measurement="kvm times", figure=_ready_ms("pool"), unit="ms"),
    Goal("MirageOS, cold boot to its end, command, KVM: solo5-hvt's / it", 1.2, at_least=True,
         measurement="kvm mirage", figure=counted("command / hvt, to its end", inverse=True), needs_peer=True),
    Goal("snapshot restore / a blank boot", 1.1, unmeasured="there are no snapshots"),
    Goal("snapshot restore: a boot of the same MirageOS guest / it", 15.0, at_least=True,
         unmeasured="there are no snapshots"),
    Goal("snapshot restore: Firecracker's / it", 10.0, at_least=True, unmeasured="there are no snapshots"),
    Goal("new VMs per second, one core, from a snapshot", 2000, at_least=True,
         unmeasured="there are no snapshots", unit=""),
    Goal("VMs per second, one core, from a pool, take() until given back, KVM", 20000, at_least=True,
         measurement="kvm times", figure=lambda measured: 1000 / _ready_ms("pool", "closed")(measured), unit=""),
    Goal("hypercall, KVM / a raw KVM_RUN loop", 1.05, measurement="kvm hypercall",
         figure=ratio("walltime trap", "exit raw")),
    Goal("hypercall, KVM: solo5-hvt's / it", 1.0, at_least=True, measurement="kvm hypercall",
         figure=ratio("walltime trap", "walltime trap hvt", inverse=True), needs_peer=True),
    Goal("hypercall, sandbox, patched or gate, the worst / a bare system call", 1.3, measurement="sandbox hypercall",
         figure=extreme(max, _HYPERCALLS)),
    Goal("notify without reply / a hypercall, KVM", 0.45, unmeasured="there is no notification"),
    Goal("frames of 64 bytes, tx and rx, sandbox / solo5-spt", 1.0, at_least=True, measurement="sandbox net",
         figure=_frames("spt", "tx 64", "rx 64"), needs_peer=True),
    Goal("frames of 1514 bytes, tx and rx, sandbox / solo5-spt", 1.0, at_least=True, measurement="sandbox net",
         figure=_frames("spt", "tx 1514", "rx 1514"), needs_peer=True),
    *(Goal(f"frames of {size} bytes, {mode}, one per hypercall, KVM / solo5-hvt's, one per hypercall", 1.0,
           at_least=True, measurement="kvm ways", figure=ratio(f"{mode} {size} calls", f"{mode} {size} hvt"),
           needs_peer=True) for mode, size in _KVM_CASES),
    *(Goal(f"frames of {size} bytes, {mode}, batches, KVM / solo5-hvt's, one per hypercall", 2.0,
           at_least=True, measurement="kvm ways", figure=ratio(f"{mode} {size} batch", f"{mode} {size} hvt"),
           needs_peer=True) for mode, size in _KVM_CASES),
    Goal("received frames of 64 bytes, batches, KVM / solo5-hvt's ring, two CPUs", 2.0, at_least=True,
         measurement="kvm ring", figure=ratio("rx 64 batch", "rx 64 hvt"), needs_peer=True),
    Goal("sent frames of 64 bytes, batches, KVM / solo5-hvt's ring, two CPUs", 1.2, at_least=True,
         measurement="kvm ring", figure=ratio("tx 64 batch", "tx 64 hvt"), needs_peer=True),
    Goal("frames guest to guest / two solo5-hvt over a bridge", 8.0, at_least=True,
         unmeasured="there is no switch in the monitor"),
    Goal("bulk TCP of a stock guest with a large MTU / solo5-hvt's ring with 1500", 2.0, at_least=True,
         unmeasured="needs a guest with TCP, and two CPUs with a KVM of this host: run iperf3 with it"),
    Goal("bulk with offload, sandbox / one frame per call, the worse of out and in", 5.0, at_least=True,
         measurement="sandbox ways",
         figure=extreme(min, [ratio(f"bulk-{way} 1514 offload", f"bulk-{way} 1514 calls") for way in ("tx", "rx")])),
    Goal("poll, read, write of 64 bytes, our library, sandbox / one call each", 2.0, at_least=True,
         measurement="sandbox ways", figure=ratio("serve 64 library", "serve 64 calls")),
    Goal("requests of 512 bytes, cached, sandbox / solo5-spt", 1.4, at_least=True, measurement="sandbox block",
         figure=_requests(512, "spt"), needs_peer=True),
    Goal("requests of 4096 bytes, cached, sandbox / solo5-spt", 1.2, at_least=True, measurement="sandbox block",
         figure=_requests(4096, "spt"), needs_peer=True),
    Goal("requests of 512 bytes, cached, KVM / solo5-hvt", 1.4, at_least=True, measurement="kvm block",
         figure=_requests(512, "hvt"), needs_peer=True),
    Goal("requests of 4096 bytes, cached, KVM / solo5-hvt", 1.2, at_least=True, measurement="kvm block",
         figure=_requests(4096, "hvt"), needs_peer=True),
    Goal("requests of 512 bytes, cached, batched, KVM / solo5-hvt, one per call", 4.0, at_least=True,
         measurement="kvm block", figure=ratio("read seq 512 tender-batch", "read seq 512 hvt"), needs_peer=True),
    Goal("requests of 4096 bytes, cached, batched, KVM / solo5-hvt, one per call", 4.0, at_least=True,
         measurement="kvm block", figure=ratio("read seq 4096 tender-batch", "read seq 4096 hvt"), needs_peer=True),
    Goal("reads of 4096 bytes, anywhere on a cold disk, batched, sandbox / solo5-spt, one per call", 2.5, at_least=True,
         measurement="sandbox cold", figure=ratio("read cold 4096 tender-batch", "read cold 4096 spt"),
         needs_peer=True),
    Goal("memory per VM beyond guest pages, with the kernel's, KVM", 512, measurement="kvm memory",
         figure=series("kvm 10 Whole"), unit="KiB"),
    Goal("memory per VM beyond guest pages, with the kernel's, sandbox", 512, measurement="sandbox memory",
         figure=series("sandbox 100 Whole"), unit="KiB"),
    Goal("private memory of one more VM, KVM / solo5-hvt's Pss", 0.25, measurement="kvm memory",
         figure=ratio("kvm 10 Private", "hvt 10 Pss"), needs_peer=True),
    Goal("private memory of one more VM, sandbox / solo5-spt's Pss", 0.25, measurement="sandbox memory",
         figure=ratio("sandbox 100 Private", "spt 100 Pss"), needs_peer=True),
    Goal("boot with 200 live VMs / with none, sandbox", 10.0, measurement="sandbox density", figure=_slowdown),
    Goal("live VMs at once, sandbox", 10000, at_least=True, measurement="sandbox many", figure=_live, unit=""),
    Goal("live VMs at once, KVM", 10000, at_least=True, unit="",
         unmeasured="takes an hour in the test VM: tools/kvmbox/kvmbox run --mem 16384 -- "
                    "python bench density --backend kvm"),
    Goal("live VMs of a MirageOS image at once / solo5-hvt's", 4.0, at_least=True,
         unmeasured="needs all of the machine's memory, twice: python bench density --backend kvm --peer ... IMAGE"),
)  # fmt: skip


def rows_of(measured: "Mapping[str, Measured]", absent: "Mapping[str, str]", *, peers: bool) -> "list[Row]":
    """One row for each goal."""
    found = []
    for goal in GOALS:
        if goal.unmeasured:
            found.append(Row(goal, why=goal.unmeasured))
        elif goal.needs_peer and not peers:
            found.append(Row(goal, why="no peer: set TENDER_BENCH_SOLO5 to a built Solo5 tree"))
        elif goal.measurement not in measured:
            found.append(Row(goal, why=absent.get(goal.measurement, f"{goal.measurement} was left out")))
        else:
            assert goal.figure is not None
            try:
                found.append(Row(goal, value=goal.figure(measured[goal.measurement])))
            except LookupError as error:
                found.append(Row(goal, why=str(error)))
    return found


def table(rows: "list[Row]", host: facts.Facts, where_kvm: str) -> str:
    """The goals as text."""
    kvm = {
        "kvmbox": "in the test VM, in instructions: no figure of KVM below is a time",
        "host": "on this host",
        "none": "left out",
    }[where_kvm]
    width = max(len(row.goal.text) for row in rows)
    lines = ["goals on this machine", "", *report.host_lines(host), f"  {'KVM':<21} {kvm}", ""]
    lines.append(f"  {'':{width}} {'goal':>11} {'value':>11}")
    for row in rows:
        unit = f" {row.goal.unit}" if row.goal.unit not in ("", "x") else row.goal.unit
        goal = f"{'>=' if row.goal.at_least else '<='} {row.goal.goal:g}{unit}"
        value = (
            "-"
            if row.value is None
            else f"{row.value:.4g}{unit}"
            if row.value < 1000
            else f"{row.value:.0f}{unit}"
        )
        lines.append(f"  {row.goal.text:{width}} {goal:>11} {value:>11}  {row.verdict}")
    known = [row for row in rows if row.value is not None]
    met = sum(row.verdict == "met" for row in known)
    lines += ["", f"  {met} met, {len(known) - met} missed, {len(rows) - len(known)} not measured"]
    return "\n".join(lines) + "\n"


# ---- the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench goals",
        description="Measure every goal of this project on this machine: value, met or missed, or why not.",
    )
    p.add_argument(
        "--solo5",
        metavar="DIR",
        default=os.environ.get("TENDER_BENCH_SOLO5"),
        help="a built Solo5 tree, for peers (default: TENDER_BENCH_SOLO5)",
    )
    p.add_argument(
        "--kvm",
        choices=("auto", "host", "kvmbox", "none"),
        default="auto",
        help="where KVM is measured (auto: on this host if its KVM works, else in the test VM)",
    )
    p.add_argument(
        "--mirage",
        metavar="FILE.hvt",
        default=os.environ.get("TENDER_BENCH_MIRAGE"),
        help="a MirageOS unikernel that needs no device and ends by itself (default: TENDER_BENCH_MIRAGE)",
    )
    p.add_argument(
        "--long", action="store_true", help="also measure what takes many minutes and most of the machine"
    )
    p.add_argument(
        "--only", action="append", metavar="NAME", help="one measurement: 'sandbox boot'; may be repeated"
    )
    p.add_argument("--json", metavar="FILE", help="write the goals, and the results of all measurements")
    p.add_argument("--plot", metavar="FILE.png", help="draw the goals as a picture (needs matplotlib)")
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if nothing could be measured. A missed goal is a figure, not an error."""
    options = parser().parse_args(argv)
    try:
        if options.plot:
            picture.check()  # before the minutes of measuring
        measured, absent, where, host = run(options)
    except (TenderError, OSError) as error:
        return compare.complain(error)
    rows = rows_of(measured, absent, peers=bool(options.solo5))
    sys.stdout.write(table(rows, host, where))
    if options.json:
        found = {"schema": compare.SCHEMA, "goals": [row.to_dict() for row in rows], "measured": measured}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.plot and any(row.value is not None for row in rows):
        picture.goals([row.to_dict() for row in rows], options.plot, host)
    sys.stderr.writelines(f"WARNING: {line}\n" for line in facts.warnings_of(host))
    return 0 if measured else 1


def run(options: argparse.Namespace) -> "tuple[dict[str, Measured], dict[str, str], str, facts.Facts]":
    """The measurements, why others are missing, where KVM was measured, and the host. Raises BenchError."""
    host = facts.host_facts(CHECKOUT)
    solo5 = Path(options.solo5).resolve() if options.solo5 else None
    if solo5:
        _build_guests(solo5)
    where = _where_kvm(options.kvm)
    mirage = Path(options.mirage).resolve() if options.mirage else None
    if mirage and not mirage.is_file():
        raise BenchError(f"--mirage: {mirage}: no such file", hint="or unset TENDER_BENCH_MIRAGE")
    plan = Plan(CHECKOUT, solo5, where, mirage=mirage, long=options.long)
    unknown = set(options.only or ()) - set(plan.commands) - set(plan.absent)
    if unknown:
        raise BenchError(
            f"--only: {', '.join(sorted(unknown))}: no such measurement", hint=", ".join(plan.commands)
        )
    wanted = {
        name: words for name, words in plan.commands.items() if not options.only or name in options.only
    }
    out = CHECKOUT / "bench" / "out" / "goals"
    out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Measured] = {}
    with Bar(len(wanted)) as bar:
        for name, words in wanted.items():
            bar.step(name)
            begin = time.monotonic()
            try:
                measured[name] = measure(words, out / f"{name.replace(' ', '-')}.json", CHECKOUT)
                measured[name]["seconds"] = round(time.monotonic() - begin, 1)
            except BenchError as error:
                plan.absent[name] = error.message
    return measured, plan.absent, where, host


def measure(words: Sequence[str], result: Path, cwd: Path) -> Measured:
    """Run one benchmark, and return its result object. Raises BenchError with its last message."""
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*words, "--json", str(result)],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"not finished after {_LIMIT_S} s") from error
    if done.returncode or not result.exists():
        said = [line for line in done.stderr.splitlines() if not line.startswith(("WARNING", " ", "note:"))]
        raise BenchError(f"ended with {done.returncode}: {' '.join(said[-1:])}")
    found: Measured = json.loads(result.read_text())
    return found


def _where_kvm(asked: str) -> str:
    if asked != "auto":
        return asked
    words = [sys.executable, "-P", "-m", "tender", "doctor", "--kvm"]
    return "host" if subprocess.run(words, capture_output=True, check=False).returncode == 0 else "kvmbox"


def _build_guests(solo5: Path) -> None:
    words = [
        str(CHECKOUT / "bench" / "build_solo5_guests"),
        str(solo5),
        str(CHECKOUT / "bench" / "out" / "solo5"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(
            f"--solo5: {solo5}: the guests could not be built: {' '.join(done.stderr.splitlines()[-1:])}",
            hint="name a built Solo5 tree, with tenders/ and toolchain/",
        )
