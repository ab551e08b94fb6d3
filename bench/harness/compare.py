"""The common part of benchmarks with one unit: series of samples by name, ratios with an interval and a goal.

A benchmark provides a Series for each thing it measured, and names the series to compare. This module makes the result
object (schema 1), its table, its JSON, its warnings and the exit status.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from harness import picture, pyperf_format, tables
from harness.pyperf_format import Unit
from tender._version import __version__
from tender.bench import facts, regimes
from tender.bench.stats import ratio_of_medians, summarise
from tender.errors import TenderError

SCHEMA = 1
Series = dict[str, list[float]]
Measured = dict[str, object]


class Comparison:
    """The ratio of two series, `of` / `to`. It should be at most `goal`; with at_least, at least `goal`."""

    def __init__(self, of: str, to: str, *, goal: "float | None" = None, at_least: bool = False) -> None:
        self.of = of
        self.to = to
        self.goal = goal
        self.at_least = at_least


def describe(
    benchmark: str,
    unit: Unit,
    series: Series,
    comparisons: Sequence[Comparison],
    *,
    conditions: "dict[str, object]",
    notes: Sequence[str] = (),
    host: facts.Facts,
) -> Measured:
    """The result object, which the table and --json show."""
    ratios = []
    for c in comparisons:
        if c.of in series and c.to in series and median(series[c.to]):
            found = ratio_of_medians(series[c.of], series[c.to])
            ratios.append({"of": c.of, "to": c.to, **vars(found), "goal": c.goal, "at_least": c.at_least})
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "tender": __version__,
        "unit": unit.label,
        "pyperf_unit": vars(unit),
        "conditions": conditions,
        "host": host,
        "warnings": facts.warnings_of(host),
        "notes": list(notes),
        "series": {
            name: {"summary": vars(summarise(samples)), "samples": samples}
            for name, samples in series.items()
        },
        "ratios": ratios,
    }


def add_options(p: argparse.ArgumentParser, *, rounds: int, peer: str = "") -> None:
    """Add the options that each of these benchmarks has. `peer` is an example for --peer; "" means no peers."""
    if peer:
        p.add_argument(
            "--peer", action="append", default=[], metavar="NAME=COMMAND", help=f"{peer!r}; may be repeated"
        )
    p.add_argument(
        "--rounds",
        type=regimes.positive,
        default=rounds,
        metavar="N",
        help=f"rounds over all subjects ({rounds})",
    )
    add_outputs(p)


def add_outputs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", metavar="FILE", help="everything, every sample, as one JSON object")
    p.add_argument("--pyperf", metavar="FILE", help="the samples as pyperf's JSON, for `pyperf compare_to`")
    p.add_argument("--plot", metavar="FILE.png", help="the samples as a picture (needs matplotlib)")


def main(
    p: argparse.ArgumentParser,
    argv: "list[str]",
    run: Callable[[argparse.Namespace], Measured],
) -> int:
    """Run the benchmark. Status 1 if something could not be measured."""
    options = p.parse_args(argv)
    try:
        if options.plot:
            picture.check()  # before the minutes of measuring
        measured = run(options)
        sys.stdout.write(tables.comparison_table(measured))
        write_outputs(options, measured)
    except (TenderError, OSError) as error:
        return complain(error)
    found = measured["warnings"]
    assert isinstance(found, list)
    sys.stderr.writelines(f"WARNING: {line}\n" for line in found)
    return 0


def write_outputs(options: argparse.Namespace, measured: Measured) -> None:
    """Write the object of describe() as --json, --pyperf and --plot ask."""
    if options.json:
        Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")
    if options.pyperf:
        host, series, unit = measured["host"], measured["series"], measured["pyperf_unit"]
        assert isinstance(host, dict) and isinstance(series, dict) and isinstance(unit, dict)
        samples = {name: entry["samples"] for name, entry in series.items()}
        found = pyperf_format.document(str(measured["benchmark"]), samples, Unit(**unit), host)
        Path(options.pyperf).write_text(json.dumps(found) + "\n")
    if options.plot:
        picture.samples(measured, options.plot)


def complain(error: Exception) -> int:
    """Print the error as a message, and return the exit status."""
    return regimes.complain(error, "bench")


def pin(cpu: "int | None" = None) -> int:
    """Keep this process, and what it starts, on one CPU. Returns the CPU, by default the highest it may use."""
    chosen = max(os.sched_getaffinity(0)) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    return chosen
