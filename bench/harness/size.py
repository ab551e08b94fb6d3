"""`python bench size`: whether a boot costs more if the image is larger.

One guest (bench/size_guest.c) is linked with 64 KiB of constants and with 16 MiB of constants that it never reads. Both
images, and an image that is named, are booted in turns: by the library (`start -> first_exit`, the Image is open) and by
the command (`spawn -> first_console`). A Vm maps the template of its image, so its boots should not differ. The command
reads the file at each start, as its peers do. Before each boot there is a pause for the end of the previous boot.

Where the clock counts instructions (the test VM with --icount), the figures are counts. Those of a command are the counts
of its own process at its first byte, because elapsed time includes its waits for files.
"""

import argparse
import os
import time
from contextlib import ExitStack

from harness import CHECKOUT, compare, compile
from harness.count import come_first
from harness.pyperf_format import Unit
from tender.bench import facts, peers, regimes
from tender.bench.boot import tender_command
from tender.bench.points import Sample
from tender.bench.progress import Bar
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError, LibrarySubject, ProcessSubject, Subject

SIZES = {"64 KiB": 64 << 10, "16 MiB": 16 << 20}
SMALL, LARGE = SIZES
GOAL = 1.05
"""Of the library's boot, large / small."""

_WARM = 3


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench size",
        description="Measure boots of a small and of a large image, in microseconds.",
    )
    p.add_argument("image", nargs="?", help="one more image to boot, such as a MirageOS unikernel")
    p.add_argument("--mem", type=regimes.positive, default=64, metavar="MIB", help="guest memory (64)")
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=("library", "tender"),
        help="leave out; may be repeated",
    )
    p.add_argument("--pause", type=float, default=0.05, metavar="S", help="seconds before each boot (0.05)")
    compare.add_options(p, rounds=40, peer="hvt=solo5-hvt --mem=64 {elf}")
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
    host = facts.host_facts(CHECKOUT)
    found = images(options.image)
    exact = bool(host["counts_instructions"])
    notes = ["thousands of instructions, not microseconds"] if exact else []
    if exact:
        come_first(notes)
    with ExitStack() as stack:
        subjects = make_subjects(options, found, exact=exact)
        series: compare.Series = {name: [] for name in subjects}
        for subject in subjects.values():
            stack.callback(subject.close)
        with Bar((_WARM + options.rounds) * len(subjects)) as bar:
            for number, order in enumerate(rounds(_WARM + options.rounds, list(subjects))):
                for name in order:
                    bar.step(name)
                    time.sleep(options.pause)
                    sample = subjects[name].boot()
                    if number >= _WARM:
                        series[name].append(ready_ns(sample, exact=exact) / 1e3)
    return compare.describe(
        "size",
        Unit("microseconds (library: start -> first_exit; others: spawn -> first_console)", "second", 1e-6),
        series,
        comparisons(list(subjects), list(found)),
        conditions={
            "backend": options.backend,
            "MiB": options.mem,
            "rounds": options.rounds,
            "pause s": options.pause,
        }
        | {f"file of {name}": f"{os.path.getsize(path)} bytes" for name, path in found.items()},
        notes=notes,
        host=host,
    )


def ready_ns(sample: Sample, *, exact: bool) -> float:
    """The library's time to the first exit; otherwise the time to the first byte. Raises BenchError if there is none."""
    if "first_exit" in sample.points_ns:
        return sample.points_ns["first_exit"]
    found = sample.first_console_cpu_ns if exact else sample.points_ns.get("first_console")
    if found is None:
        raise BenchError("size: a guest ended without output, so the end of its boot is unknown")
    return found


def images(named: "str | None") -> "dict[str, str]":
    """The paths of the images, by their names in this benchmark. Raises BenchError."""
    found = {
        name: str(compile.guest("size_guest", define=f"PADDING_BYTES={size}")) for name, size in SIZES.items()
    }
    if named:
        found[os.path.basename(named)] = os.path.abspath(named)
    return found


def make_subjects(
    options: argparse.Namespace, found: "dict[str, str]", *, exact: bool
) -> "dict[str, Subject]":
    """Each of ours and each peer, with each image, by "WHO WHICH". Raises ConfigError, BenchError."""
    subjects: dict[str, Subject] = {}
    tender = tender_command()
    for which, path in found.items():
        if "library" not in options.skip:
            name = f"library {which}"
            subjects[name] = LibrarySubject(name, path, options.mem, mode=options.backend, silent=True)
        commands = peers.parse(options.peer, path, taken=("library", "tender"))
        if tender and "tender" not in options.skip:
            ours = (*tender, f"--backend={options.backend}", f"--mem={options.mem}", path)
            commands = {"tender": ours, **commands}
        for who, words in commands.items():
            name = f"{who} {which}"
            subjects[name] = ProcessSubject(name, peers.fill(words, {}), counted=exact)
    return subjects


def comparisons(names: "list[str]", found: "list[str]") -> "list[compare.Comparison]":
    """For each kind, the larger images compared with the small one; and ours compared with each peer."""
    whos = list(dict.fromkeys(name.partition(" ")[0] for name in names))
    by_size = [
        compare.Comparison(
            f"{who} {which}", f"{who} {SMALL}", goal=GOAL if (who, which) == ("library", LARGE) else None
        )
        for who in whos
        for which in found
        if which != SMALL
    ]
    return by_size + [
        compare.Comparison(f"tender {which}", f"{who} {which}")
        for which in found
        for who in whos
        if who not in ("library", "tender")
    ]
