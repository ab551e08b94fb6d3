"""The common part of `boot` and `run`: subjects measured back to back and isolated, the result object, its outputs.

subjects -> regimes (each: ABBA rounds over all subjects) -> samples, summaries, spans, ratios
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tender._version import __version__
from tender.bench import facts, report
from tender.bench.points import Sample
from tender.bench.progress import Bar
from tender.bench.stats import ratio_of_medians, summarise
from tender.bench.subjects import Subject
from tender.errors import TenderError

SCHEMA = 1
Report = dict[str, object]
Compared = tuple[str, str, str, str]  # of, its point, to, its point
Comparer = Callable[["dict[str, list[Sample]]"], "list[Compared]"]


def add_options(p: argparse.ArgumentParser, *, runs: int, peer: str) -> None:
    """Add the options about the image, the runs and their pauses, the peers and the output."""
    p.add_argument(
        "image", nargs="?", help="the unikernel to boot (default: the hello that comes with tender)"
    )
    p.add_argument("--runs", type=positive, default=runs, metavar="N", help=f"runs of each subject ({runs})")
    p.add_argument("--warmup", type=int, default=5, metavar="N", help="runs before these, not counted (5)")
    p.add_argument(
        "--pause",
        type=float,
        default=4.0,
        metavar="S",
        help="seconds before an isolated run (4); 0: no isolated runs",
    )
    p.add_argument(
        "--isolated-runs", type=int, metavar="N", help="runs in the isolated regime (default: runs/10)"
    )
    p.add_argument("--mem", type=positive, default=16, metavar="MIB", help="guest memory (16)")
    p.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="WORD",
        help="an argument for the guest; may be repeated",
    )
    p.add_argument(
        "--peer", action="append", default=[], metavar="[NAME=]COMMAND", help=f"{peer!r}; may be repeated"
    )
    p.add_argument("--json", metavar="FILE", help="write everything, with every sample, as one JSON object")


def rounds(count: int, names: "list[str]") -> "list[list[str]]":
    """ABBA order: every other round is reversed, so that a drift of the machine affects all subjects alike."""
    return [names if i % 2 == 0 else names[::-1] for i in range(count)]


def measure(
    subjects: "list[Subject]",
    options: argparse.Namespace,
    comparer: Comparer,
    spans: "Sequence[tuple[str, str]]" = (),
) -> "list[dict[str, object]]":
    """Measure back to back, then isolated. `--pause 0` leaves the isolated runs out. Raises BenchError."""
    isolated = options.isolated_runs if options.isolated_runs is not None else max(2, options.runs // 10)
    wanted = [("back-to-back", options.warmup, options.runs, 0.0)]
    if options.pause > 0 and isolated > 0:
        wanted.append(("isolated", 0, isolated, options.pause))
    by_name = {subject.name: subject for subject in subjects}
    found = []
    for regime, warmup, runs, pause in wanted:
        samples: dict[str, list[Sample]] = {name: [] for name in by_name}
        with Bar((warmup + runs) * len(by_name)) as bar:
            for number, order in enumerate(rounds(warmup + runs, list(by_name))):
                for name in order:
                    bar.step(f"{regime}: {name}")
                    if pause:
                        time.sleep(pause)
                    sample = by_name[name].boot()
                    if number >= warmup:
                        samples[name].append(sample)
        found.append(describe(regime, pause, subjects, samples, comparer, spans))
    return found


def describe(
    regime: str,
    pause: float,
    subjects: "list[Subject]",
    samples: "dict[str, list[Sample]]",
    comparer: Comparer,
    spans: "Sequence[tuple[str, str]]" = (),
) -> "dict[str, object]":
    """A regime as in the JSON: the subjects with samples and summaries, and the ratios."""
    entries = []
    for subject in subjects:
        own = samples[subject.name]
        summary = {
            point: vars(summarise([s.points_ns[point] / 1e6 for s in own]))
            for point in subject.points[1:]
            if all(point in s.points_ns for s in own)
        }
        between = {
            f"{a} -> {b}": vars(summarise([(s.points_ns[b] - s.points_ns[a]) / 1e6 for s in own]))
            for a, b in spans
            if all(a in s.points_ns and b in s.points_ns for s in own)
        }
        entries.append(
            {
                "name": subject.name,
                "kind": subject.kind,
                "command": list(subject.command),
                "from": subject.points[0],
                "summary_ms": summary,
                "spans_ms": between,
                "samples": [s.to_dict() for s in own],
            }
        )
    ratios = [
        {"of": a, "of_point": a_point, "to": b, "to_point": b_point}
        | vars(
            ratio_of_medians(
                [s.points_ns[a_point] for s in samples[a]], [s.points_ns[b_point] for s in samples[b]]
            )
        )
        for a, a_point, b, b_point in comparer(samples)
    ]
    return {"regime": regime, "pause_s": pause, "subjects": entries, "ratios": ratios}


def document(
    benchmark: str,
    image: str,
    options: argparse.Namespace,
    host: facts.Facts,
    notes: "list[str]",
    measured: "list[dict[str, object]]",
    counted: "dict[str, object] | None" = None,
) -> Report:
    """The result object (schema 1). `counted` replaces `measured`, with figures that are not times."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "tender": __version__,
        "guest": guest_facts(image),
        "mem_mib": options.mem,
        "host": host,
        "warnings": facts.warnings_of(host) if counted is None else [],
        "notes": notes,
        "regimes": measured,
        "counted": counted,
    }


def guest_facts(image: str) -> "dict[str, object]":
    data = Path(image).read_bytes()
    return {"file": os.path.basename(image), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def ready_point(samples: "list[Sample]") -> str:
    """The point at which a process counts as ready: its first console byte, or its end if it prints nothing."""
    for point in ("first_console", "console_seen"):
        if all(point in s.points_ns for s in samples):
            return point
    return "console_eof" if all("console_eof" in s.points_ns for s in samples) else "reaped"


def main(
    p: argparse.ArgumentParser,
    argv: "list[str]",
    run: Callable[[argparse.Namespace], Report],
    write: "Callable[[argparse.Namespace, Report], None] | None" = None,
) -> "tuple[int, argparse.Namespace, Report]":
    """Run the benchmark. Returns the status (1 if something could not be measured), the options and the object.

    `write` writes what the options ask for (default: the table, and --json).
    """
    options = p.parse_args(argv)
    try:
        measured: dict[str, Any] = run(options)
        (write or write_table)(options, measured)
    except (TenderError, OSError) as error:
        return complain(error), options, {}
    for line in measured["warnings"]:
        sys.stderr.write(f"WARNING: {line}\n")
    if measured["warnings"]:
        sys.stderr.write("WARNING: do not publish these figures as times of this machine\n")
    return 0, options, measured


def write_table(options: argparse.Namespace, measured: Report, more: Sequence[str] = ()) -> None:
    """Print the table on standard output, and write the object to the file of --json. Raises OSError."""
    sys.stdout.write(report.table(measured, more))
    if options.json:
        Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")


def complain(error: Exception, who: str = "tender bench") -> int:
    """Print the error as a message, and return the exit status."""
    sys.stderr.write(f"{who}: {error}\n")
    hint = getattr(error, "hint", "")
    if hint:
        sys.stderr.write(f"  {hint}\n")
    return 1


def positive(text: str) -> int:
    """The value of an option that is a number of things: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
