"""`tender bench boot`: from named point to named point, beside peers, on a machine that is described.

    options -> subjects -> regimes (each: ABBA rounds over all subjects) -> one object (schema 1)
            -> table, JSON, plot

Decisions live here; measuring is subjects.py, statistics stats.py, words report.py.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tender._version import __version__
from tender.bench import compile, facts, report
from tender.bench.count import count, missed_goals
from tender.bench.points import Sample
from tender.bench.stats import ratio_of_medians, summarise
from tender.bench.subjects import (
    BenchError,
    LibrarySubject,
    ProcessSubject,
    SpawnedSubject,
    Subject,
    parse_peer,
)
from tender.errors import ConfigError, TenderError

SCHEMA = 1
Report = dict[str, object]
Progress = Callable[[str], None]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench boot",
        description="Measure boot from named point to named point, in milliseconds, beside peers.",
        epilog="points:\n" + report.meanings() + "\n\nA ratio below 1 means: the first is faster.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "image", nargs="?", help="the unikernel to boot (default: the hello that comes with tender)"
    )
    p.add_argument(
        "--runs", type=_positive, default=200, metavar="N", help="boots of each subject (default 200)"
    )
    p.add_argument("--warmup", type=int, default=5, metavar="N", help="boots before, not counted (default 5)")
    p.add_argument(
        "--pause", type=float, default=4.0, metavar="S", help="seconds before an isolated boot (4)"
    )
    p.add_argument(
        "--isolated-runs", type=int, metavar="N", help="boots in the isolated regime (default: runs/10)"
    )
    p.add_argument("--mem", type=_positive, default=16, metavar="MIB", help="guest memory (default 16)")
    p.add_argument(
        "--arg", action="append", default=[], metavar="WORD", help="an argument for the guest; repeat it"
    )
    p.add_argument(
        "--backend",
        choices=("kvm", "sandbox"),
        default="kvm",
        help="the door (default kvm); sandbox: also its process alone, and peers are started by C",
    )
    p.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="[NAME=]COMMAND",
        help="'solo5-hvt --mem=16 {elf}'; repeat it",
    )
    p.add_argument(
        "--skip", action="append", default=[], metavar="NAME", help="leave out library, tender or python"
    )
    p.add_argument("--count", action="store_true", help="count CPU time, faults and calls in place of times")
    p.add_argument("--gate", action="store_true", help="with --count: status 1 if a goal is missed")
    p.add_argument("--json", metavar="FILE", help="everything, every sample, as one JSON object")
    p.add_argument("--plot", metavar="FILE.png", help="the distributions as a picture (needs matplotlib)")
    return p


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main(argv: "list[str]") -> int:
    """The benchmark as a command. Status 1 if something could not be measured or a gate is missed."""
    options = parser().parse_args(argv)
    try:
        if options.plot:
            report.check_plot()  # before the minutes of measuring
        measured = run(options, _progress())
        sys.stdout.write(report.table(measured))
        if options.json:
            Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")
        if options.plot:
            report.plot(measured, options.plot)
    except (TenderError, OSError) as error:
        sys.stderr.write(f"tender bench: {error}\n")
        hint = getattr(error, "hint", "")
        if hint:
            sys.stderr.write(f"  {hint}\n")
        return 1
    for line in (warnings := _warnings(measured)):
        sys.stderr.write(f"WARNING: {line}\n")
    if warnings:
        sys.stderr.write("WARNING: do not publish these figures as times of this machine\n")
    counted = measured["counted"]
    if options.gate and isinstance(counted, dict):
        missed = missed_goals(counted)
        sys.stderr.writelines(f"gate: {line}\n" for line in missed)
        return 1 if missed else 0
    return 0


def _warnings(measured: Report) -> "list[str]":
    found = measured["warnings"]
    assert isinstance(found, list)
    return found


def _progress() -> Progress:
    if not sys.stderr.isatty():
        return lambda _line: None

    def show(line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    return show


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Measures what `options` (of parser()) ask for. Raises TenderError."""
    checkout = facts.find_checkout()
    image = find_image(options.image)
    host = facts.host_facts(checkout)
    regimes: list[dict[str, object]] = []
    counted = None
    notes: list[str] = []
    with ExitStack() as stack:
        subjects = make_subjects(options, image, notes)
        for subject in subjects:
            stack.callback(subject.close)
        if options.count:
            progress("counting")
            counted = count(
                subjects, image=image, mem_mib=options.mem, runs=min(options.runs, 30), checkout=checkout
            )
        else:
            regimes = measure_regimes(subjects, options, progress)
    progress("")
    return {
        "schema": SCHEMA,
        "benchmark": "boot",
        "tender": __version__,
        "guest": _guest(image),
        "mem_mib": options.mem,
        "host": host,
        "warnings": facts.warnings_of(host) if not options.count else [],
        "notes": notes,
        "regimes": regimes,
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


def _guest(image: str) -> "dict[str, object]":
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
    for text in options.peer:
        name, command = parse_peer(text, image)
        if name in commands or name in _MODES[options.backend]:
            raise ConfigError(
                f"--peer: the name {name} is taken", hint=f"--peer 'OTHER={shutil.which(name)} {{elf}}'"
            )
        if shutil.which(command[0]) is None:
            raise ConfigError(f"--peer: {command[0]}: no such program")
        commands[name] = command
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
        if spawner and name not in ("tender", "python"):
            subjects.append(SpawnedSubject(name, command, spawner=spawner))
        elif name not in options.skip:
            subjects.append(ProcessSubject(name, command, counted=options.count))
    return subjects


# What one process that lives for all boots measures, by name: the worker's mode.
_MODES = {
    "kvm": {"library": "kvm"},
    "sandbox": {"library": "sandbox", "program": "program", "program-bare": "program-bare"},
}


def _spawner(options: argparse.Namespace, notes: "list[str]") -> str:
    """The small program that starts peers beside the sandbox; empty: the harness does."""
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


def rounds(count: int, names: "list[str]") -> "list[list[str]]":
    """ABBA: every other round goes backwards, so that a drift of the machine meets all subjects alike."""
    return [names if i % 2 == 0 else names[::-1] for i in range(count)]


def measure_regimes(
    subjects: "list[Subject]", options: argparse.Namespace, progress: Progress
) -> "list[dict[str, object]]":
    """Back to back, then isolated; `--pause 0` leaves the second out."""
    isolated = options.isolated_runs if options.isolated_runs is not None else max(2, options.runs // 10)
    wanted = [("back-to-back", options.runs, 0.0)]
    if options.pause > 0 and isolated > 0:
        wanted.append(("isolated", isolated, options.pause))
    by_name = {subject.name: subject for subject in subjects}
    found = []
    for regime, runs, pause in wanted:
        samples: dict[str, list[Sample]] = {name: [] for name in by_name}
        warmup = options.warmup if regime == "back-to-back" else 0
        for number, order in enumerate(rounds(warmup + runs, list(by_name))):
            progress(f"{regime}: {number} of {warmup + runs}")
            for name in order:
                if pause:
                    time.sleep(pause)
                sample = by_name[name].boot()
                if number >= warmup:
                    samples[name].append(sample)
        found.append(describe(regime, pause, subjects, samples))
    return found


def describe(
    regime: str, pause: float, subjects: "list[Subject]", samples: "dict[str, list[Sample]]"
) -> "dict[str, object]":
    """A regime as the JSON has it: subjects with samples and summaries, and the ratios."""
    entries = []
    for subject in subjects:
        own = samples[subject.name]
        summary = {
            point: vars(summarise([s.points_ns[point] / 1e6 for s in own]))
            for point in subject.points[1:]
            if all(point in s.points_ns for s in own)
        }
        entries.append(
            {
                "name": subject.name,
                "kind": subject.kind,
                "command": list(subject.command),
                "from": subject.points[0],
                "summary_ms": summary,
                "samples": [s.to_dict() for s in own],
            }
        )
    return {"regime": regime, "pause_s": pause, "subjects": entries, "ratios": _ratios(samples)}


def ready_point(samples: "list[Sample]") -> str:
    """Where a process counts as ready: its first console byte, or its end if it prints nothing."""
    for point in ("first_console", "console_seen"):
        if all(point in s.points_ns for s in samples):
            return point
    return "console_eof" if all("console_eof" in s.points_ns for s in samples) else "reaped"


def _ratios(samples: "dict[str, list[Sample]]") -> "list[dict[str, object]]":
    wanted: list[tuple[str, str, str, str]] = []
    ours = ("library", "program", "program-bare", "tender")
    for other in (name for name in samples if name not in ours):
        ready = ready_point(samples[other])
        for name in (name for name in ours if name in samples):
            if name == "tender":
                wanted.append((name, ready_point(samples[name]), other, ready))
                wanted.append((name, "reaped", other, "reaped"))
            elif ready == "console_seen":  # both by pipes to us: the same ends
                wanted.append((name, ready, other, ready))
                wanted.append((name, "closed", other, "reaped"))
            elif name == "library":
                wanted.append((name, "first_exit", other, ready))
    found: list[dict[str, object]] = []
    for a, a_point, b, b_point in wanted:
        ratio = ratio_of_medians(
            [s.points_ns[a_point] for s in samples[a]], [s.points_ns[b_point] for s in samples[b]]
        )
        found.append({"of": a, "of_point": a_point, "to": b, "to_point": b_point, **vars(ratio)})
    return found


__all__ = ["SCHEMA", "BenchError", "main", "parser", "run"]
