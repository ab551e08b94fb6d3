"""The arithmetic, words and formats of the benchmarks. tests/contract/test_bench_boot.py tests their
measurements."""

import argparse
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pyperf
import pytest
from harness import (
    CHECKOUT,
    block,
    boot,
    compare,
    compile,
    count,
    counts,
    density,
    fleet,
    footprint,
    goal_plan,
    goals,
    hypercall,
    memory,
    minimal,
    net,
    picture,
    pyperf_format,
    revisions,
    run,
    size,
    syscalls,
    tables,
    ways,
)
from harness import command as harness_command
from harness.subjects import RunSubject, SpawnedSubject

from tender.bench import boot as user_boot
from tender.bench import facts, peers, points, progress, regimes, report, stats
from tender.bench import run as user_run
from tender.bench.points import Sample
from tender.bench.subjects import (
    BenchError,
    LibrarySubject,
    ProcessSubject,
    Subject,
    parse_peer,
    parse_worker_line,
)
from tender.cli import bench as command
from tender.errors import ConfigError

# ---- statistics


def test_percentile_is_a_measured_value() -> None:
    assert stats.percentile([5, 1, 3, 2, 4], 99) == 5
    assert stats.percentile(list(range(1, 201)), 99) == 198
    assert stats.percentile([7], 1) == 7


def test_summary_of_a_series() -> None:
    assert stats.summarise([3.0, 1.0, 2.0]) == stats.Summary(n=3, median=2.0, min=1.0, p99=3.0)


def test_an_empty_series_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.percentile([], 50)


def test_ratio_of_constant_series_is_exact() -> None:
    assert stats.ratio_of_medians([6.0] * 9, [2.0] * 9) == stats.Ratio(value=3.0, low=3.0, high=3.0)


def test_the_interval_contains_the_ratio_and_is_repeatable() -> None:
    a = [1.0 + i % 7 / 10 for i in range(60)]
    b = [2.0 + i % 5 / 10 for i in range(60)]
    ratio = stats.ratio_of_medians(a, b)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.low < ratio.high
    assert ratio == stats.ratio_of_medians(a, b)


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_a_ratio_of_an_empty_series_or_to_zero_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="ratio"):
        stats.ratio_of_medians(a, b)


# ---- peers and processes


def test_a_peer_is_named_after_its_program() -> None:
    assert parse_peer("/opt/solo5-hvt --mem=16 {elf}", "/a b.elf") == (
        "solo5-hvt",
        ("/opt/solo5-hvt", "--mem=16", "/a b.elf"),
    )


def test_a_peer_may_be_given_a_name() -> None:
    name, words = parse_peer("old-hvt=solo5-hvt --mem=16 {elf}", "/x.elf")
    assert (name, words) == ("old-hvt", ("solo5-hvt", "--mem=16", "/x.elf"))


def test_the_image_may_be_inside_a_word() -> None:
    assert parse_peer("qemu -kernel=file:{elf}", "/x")[1] == ("qemu", "-kernel=file:/x")


@pytest.mark.parametrize("text", ["", "name=", "solo5-hvt", "solo5-hvt 'x {elf}"])
def test_a_peer_that_cannot_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--peer"):
        parse_peer(text, "/x.elf")


def test_a_workers_line_becomes_points_counted_from_its_start() -> None:
    sample = parse_worker_line("1000 1100 1110 1200 0 1300 1500 77 3\n")
    assert sample.points_ns == {
        "start": 0,
        "vm_created": 100,
        "first_run": 110,
        "first_exit": 200,
        "guest_exit": 300,
        "closed": 500,
    }
    assert (sample.cpu_ns, sample.minor_faults) == (77, 3)


def test_a_process_passes_its_points_in_order() -> None:
    sample = ProcessSubject("echo", ("echo", "hello")).boot()
    assert list(sample.points_ns) == list(points.PROCESS_POINTS)
    assert sorted(sample.points_ns.values()) == list(sample.points_ns.values())


def test_a_silent_process_has_no_first_console() -> None:
    assert "first_console" not in ProcessSubject("true", ("true",)).boot().points_ns


def test_a_failed_process_gives_no_sample() -> None:
    with pytest.raises(BenchError, match="ended with 1"):
        ProcessSubject("false", ("false",)).boot()
    with pytest.raises(BenchError, match="No such file"):
        ProcessSubject("absent", ("/nonexistent/program",)).boot()


# ---- the plan and the object


def test_every_second_round_has_the_reverse_order() -> None:
    assert regimes.rounds(3, ["a", "b"]) == [["a", "b"], ["b", "a"], ["a", "b"]]


class _Fixed(Subject):
    """Boots that take a given time, without a guest."""

    def __init__(self, name: str, kind: str, stamps: dict[str, int]) -> None:
        super().__init__(name, (name,))
        self.kind = kind
        self.points = points.LIBRARY_POINTS if kind == "library" else points.PROCESS_POINTS
        self.stamps = stamps

    def boot(self) -> Sample:
        return Sample(dict(self.stamps), cpu_ns=1_000_000, minor_faults=5)


def _subjects() -> list[Subject]:
    library = {name: i * 1_000_000 for i, name in enumerate(points.LIBRARY_POINTS)}
    tender = {"spawn": 0, "first_console": 15_000_000, "console_eof": 16_000_000, "reaped": 18_000_000}
    python = {"spawn": 0, "console_eof": 12_000_000, "reaped": 12_500_000}
    return [
        _Fixed("library", "library", library),
        _Fixed("tender", "process", tender),
        _Fixed("python", "process", python),
    ]


def _measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    image = tmp_path / "app.elf"
    image.write_bytes(b"not run")
    monkeypatch.setattr(boot, "make_subjects", lambda *_: _subjects())
    options = boot.parser().parse_args(["--runs", "4", "--warmup", "1", "--pause", "0.001", str(image)])
    return boot.run(options)


def test_the_result_is_json_with_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = json.loads(json.dumps(_measured(tmp_path, monkeypatch)))
    assert measured["schema"] == 1
    assert set(measured) == {
        *("schema", "benchmark", "tender", "guest", "mem_mib", "host"),
        *("warnings", "notes", "regimes", "counted"),
    }
    assert [(r["regime"], len(r["subjects"][0]["samples"])) for r in measured["regimes"]] == [
        ("back-to-back", 4),
        ("isolated", 2),
    ]
    assert measured["regimes"][0]["subjects"][0]["summary_ms"]["first_exit"]["median"] == 3.0


