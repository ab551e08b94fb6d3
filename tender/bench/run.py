"""`tender bench run`: measures a whole run of a command, from spawn to first byte, end of the guest, and reaped.

The subjects are `tender` (the installed command), `python-path` (the same on the Python path), `python` (an interpreter
that is started like `python-path` and does nothing), `module` (`python3 -m tender`), `site` (an interpreter that is started
like `module` and does nothing) and every peer. This process starts them all and takes the time stamps. In bench/ of a
checkout, a C program does that.
"""

import argparse
import sys
from contextlib import ExitStack

from tender.bench import facts, peers, regimes, report
from tender.bench.boot import check_skipped, find_image, tender_command
from tender.bench.points import PROCESS_POINTS, Sample
from tender.bench.regimes import Report, ready_point
from tender.bench.subjects import ProcessSubject, Subject

OURS = ("tender", "python-path", "module")
YARDSTICKS = ("python", "site")
ENVIRONMENT = {"python-path": {"TENDER_LAUNCHER": "python"}}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench run",
        description="Measure whole runs of the command, in milliseconds, compared with peers.",
        epilog="points:\n"
        + report.meanings(PROCESS_POINTS)
        + "\n\nA ratio below 1 means: the first is faster.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--backend", choices=("kvm", "sandbox"), default="kvm", help="the backend (default: kvm)")
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out one of ours, or python, or site",
    )
    regimes.add_options(p, runs=200, peer="solo5-hvt --mem=16 {elf}")
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something could not be measured."""
    return regimes.main(parser(), argv, run)[0]


def run(options: argparse.Namespace) -> Report:
    """Measure, and return the result object. Raises TenderError."""
    image = find_image(options.image)
    host = facts.host_facts()
    notes: list[str] = []
    with ExitStack() as stack:
        subjects: list[Subject] = [
            ProcessSubject(name, command, environment=ENVIRONMENT.get(name))
            for name, command in commands(options, image, notes).items()
        ]
        for subject in subjects:
            stack.callback(subject.close)
        measured = regimes.measure(subjects, options, compared)
    return regimes.document("run", image, options, host, notes, measured)


def commands(options: argparse.Namespace, image: str, notes: "list[str]") -> "dict[str, peers.Words]":
    """The commands by name: ours, the interpreters to compare with, the peers. Raises ConfigError."""
    words = (f"--backend={options.backend}", f"--mem={options.mem}", image, *options.arg)
    found: dict[str, peers.Words] = {}
    tender = tender_command()
    if tender is None:
        notes.append("tender: left out, because the command is not installed in this Python's environment")
    else:
        found["tender"] = found["python-path"] = (*tender, *words)
    found["module"] = (sys.executable, "-P", "-m", "tender", *words)
    found["python"] = (sys.executable, "-I", "-S", "-c", "pass")
    found["site"] = (sys.executable, "-P", "-c", "pass")
    check_skipped(options.skip, (*OURS, *YARDSTICKS))
    for name, peer in peers.parse(options.peer, image, taken=found).items():
        found[name] = peers.fill(peer, {}, options.arg)
    return {name: command for name, command in found.items() if name not in options.skip}


def compared(samples: "dict[str, list[Sample]]") -> "list[regimes.Compared]":
    """Compares each of ours with each other subject: to the ready point, and to reaped."""
    wanted: list[regimes.Compared] = []
    others = [name for name in samples if name not in OURS]
    for name in (name for name in OURS if name in samples):
        for other in others:
            wanted.append((name, ready_point(samples[name]), other, ready_point(samples[other])))
            wanted.append((name, "reaped", other, "reaped"))
    for slower in ("python-path", "module"):
        if {"tender", slower} <= set(samples):
            wanted.append(("tender", ready_point(samples["tender"]), slower, ready_point(samples[slower])))
    return wanted
