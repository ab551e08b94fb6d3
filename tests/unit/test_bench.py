"""The benchmark's arithmetic, words and formats; what it measures is tests/contract/test_bench_boot.py's."""

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tender.bench import (
    boot,
    compare,
    compile,
    count,
    facts,
    hypercall,
    memory,
    minimal,
    net,
    points,
    report,
    stats,
    syscalls,
)
from tender.bench.points import Sample
from tender.bench.subjects import (
    BenchError,
    LibrarySubject,
    ProcessSubject,
    SpawnedSubject,
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


def test_no_values_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.percentile([], 50)


def test_ratio_of_constant_series_is_exact() -> None:
    assert stats.ratio_of_medians([6.0] * 9, [2.0] * 9) == stats.Ratio(value=3.0, low=3.0, high=3.0)


def test_interval_holds_the_ratio_and_is_repeatable() -> None:
    a = [1.0 + i % 7 / 10 for i in range(60)]
    b = [2.0 + i % 5 / 10 for i in range(60)]
    ratio = stats.ratio_of_medians(a, b)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.low < ratio.high
    assert ratio == stats.ratio_of_medians(a, b)


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_ratio_of_nothing_or_to_zero_is_refused(a: list[float], b: list[float]) -> None:
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


def test_the_image_may_stand_inside_a_word() -> None:
    assert parse_peer("qemu -kernel=file:{elf}", "/x")[1] == ("qemu", "-kernel=file:/x")


@pytest.mark.parametrize("text", ["", "name=", "solo5-hvt", "solo5-hvt 'x {elf}"])
def test_a_peer_that_cannot_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--peer"):
        parse_peer(text, "/x.elf")


def test_worker_line_becomes_points_from_its_start() -> None:
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


def test_a_process_that_fails_is_no_sample() -> None:
    with pytest.raises(BenchError, match="ended with 1"):
        ProcessSubject("false", ("false",)).boot()
    with pytest.raises(BenchError, match="No such file"):
        ProcessSubject("absent", ("/nonexistent/program",)).boot()


# ---- the plan and the object


def test_rounds_go_there_and_back() -> None:
    assert boot.rounds(3, ["a", "b"]) == [["a", "b"], ["b", "a"], ["a", "b"]]


class _Fixed(Subject):
    """Boots that take what they are told, without a guest."""

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
    return boot.run(options, lambda _line: None)


def test_the_object_is_json_with_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_plot_is_a_picture_of_every_regime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.plot(_measured(tmp_path, monkeypatch), str(tmp_path / "boot.png"))
    picture = (tmp_path / "boot.png").read_bytes()
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert picture.startswith(b"\x89PNG\r\n") and width >= 600 and height >= 400


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BenchError, match="matplotlib") as caught:
        report.check_plot()
    assert "pip install" in caught.value.hint


def test_a_taken_name_and_an_absent_program_are_refused(tmp_path: Path) -> None:
    for peer, what in (("python=true {elf}", "taken"), ("/nonexistent/hvt {elf}", "no such program")):
        options = boot.parser().parse_args(["--skip", "library", "--peer", peer])
        with pytest.raises(ConfigError, match=what):
            boot.make_subjects(options, "/x.elf", [])


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["flood"]) == 1
    assert "'flood'" in capsys.readouterr().err
    assert command.main(["--help"]) == 0


# ---- facts


def test_a_clock_that_counts_instructions_is_recognised() -> None:
    box = {"model name": "QEMU TCG CPU version 2.5+", "cpu MHz": "999.993"}
    assert facts.counts_instructions(box)
    assert not facts.counts_instructions({**box, "cpu MHz": "2494.1"})
    assert not facts.counts_instructions({"model name": "Some Xeon", "cpu MHz": "1000.0"})


def test_what_spoils_a_run_is_a_warning() -> None:
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


def test_a_ratio_above_its_goal_is_missed() -> None:
    ratios = {
        "library / minimal C": {"value": 1.2, "goal": 1.15},
        "command / python": {"value": 1.4, "goal": 1.5},
        "library / hvt": {"value": 9.0, "goal": None},
    }
    assert count.missed_goals({"ratios": ratios}) == ["library / minimal C is 1.200, the goal is 1.15"]


def test_minimal_c_has_the_points_of_its_source() -> None:
    checkout = facts.find_checkout(Path(__file__))
    assert checkout is not None
    source = (checkout / "bench" / "minimal_kvm.c").read_text()
    inside = source.partition("enum point {")[2].partition("}")[0]
    assert [name.strip().lower() for name in inside.split(",")][:-1] == list(minimal.POINTS)