def test_a_silent_peer_is_compared_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = json.loads(json.dumps(_measured(tmp_path, monkeypatch)))
    ratios = {(r["of"], r["of_point"], r["to_point"]): r["value"] for r in measured["regimes"][0]["ratios"]}
    assert ratios == {
        ("library", "first_exit", "console_eof"): 0.25,
        ("tender", "first_console", "console_eof"): 1.25,
        ("tender", "reaped", "reaped"): 1.44,
    }


def test_the_table_names_both_ends_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = report.table(_measured(tmp_path, monkeypatch))
    assert "library: start -> first_exit" in text
    assert "tender -> first_console / python -> console_eof" in text
    for fact in ("cpu ", "kernel ", "mitigations ", "nx_huge_pages ", "debugfs ", "loadavg "):
        assert f"  {fact}" in text


def test_the_plot_shows_every_regime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture.boots(_measured(tmp_path, monkeypatch), str(tmp_path / "boot.png"))
    width, height = _pixels(tmp_path / "boot.png")
    assert width >= 600 and height >= 400


def _pixels(path: Path) -> tuple[int, int]:
    written = path.read_bytes()
    assert written.startswith(b"\x89PNG\r\n")
    return int.from_bytes(written[16:20], "big"), int.from_bytes(written[20:24], "big")


def _pictures(number: int, to: Path) -> dict[str, int]:
    """Draws pictures of so many samples, goals, counts and changes; returns their heights."""
    host = facts.host_facts()
    names = [f"tx {i}, per frame: exits" for i in range(number)]
    rows = {name: float(i) for i, name in enumerate(names, 1)}
    series = {name: [1.0, 2.0] for name in names}
    described = compare.describe(
        "net", pyperf_format.MILLISECONDS, series, [], conditions={"a": 1}, host=host
    )
    picture.samples(described, str(to / "samples.png"))
    goal = goals.Goal("a goal", 2.0, at_least=True)
    made = [goals.Row(goal, value=3.0).to_dict(), *[goals.Row(goal, why="no KVM").to_dict()] * number]
    picture.goals(made, str(to / "goals.png"), host)
    picture.counts("kvm", rows, str(to / "counts.png"), host)
    more = {name: value + 1 for name, value in rows.items()}
    path = str(to / "revisions.png")
    picture.revisions(rows, more, {names[0]: True}, path, names=("a", "b"), host=host)
    return {path.stem: _pixels(path)[1] for path in to.glob("*.png")}


def test_a_picture_grows_with_what_it_shows(tmp_path: Path) -> None:
    """Each row has a fixed height, so names do not overlap."""
    small, large = _pictures(3, tmp_path), _pictures(60, tmp_path)
    assert set(small) == {"samples", "goals", "counts", "revisions"}
    assert all(large[name] > small[name] + 57 * 20 for name in small), (small, large)


def test_a_curve_has_a_panel_next_to_its_samples(tmp_path: Path) -> None:
    described = compare.describe(
        "density", pyperf_format.MILLISECONDS, {"a 1..10": [1.0]}, [], conditions={}, host=facts.host_facts()
    )
    picture.samples(described, str(tmp_path / "one.png"))
    described["curves"] = {"ms": {"a": [(1, 1.0), (2, 3.0)], "b": []}}
    picture.samples(described, str(tmp_path / "two.png"))
    assert _pixels(tmp_path / "two.png")[0] > 1.5 * _pixels(tmp_path / "one.png")[0]


def test_an_empty_result_is_not_drawn(tmp_path: Path) -> None:
    host, to = facts.host_facts(), str(tmp_path / "x.png")
    with pytest.raises(BenchError, match="nothing to draw"):
        picture.counts("kvm", {}, to, host)
    with pytest.raises(BenchError, match="nothing to draw"):
        picture.goals([goals.Row(goals.GOALS[0], why="no KVM").to_dict()], to, host)
    with pytest.raises(BenchError, match="nothing to draw"):
        picture.revisions({"a": 1.0}, {"b": 1.0}, {}, to, names=("a", "b"), host=host)
    with pytest.raises(BenchError, match="nothing to draw"):
        picture.samples({"series": {}}, to)
    assert not list(tmp_path.iterdir())


def test_a_plot_without_matplotlib_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BenchError, match="matplotlib") as caught:
        picture.check()
    assert "pip install" in caught.value.hint


def test_a_taken_name_and_an_absent_program_are_refused(tmp_path: Path) -> None:
    for peer, what in (("python=true {elf}", "taken"), ("/nonexistent/hvt {elf}", "no such program")):
        options = boot.parser().parse_args(["--skip", "library", "--peer", peer])
        with pytest.raises(ConfigError, match=what):
            boot.make_subjects(options, "/x.elf", [])


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for one in (command, harness_command):
        assert one.main(["flood"]) == 1
        assert "'flood'" in capsys.readouterr().err
        assert one.main(["--help"]) == 0


# ---- facts


def test_a_clock_that_counts_instructions_is_recognised() -> None:
    emulated = {"model name": "QEMU TCG CPU version 2.5+", "cpu MHz": "999.993"}
    assert facts.counts_instructions(emulated)
    assert not facts.counts_instructions({**emulated, "cpu MHz": "2494.1"})
    assert not facts.counts_instructions({"model name": "Some Xeon", "cpu MHz": "1000.0"})


def test_conditions_that_spoil_a_measurement_give_warnings() -> None:
    host = {
        "dont_write_bytecode": True,
        "loadavg": [3.0, 0, 0],
        "cpus": 2,
        "counts_instructions": False,
        "cpu": "X",
    }
    found = facts.warnings_of(host)
    assert len(found) == 2
    assert "PYTHONDONTWRITEBYTECODE" in found[0]
    assert "busy" in found[1]
    assert facts.warnings_of({**host, "dont_write_bytecode": False, "loadavg": [0.1, 0, 0]}) == []


# ---- the counted mode

_STRACE = """\
126   ioctl(5, KVM_CREATE_VM, 0)                    = 6
126   ioctl(7</dev/kvm>, KVM_RUN, 0)                = 0
126   ioctl(7, KVM_RUN, 0 <unfinished ...>
127   write(1, ""..., 6)                = 6
126   <... ioctl resumed>)              = 0
126   ioctl(1, TCGETS, 0x7ffc)          = -1 ENOTTY
126   +++ exited with 0 +++
"""


def test_strace_lines_are_counted_once_and_by_request() -> None:
    assert syscalls.count_lines(_STRACE) == {
        "system calls": 5,
        "KVM_CREATE_VM": 1,
        "KVM_RUN": 2,
        "write": 1,
        "ioctl": 1,
    }


