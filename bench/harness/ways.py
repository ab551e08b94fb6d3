"""`python bench ways`: the cost of a frame by each way of our guest library, compared with one hypercall per frame.

The guest is bench/net_ways_guest.c, in one copy for each way. In each copy the note, which names the features that the
guest wants of our extension, is changed. Everything else is as in `python bench net`, which compares monitors. A peer
runs the image that is named, net_guest, in the modes that it has. Our own net_guest.elf makes one hypercall per frame
with any monitor. Solo5's .hvt uses a ring if the monitor offers one.
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
"""The features in the note, and the guest's first argument."""
GOAL_OFFLOAD = 5.0
GOAL_BATCH = 2.0  # compared with a peer
_NOTE = b"TND1Tender\0\0"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench ways",
        description="Measure frames per second by each way of our guest library. Run it with `tools/with_net --`.",
    )
    p.add_argument("image", nargs="?", help="the image of peers: net_guest (default: our own build)")
    p.add_argument(
        "--frames", type=regimes.positive, default=10000, metavar="N", help="frames per sample (10000)"
    )
    p.add_argument(
        "--case",
        action="append",
        metavar="MODE:SIZE",
        type=case,
        help="tx:64, bulk-rx:1514; may be repeated (default: each)",
    )
    p.add_argument(
        "--way", action="append", choices=WAYS, help="calls, batch; may be repeated (default: each)"
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=20, peer="hvt=solo5-hvt --mem=16 --net:service0={tap} {elf} {args}")
    return p


def case(text: str) -> "tuple[str, int]":
    """The mode and the size of an option's MODE:SIZE: a case of net, or of bulk."""
    for mode, size in BULK:
        if text == f"{mode}:{size}":
            return mode, size
    return net.case(text)


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measure, and return the result object. Raises TenderError."""
    host = facts.host_facts(CHECKOUT)
    guest = compile.guest("net_ways_guest")
    cases = options.case or list(CASES)
    with tempfile.TemporaryDirectory() as made:
        subjects = commands(options, guest, Path(made))
        series, conditions = net.sample(options, subjects, cases, is_measured)
    return compare.describe(
        "ways",
        Unit("thousand frames per second (pong: round trips; bulk: packets)", "second", 1e-3, rate=True),
        series,
        comparisons(list(subjects), cases),
        conditions=conditions,
        host=host,
    )


def is_measured(way: str, mode: str) -> bool:
    """Whether the way has the mode: offload is only useful for bulk, and peers do not have bulk."""
    return mode.startswith("bulk-") or way != "offload" if way in WAYS else not mode.startswith("bulk-")


def comparisons(
    names: "Sequence[str]" = tuple(WAYS), cases: "Sequence[tuple[str, int]]" = CASES
) -> "list[compare.Comparison]":
    """Compares each way with one call per frame, and with each peer."""
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
    """The guest for each way, as files in `made`, then the peers. {args} is still a word of each. Raises BenchError."""
    ours = tender_command()
    if ours is None:
        raise BenchError("tender: the command is not installed in this Python's environment")
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
