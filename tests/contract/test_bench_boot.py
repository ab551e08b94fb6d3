"""`python bench boot` on a real KVM: every point is reached in order, and the result is valid JSON."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import BENCH, Guest

from tender.bench.points import LIBRARY_POINTS, PROCESS_POINTS, RUN_POINTS

pytestmark = pytest.mark.kvm


def _bench(*words: str) -> str:
    done = subprocess.run([*BENCH, "boot", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ordered(sample: dict[str, Any], names: tuple[str, ...]) -> bool:
    stamps = [sample["points_ns"][name] for name in names]
    return stamps == sorted(stamps) and stamps[0] == 0 and stamps[1] > 0


def test_two_runs_reach_every_point_in_order(tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "boot.json"
    peer = f"again={tender_cmd[0]} --mem=8 {{elf}}"
    words = ["--runs", "2", "--warmup", "0", "--pause", "0.01", "--isolated-runs", "1"]
    text = _bench(*words, "--peer", peer, "--json", str(out), str(guest("hello")))
    measured = json.loads(out.read_text())
    assert [regime["regime"] for regime in measured["regimes"]] == ["back-to-back", "isolated"]
    for regime, runs in zip(measured["regimes"], (2, 1), strict=True):
        subjects = {subject["name"]: subject for subject in regime["subjects"]}
        assert list(subjects) == ["library", "pool", "tender", "python", "again"]
        assert all(len(subject["samples"]) == runs for subject in subjects.values())
        assert all(_ordered(sample, LIBRARY_POINTS) for sample in subjects["library"]["samples"])
        for name in ("tender", "again"):
            assert all(_ordered(sample, PROCESS_POINTS) for sample in subjects[name]["samples"])
    assert "library: start -> first_exit" in text


def test_counting_compares_with_minimal_c(guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "count.json"
    _bench("--count", "--runs", "2", "--skip", "tender", "--json", str(out), str(guest("hello")))
    counted = json.loads(out.read_text())["counted"]
    assert {"library", "minimal C", "python"} <= set(counted["subjects"])
    assert counted["ratios"]["library / minimal C"]["value"] > 0
    calls = counted["subjects"]["library"].get("calls")
    if calls is not None:  # strace is installed
        assert calls["KVM_CREATE_VM"] == 1
        assert calls["KVM_CREATE_VCPU"] == 1


def test_a_run_is_measured_with_all_files_in_memory(guest: Guest, tmp_path: Path) -> None:
    """The root directory in memory does not have tmp_path, so nothing runs from the host's directories. The
    peer's program and the libraries that it links were found and copied as well."""
    out = tmp_path / "run.json"
    peer = f"shell=sh -c 'test -e /dev/kvm && ! test -e {tmp_path} && echo found' {{elf}}"
    words = ["run", "--in-memory", "--backend", "kvm", "--runs", "2", "--warmup", "0", "--pause", "0"]
    skipped = [word for name in ("python-path", "module", "python", "site") for word in ("--skip", name)]
    command = [
        *BENCH,
        *words,
        *skipped,
        "--peer",
        peer,
        "--json",
        str(out),
        str(guest("hello")),
    ]
    before = Path("/proc/mounts").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--in-memory:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    subjects = {one["name"]: one for one in json.loads(out.read_text())["regimes"][0]["subjects"]}
    assert list(subjects) == ["tender", "shell"]
    for one in subjects.values():
        assert all(_ordered(sample, RUN_POINTS) for sample in one["samples"])
    assert Path("/proc/mounts").read_text() == before
