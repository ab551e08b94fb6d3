"""`tender bench boot` on a real KVM: every point is reached, in order, and the object is valid JSON."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import Guest

from tender.bench.points import LIBRARY_POINTS, PROCESS_POINTS

pytestmark = pytest.mark.kvm


def _bench(tender_cmd: list[str], *words: str) -> str:
    done = subprocess.run([*tender_cmd, "bench", "boot", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _ordered(sample: dict[str, Any], names: tuple[str, ...]) -> bool:
    stamps = [sample["points_ns"][name] for name in names]
    return stamps == sorted(stamps) and stamps[0] == 0 and stamps[1] > 0


def test_two_runs_reach_every_point_in_order(tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "boot.json"
    peer = f"again={tender_cmd[0]} --mem=8 {{elf}}"
    words = ["--runs", "2", "--warmup", "0", "--pause", "0.01", "--isolated-runs", "1"]
    text = _bench(tender_cmd, *words, "--peer", peer, "--json", str(out), str(guest("hello")))
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


def test_counting_compares_with_minimal_c(tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "count.json"
    _bench(tender_cmd, "--count", "--runs", "2", "--skip", "tender", "--json", str(out), str(guest("hello")))
    counted = json.loads(out.read_text())["counted"]
    assert {"library", "minimal C", "python"} <= set(counted["subjects"])
    assert counted["ratios"]["library / minimal C"]["value"] > 0
    calls = counted["subjects"]["library"].get("calls")
    if calls is not None:  # strace is here
        assert calls["KVM_CREATE_VM"] == 1
        assert calls["KVM_CREATE_VCPU"] == 1
