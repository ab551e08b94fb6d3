"""`python bench block`: the cost of a disk request for a guest, compared with a bare pread() loop and with peers.

The program is bench/block_guest.c, which measures itself. bench/bare_block.c makes the same requests as system calls
of a plain process, at the same offsets (bench/block_pattern.h). The disk is a file in the page cache, except for cases
with the order `cold`. Before each of these runs the file's pages are dropped, and it is an error if any page stays.

`read seq 0` and similar rows are not measured but computed. They are the cost of a request without its bytes: the point
where the straight line through the same request of 512 and of 4096 bytes begins. Where the clock counts instructions,
the count of a copy does not tell its time. A processor executes `rep movs` as one instruction, but the counter counts
one for each step, and the kernel's copy uses other instructions.

A way is how requests reach the host: a row of `ways` in block_guest.c and a name in WAYS here. "call" is one request
per call, and the only way that a peer has. A round is each case once for each subject, in ABBA order, all on one CPU.
"""

import argparse
import ctypes
import mmap
import os
import subprocess
import tempfile
from collections.abc import Sequence

from harness import CHECKOUT, compare, compile
from harness.pyperf_format import Unit
from tender.bench import facts, peers, regimes
from tender.bench.boot import tender_command
from tender.bench.child import error_line
from tender.bench.progress import Bar
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError

CASES = tuple(
    f"{direction} {order} {size}"
    for direction in ("read", "write")
    for order in ("seq", "rand")
    for size in (512, 4096)
)
WAYS = ("call", "batch")
BARE = "bare"
COLD = "cold"
GOALS = {"512": 1.4, "4096": 1.2}
"""Requests a second over a peer's, by size."""

COLD_GOAL = 2.5  # reads per second from a cold disk in batches, over a peer's with one per call

NO_BYTES = "0"
"""Stands in place of a size."""

PEER = "spt=solo5-spt --mem=16 --block:storage={disk} --block-sector-size:storage={sector} {elf:.spt} {args}"
"""A sector is as large as a request, because Solo5's guests make requests of one sector only."""

_LIMIT_S = 60


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench block",
        description="Measure a guest's requests per second to a cached disk, compared with a bare loop and peers.",
    )
    p.add_argument(
        "image", nargs="?", help="block_guest.hvt of bench/build_solo5_guests (default: our own build)"
    )
    p.add_argument(
        "--requests", type=regimes.positive, default=20000, metavar="N", help="requests per sample (20000)"
    )
    p.add_argument(
        "--disk-mib", type=regimes.positive, default=16, metavar="MIB", help="size of the disk (16)"
    )
    p.add_argument(
        "--directory", metavar="DIR", help="directory for the disk's file, whose file system is measured"
    )
    p.add_argument(
        "--way",
        action="append",
        choices=WAYS,
        help="how requests reach the host; may be repeated (default: each)",
    )
    p.add_argument(
        "--case",
        action="append",
        type=case,
        metavar="MODE:ORDER:SIZE",
        help="read:seq:512, write:rand:4096, read:cold:4096; may be repeated (default: all with 512 and 4096, except cold)",
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    compare.add_options(p, rounds=20, peer=PEER)
    return p


def case(text: str) -> str:
    """The name of the case for an option's MODE:ORDER:SIZE."""
    words = text.split(":")
    right = len(words) == 3 and words[0] in ("read", "write") and words[1] in ("seq", "rand", COLD)
    if not right or not words[2].isdigit() or int(words[2]) % 512 or not 512 <= int(words[2]) <= 65536:
        raise argparse.ArgumentTypeError(
            f"{text}: not read|write:seq|rand|cold:SIZE with SIZE a multiple of 512, from 512 to 65536"
        )
    return " ".join(words)


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError."""
    bare = compile.program("bare_block")
    host = facts.host_facts(CHECKOUT)
    cases = options.case or list(CASES)
    series: compare.Series = {}
    with tempfile.NamedTemporaryFile(dir=options.directory) as disk:
        for _ in range(options.disk_mib):
            disk.write(os.urandom(1 << 20))
        disk.flush()
        os.fsync(disk.fileno())
        subjects = commands(options, disk.name)
        subjects[BARE] = (str(bare), disk.name, "{args}")
        cpu = compare.pin()
        with Bar((1 + options.rounds) * len(cases) * len(subjects)) as bar:
            for number, order in enumerate(rounds(1 + options.rounds, list(subjects))):
                for what in cases:
                    for name in order:
                        bar.step(f"{what} {name}")
                        if what.split()[1] == COLD:
                            drop_pages(disk.fileno(), disk.name)
                        found = measure(subjects[name], what, options.requests)
                        if number:  # the first round is a warm-up
                            series.setdefault(f"{what} {name}", []).append(found)
        file_system = _file_system(disk.name)
    cases = [*cases, *add_without_bytes(series, list(subjects))]
    return compare.describe(
        "block",
        Unit("thousand requests per second", "second", 1e-3, rate=True),
        series,
        comparisons(list(subjects), cases),
        conditions={
            "backend": options.backend,
            "requests per sample": options.requests,
            "disk MiB": options.disk_mib,
            "file system": file_system,
            "rounds": options.rounds,
            "cpu": cpu,
        },
        notes=notes(cases),
        host=host,
    )


def notes(cases: Sequence[str]) -> "list[str]":
    """What these figures contain, and what they do not."""
    is_cold = [what.split()[1] == COLD for what in cases]
    found = []
    if not all(is_cold):
        found.append("the disk is in the page cache: a figure is the cost of a request, not of a medium")
    if any(is_cold):
        found.append(
            "cold: the file was dropped from the page cache before each run; lower layers may have a cache"
        )
    return found


def drop_pages(fd: int, path: str) -> None:
    """Drop all pages of the file from the page cache. Raises BenchError if any page stays."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    left = cached_pages(fd)
    if left:
        raise BenchError(
            f"block: {path}: {left} pages stay in the page cache: there is no cold disk in this directory",
            hint="name a directory on a file system with a medium: --directory DIR",
        )


def cached_pages(fd: int) -> int:
    """The number of the file's pages in the page cache, by mincore(). Raises OSError, BenchError."""
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), found)
        del view  # otherwise the mapping cannot be closed
        if failed:
            raise BenchError(f"mincore: {os.strerror(ctypes.get_errno())}")
        return sum(byte & 1 for byte in found)


