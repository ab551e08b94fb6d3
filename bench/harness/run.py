"""`python bench run`: `tender bench run`, with a small C program that starts the commands and takes the time stamps.

With --in-memory the commands run in a root directory in memory (in_memory.py).
"""

import argparse
from contextlib import ExitStack

from harness import CHECKOUT, boot, compile, in_memory
from harness.subjects import RunSubject
from tender.bench import facts, regimes, report
from tender.bench import run as plain
from tender.bench.boot import find_image
from tender.bench.points import RUN_POINTS
from tender.bench.subjects import Subject

SPANS = (("last_console", "console_eof"), ("console_eof", "reaped"))
"""The end of a run in two parts: the work of the monitor after the guest's last output, then the work of the kernel."""


def parser() -> argparse.ArgumentParser:
    p = plain.parser()
    p.prog = "python bench run"
    p.epilog = "points:\n" + report.meanings(RUN_POINTS) + "\n\nA ratio below 1 means: the first is faster."
    p.add_argument(
        "--in-memory",
        action="store_true",
        help="run the commands in a root directory in memory (needs root; for the test VM)",
    )
    boot.add_files(p)
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something could not be measured."""
    return regimes.main(parser(), argv, run, boot.write)[0]


def run(options: argparse.Namespace) -> regimes.Report:
    """Measure, and return the report. Raises TenderError."""
    boot.check(options)
    image = find_image(options.image)
    host = facts.host_facts(CHECKOUT)
    notes: list[str] = []
    runner = str(compile.program("run_loop"))
    with ExitStack() as stack:
        found = plain.commands(options, image, notes)
        within: tuple[str, ...] = ()
        if options.in_memory:
            within = ("chroot", stack.enter_context(in_memory.root_for([(runner,), *found.values()])))
        subjects: list[Subject] = [
            RunSubject(name, command, runner=runner, within=within, environment=plain.ENVIRONMENT.get(name))
            for name, command in found.items()
        ]
        for subject in subjects:
            stack.callback(subject.close)
        measured = regimes.measure(subjects, options, plain.compared, SPANS)
    return regimes.document("run", image, options, host, notes, measured)
