"""`tender bench boot`: from named point to named point, beside peers, on a machine that is described.

    options -> subjects -> regimes.measure() -> one object (schema 1) -> table, JSON

What is measured, and what is compared, is decided here; measuring is subjects.py, statistics stats.py, words report.py.
bench/ of a checkout adds to it what wants a compiler, a count or a picture.
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
        description="Measure boot from named point to named point, in milliseconds, beside peers.",
        epilog="points:\n" + report.meanings() + "\n\nA ratio below 1 means: the first is faster.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--backend",
        choices=("kvm", "sandbox"),
        default="kvm",
        help="the backend (default kvm)",
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
    """The benchmark as a command. Status 1 if something could not be measured."""
    return regimes.main(parser(), argv, run)[0]


def run(options: argparse.Namespace) -> Report:
    """Measures what `options` (of parser()) ask for. Raises TenderError."""
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
    """The path of the image to boot. Raises ConfigError if none was named and none came with the package."""
    if named:
        return os.path.abspath(named)
    ours = Path(__file__).parent.parent / "guests" / "hello.elf"
    if ours.exists():
        return str(ours)
    raise ConfigError(
        "no image named, and this installation has no hello.elf", hint="tender bench boot app.elf"
    )


def make_subjects(options: argparse.Namespace, image: str, notes: "list[str]") -> "list[Subject]":
    """The library, the command, Python's own start as a yardstick, and the peers. Raises ConfigError."""
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
    """What one process that lives for all boots measures, by name: the worker's mode."""
    return {"library": backend, "pool": f"pool-{backend}"}


def commands(
    options: argparse.Namespace, image: str, notes: "list[str]", taken: "Collection[str]"
) -> "dict[str, peers.Words]":
    """Ours, Python's start and the peers, but for what is skipped; `taken` are other subjects' names.

    Raises ConfigError.
    """
    found: dict[str, peers.Words] = {}
    tender = tender_command()
    if tender is None:
        notes.append("tender: the command is not installed beside this Python: left out")
    else:
        machine_options = (f"--backend={options.backend}", f"--mem={options.mem}")
        found["tender"] = (*tender, *machine_options, image, *options.arg)
    found["python"] = (sys.executable, "-I", "-S", "-c", "pass")
    for name, words in peers.parse(options.peer, image, taken={*found, *taken}).items():
        found[name] = peers.fill(words, {}, options.arg)
    check_skipped(options.skip, (*taken, "tender", "python"))
    return {name: command for name, command in found.items() if name not in options.skip}


def check_skipped(skipped: "Collection[str]", known: "Collection[str]") -> None:
    """Raises ConfigError if a name that is to be left out is not known."""
    unknown = sorted(set(skipped) - set(known))
    if unknown:
        raise ConfigError(f"--skip: {', '.join(unknown)}: not one of {', '.join(known)}")


def tender_command() -> "tuple[str, ...] | None":
    """The installed command of this Python, as a user starts it."""
    beside = Path(sys.executable).parent / "tender"
    return (str(beside),) if beside.exists() else None


def compared(samples: "dict[str, list[Sample]]") -> "list[regimes.Compared]":
    """Ours beside every other, at the same ends where both have them."""
    wanted: list[regimes.Compared] = []
    ours = ("library", "pool", "program", "tender")
    for other in (name for name in samples if name not in ours):
        ready = ready_point(samples[other])
        for name in (name for name in ours if name in samples):
            if name == "tender":
                wanted.append((name, ready_point(samples[name]), other, ready))
                wanted.append((name, "reaped", other, "reaped"))
            elif ready == "console_seen":  # both by pipes to us: the same ends
                wanted.append((name, ready, other, ready))
                wanted.append((name, "closed", other, "reaped"))
            elif name in ("library", "pool"):
                wanted.append((name, "first_exit", other, ready))
    return wanted


__all__ = ["BenchError", "main", "parser", "run"]