def test_calls_of_the_sandbox_process_count_from_its_execve_on() -> None:
    log = """\
7 openat(3, ""..., O_RDONLY) = 4
9 dup2(3, 4) = 4
9 execveat(3, ""..., [], 0, AT_EMPTY_PATH) = 0
7 write(1, ""..., 6) = 6
9 mmap(NULL, 4096) = 0x7f
9 recvfrom(5, <unfinished ...>
9 <... recvfrom resumed>""..., 1, 0) = 1
"""
    assert syscalls.count_lines(log)[syscalls.PROGRAM] == 2


# ---- counts that are committed

_EXPECTED = """\
# comment
kvm      boot: KVM ioctls   16
sandbox  tx 64, per frame: exits   1
sandbox  gone   2
"""


def _calls(counted: list[dict[str, int]], n: int) -> "Counter[str]":
    return Counter({"exits": n, "read": 2 * n, "futex": len(counted), **counted.pop(0)})


def test_an_additional_call_in_one_run_is_counted_again() -> None:
    late = [{}, {"ppoll": 1}, {}, {}]
    few, more = counts.few_and_more(lambda n: _calls(late, n))
    rows: dict[str, float] = {}
    counts._add(rows, "tx", few + Counter({"system calls": 1}), more + Counter({"system calls": 9}), 200)
    assert rows == {"tx: exits": 1, "tx: system calls": 2} and not late


def test_a_call_that_varies_in_every_try_stays_a_fraction() -> None:
    always = [{}, {"ppoll": 7}] * counts._TRIES
    few, more = counts.few_and_more(lambda n: _calls(always, n))
    assert counts._difference(few, more, "calls") == 407 and not always


def test_every_difference_from_the_committed_counts_is_reported() -> None:
    expected = counts.read_table(_EXPECTED)
    assert expected["kvm", "boot: KVM ioctls"] == 16
    rows = {"tx 64, per frame: exits": 1.0, "~boot: minor page faults": 7.0}
    assert counts.differences(expected, "kvm", {"boot: KVM ioctls": 16.0}, {}) == []
    assert counts.differences(expected, "kvm", {"boot: KVM ioctls": 15.0}, {}) == [
        "boot: KVM ioctls: 15, expected 16"
    ]
    assert counts.differences(expected, "sandbox", {**rows, "new": 3.0}, {"gone": "no strace"}) == [
        "gone: not counted (no strace), expected 2",
        "new: 3, not in the table",
    ]


def test_a_fraction_of_a_call_is_a_difference() -> None:
    expected = counts.read_table("sandbox tx: calls 1\n")
    assert counts.differences(expected, "sandbox", {"tx: calls": 1.005}, {})


def test_an_update_of_the_committed_table_changes_one_backend() -> None:
    text = counts.updated(_EXPECTED, "sandbox", {"tx 64, per frame: exits": 0.5})
    found = counts.read_table(text)
    assert found == {("kvm", "boot: KVM ioctls"): 16.0, ("sandbox", "tx 64, per frame: exits"): 0.5}
    assert text.startswith("# comment\n")
    assert counts.updated(text, "sandbox", {"tx 64, per frame: exits": 0.5}) == text


def test_a_line_without_a_count_is_refused() -> None:
    with pytest.raises(BenchError, match="line 1"):
        counts.read_table("kvm boot many\n")


# ---- two revisions


def _judged(a: dict[str, float], b: dict[str, float]) -> list[str]:
    return revisions.judge(a, b, names=("aaa", "bbb"), tolerance=3.0)[1]


def test_an_exact_count_has_no_tolerance_and_an_estimate_has() -> None:
    assert _judged({"x": 100, "~y": 100}, {"x": 100, "~y": 103}) == []
    assert _judged({"x": 100}, {"x": 101}) == ["x: 100 became 101 (+1.0 %, allowed 0 %)"]
    assert _judged({"~y": 100}, {"~y": 104}) == ["~y: 100 became 104 (+4.0 %, allowed 3 %)"]


def test_a_missing_count_is_worse_but_a_better_or_new_one_is_not() -> None:
    assert _judged({"x": 2}, {"x": 1, "new": 9}) == []
    assert _judged({"x": 2}, {}) == ["x: 2 in aaa, not counted in bbb"]
    assert _judged({"x": 0}, {"x": 1}) == ["x: 0 became 1 (+inf %, allowed 0 %)"]
    assert _judged({"x": 0}, {"x": 0}) == []


def test_the_table_of_two_revisions_marks_what_changed() -> None:
    text = revisions.judge({"x": 2, "y": 2}, {"x": 1, "y": 3}, names=("aaa", "bbb"), tolerance=0)[0]
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["better", "worse"]


def test_two_names_of_one_commit_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "_commit", lambda _checkout, _name: "abc")
    assert revisions.main(["main", "HEAD"]) == 1
    assert "main and HEAD are the same commit, abc" in capsys.readouterr().err


def test_a_revision_is_built_in_an_environment_with_the_packages_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment links to this one's packages, except Tender: the revision has its own."""
    ran: list[str] = []
    monkeypatch.setattr(revisions, "_git", lambda checkout, *words: "")
    monkeypatch.setattr(
        revisions, "_run", lambda words, place, **options: ran.append(words[0]) if options else _venv(words)
    )
    revisions.build(tmp_path, "abc")
    place = tmp_path / "build" / "revisions" / "abc"
    assert (place / "built").exists() and ran == [str(place / "tree" / "tools" / "build")]
    packages = (
        place / "environment" / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    )
    assert (packages / "mesonpy").is_symlink() and (packages / "cffi" / "__init__.py").exists()
    assert not (packages / "tender").exists()


def _venv(words: "list[str]") -> None:
    subprocess.run(words, check=True, timeout=300)


def test_a_ratio_above_its_goal_is_missed() -> None:
    ratios = {
        "library / minimal C": {"value": 1.2, "goal": 1.15},
        "command / python": {"value": 1.4, "goal": 1.5},
        "library / hvt": {"value": 9.0, "goal": None},
    }
    assert count.missed_goals({"ratios": ratios}) == ["library / minimal C is 1.200, the goal is 1.15"]


def test_minimal_c_has_the_points_of_its_source() -> None:
    source = (CHECKOUT / "bench" / "minimal_kvm.c").read_text()
    inside = source.partition("enum point {")[2].partition("}")[0]
    assert [name.strip().lower() for name in inside.split(",")][:-1] == list(minimal.POINTS)


def test_every_point_has_a_meaning() -> None:
    assert set(points.MEANING) == {
        *points.LIBRARY_POINTS,
        *points.PROCESS_POINTS,
        *points.RUN_POINTS,
        *points.SPAWNED_POINTS,
    }


def test_a_worker_that_dies_is_an_error(tmp_path: Path) -> None:
    subject = LibrarySubject("library", str(tmp_path / "absent.elf"), 16)
    try:
        with pytest.raises(BenchError, match="ended with"):
            subject.boot()
    finally:
        subject.close()


