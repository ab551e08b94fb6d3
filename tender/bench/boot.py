"""`tender bench boot`: measures boots from named point to named point, compares them with peers, describes the machine.

    options -> subjects -> regimes.measure() -> one object (schema 1) -> table, JSON

This module decides what is measured and what is compared. subjects.py measures, stats.py has the statistics, report.py
the text. bench/ of a checkout adds the parts that need a compiler, a count or a picture.
"""

import argparse
import os
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from tender.bench import facts, peers, regimes, report
from tender.bench.points import Sample
from tender.bench.regimes import Report, ready_point
from tender.bench.subjects import (
    BenchError,
    LibrarySubject,
    ProcessSubject,
    Subject,
)
from tender.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench boot",
        description="Measure boots from named point to named point, in milliseconds, compared with peers.",
        epilog="points:\n" + report.meanings() + "\n\nA ratio below 1 means: the first is faster.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--backend",
        choices=("kvm", "sandbox"),
        default="kvm",
        help="the backend (default: kvm)",
    )
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out library, pool, tender or python",
    )
    regimes.add_options(p, runs=200, peer="solo5-hvt --mem=16 {elf}")
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something could not be measured."""
    return regimes.main(parser(), argv, run)[0]


def run(options: argparse.Namespace) -> Report:
    """Measure what `options` (of parser()) ask for. Raises TenderError."""
    image = find_image(options.image)
    host = facts.host_facts()
    notes: list[str] = []
    with ExitStack() as stack:
        subjects = make_subjects(options, image, notes)
        for subject in subjects:
            stack.callback(subject.close)
        measured = regimes.measure(subjects, options, compared)
    return regimes.document("boot", image, options, host, notes, measured)


def find_image(named: "str | None") -> str:
    """The path of the image to boot. Raises ConfigError if none is named and the package has none."""
    if named:
        return os.path.abspath(named)
    ours = Path(__file__).parent.parent / "guests" / "hello.elf"
    if ours.exists():
        return str(ours)
    raise ConfigError(
        "no image is named, and this installation has no hello.elf", hint="tender bench boot app.elf"
    )


def make_subjects(options: argparse.Namespace, image: str, notes: "list[str]") -> "list[Subject]":
    """The library, the command, Python's own start to compare with, and the peers. Raises ConfigError."""
    ways = modes(options.backend)
    wanted = commands(options, image, notes, taken=ways)
    return [
        *(
            LibrarySubject(name, image, options.mem, mode=mode, args=options.arg)
            for name, mode in ways.items()
            if name not in options.skip
        ),
        *(ProcessSubject(name, command) for name, command in wanted.items()),
    ]


def modes(backend: str) -> "dict[str, str]":
    """The subjects that one process measures in all boots, by name, each with the worker's mode."""
    return {"library": backend, "pool": f"pool-{backend}"}


def commands(
    options: argparse.Namespace, image: str, notes: "list[str]", taken: "Collection[str]"
) -> "dict[str, peers.Words]":
    """Our command, Python's start and the peers, except those to skip. `taken` are the names of other subjects.

    Raises ConfigError.
    """
    found: dict[str, peers.Words] = {}
    tender = tender_command()
    if tender is None:
        notes.append("tender: left out, because the command is not installed in this Python's environment")
    else:
        machine_options = (f"--backend={options.backend}", f"--mem={options.mem}")
        found["tender"] = (*tender, *machine_options, image, *options.arg)
    found["python"] = (sys.executable, "-I", "-S", "-c", "pass")
    for name, words in peers.parse(options.peer, image, taken={*found, *taken}).items():
        found[name] = peers.fill(words, {}, options.arg)
    check_skipped(options.skip, (*taken, "tender", "python"))
    return {name: command for name, command in found.items() if name not in options.skip}


def check_skipped(skipped: "Collection[str]", known: "Collection[str]") -> None:
    """Raises ConfigError if a name to leave out is unknown."""
    unknown = sorted(set(skipped) - set(known))
    if unknown:
        raise ConfigError(f"--skip: {', '.join(unknown)}: not one of {', '.join(known)}")


def tender_command() -> "tuple[str, ...] | None":
    """The installed command in this Python's environment, as a user starts it. None if it is not installed."""
    beside = Path(sys.executable).parent / "tender"
    return (str(beside),) if beside.exists() else None


def compared(samples: "dict[str, list[Sample]]") -> "list[regimes.Compared]":
    """Compares each of ours with every other subject, at the same points if both have them."""
    wanted: list[regimes.Compared] = []
    ours = ("library", "pool", "program", "tender")
    for other in (name for name in samples if name not in ours):
        ready = ready_point(samples[other])
        for name in (name for name in ours if name in samples):
            if name == "tender":
                wanted.append((name, ready_point(samples[name]), other, ready))
                wanted.append((name, "reaped", other, "reaped"))
            elif ready == "console_seen":  # both have a pipe to this process, so the points are the same
                wanted.append((name, ready, other, ready))
                wanted.append((name, "closed", other, "reaped"))
            elif name in ("library", "pool"):
                wanted.append((name, "first_exit", other, ready))
    return wanted


__all__ = ["BenchError", "main", "parser", "run"]
