"""The counted mode: the cost of a boot in CPU time, which with QEMU's `-icount shift=0` is instructions.

On every machine it also counts page faults and, with strace, system calls and KVM ioctls. The library is compared with
the minimal C program, and commands with the start of Python.
"""

import os
from contextlib import closing
from statistics import median

from harness import minimal, syscalls
from tender.bench.stats import Ratio, ratio_of_medians
from tender.bench.subjects import BenchError, Subject
from tender.config import VmConfig
from tender.image import Image

Counted = dict[str, object]

GOALS = {"library / minimal C": 1.15, "command / python": 0.08}
WHOLE = ", to its end"
_WARM = 3  # boots that fill caches and switch static keys before counting starts


def count(subjects: "list[Subject]", *, image: str, mem_mib: int, runs: int) -> Counted:
    """The figures by subject, and the ratios that have a goal. Raises BenchError."""
    notes: list[str] = []
    found: dict[str, dict[str, object]] = {}
    series: dict[str, list[float]] = {}
    come_first(notes)
    for subject in subjects:
        with closing(subject):
            samples = [subject.boot() for _ in range(_WARM + runs)][_WARM:]
        points = {p for s in samples for p in s.points_ns}
        found[subject.name] = {
            "kind": subject.kind,
            "cpu_ns": median(s.cpu_ns for s in samples),
            "minor_faults": median(s.minor_faults for s in samples),
            "points_ns": {
                p: median(s.points_ns[p] for s in samples if p in s.points_ns)
                for p in subject.points
                if p in points
            },
        }
        first = [s.first_console_cpu_ns for s in samples if s.first_console_cpu_ns]
        if first:
            found[subject.name]["first_console_cpu_ns"] = median(first)
        if subject.kind == "library":
            series[subject.name] = [s.points_ns["first_exit"] for s in samples]
            series[f"{subject.name} to first run"] = [s.points_ns["first_run"] for s in samples]
        else:
            series[subject.name] = [float(c) for c in first] or [s.cpu_ns for s in samples]
            series[subject.name + WHOLE] = [s.cpu_ns for s in samples]
    if any(subject.kind == "library" for subject in subjects):
        _count_minimal(found, series, notes, image=image, mem_mib=mem_mib, runs=runs)
    _count_syscalls(subjects, found, notes)
    return {"runs": runs, "subjects": found, "ratios": _ratios(series), "notes": notes}


def come_first(notes: "list[str]") -> None:
    """Give the harness real-time priority, so that it reads a process's CPU time as soon as a byte comes."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        notes.append("no right to real-time priority: CPU time at the first console byte is read too late")
    if len(os.sched_getaffinity(0)) > 1:
        notes.append("more than one CPU: CPU time at the first console byte is approximate")


def _count_minimal(
    found: "dict[str, dict[str, object]]",
    series: "dict[str, list[float]]",
    notes: "list[str]",
    *,
    image: str,
    mem_mib: int,
    runs: int,
) -> None:
    try:
        program = minimal.build()
        with Image.open(image) as opened:
            boots = minimal.run(program, opened, VmConfig(mem=mem_mib), _WARM + runs)[_WARM:]
    except BenchError as error:
        notes.append(error.message)
        return
    found["minimal C"] = {
        "kind": "c",
        "cpu_ns": median(b["cpu"] for b in boots),
        "points_ns": {name: median(b[name] for b in boots) for name in minimal.POINTS},
    }
    series["minimal C"] = [b["first_exit"] for b in boots]
    series["minimal C to first run"] = [b["ready"] for b in boots]


def _count_syscalls(
    subjects: "list[Subject]", found: "dict[str, dict[str, object]]", notes: "list[str]"
) -> None:
    if not syscalls.available():
        notes.append("system calls and ioctls: not counted: strace is not installed")
        return
    for subject in subjects:
        if subject.kind == "library":
            counted: object = syscalls.of_library(subject.command)
        else:
            counted = syscalls.of_command(subject.command)
        if counted is None:
            notes.append(f"{subject.name}: system calls not counted: strace may not trace it here")
        else:
            found[subject.name]["calls"] = counted


def _ratios(series: "dict[str, list[float]]") -> "dict[str, dict[str, float | None]]":
    wanted = [
        ("library / minimal C", "library", "minimal C"),
        ("library / minimal C, to the first KVM_RUN", "library to first run", "minimal C to first run"),
        ("command / python", "tender", "python"),
    ]
    peers = [
        n
        for n in series
        if n not in ("library", "pool", "tender", "python", "minimal C")
        and not n.endswith((" to first run", WHOLE))
    ]
    for peer in peers:
        wanted += [(f"library / {peer}", "library", peer), (f"command / {peer}", "tender", peer)]
        wanted.append((f"pool / {peer}", "pool", peer))
        wanted.append((f"command / {peer}{WHOLE}", "tender" + WHOLE, peer + WHOLE))
    found: dict[str, dict[str, float | None]] = {}
    for name, above, below in wanted:
        if above in series and below in series:
            ratio: Ratio = ratio_of_medians(series[above], series[below])
            found[name] = {
                "value": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "goal": GOALS.get(name),
            }
    return found


def missed_goals(counted: Counted) -> "list[str]":
    """The ratios that are above their goal, as lines of text."""
    ratios = counted["ratios"]
    assert isinstance(ratios, dict)
    return [
        f"{name} is {ratio['value']:.3f}, the goal is {ratio['goal']:.2f}"
        for name, ratio in ratios.items()
        if ratio["goal"] is not None and ratio["value"] > ratio["goal"]
    ]
