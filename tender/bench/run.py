"""`tender bench run`: a whole run of a command, from spawn to first byte, end of the guest, and reaped.

The subjects: `tender` (the installed command), `road` (the same, all of it left to Python), `python` (an interpreter
started as for that, which does nothing), `module` (`python3 -m tender`), `site` (an interpreter started as for that)
and every peer. All are started and stamped by the same C program.
"""

import argparse
import sys
from contextlib import ExitStack

from tender._version import __version__
from tender.bench import compile, facts, in_memory, peers, regimes, report
from tender.bench.boot import find_image, guest_facts, tender_command
from tender.bench.points import RUN_POINTS, Sample
from tender.bench.regimes import Report, ready_point
from tender.bench.subjects import BenchError, ProcessSubject, RunSubject, Subject
from tender.errors import ConfigError

SPANS = (("last_console", "console_eof"), ("console_eof", "reaped"))
"""The end apart: what a monitor still does when its guest has spoken last, and what the kernel does behind it."""

OURS = ("tender", "road", "module")
YARDSTICKS = ("python", "site")
ENVIRONMENT = {"road": {"TENDER_LAUNCHER": "python"}}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench run",
        description="Measure whole runs of the command, in milliseconds, beside peers.",
        epilog="points:\n" + report.meanings(RUN_POINTS) + "\n\nA ratio below 1 means: the first is faster.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--backend", choices=("kvm", "sandbox"), default="kvm", help="the door (default kvm)")
    p.add_argument(
        "--skip", action="append", default=[], metavar="NAME", help="leave out one of ours or python or site"
    )
    p.add_argument(
        "--in-memory", action="store_true", help="run them in a root directory in memory (root; for the box)"
    )
    regimes.add_options(p, runs=200, peer="solo5-hvt --mem=16 {elf}")
    return p


def main(argv: "list[str]") -> int:
    return regimes.main(parser(), argv, run)[0]


def run(options: argparse.Namespace) -> Report:
    """Measures. Raises TenderError."""
    image = find_image(options.image)
    host = facts.host_facts(facts.find_checkout())
    notes: list[str] = []
    with ExitStack() as stack:
        subjects = make_subjects(commands(options, image, notes), notes, stack if options.in_memory else None)
        for subject in subjects:
            stack.callback(subject.close)
        measured = regimes.measure(subjects, options, compared, SPANS)
    return {
        "schema": regimes.SCHEMA,
        "benchmark": "run",
        "tender": __version__,
        "guest": guest_facts(image),
        "mem_mib": options.mem,
        "host": host,
        "warnings": regimes.warnings_of(host, timed=True),
        "notes": notes,
        "regimes": measured,
        "counted": None,
    }


def commands(options: argparse.Namespace, image: str, notes: "list[str]") -> "dict[str, peers.Words]":
    """By name: ours, the yardstick, the peers. Raises ConfigError."""
    words = (f"--backend={options.backend}", f"--mem={options.mem}", image, *options.arg)
    found: dict[str, peers.Words] = {}
    tender = tender_command()
    if tender is None:
        notes.append("tender: the command is not installed beside this Python: left out")
    else:
        found["tender"] = found["road"] = (*tender, *words)
    found["module"] = (sys.executable, "-P", "-m", "tender", *words)
    found["python"] = (sys.executable, "-I", "-S", "-c", "pass")
    found["site"] = (sys.executable, "-P", "-c", "pass")
    unknown = set(options.skip) - {*OURS, *YARDSTICKS}
    if unknown:
        known = ", ".join((*OURS, *YARDSTICKS))
        raise ConfigError(f"--skip: {', '.join(sorted(unknown))}: not one of {known}")
    for name, peer in peers.parse(options.peer, image, taken=found).items():
        found[name] = peers.fill(peer, {}, options.arg)
    return {name: command for name, command in found.items() if name not in options.skip}


def make_subjects(
    found: "dict[str, peers.Words]", notes: "list[str]", rooted: "ExitStack | None" = None
) -> "list[Subject]":
    """Started by C where its source and a compiler are; else by this process, which is a note.

    With `rooted` in a root directory in memory, which that stack takes away; then C is not optional.
    """
    checkout = facts.find_checkout()
    try:
        if checkout is None:
            raise BenchError("run_loop: its source is in bench/ of a checkout")
        runner = str(compile.program(checkout, "run_loop"))
    except BenchError as error:
        if rooted:
            raise
        notes.append(f"commands are started and stamped by Python, not by C: {error.message}")
        return [
            ProcessSubject(name, command, environment=ENVIRONMENT.get(name))
            for name, command in found.items()
        ]
    within: tuple[str, ...] = ()
    if rooted:
        within = ("chroot", rooted.enter_context(in_memory.root_for([(runner,), *found.values()])))
    return [
        RunSubject(name, command, runner=runner, within=within, environment=ENVIRONMENT.get(name))
        for name, command in found.items()
    ]


def compared(samples: "dict[str, list[Sample]]") -> "list[regimes.Compared]":
    """Each of ours beside each other subject: to ready, and to reaped."""
    wanted: list[regimes.Compared] = []
    others = [name for name in samples if name not in OURS]
    for name in (name for name in OURS if name in samples):
        for other in others:
            wanted.append((name, ready_point(samples[name]), other, ready_point(samples[other])))
            wanted.append((name, "reaped", other, "reaped"))
    for slower in ("road", "module"):
        if {"tender", slower} <= set(samples):
            wanted.append(("tender", ready_point(samples["tender"]), slower, ready_point(samples[slower])))
    return wanted
