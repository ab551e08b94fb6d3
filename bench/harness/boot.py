"""`python bench boot`: `tender bench boot`, with the parts that need a checkout.

--count (count.py) counts in place of measuring times. With the sandbox, its process is also measured alone, and a small
C program starts the peers, as close to the kernel as the library's spawn.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import CHECKOUT, compile, picture, program_worker, pyperf_format, tables
from harness.count import count, missed_goals
from harness.subjects import SpawnedSubject
from tender.bench import boot as plain
from tender.bench import facts, regimes
from tender.bench.boot import find_image
from tender.bench.subjects import LibrarySubject, ProcessSubject, Subject


def parser() -> argparse.ArgumentParser:
    p = plain.parser()
    p.prog = "python bench boot"
    p.add_argument(
        "--count", action="store_true", help="count CPU time, page faults and calls; measure no times"
    )
    p.add_argument("--gate", action="store_true", help="with --count: status 1 if a goal is missed")
    add_files(p)
    return p


def add_files(p: argparse.ArgumentParser) -> None:
    """Add the options for further output; check() and write() implement them."""
    p.add_argument("--pyperf", metavar="FILE", help="the samples as pyperf's JSON, for `pyperf compare_to`")
    p.add_argument("--plot", metavar="FILE.png", help="the samples as a picture (needs matplotlib)")


def check(options: argparse.Namespace) -> None:
    """Check the options before the minutes of measuring. Raises BenchError."""
    if options.plot:
        picture.check()


def write(options: argparse.Namespace, measured: regimes.Report) -> None:
    """Print the table, and write the files that the options name. Raises OSError."""
    regimes.write_table(options, measured, tables.counted(measured))
    if options.pyperf:
        host = measured["host"]
        assert isinstance(host, dict)
        name = str(measured["benchmark"])
        found = pyperf_format.document(name, series(measured), pyperf_format.MILLISECONDS, host)
        Path(options.pyperf).write_text(json.dumps(found) + "\n")
    if options.plot:
        picture.boots(measured, options.plot)


def series(measured: "dict[str, Any]") -> "dict[str, list[float]]":
    """Milliseconds by "REGIME SUBJECT FROM -> POINT", for every point that all samples of a subject reached."""
    found = {}
    for regime in measured["regimes"]:
        for subject in regime["subjects"]:
            for point in subject["summary_ms"]:
                name = f"{regime['regime']} {subject['name']} {subject['from']} -> {point}"
                found[name] = [s["points_ns"][point] / 1e6 for s in subject["samples"]]
    return found


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something could not be measured, or with --gate if a goal is missed."""
    status, options, measured = regimes.main(parser(), argv, run, write)
    counted = measured.get("counted")
    if not status and options.gate and isinstance(counted, dict):
        missed = missed_goals(counted)
        sys.stderr.writelines(f"gate: {line}\n" for line in missed)
        return 1 if missed else 0
    return status


def run(options: argparse.Namespace) -> regimes.Report:
    """Measure what `options` (of parser()) ask for. Raises TenderError."""
    check(options)
    image = find_image(options.image)
    host = facts.host_facts(CHECKOUT)
    notes: list[str] = []
    measured: list[dict[str, object]] = []
    counted = None
    with ExitStack() as stack:
        subjects = make_subjects(options, image, notes)
        for subject in subjects:
            stack.callback(subject.close)
        if options.count:
            counted = count(subjects, image=image, mem_mib=options.mem, runs=min(options.runs, 30))
        else:
            measured = regimes.measure(subjects, options, plain.compared)
    return regimes.document("boot", image, options, host, notes, measured, counted)


def make_subjects(options: argparse.Namespace, image: str, notes: "list[str]") -> "list[Subject]":
    """The subjects of tender.bench.boot, and the sandbox process alone. Raises ConfigError, BenchError."""
    of_library = plain.modes(options.backend)
    of_program = program_worker.MODES if options.backend == "sandbox" else ()
    wanted = plain.commands(options, image, notes, taken=(*of_library, *of_program))
    spawned = options.backend == "sandbox" and options.peer and not options.count
    spawner = str(compile.program("spawn_loop")) if spawned else ""
    subjects: list[Subject] = []
    for name in (*of_library, *of_program):
        if name not in options.skip:
            worker = ("-m", "tender.bench.worker") if name in of_library else (program_worker.__file__,)
            mode = of_library.get(name, name)
            subjects.append(
                LibrarySubject(name, image, options.mem, mode=mode, args=options.arg, worker=worker)
            )
    for name, command in wanted.items():
        if spawner and name != "python":  # subjects that are compared are started in the same way
            subjects.append(SpawnedSubject(name, command, spawner=spawner))
        else:
            subjects.append(ProcessSubject(name, command, counted=options.count))
    return subjects
