"""`python bench count`: the cost of a boot, a frame and a request in counts, not in time.

It counts system calls and KVM's ioctls (by strace), exits (by the VM's own counters) and, where the clock counts
instructions, instructions. Each count is the difference of a larger and a smaller run, divided by the difference of
their sizes, so work that is done once cancels out. A row is exact and the same on any machine, except for rows with a
~: libc, Python and the kernel influence them.

    --expect FILE    compares the exact rows with a committed table: status 1 if a row differs, even if it is better
    --update FILE    writes the exact rows to that table
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

from harness import CHECKOUT, compare, compile, net, picture, syscalls
from tender._version import __version__
from tender.bench import facts
from tender.bench.child import error_line
from tender.bench.progress import Bar
from tender.bench.subjects import BenchError, LibrarySubject
from tender.errors import TenderError

_LIMIT_S = 120
_FEW, _MORE = 200, 400  # more than the exits with which a run on KVM begins (EXITS_WITH_MASK in run_kvm.c)
_TRIES = 30  # on an idle machine the first one succeeds; on a busy machine one in two or three
_BOOTS = 10
NET_CASES = tuple((mode, size) for mode in ("tx", "rx", "echo", "serve") for size in (64, 1514))
BLOCK_CASES = tuple((mode, size) for mode in ("read", "write") for size in (512, 4096))
PARTS = ("boot", "net", "block")
CALLS_ASIDE = ("futex", "system calls", syscalls.PROGRAM)
"""Calls that depend on which of two threads is first, and sums."""

Rows = dict[str, float]
Because = dict[str, str]


class Installation:
    """The Tender to count: its interpreter, its command, and the directory for its guests."""

    def __init__(self, python: str, out: Path) -> None:
        self.python = python
        self.command = str(Path(python).parent / "tender")
        self.out = out

    def hello(self) -> str:
        """The example guest that is installed with it. Raises BenchError."""
        words = (self.python, "-P", "-c", "import tender; print(tender.__file__)")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(
                f"{self.python}: Tender is not installed: {' '.join(done.stderr.splitlines()[-1:])}"
            )
        return str(Path(done.stdout.strip()).parent / "guests" / "hello.elf")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench count",
        description="Count system calls, ioctls and exits per boot, frame and request.",
    )
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    p.add_argument("--expect", metavar="FILE", help="status 1 if an exact row differs from this table")
    p.add_argument("--update", metavar="FILE", help="write the exact rows of this backend to this table")
    p.add_argument("--json", metavar="FILE", help="write the rows, and why others are missing")
    p.add_argument("--plot", metavar="FILE.png", help="the rows as a picture (needs matplotlib)")
    p.add_argument("--only", choices=PARTS, action="append", help="may be repeated (default: each)")
    p.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="Python of the installation to count"
    )
    p.add_argument("--out", metavar="DIR", help="directory for its compiled guests (default: bench/out)")
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something could not be counted, or differs from the expected table."""
    options = parser().parse_args(argv)
    try:
        if options.plot:
            picture.check()
        counted = run(options)
        rows, because = counted["rows"], counted["missing"]
        assert isinstance(rows, dict) and isinstance(because, dict)
        sys.stdout.write(table(options.backend, rows, because))
        if options.json:
            Path(options.json).write_text(json.dumps(counted, indent=1) + "\n")
        if options.plot:
            host = counted["host"]
            assert isinstance(host, dict)
            picture.counts(options.backend, rows, options.plot, host)
        if options.update:
            path = Path(options.update)
            text = path.read_text() if path.exists() else ""
            path.write_text(updated(text, options.backend, exact(rows)))
        if options.expect:
            wrong = differences(read_table(Path(options.expect).read_text()), options.backend, rows, because)
            sys.stderr.writelines(f"count: {line}\n" for line in wrong)
            return 1 if wrong else 0
    except (TenderError, OSError) as error:
        return compare.complain(error)
    return 0


def run(options: argparse.Namespace) -> "dict[str, object]":
    """Count, and return the result object. Raises TenderError."""
    out = Path(options.out) if options.out else CHECKOUT / "bench" / "out"
    host = facts.host_facts(CHECKOUT)
    rows, because = count(
        Installation(options.python, out),
        options.backend,
        instructions=bool(host["counts_instructions"]),
        parts=options.only or PARTS,
    )
    return {
        "schema": compare.SCHEMA,
        "benchmark": "count",
        "tender": __version__,
        "backend": options.backend,
        "host": host,
        "rows": rows,
        "missing": because,
    }


