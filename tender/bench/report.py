"""What a run says to a person: the machine, the table, the ratios; from boot.run()'s object."""

from collections.abc import Sequence
from typing import Any

from tender.bench.points import MEANING

_SHOWN = (
    "cpu",
    "cpus",
    "hypervisor",
    "kernel",
    "hz",
    "kvm_modules",
    "nested",
    "nx_huge_pages",
    "governor",
    "transparent_hugepage",
    "cgroup",
    "debugfs",
    "mitigations",
    "loadavg",
    "python",
    "revision",
)


def table(measured: "dict[str, Any]") -> str:
    """The whole report as text."""
    guest = measured["guest"]
    lines = [
        f"{measured['benchmark']} of {guest['file']} ({guest['bytes']} bytes), {measured['mem_mib']} MiB",
        "",
        f"  {'tender':<21} {measured['tender']}",
        *host_lines(measured["host"]),
    ]
    for regime in measured["regimes"]:
        lines += ["", *_regime(regime)]
    if measured["counted"]:
        lines += ["", *_counted(measured["counted"], exact=measured["host"]["counts_instructions"])]
    lines += [f"note: {note}" for note in measured["notes"]]
    return "\n".join(lines) + "\n"


def comparison_table(measured: "dict[str, Any]") -> str:
    """The report of compare.describe()'s object as text."""
    conditions = ", ".join(f"{name} {value}" for name, value in measured["conditions"].items())
    width = max((len(name) for name in measured["series"]), default=0)
    lines = [
        f"{measured['benchmark']}: {conditions}",
        "",
        f"  {'tender':<21} {measured['tender']}",
        *host_lines(measured["host"]),
        "",
        measured["unit"],
        f"  {'':{width}} {'median':>12} {'min':>12} {'p99':>12} {'n':>5}",
    ]
    for name, entry in measured["series"].items():
        s = entry["summary"]
        lines.append(f"  {name:{width}} {s['median']:12.1f} {s['min']:12.1f} {s['p99']:12.1f} {s['n']:5}")
    for title, curves in measured.get("curves", {}).items():
        lines += ["", f"  {title}, by the number of live VMs"]
        for name, points in curves.items():
            lines.append(f"  {name:{width}} " + "  ".join(f"{n}: {y:.2f}" for n, y in points))
    if measured["ratios"]:
        lines += ["", "  ratios of medians, 95 % interval"]
    for r in measured["ratios"]:
        goal = "" if r["goal"] is None else f"  goal {'>=' if r['at_least'] else '<='} {r['goal']:.2f}"
        label = f"{r['of']} / {r['to']}"
        lines.append(f"  {label:{2 * width + 3}} {r['value']:7.3f}  [{r['low']:.3f}, {r['high']:.3f}]{goal}")
    return "\n".join([*lines, *(f"note: {note}" for note in measured["notes"])]) + "\n"


def host_lines(host: "dict[str, Any]") -> "list[str]":
    lines = []
    for name in _SHOWN:
        value = host[name]
        if isinstance(value, dict):
            value = "; ".join(f"{k}: {v}" for k, v in value.items()) or "none"
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        lines.append(f"  {name:<21} {'unknown' if value is None else value}")
    return lines


def _regime(regime: "dict[str, Any]") -> "list[str]":
    pause = f", {regime['pause_s']:g} s before each boot" if regime["pause_s"] else ""
    lines = [
        f"{regime['regime']}{pause}: milliseconds",
        f"  {'':36} {'median':>9} {'min':>9} {'p99':>9} {'n':>5}",
    ]
    for subject in regime["subjects"]:
        for point, s in subject["summary_ms"].items():
            label = f"{subject['name']}: {subject['from']} -> {point}"
            lines.append(f"  {label:36} {s['median']:9.3f} {s['min']:9.3f} {s['p99']:9.3f} {s['n']:5}")
        for span, s in subject["spans_ms"].items():
            label = f"{subject['name']}: {span}"
            lines.append(f"  {label:36} {s['median']:9.3f} {s['min']:9.3f} {s['p99']:9.3f} {s['n']:5}")
    if regime["ratios"]:
        lines += ["", "  ratios of medians (below 1: the first is faster), 95 % interval"]
    for r in regime["ratios"]:
        label = f"{r['of']} -> {r['of_point']} / {r['to']} -> {r['to_point']}"
        lines.append(f"  {label:52} {r['value']:7.3f}  [{r['low']:.3f}, {r['high']:.3f}]")
    return lines


def _counted(counted: "dict[str, Any]", *, exact: bool) -> "list[str]":
    unit = "thousands of instructions" if exact else "microseconds of CPU (not instructions: no -icount here)"
    lines = [f"counted, medians of {counted['runs']}: {unit}"]
    for name, subject in counted["subjects"].items():
        lines.append(
            f"  {name}: CPU {subject['cpu_ns'] / 1e3:.1f}, minor faults {subject.get('minor_faults', '-')}"
        )
        if "first_console_cpu_ns" in subject:
            lines.append(f"    CPU at first_console {subject['first_console_cpu_ns'] / 1e3:.1f}")
        if subject["kind"] == "process":
            lines += _calls(subject)
            continue  # elapsed time of a process holds its waits for files: not a count
        shown = [f"{point} {ns / 1e3:.1f}" for point, ns in subject["points_ns"].items() if ns]
        lines.append(f"    elapsed to: {', '.join(shown)}")
        lines += _calls(subject)
    lines += ["", "  ratios"]
    for name, r in counted["ratios"].items():
        goal = f"  goal <= {r['goal']:.2f}" if r["goal"] is not None else ""
        lines.append(f"  {name:44} {r['value']:7.3f}  [{r['low']:.3f}, {r['high']:.3f}]{goal}")
    return lines + [f"  note: {note}" for note in counted["notes"]]


def _calls(subject: "dict[str, Any]") -> "list[str]":
    most_first = sorted(subject.get("calls", {}).items(), key=lambda call: -call[1])
    return ["    calls: " + ", ".join(f"{name} {n:g}" for name, n in most_first)] if most_first else []


def meanings(points: "Sequence[str]" = tuple(MEANING)) -> str:
    """What each point means, for --help and the README's reader."""
    return "\n".join(f"  {name:<14} {MEANING[name]}" for name in points)
