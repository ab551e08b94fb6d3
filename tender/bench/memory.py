"""`tender bench memory`: what ten idle guests of one image keep of memory, beside a peer that runs the same program.

Proportional set size from /proc/PID/smaps_rollup, which shares a page's bytes among those that map it: of each
sandbox, and of the process that holds them; of each peer's process. Private pages are those that one alone has.
"""

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tender.backend.sandbox import SandboxVm
from tender.bench import compare, facts
from tender.bench.subjects import BenchError, parse_peer
from tender.config import VmConfig
from tender.errors import ConfigError
from tender.image import Image
from tender.vm import DISCARD, Vm

FIELDS = ("Pss", "Private_Dirty", "Private_Clean", "Rss")
_LIMIT_S = 10


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tender bench memory", description="Measure the memory of idle guests, beside a peer."
    )
    p.add_argument("image", help="a guest that waits for ever: solo5_idle.hvt (bench/build_solo5_guests)")
    p.add_argument("--guests", type=compare.positive, default=10, metavar="N", help="of each (10)")
    p.add_argument("--mem", type=compare.positive, default=16, metavar="MIB", help="guest memory (16)")
    compare.add_options(p, rounds=3, peer="spt=solo5-spt {elf:.spt}")
    return p


def main(argv: "list[str]") -> int:
    return compare.main(parser(), argv, run)


def run(options: argparse.Namespace) -> compare.Measured:
    """Measures. Raises TenderError."""
    host = facts.host_facts(facts.find_checkout())
    series: compare.Series = {}
    image = os.path.abspath(options.image)
    peers = dict(parse_peer(text, image) for text in options.peer)
    for name, words in peers.items():
        if shutil.which(words[0]) is None:
            raise ConfigError(f"--peer: {name}: {words[0]}: no such program")
    for _ in range(options.rounds):
        with _ours(image, options.mem, options.guests) as pids:
            _add(series, "sandbox", [smaps(pid) for pid in pids])
        for name, words in peers.items():
            with _peers(words, options.guests) as pids:
                _add(series, name, [smaps(pid) for pid in pids])
    return compare.describe(
        "memory",
        "KiB a process",
        series,
        [
            compare.Comparison(f"sandbox {f}", f"{name} {f}", goal=1.0 if f == "Pss" else None)
            for name in peers
            for f in FIELDS
        ],
        conditions={"guests of each": options.guests, "MiB": options.mem, "rounds": options.rounds},
        notes=["the process that holds the sandboxes, an interpreter, is not among them"],
        host=host,
    )


def smaps(pid: int) -> "dict[str, int]":
    """KiB by field of /proc/PID/smaps_rollup. Raises OSError."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def _add(series: compare.Series, name: str, found: "list[dict[str, int]]") -> None:
    for field in FIELDS:
        series.setdefault(f"{name} {field}", []).extend(float(f[field]) for f in found)


@contextmanager
def _ours(path: str, mem: int, count: int) -> "Iterator[list[int]]":
    with ExitStack() as stack:
        image = stack.enter_context(Image.open(path))
        pids = []
        for _ in range(count):
            vm = stack.enter_context(Vm(image, VmConfig(mem=mem), console=DISCARD, backend="sandbox"))
            vm.start()
            end = time.monotonic() + _LIMIT_S
            while not vm.counters.hypercalls["poll"]:
                if time.monotonic() > end:
                    raise BenchError(f"{path}: does not wait after {_LIMIT_S} s")
                time.sleep(0.01)
            assert isinstance(vm._door, SandboxVm)
            pids.append(vm._door.pid)
        yield pids


@contextmanager
def _peers(words: "tuple[str, ...]", count: int) -> "Iterator[list[int]]":
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
            processes.append(process)
            assert process.stdout
            if not any(line == b"ready\n" for line in process.stdout):
                raise BenchError(f"{words[0]}: ended with {process.wait()}")
        time.sleep(0.1)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