# ---- comparisons of one unit

_HOST: dict[str, object] = {"dont_write_bytecode": False, "loadavg": [0.0], "cpus": 2, "cpu": "X"}
_HOST["counts_instructions"] = False


def _compared(**series: list[float]) -> dict[str, Any]:
    wanted = [compare.Comparison("a", "b", goal=1.3), compare.Comparison("a", "absent")]
    unit = pyperf_format.Unit("unit", "second", 1e-3)
    found = compare.describe("x", unit, series, wanted, conditions={"calls": 7}, host=_HOST)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_a_comparison_contains_its_ratio_and_goal() -> None:
    measured = _compared(a=[6.0, 6.0], b=[4.0, 4.0])
    assert measured["ratios"] == [
        {"of": "a", "to": "b", "value": 1.5, "low": 1.5, "high": 1.5, "goal": 1.3, "at_least": False}
    ]
    assert measured["series"]["a"]["samples"] == [6.0, 6.0] and measured["warnings"] == []


def test_nothing_is_compared_with_zero() -> None:
    assert _compared(a=[6.0], b=[0.0])["ratios"] == []


def test_the_table_of_a_comparison_shows_conditions_unit_and_goal() -> None:
    measured = _compared(a=[6.0, 6.0], b=[4.0, 4.0])
    measured["host"] = facts.host_facts()
    text = tables.comparison_table(measured)
    for words in ("x: calls 7", "unit\n", "a / b", "1.500  [1.500, 1.500]  goal <= 1.30"):
        assert words in text


def test_hypercall_lines_become_cycles_per_call() -> None:
    series: compare.Series = {}
    hypercall.add(series, "guest", "net_read gate 5000\n", 100)
    hypercall.add(series, "filtered", "net_read 2500\n", 100)
    assert series == {"net_read gate": [50.0], "net_read filtered": [25.0]}


def test_a_peers_hypercalls_are_compared_with_the_same_way() -> None:
    series: compare.Series = {}
    hypercall.add(series, "hvt", "Solo5: exit\nwalltime trap 5000\n", 100)
    hypercall.add(series, "raw", "exit 4000\n", 100)
    assert series == {"walltime trap hvt": [50.0], "exit raw": [40.0]}
    goals_of = {(c.of, c.to): c.goal for c in hypercall.comparisons(["hvt"])}
    assert goals_of["walltime trap", "exit raw"] == 1.05
    assert goals_of["walltime trap", "exit real"] is None
    assert goals_of["block_read trap", "block_read trap hvt"] == 1.0
    assert ("net_read trap", "net_read trap hvt") not in goals_of


def test_every_way_of_a_hypercall_is_compared_with_both_yardsticks() -> None:
    goals = {(c.of, c.to): c.goal for c in hypercall.comparisons()}
    for kind in hypercall.KINDS:
        for way in hypercall.WAYS:
            for yardstick in hypercall.YARDSTICKS:
                has_goal = way != "trap" and kind != "walltime"
                assert goals[f"{kind} {way}", f"{kind} {yardstick}"] == (1.3 if has_goal else None)


def test_a_rate_is_computed_from_the_guests_times() -> None:
    assert net.rate("ready\ntx 64 1000 2000000\n", "tx", 64, 1000, 0) == 500.0
    with pytest.raises(BenchError, match="ended with 3"):
        net.rate("ready\n", "tx", 64, 1000, 3)


def test_files_for_pyperf_are_in_seconds_where_less_is_better() -> None:
    """The test reads the file with pyperf itself."""
    rate = pyperf_format.Unit("thousand a second", "second", 1e-3, rate=True)
    host = {"cpu": "X", "kernel": "6.1", "python": "CPython 3.11"}
    slow = pyperf_format.document("net", {"tx": [100.0, 101.0, 99.0] * 5, "none": [0.0]}, rate, host)
    fast = pyperf_format.document("net", {"tx": [200.0, 202.0, 198.0] * 5}, rate, host)
    suites = [pyperf.BenchmarkSuite.loads(json.dumps(found)) for found in (slow, fast)]
    assert [suite.get_benchmark_names() for suite in suites] == [["tender-net tx"]] * 2
    means = [suite.get_benchmark("tender-net tx").mean() for suite in suites]
    assert means[0] == pytest.approx(1e-5, rel=1e-3) and means[1] == pytest.approx(5e-6, rel=1e-3)