def count(
    installation: Installation,
    backend: str,
    *,
    instructions: bool,
    parts: Sequence[str] = PARTS,
) -> "tuple[Rows, Because]":
    """The counts by name, and why some are missing. Raises BenchError if a guest does not do its work."""
    rows: Rows = {}
    because: Because = {}
    traced = syscalls.may_trace()
    if not traced:
        because["system calls"] = "strace is not installed, or may not trace here"
    with Bar(1 + len(NET_CASES) + len(BLOCK_CASES)) as bar:
        if "boot" in parts:
            bar.step("boot")
            _count_boots(rows, installation, backend, traced, instructions)
        if "net" in parts:
            guest = compile.guest("net_guest", python=installation.python, out=installation.out)
            _count_net(rows, because, installation, str(guest), backend, traced, bar)
        if "block" in parts:
            guest = compile.guest("block_guest", python=installation.python, out=installation.out)
            _count_block(rows, installation, str(guest), backend, traced, bar)
    return rows, because


# ---- boots


def _count_boots(
    rows: Rows, installation: Installation, backend: str, traced: bool, instructions: bool
) -> None:
    image = installation.hello()
    words = (installation.python, "-P", "-m", "tender.bench.worker", backend, image, "16", "-1")
    if traced:
        found = syscalls.of_library(words)
        if found is None:
            raise BenchError(f"boot: strace of {' '.join(words)} failed")
        calls = {name: n for name, n in found.items() if name not in CALLS_ASIDE}
        rows["~boot: system calls"] = sum(calls.values())
        if backend == "sandbox":
            rows["boot: system calls of tender-sandbox"] = found[syscalls.PROGRAM]
        if backend == "kvm":
            rows["boot: KVM ioctls"] = sum(n for name, n in calls.items() if name.startswith("KVM_"))
            rows["boot: KVM_RUN"] = calls["KVM_RUN"]
    with closing(
        LibrarySubject("library", image, 16, mode=backend, python=installation.python, silent=True)
    ) as subject:
        samples = [subject.boot() for _ in range(3 + _BOOTS)][3:]
    rows["~boot: minor page faults"] = median(s.minor_faults for s in samples)
    if instructions:
        rows["~boot: instructions to the first exit"] = median(s.points_ns["first_exit"] for s in samples)
        rows["~boot: instructions, closed"] = median(s.cpu_ns for s in samples)
    ended = _json_run((installation.command, f"--backend={backend}", "--mem=16", "--json", image))[0]
    rows["boot: exits"] = ended["exits"]


# ---- frames and requests


def _count_net(
    rows: Rows,
    because: Because,
    installation: Installation,
    guest: str,
    backend: str,
    traced: bool,
    bar: Bar,
) -> None:
    try:
        net.make_tap(2 * _MORE)
    except BenchError as error:
        because["frames"] = error.message
        return
    try:
        for mode, size in NET_CASES:
            for transport in net.TRANSPORTS:
                extra = () if transport == "call" else (transport,)
                label = " ".join((mode, str(size), *extra))
                bar.step(label)
                words = (installation.command, f"--backend={backend}", "--mem=16", "--json")
                command = (*words, f"--net:service0={net.TAP}", guest, mode, str(size))
                fill = size if mode in net.FILLED else 0

                def frames(n: int, command: "tuple[str, ...]" = command, extra: "tuple[str, ...]" = extra,
                           fill: int = fill) -> "Counter[str]":  # fmt: skip
                    return _run((*command, str(n), *extra), traced, fill, n)

                _add(rows, f"{label}, per frame", *few_and_more(frames), _MORE - _FEW)
    finally:
        net.remove_tap()


def _count_block(
    rows: Rows, installation: Installation, guest: str, backend: str, traced: bool, bar: Bar
) -> None:
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(bytes(1 << 20))
        disk.flush()
        for mode, size in BLOCK_CASES:
            bar.step(f"{mode} {size}")
            words = (installation.command, f"--backend={backend}", "--mem=16", "--json")
            device = (f"--block:storage={disk.name}", f"--block-sector-size:storage={size}")
            command = (*words, *device, guest, mode, "seq", str(size))

            def requests(n: int, command: "tuple[str, ...]" = command) -> "Counter[str]":
                return _run((*command, str(n)), traced)

            _add(rows, f"{mode} {size}, per request", *few_and_more(requests), _MORE - _FEW)


def few_and_more(run: "Callable[[int], Counter[str]]") -> "tuple[Counter[str], Counter[str]]":
    """The counts of a smaller and a larger run, whose difference per frame or request is a whole number.

    On a busy machine one of two processes may come late, and then makes one call more or less, in one run of some
    hundred. So the runs are repeated until the difference is whole. A count that is a fraction each time stays a
    fraction.
    """
    for _ in range(_TRIES):
        few, more = run(_FEW), run(_MORE)
        if all(_difference(few, more, what) % (_MORE - _FEW) == 0 for what in ("exits", "calls")):
            break
    return few, more


def _difference(few: "Counter[str]", more: "Counter[str]", what: str) -> int:
    """The difference in exits, or in system calls without CALLS_ASIDE."""
    if what == "exits":
        return more["exits"] - few["exits"]
    calls = [sum(n for call, n in c.items() if call not in ("exits", *CALLS_ASIDE)) for c in (few, more)]
    return calls[1] - calls[0]


