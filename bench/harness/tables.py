"""The results of a benchmark of one unit, and of a counted boot, as text."""

from typing import Any

from tender.bench.report import host_lines


def comparison_table(measured: "dict[str, Any]") -> str:
    """The result object of compare.describe() as text."""
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


def counted(measured: "dict[str, Any]") -> "list[str]":
    """The part "counted" of the result object of boot.run(), as lines of text."""
    counted, exact = measured["counted"], measured["host"]["counts_instructions"]
    if not counted:
        return []
    unit = "thousands of instructions" if exact else "microseconds of CPU (not instructions: no -icount here)"
    lines = ["", f"counted, medians of {counted['runs']}: {unit}"]
    for name, subject in counted["subjects"].items():
        lines.append(
            f"  {name}: CPU {subject['cpu_ns'] / 1e3:.1f}, minor faults {subject.get('minor_faults', '-')}"
        )
        if "first_console_cpu_ns" in subject:
            lines.append(f"    CPU at first_console {subject['first_console_cpu_ns'] / 1e3:.1f}")
        if subject["kind"] == "process":
            lines += _calls(subject)
            continue  # the elapsed time of a process includes its waits for files, so it is not a count
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