def test_pyperf_compares_two_of_our_files(tmp_path: Path) -> None:
    files = []
    for name, value in (("a", 10.0), ("b", 20.0)):
        found = pyperf_format.document(
            "boot", {"library": [value, value * 1.01] * 10}, pyperf_format.MILLISECONDS, {"cpu": "X"}
        )
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(found))
    words = [sys.executable, "-m", "pyperf", "compare_to", *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10.1 ms" in done.stdout and "20.1 ms" in done.stdout and "2.00x slower" in done.stdout


def test_a_progress_bar_shows_progress_and_remaining_time() -> None:
    bar = progress.Bar(4, out=io.StringIO())
    bar.done = 1
    assert bar.line("boot", 30.0) == "[######..................] 1/4 boot, 1:30 left"


def test_a_progress_bar_is_silent_except_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, silent in ((io.StringIO(), True), (Terminal(), False)):
        with progress.Bar(2, out=out) as bar:
            bar.step("one")
        assert (out.getvalue() == "") == silent


def test_placeholders_of_a_peer_are_filled_and_arguments_stay_words() -> None:
    words = ("x", "--net={tap}", "{disk}", "{args}")
    assert peers.fill(words, {"tap": "t0", "disk": "/d"}, ("a", "b")) == ("x", "--net=t0", "/d", "a", "b")


def test_a_peer_without_a_placeholder_or_with_a_used_name_is_refused() -> None:
    assert peers.parse(["p=true {elf} {tap}"], "/x", wants=("tap",)) == {"p": ("true", "/x", "{tap}")}
    with pytest.raises(ConfigError, match=r"does not contain \{tap\} and \{args\}"):
        peers.parse(["p=true {elf}"], "/x", wants=("tap", "args"))
    with pytest.raises(ConfigError, match="taken"):
        peers.parse(["p=true {elf}", "p=true {elf}"], "/x")
    with pytest.raises(ConfigError, match="no such program"):
        peers.parse(["p=/absent {elf}"], "/x")


@pytest.mark.parametrize("text", ["read:512", "read:seq:500", "move:seq:512", "read:seq:131072"])
def test_an_impossible_disk_case_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a multiple of 512"):
        block.case(text)


def test_the_cost_of_a_request_without_bytes_is_extrapolated_from_two_sizes() -> None:
    """A request takes 1000 ns and half a nanosecond per byte; rates are in thousand requests per second."""
    series = {
        "read seq 512 tender": [1e6 / 1256],
        "read seq 4096 tender": [1e6 / 3048],
        "read seq 512 hvt": [500.0],
    }
    assert block.add_without_bytes(series, ["tender", "hvt"]) == ["read seq 0"]
    assert series["read seq 0 tender"] == [pytest.approx(1000.0)]
    assert "read seq 0 hvt" not in series  # one size alone does not define a line
    flat = {
        "write rand 512 a": [100.0],
        "write rand 4096 a": [1.0],
    }  # so steep that no time is left without the bytes
    assert block.add_without_bytes(flat, ["a"]) == []
    compared = {(c.of, c.to): c.goal for c in block.comparisons(["tender", "hvt"], ["read seq 0"])}
    assert compared == {("read seq 0 tender", "read seq 0 hvt"): None}


def test_block_is_compared_with_the_bare_loop_and_each_peer() -> None:
    found = {(c.of, c.to): c.goal for c in block.comparisons(["tender", "spt", "bare"], ["read seq 512"])}
    assert found == {
        ("read seq 512 tender", "read seq 512 spt"): 1.4,
        ("read seq 512 tender", "read seq 512 bare"): None,
    }


def test_only_batched_reads_from_a_cold_disk_have_a_goal() -> None:
    what = block.case("read:cold:4096")
    found = {
        (c.of, c.to): c.goal for c in block.comparisons(["tender", "tender-batch", "spt", "bare"], [what])
    }
    assert found[f"{what} tender-batch", f"{what} spt"] == 2.5
    assert [goal for goal in found.values() if goal] == [2.5]
    assert "dropped" in " ".join(block.notes([what])) and "is in" not in " ".join(block.notes([what]))
    assert len(block.notes([what, "read seq 512"])) == 2


def test_a_disk_that_cannot_be_made_cold_is_refused() -> None:
    """/dev/shm is in memory, so its files keep their pages."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as disk:
        disk.truncate(8 * 4096)
        assert block.cached_pages(disk.fileno()) == 0
        disk.write(bytes(3 * 4096))
        disk.flush()
        assert block.cached_pages(disk.fileno()) == 3
        with pytest.raises(BenchError, match="3 pages stay"):
            block.drop_pages(disk.fileno(), disk.name)


def test_a_case_of_net_is_a_mode_and_a_size() -> None:
    assert net.case("tx:1514") == ("tx", 1514)
    with pytest.raises(argparse.ArgumentTypeError, match="MODE:SIZE"):
        net.case("tx:9000")


def test_net_runs_the_same_program_for_each_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "tender_command", lambda: ("tender",))
    options = net.parser().parse_args(["/a/x.hvt", "--peer", "spt=true --net:s={tap} {elf:.spt} {args}"])
    words = net.commands(options)
    assert words["tender"][-2:] == ("/a/x.hvt", "{args}")
    assert words["spt"] == ("true", f"--net:s={net.TAP}", "/a/x.spt", "{args}")
    options.peer = ["spt=true {elf}"]
    with pytest.raises(ConfigError, match="args"):
        net.commands(options)


def test_net_refuses_a_host_with_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.net.socket.if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    with pytest.raises(BenchError, match="eth0") as refused:
        net.make_tap(10)
    assert "tools/with_net --" in refused.value.hint


# ---- memory

_SMAPS = """\
00010000-00014000 r--p 00000000 00:01 12                                 /memfd:tender-vm (deleted)
Size:                 16 kB
Pss:                   8 kB
Private_Clean:         0 kB
Private_Dirty:         8 kB
VmFlags: rd mr mw
00100000-01000000 rw-p 00000000 00:00 0
Pss:                 100 kB
Private_Clean:         4 kB
Private_Dirty:        90 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Pss:                  30 kB
Private_Dirty:        30 kB
"""


def test_guest_memory_at_guest_addresses_is_separated_from_the_monitors() -> None:
    found = footprint.of_mappings(footprint.parse_smaps(_SMAPS), 16 << 20)
    assert (found.pss, found.private, found.guest) == (138, 132, 108)


def test_guest_memory_elsewhere_is_a_run_of_exactly_its_size() -> None:
    text = """\
7f0000000000-7f0000100000 rw-p 0 00:00 1 /memfd:tender-image (deleted)
Pss: 10 kB
7f0000100000-7f0000200000 rw-p 0 00:00 0
Pss: 20 kB
7f0000300000-7f0000400000 rw-p 0 00:00 0 [heap]
Pss: 40 kB
"""
    mappings = footprint.parse_smaps(text)
    assert footprint.of_mappings(mappings, 2 << 20).guest == 30
    assert footprint.of_mappings(mappings, 4 << 20).guest is None


def test_adjacent_guest_mappings_are_counted_once() -> None:
    """Each guest has two mappings. The second mapping of one and the first of the next also form a run of
    that length."""
    text = ""
    for at in (0x7F0000000000, 0x7F0000200000):
        for start, end in ((at, at + 0x100000), (at + 0x100000, at + 0x200000)):
            text += f"{start:x}-{end:x} rw-p 0 00:01 5 /memfd:tender-image (deleted)\nPss: 10 kB\n"
    assert footprint.of_mappings(footprint.parse_smaps(text), 2 << 20).guest == 40


def test_a_stack_as_large_as_guest_memory_is_not_counted_as_guest_memory() -> None:
    stack = "7e0000000000-7e0000001000 ---p 0 00:00 0\nPss: 0 kB\n7e0000001000-7e0000200000 rw-p 0 00:00 0\nPss: 7 kB\n"
    guests = {"/memfd:tender-image (deleted)": 50, "/dev/zero (deleted)": 40}
    for name, pss in guests.items():
        memory = f"7f0000000000-7f0000200000 rw-p 0 00:01 5 {name}\nPss: {pss} kB\n"
        mappings = footprint.parse_smaps(stack + memory)
        assert footprint.of_mappings(mappings, 2 << 20).guest == pss
    assert footprint.of_mappings(footprint.parse_smaps(stack), 2 << 20).guest == 7


def test_the_memory_of_this_process_agrees_with_the_kernels_sum() -> None:
    ours = footprint.of_process(os.getpid(), 16 << 20)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    pss = int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    assert 0.8 * pss < ours.pss < 1.2 * pss


def test_numbers_of_guests_are_ascending_and_positive() -> None:
    assert memory.counts("10,1,10") == (1, 10)
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        memory.counts("0")


def test_the_guests_arguments_go_to_tender_and_to_peers(tmp_path: Path) -> None:
    words = [
        "--arg=--end=forever",
        "--arg",
        "x",
        "--ready",
        "up",
        "--peer",
        "hvt=echo up {elf} {args}",
        "/a.hvt",
    ]
    for benchmark in (memory, density):
        options = benchmark.parser().parse_args(words)
        image, others = memory.commands(options)
        assert others == {"hvt": ("echo", "up", "/a.hvt", "--end=forever", "x")}
        with memory.make_fleet("hvt", image, options, others) as peer:
            assert peer.grow() > 0  # it has printed the text that --ready waits for, without a line end


def test_kernel_memory_leaves_out_fields_that_the_kernel_does_not_report() -> None:
    assert footprint.kernel_kib({"SUnreclaim": 5, "PageTables": 2, "MemFree": 100}) == 7


# ---- density


@pytest.mark.parametrize(
    ("boots", "available", "why"),
    [
        ([1.0] * 3, 500, ""),
        ([1.0] * 80, 500, "--max"),
        ([1.0] * 3, 99, "--reserve"),
        ([1.0] * 20 + [10.0] * 20, 500, "--slowdown"),
        ([1.0] * 20 + [9.0] * 20, 500, ""),
        ([1.0] * 19 + [99.0] * 20, 500, ""),
    ],
)
def test_a_density_run_ends_at_the_first_limit(boots: list[float], available: int, why: str) -> None:
    found = density.why_stop(boots, _LIMITS, available=available, tasks_left=None)
    assert found.startswith(why) and bool(found) == bool(why)


_LIMITS = density.Limits(vms=80, reserve_kib=100, tasks=50, slowdown=10.0)


def test_a_density_run_leaves_tasks_for_other_processes() -> None:
    assert density.why_stop([1.0], _LIMITS, available=500, tasks_left=50) == ""
    assert density.why_stop([1.0], _LIMITS, available=500, tasks_left=49).startswith("--tasks")
    assert (density.tasks_left() or 1) > 0


def test_a_point_of_the_curve_is_the_median_of_the_preceding_boots() -> None:
    boots = [9.0, *[1.0] * 19, *[2.0] * 10, *[3.0] * 11]
    assert density.curve(boots) == [(1, 9.0), (2, 5.0), (5, 1.0), (10, 1.0), (20, 1.0), (41, 3.0)]


class _Limited(fleet.Fleet):
    """A fleet with space for a limited number of VMs, each of 10 KiB."""

    def __init__(self, limit: int) -> None:
        super().__init__("limited", 1 << 20)
        self.limit = limit

    def grow(self) -> float:
        if self.count == self.limit:
            raise fleet.Refused("full")
        self.count += 1
        return float(self.count)

    def footprint(self) -> footprint.Footprint:
        return footprint.Footprint(pss=10.0 * self.count, private=0.0, guest=None)


def test_a_fleet_that_cannot_grow_further_is_measured() -> None:
    grown = density.grow(_Limited(7), density.Limits(vms=20, reserve_kib=0, tasks=0, slowdown=100))
    assert len(grown.boots_ms) == 7 and grown.limit == "refused: full"
    assert grown.memory == [(n, 10.0) for n in (1, 2, 5, 7)]


def test_a_live_process_has_a_start_time_and_an_ended_one_has_none() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert fleet._start_time(process.pid).isdigit()
        process.kill()
    assert fleet._start_time(process.pid) == ""


def test_a_fleet_without_any_vm_is_an_error() -> None:
    with pytest.raises(fleet.Refused, match="full"):
        density.grow(_Limited(0), density.Limits(vms=20, reserve_kib=0, tasks=0, slowdown=10))


def test_checkpoints_are_one_two_and_five_of_each_power() -> None:
    assert [n for n in range(1001) if density.is_checkpoint(n)] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


# ---- commands that a small C program starts


def _spawn_loop(*words: str) -> SpawnedSubject:
    return SpawnedSubject("peer", words, spawner=str(compile.program("spawn_loop")))


def test_a_spawned_command_passes_its_points_in_order_each_time() -> None:
    with closing(_spawn_loop("echo", "hello")) as subject:
        for _ in range(2):
            stamps = subject.boot().points_ns
            assert list(stamps) == list(points.SPAWNED_POINTS)
            assert 0 == stamps["spawn"] < stamps["console_seen"]
            assert stamps["reaped"] > 0


def test_a_failed_spawned_command_gives_no_sample() -> None:
    with closing(_spawn_loop("false")) as subject, pytest.raises(BenchError, match="ended with 1"):
        subject.boot()


def test_a_peer_may_boot_a_file_next_to_the_image() -> None:
    assert parse_peer("solo5-spt {elf:.spt} Hi", "/a/b.hvt") == (
        "solo5-spt",
        ("solo5-spt", "/a/b.spt", "Hi"),
    )


def _compared_boots(samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    found = regimes.describe("x", 0.0, [], samples, user_boot.compared)["ratios"]
    return found  # type: ignore[return-value]


def test_the_sandbox_is_compared_at_the_same_points() -> None:
    library = {"start": 0, "console_seen": 300, "closed": 500}
    peer = {"spawn": 0, "console_seen": 600, "reaped": 1000}
    samples = {
        name: [Sample(stamps, cpu_ns=0, minor_faults=0)] * 2
        for name, stamps in (("library", library), ("program", library), ("spt", peer))
    }
    found = {(r["of"], r["of_point"], r["to_point"]): r["value"] for r in _compared_boots(samples)}
    assert found == {
        ("library", "console_seen", "console_seen"): 0.5,
        ("library", "closed", "reaped"): 0.5,
        ("program", "console_seen", "console_seen"): 0.5,
        ("program", "closed", "reaped"): 0.5,
    }


def test_the_end_of_a_run_is_measured_separately() -> None:
    stamps = {"spawn": 0, "first_console": 2, "last_console": 3, "console_eof": 5, "reaped": 9}
    samples = {
        name: [Sample({k: v * 1_000_000 for k, v in stamps.items()}, cpu_ns=0, minor_faults=0)] * 2
        for name in ("tender", "python")
    }
    subjects = [_Fixed(name, "process", {}) for name in samples]
    for subject in subjects:
        subject.points = points.RUN_POINTS
    found = regimes.describe("back-to-back", 0.0, list(subjects), samples, user_run.compared, run.SPANS)
    text = json.loads(json.dumps(found))
    assert text["subjects"][0]["spans_ms"]["console_eof -> reaped"]["median"] == 4.0
    assert [(r["of_point"], r["to_point"], r["value"]) for r in text["ratios"]] == [
        ("first_console", "first_console", 1.0),
        ("reaped", "reaped", 1.0),
    ]


def test_a_run_stamped_by_c_passes_its_points_in_order() -> None:
    runner = str(compile.program("run_loop"))
    with closing(RunSubject("echo", ("echo", "hello"), runner=runner)) as subject:
        stamps = subject.boot().points_ns
        assert list(stamps) == list(points.RUN_POINTS)
        assert sorted(stamps.values()) == list(stamps.values())
    with closing(RunSubject("true", ("true",), runner=runner)) as subject:
        assert list(subject.boot().points_ns) == ["spawn", "console_eof", "reaped"]
    with closing(RunSubject("false", ("false",), runner=runner)) as subject:
        with pytest.raises(BenchError, match="ended with 1"):
            subject.boot()


# ---- the size of an image


def test_large_images_are_compared_with_the_small_one_and_with_each_peer() -> None:
    names = [
        f"{who} {which}" for which in ("64 KiB", "16 MiB", "x.hvt") for who in ("library", "tender", "hvt")
    ]
    found = {(c.of, c.to): c.goal for c in size.comparisons(names, ["64 KiB", "16 MiB", "x.hvt"])}
    assert found["library 16 MiB", "library 64 KiB"] == size.GOAL
    assert [pair for pair, goal in found.items() if goal] == [("library 16 MiB", "library 64 KiB")]
    assert {("tender x.hvt", "tender 64 KiB"), ("tender x.hvt", "hvt x.hvt")} <= set(found)
    assert not any(of == to for of, to in found)


def test_a_command_is_measured_by_its_cpu_time_and_the_library_by_the_clock() -> None:
    command = Sample(
        {"first_console": 9000, "reaped": 9999}, cpu_ns=1, minor_faults=0, first_console_cpu_ns=700
    )
    library = Sample({"first_exit": 500}, cpu_ns=1, minor_faults=0)
    assert (size.ready_ns(command, exact=True), size.ready_ns(command, exact=False)) == (700, 9000)
    assert size.ready_ns(library, exact=True) == 500
    with pytest.raises(BenchError, match="without output"):
        size.ready_ns(Sample({"reaped": 1}, cpu_ns=1, minor_faults=0), exact=False)


# ---- goals

_RATIO = {"of": "tender", "to": "spt", "of_point": "reaped", "to_point": "reaped", "value": 0.5}


def test_a_figure_is_taken_from_a_benchmarks_result() -> None:
    run_object = {"regimes": [{"ratios": [_RATIO]}]}
    assert goals.ratio("tender", "spt", "reaped", "reaped")(run_object) == 0.5
    assert goals.ratio("tender", "spt", "reaped", "reaped", inverse=True)(run_object) == 2.0
    several = {"ratios": [{"of": "a", "to": "x", "value": 3.0}, {"of": "b", "to": "x", "value": 4.0}]}
    assert goals.extreme(max, [goals.ratio("a", "x"), goals.ratio("b", "x")])(several) == 4.0
    assert goals.series("s")({"series": {"s": {"summary": {"median": 7}}}}) == 7.0
    medians = {
        "python-path": ("first_console", 14.0),
        "tender": ("first_console", 2.0),
        "python": ("console_eof", 8.0),
    }
    of_run = [{"name": n, "summary_ms": {point: {"median": m}}} for n, (point, m) in medians.items()]
    figure = goals.less("python-path", "tender", "python")
    assert figure({"regimes": [{"subjects": of_run}]}) == 1.5
    with pytest.raises(LookupError, match="no tender"):
        figure({"regimes": [{"subjects": [s for s in of_run if s["name"] != "tender"]}]})
    with pytest.raises(LookupError, match="other programs on this machine"):
        goals.series("s")({"series": {"s": {"summary": {"median": -7}}}})
    with pytest.raises(LookupError, match="tender to hvt"):
        goals.ratio("tender", "hvt")(run_object)


def test_a_goal_is_met_or_missed_or_has_a_reason() -> None:
    least = goals.Goal("x", 2.0, at_least=True)
    most = goals.Goal("x", 2.0)
    verdicts = [goals.Row(goal, value=value).verdict for goal in (least, most) for value in (1.0, 2.0, 3.0)]
    assert verdicts == ["missed", "met", "met", "met", "met", "missed"]
    assert goals.Row(most, why="no KVM").verdict == "not measured: no KVM"


def test_a_goal_against_another_monitor_is_how_many_times_as_fast() -> None:
    """In each of these goals more is better. So the rows do not mix "times as fast" with "times the time"."""
    monitors = re.compile("solo5|Firecracker")
    compared = [g for g in goals.GOALS if monitors.search(g.text) and not g.text.startswith("private memory")]
    assert len(compared) >= 20
    assert [goal.text for goal in compared if not goal.at_least] == []


def test_every_goal_has_a_row_whatever_could_be_measured() -> None:
    rows = goals.rows_of({}, {"kvm boot": "the test VM failed"}, peers=False)
    assert [row.goal for row in rows] == list(goals.GOALS)
    by_text = {row.goal.text: row.verdict for row in rows}
    assert by_text["boot, library, KVM / the least a C program needs"] == "not measured: the test VM failed"
    assert all(verdict.startswith("not measured: ") for verdict in by_text.values())
    text = goals.table(rows, facts.host_facts(), "kvmbox")
    assert f"0 met, 0 missed, {len(rows)} not measured" in text


def test_a_goal_is_judged_by_its_measurement() -> None:
    ratios = {"library / minimal C": {"value": 1.1}}
    measured = {"kvm boot": {"counted": {"ratios": ratios, "notes": []}}}
    rows = {row.goal.text: row for row in goals.rows_of(measured, {}, peers=False)}
    assert rows["boot, library, KVM / the least a C program needs"].verdict == "met"
    ratios["library / minimal C"]["value"] = 1.2
    rows = {row.goal.text: row for row in goals.rows_of(measured, {}, peers=False)}
    assert rows["boot, library, KVM / the least a C program needs"].verdict == "missed"


@pytest.mark.parametrize("where", ["kvmbox", "host", "none"])
@pytest.mark.parametrize("solo5", [None, Path("/opt/solo5")])
@pytest.mark.parametrize("more", [True, False])
def test_every_command_of_the_plan_is_accepted_by_its_benchmark(
    where: str, solo5: Path | None, more: bool
) -> None:
    plan = goal_plan.Plan(Path("/checkout"), solo5, where, mirage=Path("/x.hvt") if more else None, long=more)
    for name, words in plan.commands.items():
        at = words.index("/checkout/bench")
        module = sys.modules[f"harness.{words[at + 1]}"]
        options = module.parser().parse_args(list(words[at + 2 :]))
        assert options.backend == name.split()[0]
        assert bool(getattr(options, "peer", [])) == (solo5 is not None and name not in _ALONE)
    assert not set(plan.commands) & set(plan.absent)
    wanted = {goal.measurement for goal in goals.GOALS if goal.measurement}
    assert wanted == {*plan.commands, *plan.absent}


_ALONE = (
    "sandbox size", "sandbox hypercall", "sandbox ways", "sandbox density", "sandbox many", "kvm size", "kvm times",
)  # fmt: skip


def test_a_goal_that_is_not_measured_here_names_what_would_measure_it() -> None:
    plan = goal_plan.Plan(Path("/checkout"), Path("/opt/solo5"), "kvmbox")
    for row in goals.rows_of({}, plan.absent, peers=True):
        if row.goal.measurement in plan.absent:
            assert "python bench" in row.verdict or "TENDER_BENCH_" in row.verdict


def test_figures_of_boots_and_of_live_vms() -> None:
    subjects = [{"name": "pool", "summary_ms": {"first_exit": {"median": 0.5}, "closed": {"median": 2.0}}}]
    boots = {"regimes": [{"subjects": subjects}]}
    by_text = {goal.text: goal.figure for goal in goals.GOALS}
    pool = by_text["boot from a pool to first exit, KVM"]
    rate = by_text["VMs per second, one core, from a pool, take() until given back, KVM"]
    library, live = by_text["boot, library to first exit, KVM"], by_text["live VMs at once, sandbox"]
    assert pool and rate and library and live
    assert (pool(boots), rate(boots)) == (0.5, 500.0)
    with pytest.raises(LookupError, match="no boots of library"):
        library(boots)
    assert live({"series": {"a": {"summary": {"n": 10}}, "b": {"summary": {"n": 7}}}}) == 17.0


def test_a_missing_mirage_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert goals.main(["--kvm", "none", "--mirage", "/nonexistent.hvt"]) == 1
    assert "/nonexistent.hvt: no such file" in capsys.readouterr().err


def test_a_failed_benchmark_is_a_reason(tmp_path: Path) -> None:
    script = "import sys; sys.stderr.write('bench: no space\\n'); sys.exit(1)"
    with pytest.raises(BenchError, match="ended with 1: bench: no space"):
        goals.measure([sys.executable, "-c", script], tmp_path / "o.json", tmp_path)


def test_a_tree_that_cannot_build_guests_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert goals.main(["--kvm", "none", "--solo5", str(tmp_path / "absent")]) == 1
    assert "the guests could not be built" in capsys.readouterr().err


def test_the_librarys_ways_are_compared_with_one_call_per_frame() -> None:
    found = {(c.of, c.to): c.goal for c in ways.comparisons()}
    assert found["bulk-tx 1514 offload", "bulk-tx 1514 calls"] == 5
    assert found["tx 64 batch", "tx 64 calls"] is None
    assert ("tx 64 offload", "tx 64 calls") not in found


def test_the_librarys_ways_are_compared_with_a_peer_in_the_modes_that_it_has() -> None:
    cases = [ways.case("tx:64"), ways.case("bulk-tx:1514")]
    found = {(c.of, c.to): c.goal for c in ways.comparisons(["calls", "batch", "hvt"], cases)}
    assert found == {
        ("tx 64 calls", "tx 64 hvt"): 1,
        ("tx 64 batch", "tx 64 calls"): None,
        ("tx 64 batch", "tx 64 hvt"): 2,
        ("bulk-tx 1514 batch", "bulk-tx 1514 calls"): None,
    }


def test_each_way_uses_the_same_guest_with_a_different_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guest = tmp_path / "guest.elf"
    guest.write_bytes(b"front" + ways._NOTE + struct.pack("<II", 1, 7) + b"back")
    monkeypatch.setattr(ways, "tender_command", lambda: ("tender",))
    options = ways.parser().parse_args(["--peer", "hvt=true --net:s={tap} {elf} {args}", "/a/net_guest.elf"])
    words = ways.commands(options, guest, tmp_path)
    assert words.pop("hvt") == ("true", f"--net:s={net.TAP}", "/a/net_guest.elf", "{args}")
    assert list(words) == list(ways.WAYS)
    for name, (features, word) in ways.WAYS.items():
        assert words[name][-2:] == (word, "{args}")
        data = Path(words[name][-3]).read_bytes()
        assert data == b"front" + ways._NOTE + struct.pack("<II", 1, features) + b"back"


FAKE_COMPILER = """\
#!/bin/sh
last=
for word; do
    case $last,$word in
    -o,*) : >"$word" ;;
    *,*.c | *,*.o) [ -e "$word" ] || exit 3 ;;
    esac
    last=$word
