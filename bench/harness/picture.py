"""`--plot FILE.png`: draws the result of a benchmark: boots, samples and curves, goals, counts, two revisions.

Only these functions import matplotlib, which is optional. Each takes the benchmark's result and writes the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tender.bench.subjects import BenchError

_GOOD, _BAD, _PLAIN, _FAINT = "#2b7a3f", "#b5382c", "#2f5d8a", "#8a8a8a"
_ROW_INCH = 0.26
_DPI = 110


def check() -> None:
    """Raises BenchError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError("--plot needs matplotlib", hint="pip install 'tender[plot]'") from error


def _figure(
    rows: int, columns: int, *, width: float, height: float, ratios: "Sequence[float] | None" = None
) -> Any:
    """A figure, and its axes as a list of lists. `ratios` are those of the rows' heights. Raises BenchError."""
    check()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, squeeze=False, figsize=(width, height), layout="constrained", height_ratios=ratios
    )


def _save(figure: Any, path: str, title: str, host: "Mapping[str, Any]") -> None:
    from matplotlib import pyplot

    counted = ", the clock counts instructions" if host.get("counts_instructions") else ""
    machine = f"{host.get('cpu')}, Linux {host.get('kernel')}{counted}; revision {host.get('revision')}"
    figure.suptitle(f"{title}\n{machine}", fontsize="small")
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def boots(measured: "dict[str, Any]", path: str) -> None:
    """Each subject's distribution of times to its ready point, one panel per regime. Raises BenchError."""
    check()
    regimes = measured["regimes"]
    if not regimes:
        raise BenchError("--plot draws times, and --count measures none")
    figure, axes = _figure(1, len(regimes), width=9 * len(regimes), height=4.5)
    for axis, regime in zip(axes[0], regimes, strict=True):
        for subject in regime["subjects"]:
            point = next(
                p
                for p in ("first_exit", "first_console", "console_seen", "console_eof")
                if p in subject["samples"][0]["points_ns"]
            )
            times = sorted(s["points_ns"][point] / 1e6 for s in subject["samples"])
            share = [(i + 1) / len(times) for i in range(len(times))]
            axis.step(times, share, where="post", label=f"{subject['name']}: {subject['from']} -> {point}")
        _log_x(axis)
        axis.set_xlabel("milliseconds from -> to, as the legend names them")
        axis.set_ylabel("share of boots that had reached the point")
        axis.set_ylim(0, 1.02)
        axis.set_title(
            f"{regime['regime']}, {len(regime['subjects'][0]['samples'])} of each", fontsize="medium"
        )
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    _save(figure, path, f"{measured['benchmark']} of {measured['guest']['file']}", measured["host"])


def samples(measured: "dict[str, Any]", path: str) -> None:
    """Each series as a box over its samples, and each curve with its points. Raises BenchError."""
    series, curves = measured["series"], measured.get("curves", {})
    if not series:
        raise BenchError("--plot has nothing to draw: no series was measured")
    panels = 1 + len(curves)
    columns = min(panels, 2)
    rows = -(-panels // columns)
    height = max(3.0, 1.6 + _ROW_INCH * len(series)) if panels == 1 else 4.2 * rows
    figure, axes = _figure(rows, columns, width=8.5 if panels == 1 else 7 * columns, height=height)
    flat = [axis for line in axes for axis in line]
    box = flat[0]
    values = [entry["samples"] for entry in series.values()]
    box.boxplot(values, orientation="horizontal", whis=(1, 99), flierprops={"markersize": 2})
    box.set_yticks(range(1, len(series) + 1), list(series), fontsize="small")
    box.invert_yaxis()
    box.set_xlabel(f"{measured['unit']}; box: quartiles, whiskers: 1st and 99th percentile", fontsize="small")
    box.grid(axis="x", alpha=0.3)
    positive = [v for own in values for v in own if v > 0]
    if positive and max(positive) > 20 * min(positive) and len(positive) == sum(map(len, values)):
        _log_x(box)
    for axis, (title, lines) in zip(flat[1:], curves.items(), strict=False):
        _curve(axis, title, lines)
    for axis in flat[panels:]:
        axis.set_visible(False)
    conditions = ", ".join(f"{name} {value}" for name, value in measured["conditions"].items())
    _save(figure, path, f"{measured['benchmark']}: {_wrapped(conditions)}", measured["host"])


def _curve(axis: Any, title: str, lines: "Mapping[str, Sequence[Sequence[float]]]") -> None:
    for name, points in lines.items():
        axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=3, label=name)
        if points:
            x, y = points[-1]
            axis.annotate(
                f"{x:,.0f}: {y:.3g}",
                (x, y),
                textcoords="offset points",
                xytext=(0, 6),
                ha="right",
                fontsize="small",
            )
    _log_x(axis)
    axis.set_ylim(0, 1.15 * max([1e-9, *(p[1] for points in lines.values() for p in points)]))
    axis.set_xlabel("live VMs")
    axis.set_ylabel(title, fontsize="small")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def goals(rows: "Sequence[Mapping[str, Any]]", path: str, host: "Mapping[str, Any]") -> None:
    """Each goal that has a value: how many times better the value is than the goal. The others are named below.

    `rows`: Row.to_dict() of goals.py. Raises BenchError.
    """
    known = [row for row in rows if row["value"] is not None]
    if not known:
        raise BenchError("--plot has nothing to draw: no goal has a value")
    others = [row for row in rows if row["value"] is None]
    figure, axes = _figure(1, 1, width=13, height=1.8 + _ROW_INCH * (len(known) + len(others)))
    axis = axes[0][0]
    times = [_times_better(row) for row in known]
    for at, (row, value) in enumerate(zip(known, times, strict=True)):
        axis.barh(at, value - 1, left=1, color=_GOOD if row["verdict"] == "met" else _BAD, height=0.6)
        unit = row["unit"] if row["unit"] in ("", "x") else f" {row['unit']}"
        bound = f"{'>=' if row['at_least'] else '<='} {row['bound']:g}"
        axis.annotate(
            f"{row['value']:.4g}{unit}  (goal {bound})",
            (max(value, 1), at), textcoords="offset points", xytext=(4, 0), va="center", fontsize="x-small",
        )  # fmt: skip
    for at, row in enumerate(others, len(known)):
        why = row["verdict"].removeprefix("not measured: ")
        axis.annotate(
            f"not measured: {why if len(why) < 70 else why[:67] + '...'}",
            (1, at), textcoords="offset points", xytext=(4, 0), va="center", fontsize="x-small", color=_FAINT,
        )  # fmt: skip
    axis.axvline(1, color="black", linewidth=1)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_yticks(
        range(len(known) + len(others)), [row["goal"] for row in (*known, *others)], fontsize="x-small"
    )
    axis.invert_yaxis()
    _log_x(axis)
    axis.set_xlim(min([0.3, *(0.8 * v for v in times)]), 4 * max([1.5, *times]))
    axis.set_xlabel("times better than the goal (1: just met; green: met, red: missed)")
    met = sum(row["verdict"] == "met" for row in known)
    _save(figure, path, f"goals: {met} met, {len(known) - met} missed, {len(others)} not measured", host)