def _add(rows: Rows, name: str, few: "Counter[str]", more: "Counter[str]", by: int) -> None:
    rows[f"{name}: exits"] = _difference(few, more, "exits") / by
    if "system calls" in more:
        rows[f"{name}: system calls"] = _difference(few, more, "calls") / by


def _run(words: "tuple[str, ...]", traced: bool, fill: int = 0, frames: int = 0) -> "Counter[str]":
    """The calls of one run of the command, and its exits. The queue is filled with `frames` of `fill` bytes."""
    if not traced:
        return Counter(_json_run(words, fill, frames)[0])
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        counters, _ = _json_run((*syscalls.strace(log), *words), fill, frames)
        found = syscalls.count_lines(log.read_text(errors="replace"))
    found["exits"] = counters["exits"]
    return found


def _json_run(words: "tuple[str, ...]", fill: int = 0, frames: int = 0) -> "tuple[dict[str, int], str]":
    """The counters of --json, and the console, of a run that ends with status 0. Raises BenchError."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=False
        )
        assert process.stdout
        try:
            if fill:
                said = _until_ready(process.stdout.fileno())
                if said:
                    net.send_frames(fill, frames)
            console = process.communicate(timeout=facts.limit_s(_LIMIT_S))[0]
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{' '.join(words)}: killed because it still ran after {_LIMIT_S} s") from error
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        errors.seek(0)
        told = errors.read().decode("utf-8", "replace").strip().splitlines()
    if process.returncode or not told or not told[-1].startswith("{"):
        wrong = error_line("\n".join(told) or console.decode("utf-8", "replace"))
        raise BenchError(f"{' '.join(words)}: ended with {process.returncode}: {wrong}")
    counters: dict[str, int] = json.loads(told[-1])["counters"]
    return {"exits": counters["exits"]}, console.decode("utf-8", "replace")


def _until_ready(fd: int) -> bool:
    """Read until the guest prints "ready". Returns whether it did."""
    said = b""
    limit = facts.limit_s(_LIMIT_S)
    end = time.monotonic() + (limit or 0)
    while b"ready\n" not in said:
        left = None if limit is None else max(0.0, end - time.monotonic())
        if not select.select([fd], [], [], left)[0]:
            return False
        piece = os.read(fd, 4096)
        if not piece:
            return False
        said += piece
    return True


# ---- the table that is committed


def exact(rows: Rows) -> Rows:
    """The rows that are the same on any machine."""
    return {name: value for name, value in rows.items() if not name.startswith("~")}


def table(backend: str, rows: Rows, because: Because) -> str:
    """The counts as text."""
    lines = [f"count, {backend}"]
    lines += [f"  {name:44} {value:14,.3f}".replace(".000", "") for name, value in rows.items()]
    lines += [f"not counted: {what}: {why}" for what, why in because.items()]
    return "\n".join(lines) + "\n"


def read_table(text: str) -> "dict[tuple[str, str], float]":
    """The counts by backend and name. Raises BenchError for a line that is not BACKEND NAME COUNT."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        backend, _, rest = line.partition(" ")
        name, _, value = rest.strip().rpartition(" ")
        try:
            found[backend, name.strip()] = float(value)
        except ValueError as error:
            raise BenchError(f"expected counts: line {number}: {line!r} is not BACKEND NAME COUNT") from error
    return found


def updated(text: str, backend: str, rows: Rows) -> str:
    """The table with new rows for this backend. Comments and the lines of the other backend stay."""
    kept = [line for line in text.splitlines() if not line.startswith(f"{backend} ")]
    ours = [f"{backend:8} {name:44} {value:g}" for name, value in rows.items()]
    comments = [line for line in kept if not line.strip() or line.startswith("#")]
    others = [line for line in kept if line not in comments]
    return "\n".join([*comments, *sorted([*others, *ours], key=lambda line: line.split(" ")[0])]) + "\n"


def differences(
    expected: "dict[tuple[str, str], float]", backend: str, rows: Rows, because: Because
) -> "list[str]":
    """A line for each difference from the expected table, and for each row that is missing or new."""
    wanted = {name: value for (of, name), value in expected.items() if of == backend}
    found = exact(rows)
    reasons = "; ".join(because.values())
    lines = [
        f"{name}: {'not counted' + (f' ({reasons})' if reasons else '')}, expected {wanted[name]:g}"
        for name in wanted
        if name not in found
    ]
    lines += [f"{name}: {found[name]:g}, not in the table" for name in found if name not in wanted]
    lines += [
        f"{name}: {found[name]:g}, expected {wanted[name]:g}"
        for name in wanted
        if name in found and f"{found[name]:g}" != f"{wanted[name]:g}"
    ]
    return lines
