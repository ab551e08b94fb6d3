"""The benchmarks of the sandbox run, and they measure what their names say. No test checks a time."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import hypercall
from support import BENCH, Guest

from tender.bench.points import LIBRARY_POINTS, SPAWNED_POINTS


def _bench(out: Path, *words: str) -> dict[str, Any]:
    command = [*BENCH, *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def test_each_way_of_a_hypercall_is_measured(tmp_path: Path) -> None:
    """The benchmark itself checks by the counters that each way is the one that its name says."""
    measured = _bench(tmp_path / "o.json", "hypercall", "--rounds", "2", "--calls", "20")
    expected = {f"{k} {w}" for k in hypercall.KINDS for w in (*hypercall.WAYS, *hypercall.YARDSTICKS)}
    assert set(measured["series"]) == expected
    assert all(len(s["samples"]) == 2 for s in measured["series"].values())
    assert all(s["summary"]["min"] > 0 for s in measured["series"].values())


def test_the_sandbox_boots_past_every_point(tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    peer = f"again={tender_cmd[0]} --backend=sandbox --mem=8 {{elf}}"
    words = ["--backend", "sandbox", "--runs", "2", "--warmup", "0", "--pause", "0", "--skip", "python"]
    measured = _bench(tmp_path / "o.json", "boot", *words, "--peer", peer, str(guest("hello")))
    subjects = {subject["name"]: subject for subject in measured["regimes"][0]["subjects"]}
    assert list(subjects) == ["library", "pool", "program", "tender", "again"]
    for name in ("library", "pool", "program"):
        for sample in subjects[name]["samples"]:
            stamps = [sample["points_ns"][point] for point in LIBRARY_POINTS if point != "vm_created"]
            assert stamps == sorted(stamps) and stamps[1] > 0
            assert sample["points_ns"]["console_seen"] >= sample["points_ns"]["first_console"]
    assert all(set(sample["points_ns"]) == set(SPAWNED_POINTS) for sample in subjects["again"]["samples"])


def test_a_goal_is_measured_by_its_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "goals.json"
    words = [*BENCH, "goals", "--kvm", "none", "--only", "sandbox memory", "--json", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    goals = {goal["goal"]: goal for goal in json.loads(out.read_text())["goals"]}
    whole = goals["memory per VM beyond guest pages, with the kernel's, sandbox"]
    assert whole["verdict"] in ("met", "missed") and isinstance(whole["value"], float)
    assert goals["boot, library, KVM / the least a C program needs"]["verdict"].startswith(
        "not measured: KVM"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["boot", "--pause", "0", "--runs", "1", "--warmup", "0", "--skip", "python"],
        ["boot", "--pause", "0", "--runs", "1", "--warmup", "0", "--skip", "library", "--skip", "pool"],
        ["boot", "--count", "--runs", "1"],
        ["run", "--pause", "0", "--runs", "1", "--warmup", "0"],
        ["size", "--rounds", "1"],
        ["block", "--rounds", "1", "--case", "read:seq:512", "--requests", "1", "--disk-mib", "1"],
        ["memory", "--rounds", "1", "--guests", "1"],
        ["density", "--max", "1"],
    ],
    ids=" ".join,
)
def test_an_image_that_cannot_be_opened_is_named_without_a_traceback(words: list[str]) -> None:
    """The processes that a benchmark starts report it too: those of the library, of the sandbox and of the command."""
    command = [*BENCH, *words, "--backend", "sandbox", "/no/such/image.elf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/no/such/image.elf" in done.stderr
    assert "Traceback" not in done.stderr
