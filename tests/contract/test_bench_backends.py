"""The benchmarks of both backends run, and they measure what their names say. No test checks a time."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import BENCH, Guest

from tender.bench.points import LIBRARY_POINTS, PROCESS_POINTS, RUN_POINTS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.backends


def _bench(out: Path, *words: str) -> dict[str, Any]:
    command = [*BENCH, *words, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def test_every_step_of_a_run_has_a_time_stamp(
    tender_cmd: list[str], backend: str, guest: Guest, tmp_path: Path
) -> None:
    peer = f"again={tender_cmd[0]} --mem=8 {{elf}} {{args}}"
    words = ["run", "--backend", backend, "--runs", "2", "--warmup", "0", "--pause", "0", "--arg", "x"]
    measured = _bench(tmp_path / "o.json", *words, "--peer", peer, str(guest("hello")))
    subjects = {subject["name"]: subject for subject in measured["regimes"][0]["subjects"]}
    assert list(subjects) == ["tender", "python-path", "module", "python", "site", "again"]
    assert subjects["again"]["command"][-1] == "x"
    assert subjects["python-path"]["command"] == subjects["tender"]["command"]
    for name in ("tender", "python-path", "module", "again"):
        for sample in subjects[name]["samples"]:
            stamps = [sample["points_ns"][point] for point in RUN_POINTS]
            assert stamps == sorted(stamps) and stamps[1] > 0
        assert set(subjects[name]["spans_ms"]) == {"last_console -> console_eof", "console_eof -> reaped"}


def test_the_installed_benchmarks_need_no_checkout(
    tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    """`tender bench boot` and `run` work in another directory, with the guest from the package."""
    expected = {
        "boot": ["library", "pool", "tender", "python"],
        "run": ["tender", "python-path", "module", "python", "site"],
    }
    for name, subjects in expected.items():
        out = tmp_path / f"{name}.json"
        words = [
            name,
            "--backend",
            backend,
            "--runs",
            "2",
            "--warmup",
            "0",
            "--pause",
            "0",
            "--json",
            str(out),
        ]
        done = subprocess.run(
            [*tender_cmd, "bench", *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        measured = json.loads(out.read_text())
        assert measured["benchmark"] == name and measured["guest"]["file"] == "hello.elf"
        (regime,) = measured["regimes"]
        assert [subject["name"] for subject in regime["subjects"]] == subjects
        for subject in regime["subjects"]:
            assert len(subject["samples"]) == 2
            for sample in subject["samples"]:
                points = LIBRARY_POINTS if subject["kind"] == "library" else PROCESS_POINTS
                stamps = [sample["points_ns"][p] for p in points if p in sample["points_ns"]]
                assert stamps[0] == 0 and stamps == sorted(stamps) and stamps[-1] > 0


def test_disk_requests_are_measured_together_with_a_bare_loop(backend: str, tmp_path: Path) -> None:
    words = ["block", "--backend", backend, "--rounds", "1", "--requests", "20", "--disk-mib", "1"]
    measured = _bench(tmp_path / "o.json", *words)
    computed = {name for name in measured["series"] if name.split()[2] == "0"}
    assert len(measured["series"].keys() - computed) == 3 * 8
    assert measured["series"]["write rand 4096 tender-batch"]["summary"]["min"] > 0
    assert measured["series"]["write rand 4096 tender"]["summary"]["min"] > 0
    assert {r["to"].split()[-1] for r in measured["ratios"]} == {"bare", "tender"}


def test_a_small_and_a_large_image_are_booted(backend: str, tmp_path: Path) -> None:
    words = ["size", "--backend", backend, "--rounds", "1", "--pause", "0", "--mem", "32"]
    measured = _bench(tmp_path / "o.json", *words)
    assert list(measured["series"]) == [
        f"{w} {s}" for s in ("64 KiB", "16 MiB") for w in ("library", "tender")
    ]
    small, large = (int(measured["conditions"][f"file of {s}"].split()[0]) for s in ("64 KiB", "16 MiB"))
    assert small > 64 << 10 and large - small == (16 << 20) - (64 << 10)
    assert all(s["summary"]["min"] > 0 for s in measured["series"].values())


def test_a_hypercall_is_measured_together_with_its_yardsticks(backend: str, tmp_path: Path) -> None:
    measured = _bench(
        tmp_path / "o.json", "hypercall", "--backend", backend, "--rounds", "1", "--calls", "20"
    )
    assert ("exit raw" in measured["series"]) == (backend == "kvm")
    assert all(s["summary"]["min"] > 0 for s in measured["series"].values())


@pytest.mark.tap
def test_frames_are_measured_together_with_a_peer(
    tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    peer = f"again={tender_cmd[0]} --mem=16 --net:service0={{tap}} {{elf}} {{args}}"
    words = [
        "net",
        "--backend",
        backend,
        "--rounds",
        "1",
        "--frames",
        "20",
        "--case",
        "tx:64",
        "--case",
        "rx:1514",
    ]
    measured = _bench(tmp_path / "o.json", *words, "--peer", peer)
    assert set(measured["series"]) == {f"{c} {s}" for c in ("tx 64", "rx 1514") for s in ("tender", "again")}
    assert all(s["summary"]["min"] > 0 for s in measured["series"].values())


@pytest.mark.tap
def test_counts_are_equal_to_the_committed_ones(backend: str) -> None:
    """System calls, ioctls and exits for each boot, frame and request: a change that alters one must also
    change the table."""
    words = ["count", "--backend", backend, "--expect", str(ROOT / "bench" / "expected_counts.txt")]
    done = subprocess.run([*BENCH, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_memory_of_idle_guests_is_counted(backend: str, tmp_path: Path) -> None:
    words = ["memory", "--backend", backend, "--rounds", "1", "--guests", "1,2", "--mem", "8"]
    measured = _bench(tmp_path / "o.json", *words)
    assert set(measured["series"]) == {
        f"{backend} {n} {f}" for n in (1, 2) for f in ("Pss", "Private", "Beyond")
    }
    pss, beyond = (measured["series"][f"{backend} 2 {f}"]["summary"]["min"] for f in ("Pss", "Beyond"))
    assert 0 < beyond < pss


def test_the_number_of_live_vms_grows_to_the_maximum(backend: str, tmp_path: Path) -> None:
    words = [
        "density",
        "--backend",
        backend,
        "--max",
        "3",
        "--slowdown",
        "1000",
        "--mem",
        "8",
        "--per-process",
        "2",
    ]
    measured = _bench(tmp_path / "o.json", *words)
    assert measured["notes"] == [f"{backend}: 3 live VMs: --max reached"]
    boots, memory, _kernel = measured["curves"].values()
    assert [n for n, _ in boots[backend]] == [1, 2, 3] and [n for n, _ in memory[backend]] == [1, 2, 3]
    assert all(kib > 0 for _, kib in memory[backend])