def comparisons(names: "list[str]", cases: Sequence[str] = CASES) -> "list[compare.Comparison]":
    """Compares each of ours with the bare loop, with each peer, and with our own "call"."""
    ours = [name for name in names if name.partition("-")[0] == "tender"]
    found = []
    for what in cases:
        for name in ours:
            found += [
                compare.Comparison(
                    f"{what} {name}",
                    f"{what} {other}",
                    goal=None if other in (BARE, *ours) else _goal(what, name),
                    at_least=True,
                )
                for other in names
                if other != name and (other == "tender" or other not in ours)
            ]
    return found


def _goal(what: str, name: str) -> "float | None":
    if what.split()[1] == COLD:
        return COLD_GOAL if name == "tender-batch" else None
    return GOALS.get(what.split()[2])


def add_without_bytes(series: compare.Series, names: "list[str]") -> "list[str]":
    """Add the computed cost without bytes, for each subject that has both sizes. Returns the new cases."""
    made: dict[str, None] = {}
    for kind in dict.fromkeys(case.rpartition(" ")[0] for case in CASES):
        for name in names:
            pairs = zip(
                series.get(f"{kind} 512 {name}", ()), series.get(f"{kind} 4096 {name}", ()), strict=False
            )
            left = [1 / (1 / small + (1 / small - 1 / large) * 512 / (4096 - 512)) for small, large in pairs]
            if left and min(left) > 0:
                series[f"{kind} {NO_BYTES} {name}"] = left
                made[f"{kind} {NO_BYTES}"] = None
    return list(made)


def commands(options: argparse.Namespace, disk: str) -> "dict[str, peers.Words]":
    """Ours, one for each way, then the peers. {args} is still a word of each. Raises ConfigError, BenchError."""
    ours = tender_command()
    if ours is None:
        raise BenchError("tender: the command is not installed in this Python's environment")
    image = compile.image(options.image, "block_guest")
    machine_options = (
        f"--backend={options.backend}",
        "--mem=16",
        f"--block:storage={disk}",
        "--block-sector-size:storage={sector}",
    )
    found: dict[str, peers.Words] = {}
    for way in options.way or WAYS:
        if way == "call":
            found["tender"] = (*ours, *machine_options, image, "{args}")
        else:
            own = compile.image(None, "block_guest")  # Solo5's build has only "call"
            found[f"tender-{way}"] = (*ours, *machine_options, own, "{args}", way)
    for name, words in peers.parse(
        options.peer, image, wants=("disk", "sector", "args"), taken=(*found, BARE)
    ).items():
        found[name] = tuple(word.replace("{disk}", disk) for word in words)
    return found


def measure(command: peers.Words, what: str, requests: int) -> float:
    """Thousand requests per second of one run. Raises BenchError."""
    size = what.split()[2]
    words = peers.fill(command, {"sector": size}, (*what.split(), str(requests)))
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=facts.limit_s(_LIMIT_S), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{words[0]}: {what}: killed because it still ran after {_LIMIT_S} s") from error
    said = done.stdout.decode("utf-8", "replace")
    for line in said.splitlines():
        if line.startswith(f"{what} {requests} "):
            return requests * 1e6 / int(line.split()[4])
    wrong = error_line(done.stderr.decode("utf-8", "replace") or said)
    raise BenchError(f"{words[0]}: {what}: ended with {done.returncode}: {wrong}")


def _file_system(path: str) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
