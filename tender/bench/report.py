"""The result object of boot.run() as text: the machine, the table, the ratios."""

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


def table(measured: "dict[str, Any]", more: "Sequence[str]" = ()) -> str:
    """The whole report as text, with lines of `more` before its notes."""
    guest = measured["guest"]
    lines = [
        f"{measured['benchmark']} of {guest['file']} ({guest['bytes']} bytes), {measured['mem_mib']} MiB",
        "",
        f"  {'tender':<21} {measured['tender']}",
        *host_lines(measured["host"]),
    ]
    for regime in measured["regimes"]:
        lines += ["", *_regime(regime)]
    lines += more
    lines += [f"note: {note}" for note in measured["notes"]]
    return "\n".join(lines) + "\n"


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


def meanings(points: "Sequence[str]" = tuple(MEANING)) -> str:
    """The meaning of each point, for --help."""
    return "\n".join(f"  {name:<14} {MEANING[name]}" for name in points)
