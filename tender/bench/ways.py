"""`tender bench ways`: what a frame costs a guest of our library, by each of its ways, beside a hypercall a frame.

The guest is bench/net_ways_guest.c, once a way: its note, which says what it wants of our extension, is changed in a copy.
All else is as in `tender bench net`, which measures monitors beside each other.
"""

import argparse
import os
import tempfile
from pathlib import Path

from tender.bench import compare, compile, facts, net
from tender.bench.boot import tender_command
from tender.bench.progress import Bar
from tender.bench.pyperf_format import Unit
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError

BULK = (("bulk-tx", 1514), ("bulk-rx", 1514))
CASES = (*net.CASES, *BULK)
WAYS = {"calls": (1, "calls"), "library": (7, "calls"), "batch": (7, "batch"), "offload": (15, "batch")}
"""The features that the note asks for, and the guest's first word."""
GOAL_OFFLOAD = 5.0
_NOTE = b"TND1Tender\0\0"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench ways",
        description="Measure frames a second of a guest of ours, by its library's ways; run it by `unshare -n`, as root.",
    )
    p.add_argument(
        "--frames", type=compare.positive, default=10000, metavar="N", help="frames a sample (10000)"
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=20)
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError; BenchError outside of a checkout, where the guest's source is."""
    checkout = facts.find_checkout()
    if checkout is None:
        raise BenchError("ways: the guest is in bench/ of a checkout", hint="run it from there")
    host = facts.host_facts(checkout)
    guest = compile.guest(checkout, "net_ways_guest")
    cpus = sorted(os.sched_getaffinity(0))
    series: compare.Series = {}
    steps = sum(is_measured(way, mode) for way in WAYS for mode, _ in CASES)
    with tempfile.TemporaryDirectory() as made:
        subjects = commands(options.backend, guest, Path(made))
        net.make_tap(options.frames + 100)
        try:
            with Bar((1 + options.rounds) * steps) as bar:
                for number, order in enumerate(rounds(1 + options.rounds, list(subjects))):
                    for mode, size in CASES:
                        for way in order:
                            if not is_measured(way, mode):
                                continue
                            bar.step(f"{mode} {size} {way}")
                            rate = net.measure(subjects[way], mode, size, options.frames, cpus)
                            if number:  # the first warms
                                series.setdefault(f"{mode} {size} {way}", []).append(rate)
        finally:
            net.remove_tap()
    return compare.describe(
        "ways",
        Unit("thousand frames a second (pong: round trips; bulk: packets)", "second", 1e-3, rate=True),
        series,
        comparisons(),
        conditions={
            "backend": options.backend,
            "frames a sample": options.frames,
            "rounds": options.rounds,
            "guest's cpu": cpus[-1],
            "sender's cpu": cpus[0],
        },
        host=host,
    )


def is_measured(way: str, mode: str) -> bool:
    """Offload is of use for bulk alone."""
    return way != "offload" or mode.startswith("bulk-")


def comparisons() -> "list[compare.Comparison]":
    """Each way beside a call a frame."""
    return [
        compare.Comparison(
            f"{mode} {size} {way}",
            f"{mode} {size} calls",
            goal=GOAL_OFFLOAD if way == "offload" else None,
            at_least=True,
        )
        for mode, size in CASES
        for way in WAYS
        if way != "calls" and is_measured(way, mode)
    ]


def commands(backend: str, guest: Path, made: Path) -> "dict[str, tuple[str, ...]]":
    """The guest, once a way, as files in `made`; {args} is still a word of each. Raises BenchError."""
    ours = tender_command()
    if ours is None:
        raise BenchError("tender: the command is not installed beside this Python")
    data = guest.read_bytes()
    at = data.index(_NOTE) + len(_NOTE) + 4
    door = (f"--backend={backend}", "--mem=16", "--no-net-ring", f"--net:service0={net.TAP}")
    found = {}
    for way, (features, word) in WAYS.items():
        image = made / f"{way}.elf"
        image.write_bytes(data[:at] + features.to_bytes(4, "little") + data[at + 4 :])
        found[way] = (*ours, *door, str(image), word, "{args}")
    return found
