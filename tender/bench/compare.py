"""What the benchmarks of one unit have in common: series of samples by name, ratios with an interval and a goal.

A benchmark gives a Series for each thing it measured and says which are compared; this makes the one object
(schema 1), its table, its JSON, its warnings and the exit status.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tender._version import __version__
from tender.bench import facts, report
from tender.bench.stats import ratio_of_medians, summarise
from tender.errors import TenderError

SCHEMA = 1
Series = dict[str, list[float]]
Measured = dict[str, object]


class Comparison:
    """`of` / `to`, both names of series. `goal`: the ratio should be at most this (at_least: at least)."""

    def __init__(self, of: str, to: str, *, goal: "float | None" = None, at_least: bool = False) -> None:
        self.of = of
        self.to = to
        self.goal = goal
        self.at_least = at_least


def describe(
    benchmark: str,
    unit: str,
    series: Series,
    comparisons: Sequence[Comparison],
    *,
    conditions: "dict[str, object]",
    notes: Sequence[str] = (),
    host: facts.Facts,
) -> Measured:
    """The object that table() and --json show."""
    ratios = []
    for c in comparisons:
        if c.of in series and c.to in series and median(series[c.to]):
            found = ratio_of_medians(series[c.of], series[c.to])
            ratios.append({"of": c.of, "to": c.to, **vars(found), "goal": c.goal, "at_least": c.at_least})
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "tender": __version__,
        "unit": unit,
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
    """The options that each of these benchmarks has; `peer` is an example of one, where there can be peers."""
    if peer:
        p.add_argument(
            "--peer", action="append", default=[], metavar="NAME=COMMAND", help=f"{peer!r}; repeat it"
        )
    p.add_argument(
        "--rounds", type=positive, default=rounds, metavar="N", help=f"rounds over all of them ({rounds})"
    )
    p.add_argument("--json", metavar="FILE", help="everything, every sample, as one JSON object")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(p: argparse.ArgumentParser, argv: "list[str]", run: Callable[[argparse.Namespace], Measured]) -> int:
    """The benchmark as a command. Status 1 if something could not be measured."""
    options = p.parse_args(argv)
    try:
        measured = run(options)
        sys.stdout.write(report.comparison_table(measured))
        if options.json:
            Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")
    except (TenderError, OSError) as error:
        sys.stderr.write(f"tender bench: {error}\n")
        hint = getattr(error, "hint", "")
        if hint:
            sys.stderr.write(f"  {hint}\n")
        return 1
    found = measured["warnings"]
    assert isinstance(found, list)
    sys.stderr.writelines(f"WARNING: {line}\n" for line in found)
    return 0


def progress(line: str) -> None:
    """One line that is written over by the next, where someone looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def pin(cpu: "int | None" = None) -> int:
    """Keeps this process, and what it starts, on one CPU: by default the highest it may use. Which."""
    chosen = max(os.sched_getaffinity(0)) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    return chosen