def test_every_point_has_a_meaning() -> None:
    assert set(points.MEANING) == {
        *points.LIBRARY_POINTS,
        *points.PROCESS_POINTS,
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
    found = compare.describe("x", "unit", series, wanted, conditions={"calls": 7}, host=_HOST)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_a_comparison_has_its_ratio_and_goal() -> None:
    measured = _compared(a=[6.0, 6.0], b=[4.0, 4.0])
    assert measured["ratios"] == [
        {"of": "a", "to": "b", "value": 1.5, "low": 1.5, "high": 1.5, "goal": 1.3, "at_least": False}
    ]
    assert measured["series"]["a"]["samples"] == [6.0, 6.0] and measured["warnings"] == []


def test_nothing_is_compared_with_zero() -> None:
    assert _compared(a=[6.0], b=[0.0])["ratios"] == []


def test_the_table_of_a_comparison_says_conditions_unit_and_goal() -> None:
    measured = _compared(a=[6.0, 6.0], b=[4.0, 4.0])
    measured["host"] = facts.host_facts()
    text = report.comparison_table(measured)
    for words in ("x: calls 7", "unit\n", "a / b", "1.500  [1.500, 1.500]  goal <= 1.30"):
        assert words in text


def test_hypercall_lines_become_cycles_a_call() -> None:
    series: compare.Series = {}
    hypercall.add(series, "guest", "net_read gate 5000\n", 100)
    hypercall.add(series, "filtered", "net_read 2500\n", 100)
    assert series == {"net_read gate": [50.0], "net_read filtered": [25.0]}


def test_every_way_of_a_hypercall_is_compared_with_both_yardsticks() -> None:
    goals = {(c.of, c.to): c.goal for c in hypercall.comparisons()}
    for kind in hypercall.KINDS:
        for way in hypercall.WAYS:
            for yardstick in hypercall.YARDSTICKS:
                has_goal = way != "trap" and kind != "walltime"
                assert goals[f"{kind} {way}", f"{kind} {yardstick}"] == (1.3 if has_goal else None)


def test_a_rate_is_the_guests_own() -> None:
    assert net.rate("ready\ntx 64 1000 2000000\n", "tx", 64, 1000, 0) == 500.0
    with pytest.raises(BenchError, match="ended with 3"):
        net.rate("ready\n", "tx", 64, 1000, 3)


def test_net_runs_the_same_program_of_each_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "tender_command", lambda: ("tender",))
    options = net.parser().parse_args(["/a/x.hvt", "--peer", "spt=true --net:s={tap} {elf:.spt} {args}"])
    words = net.commands(options)
    assert words["tender"][-2:] == ["/a/x.hvt", "{args}"]
    assert words["spt"] == ["true", f"--net:s={net.TAP}", "/a/x.spt", "{args}"]
    options.peer = ["spt=true {elf}"]
    with pytest.raises(ConfigError, match="args"):
        net.commands(options)


def test_net_refuses_a_host_with_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tender.bench.net.socket.if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    with pytest.raises(BenchError, match="eth0") as refused:
        net._make_tap(10)
    assert "unshare -n" in refused.value.hint


def test_memory_of_a_process_is_the_kernels_sum() -> None:
    found = memory.smaps(os.getpid())
    assert 0 < found["Pss"] <= found["Rss"]
    assert set(memory.FIELDS) <= set(found)


# ---- commands that a small C program starts


def _spawn_loop(*words: str) -> SpawnedSubject:
    checkout = facts.find_checkout(Path(__file__))
    assert checkout is not None
    return SpawnedSubject("peer", words, spawner=str(compile.program(checkout, "spawn_loop")))


def test_a_spawned_command_passes_its_points_in_order_each_time() -> None:
    with closing(_spawn_loop("echo", "hello")) as subject:
        for _ in range(2):
            stamps = subject.boot().points_ns
            assert list(stamps) == list(points.SPAWNED_POINTS)
            assert 0 == stamps["spawn"] < stamps["console_seen"]
            assert stamps["reaped"] > 0


def test_a_spawned_command_that_fails_is_no_sample() -> None:
    with closing(_spawn_loop("false")) as subject, pytest.raises(BenchError, match="ended with 1"):
        subject.boot()


def test_a_peer_may_boot_the_file_beside_the_image() -> None:
    assert parse_peer("solo5-spt {elf:.spt} Hi", "/a/b.hvt") == (
        "solo5-spt",
        ("solo5-spt", "/a/b.spt", "Hi"),
    )


def test_the_sandbox_is_compared_at_the_same_ends() -> None:
    library = {"start": 0, "console_seen": 300, "closed": 500}
    peer = {"spawn": 0, "console_seen": 600, "reaped": 1000}
    samples = {
        name: [Sample(stamps, cpu_ns=0, minor_faults=0)] * 2
        for name, stamps in (("library", library), ("program", library), ("spt", peer))
    }
    found = {(r["of"], r["of_point"], r["to_point"]): r["value"] for r in boot._ratios(samples)}
    assert found == {
        ("library", "console_seen", "console_seen"): 0.5,
        ("library", "closed", "reaped"): 0.5,
        ("program", "console_seen", "console_seen"): 0.5,
        ("program", "closed", "reaped"): 0.5,
    }
