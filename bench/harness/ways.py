"""`python bench ways`: what a frame costs a guest of our library, by each of its ways, beside a hypercall a frame.

The guest is bench/net_ways_guest.c, once a way: its note, which says what it wants of our extension, is changed in a copy.
All else is as in `python bench net`, which measures monitors beside each other. A peer runs the image named, net_guest,
in the modes that it has: our own net_guest.elf is a hypercall a frame behind any monitor, Solo5's .hvt takes the ring
where it is offered one.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import CHECKOUT, compare, compile, net
from harness.pyperf_format import Unit
from tender.bench import facts, peers, regimes
from tender.bench.boot import tender_command
from tender.bench.subjects import BenchError

BULK = (("bulk-tx", 1514), ("bulk-rx", 1514))
CASES = (*net.CASES, *BULK)
WAYS = {"calls": (1, "calls"), "library": (7, "calls"), "batch": (7, "batch"), "offload": (15, "batch")}
"""The features that the note asks for, and the guest's first word."""
GOAL_OFFLOAD = 5.0
GOAL_BATCH = 2.0  # beside a peer
_NOTE = b"TND1Tender\0\0"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench ways",
        description="Measure frames a second of a guest of ours, by its library's ways; run it by `unshare -n`, as root.",
    )
    p.add_argument("image", nargs="?", help="what peers run: net_guest (default: our own, compiled)")
    p.add_argument(
        "--frames", type=regimes.positive, default=10000, metavar="N", help="frames a sample (10000)"
    )
    p.add_argument(
        "--case",
        action="append",
        metavar="MODE:SIZE",
        type=case,
        help="tx:64, bulk-rx:1514; repeat it (default: each)",
    )
    p.add_argument("--way", action="append", choices=WAYS, help="calls, batch; repeat it (default: each)")
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=20, peer="hvt=solo5-hvt --mem=16 --net:service0={tap} {elf} {args}")
    return p


def case(text: str) -> "tuple[str, int]":
    """MODE:SIZE of an option: one of net's, or of bulk."""
    for mode, size in BULK:
        if text == f"{mode}:{size}":
            return mode, size
    return net.case(text)


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError."""
    host = facts.host_facts(CHECKOUT)
    guest = compile.guest("net_ways_guest")
    cases = options.case or list(CASES)
    with tempfile.TemporaryDirectory() as made:
        subjects = commands(options, guest, Path(made))
        series, conditions = net.sample(options, subjects, cases, is_measured)
    return compare.describe(
        "ways",
        Unit("thousand frames a second (pong: round trips; bulk: packets)", "second", 1e-3, rate=True),
        series,
        comparisons(list(subjects), cases),
        conditions=conditions,
        host=host,
    )


def is_measured(way: str, mode: str) -> bool:
    """Offload is of use for bulk alone, which peers do not have."""
    return mode.startswith("bulk-") or way != "offload" if way in WAYS else not mode.startswith("bulk-")


def comparisons(
    names: "Sequence[str]" = tuple(WAYS), cases: "Sequence[tuple[str, int]]" = CASES
) -> "list[compare.Comparison]":
    """Each way beside a call a frame, and beside each peer."""
    return [
        compare.Comparison(
            f"{mode} {size} {way}", f"{mode} {size} {other}", goal=_goal(way, other), at_least=True
        )
        for mode, size in cases
        for way in names
        for other in names
        if way in WAYS and other != way and (other == "calls" or other not in WAYS)
        if is_measured(way, mode) and is_measured(other, mode)
    ]


def _goal(way: str, other: str) -> "float | None":
    if other == "calls":
        return GOAL_OFFLOAD if way == "offload" else None
    return {"calls": 1.0, "batch": GOAL_BATCH}.get(way)


def commands(options: argparse.Namespace, guest: Path, made: Path) -> "dict[str, peers.Words]":
    """The guest, once a way, as files in `made`, then the peers; {args} is still a word of each. Raises BenchError."""
    ours = tender_command()
    if ours is None:
        raise BenchError("tender: the command is not installed beside this Python")
    data = guest.read_bytes()
    at = data.index(_NOTE) + len(_NOTE) + 4
    machine_options = (
        f"--backend={options.backend}",
        "--mem=16",
        "--no-net-ring",
        f"--net:service0={net.TAP}",
    )
    found: dict[str, peers.Words] = {}
    for way in options.way or WAYS:
        features, word = WAYS[way]
        image = made / f"{way}.elf"
        image.write_bytes(data[:at] + features.to_bytes(4, "little") + data[at + 4 :])
        found[way] = (*ours, *machine_options, str(image), word, "{args}")
    if options.peer:
        named = compile.image(options.image, "net_guest")
        for name, words in peers.parse(options.peer, named, wants=("tap", "args"), taken=WAYS).items():
            found[name] = tuple(word.replace("{tap}", net.TAP) for word in words)
    return found