def _times_better(row: "Mapping[str, Any]") -> float:
    """1 or more if the goal is met, for goals of both directions."""
    value = max(float(row["value"]), 1e-9)
    return float(value / row["bound"] if row["at_least"] else row["bound"] / value)


def counts(backend: str, rows: "Mapping[str, float]", path: str, host: "Mapping[str, Any]") -> None:
    """One panel for each kind of count, with one bar for each of its rows. Raises BenchError."""
    if not rows:
        raise BenchError("--plot has nothing to draw: nothing was counted")
    panels: dict[str, dict[str, float]] = {}
    for name, value in rows.items():
        of, _, what = name.removeprefix("~").partition(": ")
        panels.setdefault(what, {})[f"{of}{' (~)' if name.startswith('~') else ''}"] = value
    sizes = [len(bars) for bars in panels.values()]
    heights = [n + 1.5 for n in sizes]
    figure, axes = _figure(len(panels), 1, width=9, height=1 + 0.3 * sum(heights), ratios=heights)
    for axis, (what, bars) in zip((line[0] for line in axes), panels.items(), strict=True):
        axis.barh(range(len(bars)), list(bars.values()), color=_PLAIN, height=0.6)
        for at, value in enumerate(bars.values()):
            axis.annotate(
                f"{value:,.6g}",
                (value, at),
                textcoords="offset points",
                xytext=(4, 0),
                va="center",
                fontsize="x-small",
            )
        axis.set_yticks(range(len(bars)), list(bars), fontsize="x-small")
        axis.invert_yaxis()
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.margins(x=0.12)
        axis.set_xlim(left=0)
        axis.set_xlabel(what, fontsize="small")
    _save(
        figure,
        path,
        f"count, {backend}: from the differences of larger and smaller runs (~: not exact)",
        host,
    )


def revisions(
    a: "Mapping[str, float]", b: "Mapping[str, float]", worse: "Mapping[str, bool]", path: str,
    *, names: "tuple[str, str]", host: "Mapping[str, Any]",
) -> None:  # fmt: skip
    """The change of each row that both have, from `a` to `b`. `worse`: rows that fail the gate. Raises BenchError."""
    both = {row: b[row] / a[row] for row in a if row in b and a[row]}
    if not both:
        raise BenchError("--plot has nothing to draw: the revisions have no row in common")
    figure, axes = _figure(1, 1, width=11, height=1.6 + _ROW_INCH * len(both))
    axis = axes[0][0]
    percents = [(value - 1) * 100 for value in both.values()]
    for at, (row, percent) in enumerate(zip(both, percents, strict=True)):
        colour = _BAD if worse.get(row) else _GOOD if percent < 0 else _PLAIN
        axis.barh(at, percent, color=colour, height=0.6)
        axis.annotate(
            f"{a[row]:,.6g} -> {b[row]:,.6g}" + (f" ({percent:+.1f} %)" if percent else ""),
            (max(percent, 0), at), textcoords="offset points", xytext=(4, 0), va="center", fontsize="x-small",
        )  # fmt: skip
    axis.axvline(0, color="black", linewidth=1)
    axis.set_ylim(-0.6, len(both) - 0.4)
    axis.set_yticks(range(len(both)), list(both), fontsize="x-small")
    axis.invert_yaxis()
    low, high = min([-5.0, *percents]), max([5.0, *percents])
    axis.set_xlim(low * 1.1, high + 0.5 * (high - low))
    axis.set_xlabel(
        f"change in percent from {names[0]} to {names[1]} (left is less; red: worse than allowed)"
    )
    _save(figure, path, f"compare: {names[0]} -> {names[1]}", host)


def _log_x(axis: Any) -> None:
    """Make the x axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _wrapped(text: str, width: int = 110) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
