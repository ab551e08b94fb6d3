"""`tender bench boot`: from named point to named point, beside peers, on a machine that is described.

    options -> subjects -> regimes.measure(), or with --count count.count() -> one object (schema 1)
            -> table, JSON, pyperf's JSON, plot

What is measured, and what is compared, is decided here; measuring is subjects.py, statistics stats.py, words report.py.
"""

import argparse
import hashlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from tender._version import __version__
from tender.bench import compile, facts, peers, regimes, report
from tender.bench.count import count, missed_goals
from tender.bench.points import Sample
from tender.bench.regimes import Report, ready_point
from tender.bench.subjects import (
    BenchError,
    LibrarySubject,
    ProcessSubject,
    SpawnedSubject,
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
        help="the door (default kvm); sandbox: also its process alone, and peers are started by C",
    )
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out library, pool, tender or python",
    )
    p.add_argument("--count", action="store_true", help="count CPU time, faults and calls in place of times")
    p.add_argument("--gate", action="store_true", help="with --count: status 1 if a goal is missed")
    regimes.add_options(p, runs=200, peer="solo5-hvt --mem=16 {elf}")
    return p


def main(argv: "list[str]") -> int:
    """The benchmark as a command. Status 1 if something could not be measured or a gate is missed."""
    status, options, measured = regimes.main(parser(), argv, run)
    counted = measured.get("counted")
    if not status and options.gate and isinstance(counted, dict):
        missed = missed_goals(counted)
        sys.stderr.writelines(f"gate: {line}\n" for line in missed)
        return 1 if missed else 0
    return status


def run(options: argparse.Namespace) -> Report:
    """Measures what `options` (of parser()) ask for. Raises TenderError."""
    checkout = facts.find_checkout()
    image = find_image(options.image)
    host = facts.host_facts(checkout)
    measured: list[dict[str, object]] = []
    counted = None
    notes: list[str] = []
    with ExitStack() as stack:
        subjects = make_subjects(options, image, notes)
        for subject in subjects:
            stack.callback(subject.close)
        if options.count:
            counted = count(
                subjects, image=image, mem_mib=options.mem, runs=min(options.runs, 30), checkout=checkout
            )
        else:
            measured = regimes.measure(subjects, options, compared)
    return {
        "schema": regimes.SCHEMA,
        "benchmark": "boot",
        "tender": __version__,
        "guest": guest_facts(image),
        "mem_mib": options.mem,
        "host": host,
        "warnings": regimes.warnings_of(host, timed=not options.count),
        "notes": notes,
        "regimes": measured,
        "counted": counted,
    }


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


def guest_facts(image: str) -> "dict[str, object]":
    data = Path(image).read_bytes()
    return {"file": os.path.basename(image), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def make_subjects(options: argparse.Namespace, image: str, notes: "list[str]") -> "list[Subject]":
    """The library, the command, Python's own start as a yardstick, and the peers. Raises ConfigError."""
    commands: dict[str, tuple[str, ...]] = {}
    tender = tender_command()
    if tender is None:
        notes.append("tender: the command is not installed beside this Python: left out")
    else:
        door = (f"--backend={options.backend}", f"--mem={options.mem}")
        commands["tender"] = (*tender, *door, image, *options.arg)
    commands["python"] = (sys.executable, "-I", "-S", "-c", "pass")
    taken = {*commands, *_MODES[options.backend]}
    for name, words in peers.parse(options.peer, image, taken=taken).items():
        commands[name] = peers.fill(words, {}, options.arg)
    modes = _MODES[options.backend]
    unknown = set(options.skip) - {*modes, "tender", "python"}
    if unknown:
        known = ", ".join((*modes, "tender", "python"))
        raise ConfigError(f"--skip: {', '.join(sorted(unknown))}: not one of {known}")
    spawner = _spawner(options, notes)
    subjects: list[Subject] = [
        LibrarySubject(name, image, options.mem, mode=mode, args=options.arg)
        for name, mode in modes.items()
        if name not in options.skip
    ]
    for name, command in commands.items():
        if name in options.skip:
            continue
        if spawner and name != "python":  # what is compared is started alike
            subjects.append(SpawnedSubject(name, command, spawner=spawner))
        else:
            subjects.append(ProcessSubject(name, command, counted=options.count))
    return subjects


# What one process that lives for all boots measures, by name: the worker's mode.
_MODES = {
    "kvm": {"library": "kvm", "pool": "pool-kvm"},
    "sandbox": {
        "library": "sandbox",
        "pool": "pool-sandbox",
        "program": "program",
        "program-bare": "program-bare",
    },
}


def _spawner(options: argparse.Namespace, notes: "list[str]") -> str:
    """The small program that starts commands beside the sandbox; empty: the harness does."""
    checkout = facts.find_checkout()
    if options.backend != "sandbox" or options.count or not options.peer:
        return ""
    if checkout is None:
        notes.append(
            "peers are started by Python: what would do it in C is in a checkout (bench/spawn_loop.c)"
        )
        return ""
    return str(compile.program(checkout, "spawn_loop"))


def tender_command() -> "tuple[str, ...] | None":
    """The installed command of this Python, as a user starts it."""
    beside = Path(sys.executable).parent / "tender"
    return (str(beside),) if beside.exists() else None


def compared(samples: "dict[str, list[Sample]]") -> "list[regimes.Compared]":
    """Ours beside every other, at the same ends where both have them."""
    wanted: list[regimes.Compared] = []
    ours = ("library", "pool", "program", "program-bare", "tender")
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