done
"""


def test_guests_of_a_solo5_tree_are_built_from_relative_paths(tmp_path: Path) -> None:
    """The paths are relative to the current directory. A fake compiler, which only checks its arguments,
    replaces Solo5's."""
    for name, text in {
        "solo5/toolchain/bin/x86_64-solo5-none-static-cc": FAKE_COMPILER,
        "solo5/elftool/solo5-elftool": '#!/bin/sh\n: >"$3"\n',
        "lwip/src/core/init.c": "",
        "lwip/src/core/ipv4/ip4.c": "",
        "lwip/src/netif/ethernet.c": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    script = Path(__file__).resolve().parents[2] / "bench" / "build_solo5_guests"
    done = subprocess.run(
        [script, "solo5", "out", "lwip"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {path.name for path in (tmp_path / "out").glob("*_guest.*") if path.suffix in {".hvt", ".spt"}}
    names = ("net_guest", "block_guest", "idle_guest", "tcp_guest")
    assert built == {f"{name}.{abi}" for name in names for abi in ("hvt", "spt")}


def test_a_solo5_tree_that_is_not_built_is_named(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "bench" / "build_solo5_guests"
    words = [script, tmp_path, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"build_solo5_guests: {tmp_path}: not a built Solo5 tree: it has no toolchain/bin\n"
    assert not (tmp_path / "out").exists()


def by_hand() -> list[str]:
    """Returns the compiler commands in the sources and the README of the benchmarks."""
    bench = Path(__file__).resolve().parents[2] / "bench"
    lines = [
        line for path in (*bench.glob("*.c"), bench / "README.md") for line in path.read_text().splitlines()
    ]
    return [found[1] for line in lines if (found := re.fullmatch(r"(?:(?: \*)? {4,5})?(cc -.*)", line))]


def test_programs_that_are_built_by_hand_are_found() -> None:
    assert any("tcp_peer.c" in line for line in by_hand())


@pytest.mark.parametrize("line", by_hand())
def test_the_documented_command_builds_each_program(line: str, tmp_path: Path) -> None:
    command, placed = re.subn(r"-o \S+$", f"-o {tmp_path}/program", line)
    assert placed == 1
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["sh", "-c", command], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(tmp_path / "program", os.X_OK)
