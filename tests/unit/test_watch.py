"""Watching guests, without guests: reading /proc, not waiting for one process, rates, tables, words, and the schema."""

import json
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from json_schema import problems

from tender import Counters, RunningGuest, RunState
from tender.cli import columns, ps, report, stats, top
from tender.cli.main import COMMANDS
from tender.cli.words import Words
from tender.debug.find import Guest
from tender.debug.memory_use import HeapUse
from tender.debug.target import DebugError
from tender.native import ffi, lib
from tender.watch import process, running
from tender.watch import trend as trend_of
from tender.watch.patience import STUCK_MAX, Patience
from tender.watch.trend import Growth, Trend

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
SECOND_NS = 1_000_000_000
HEAP = HeapUse(kind="ocaml-solo5", used_bytes=3680 << 10, taken_bytes=4 << 20, total_bytes=60144 << 10)
LEAK = Growth(
    bytes_per_s=1024.0,
    least=974.0,
    most=1126.0,
    full_in_s=60000.0,
    full_in_least_s=54545.0,
    full_in_most_s=63157.0,
)


def counters(**counts: Any) -> Counters:
    calls = dict.fromkeys(("walltime", "puts", "poll", "net_write", "net_read", "halt"), 0)
    calls |= counts.pop("hypercalls", {})
    zeros = {name: 0 for name in Counters.__slots__ if name != "hypercalls"}
    return Counters(**{**zeros, **counts, "hypercalls": calls})


def guest(**fields: Any) -> RunningGuest:
    """A guest that waits, with other values of these fields."""
    values: dict[str, Any] = {
        "id": "4711-1000-7f0000000000",
        "pid": 4711,
        "tid": 4711,
        "holder": 4711,
        "name": "app",
        "image": "/srv/app.elf",
        "build_id": "0123abcd",
        "backend": "sandbox",
        "user": "sandbox",
        "state": RunState.WAITS,
        "why": "",
        "uptime_s": 100.0,
        "guest_cpu_s": 3.5,
        "monitor_cpu_s": 0.5,
        "silent_s": 0.0,
        "mem_bytes": 64 << 20,
        "touched_bytes": 5 << 20,
        "resident_bytes": 6 << 20,
        "counters": counters(exits=900, hypercalls={"poll": 800, "puts": 3}, console_bytes=40),
        "devices": {"service0": "net"},
        "cgroup": "/system.slice/app.service",
        "container": "",
        "looked_ns": 500 * SECOND_NS,
    }
    return RunningGuest(**(values | fields))


# ---- rates, silence


def test_rates_are_what_has_grown_for_each_second() -> None:
    then = guest()
    now = guest(
        looked_ns=504 * SECOND_NS,
        guest_cpu_s=5.5,
        counters=counters(exits=1100, hypercalls={"poll": 900, "puts": 3}, console_bytes=40),
    )
    rates = now.since(then)
    assert rates
    assert (rates.seconds, rates.cpu_percent) == (4.0, 50.0)
    assert (rates.counters["exits"], rates.counters["console_bytes"]) == (50.0, 0.0)
    assert (rates.hypercalls["poll"], rates.hypercalls["puts"]) == (25.0, 0.0)
    assert "hypercalls" not in rates.counters


def test_another_guest_or_none_that_can_be_read_has_no_rates() -> None:
    later = 501 * SECOND_NS
    assert guest(looked_ns=later).since(guest()) is not None
    assert guest(looked_ns=later, id="4711-2000-7f0000000000").since(guest()) is None
    assert guest(looked_ns=later, counters=None).since(guest()) is None
    assert guest(looked_ns=later).since(guest(counters=None)) is None
    assert guest().since(guest()) is None


def test_counters_that_begin_anew_are_counted_from_there() -> None:
    rates = guest(looked_ns=502 * SECOND_NS, counters=counters(exits=10)).since(guest())
    assert rates
    assert rates.counters["exits"] == 5.0


def test_a_guest_is_wedged_after_10_s_of_the_processor_without_a_hypercall() -> None:
    watch = running.Watch()

    def state(cpu_s: float, *, calls: int = 1, exits: int = 1) -> tuple[str, float]:
        seen = guest(
            state=RunState.COMPUTES,
            guest_cpu_s=cpu_s,
            monitor_cpu_s=0.0,
            counters=counters(exits=exits, hypercalls={"poll": calls}),
        )
        shown = watch._with_silence(seen)
        watch.remember([shown])
        return str(shown.state), shown.silent_s

    assert state(100.0) == ("computes", 0.0)  # nobody knows when its hypercall was
    assert state(109.0) == ("computes", 9.0)
    assert state(111.0, exits=5) == ("wedged", 11.0)  # it faults for ever
    assert state(112.0, calls=2) == ("computes", 0.0)
    waiting = watch._with_silence(guest(guest_cpu_s=112.0, monitor_cpu_s=0.0, counters=counters()))
    assert (waiting.state, waiting.silent_s) == ("waits", 112.0)


# ---- a state from what was read


@pytest.mark.parametrize(
    ("letter", "fields", "state"),
    [
        ("R", {}, RunState.COMPUTES),
        ("S", {}, RunState.WAITS),
        ("D", {}, RunState.WAITS),
        ("T", {}, RunState.STOPPED),
        ("t", {}, RunState.HELD),
        ("S", {"held": True}, RunState.HELD),
        ("S", {"first_run": 0}, RunState.IDLE),
        ("S", {"tid": 0}, RunState.IDLE),
        ("S", {"kind": lib.EVENT_HALT}, RunState.ENDED),
        ("T", {"kind": lib.EVENT_HALT}, RunState.ENDED),
        ("S", {"kind": lib.EVENT_INTERRUPTED}, RunState.WAITS),
    ],
)
def test_the_state_of_a_guest(letter: str, fields: dict[str, Any], state: RunState) -> None:
    given: dict[str, Any] = {"held": False, "first_run": 1, "tid": 7, "kind": 0} | fields
    of = Guest("kvm", 7, given["tid"], 7, "", 4096, 0, 0, {}, 0, {})
    times = process.Times(state=letter, started=1, code=2, user=3, system=4, guest=5)
    found = running._state(of, times, given["kind"], held=given["held"], first_run=given["first_run"])
    assert found == state


def test_a_start_that_cannot_be_true_is_not_believed() -> None:
    boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    times = process.Times("R", int((boot_s - 60) * process.TICKS), 0, 0, 0, 0)
    now = time.monotonic_ns()
    assert running._uptime(now - 5 * SECOND_NS, times, now) == 5.0
    for first_run in (0, now + SECOND_NS, now - 3600 * SECOND_NS, (1 << 64) - 1):
        assert running._uptime(first_run, times, now) == pytest.approx(60, abs=5)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/srv/app.elf", "app"),
        ("web.hvt", "web"),
        ("/a/b", "b"),
        ("", ""),
        ("/a/.elf", ""),
        ("x.elf.img", "x.elf"),
    ],
)
def test_the_name_of_a_guest_is_its_files(image: str, name: str) -> None:
    assert running._name(image) == name


def test_the_words_that_run_no_guest_are_the_commands() -> None:
    guests = {"run", "solo5-hvt"}
    assert set(COMMANDS) - guests <= running._GUESTLESS
    assert not guests & running._GUESTLESS


# ---- /proc


def test_the_times_of_a_process_are_those_of_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    times = process.times_of("self")
    assert times.state == "R"
    assert times.user + times.system > 0
    assert 0 < times.started / process.TICKS < time.clock_gettime(time.CLOCK_BOOTTIME)
    thread = process.times_of(f"{os.getpid()}/task/{threading.get_native_id()}")
    assert thread.started >= times.started


def test_the_memory_of_a_process_is_that_of_proc() -> None:
    before = process.memory_of("self").anonymous
    block = bytearray(os.urandom(32 << 20))
    memory = process.memory_of("self")
    assert memory.anonymous - before >= 24 << 20 <= len(block)
    assert memory.resident >= memory.anonymous - (1 << 20)
    assert memory.tracer == 0


def test_the_touched_memory_between_two_addresses_is_counted() -> None:
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        before = process.touched_in(os.getpid(), start, start + len(memory))
        for page in range(0, len(memory), 4096):
            memory[page] = 1
        assert process.touched_in(os.getpid(), start, start + len(memory)) - before >= 1 << 20
        assert process.touched_in(os.getpid(), 0x1000, 0x2000) == 0


ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/docker/{ID}", ID),
        (f"/user.slice/libpod-{ID}.scope/container", ID),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{ID}.scope",
            ID,
        ),
        ("/lxc.payload.web/init.scope", "web"),
        ("/lxc/web", "web"),
        ("/machine.slice/systemd-nspawn@web.service/payload", "web"),
        ("/system.slice/app.service", ""),
        ("/user.slice/user-1000.slice/session-2.scope", ""),
        (f"/x/{ID}0", ""),
        ("", ""),
    ],
)
def test_the_container_is_read_from_the_name_of_a_cgroup(cgroup: str, container: str) -> None:
    assert process.container_of(cgroup) == container


# ---- not waiting


class Gates:
    """Work that waits for some processes until they are let go."""

    def __init__(self, *slow: int) -> None:
        self.gates = {pid: threading.Event() for pid in slow}

    def __call__(self, pid: int) -> int:
        if pid in self.gates:
            assert self.gates[pid].wait(60)
        return pid


def test_a_process_that_does_not_answer_is_given_up_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tender.watch.patience._user", lambda pid: pid)
    work = Gates(2)
    patience = Patience(work, limit_s=0.05)
    assert patience.each([1, 2, 3]) == ({1: 1, 3: 3}, {2})
    assert patience.each([1, 2, 3]) == ({1: 1, 3: 3}, {2}), "nobody waits for it a second time"
    work.gates[2].set()
    limit = time.monotonic() + 60
    while patience._stuck:
        assert time.monotonic() < limit
    assert patience.each([1, 2, 3]) == ({1: 1, 2: 2, 3: 3}, set())


def test_a_user_whose_processes_do_not_answer_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes 10 to 29 belong to one user, the others to another."""
    monkeypatch.setattr("tender.watch.patience._user", lambda pid: pid // 20)
    work = Gates(*range(20, 40))
    patience = Patience(work, limit_s=0.05)
    found, given_up = patience.each(range(10, 50))
    assert set(found) == {*range(10, 20), *range(40, 50)}
    assert given_up == set(range(20, 40))
    assert len(patience._stuck) == STUCK_MAX
    for gate in work.gates.values():
        gate.set()


def test_a_mistake_in_the_work_is_raised() -> None:
    def work(pid: int) -> int:
        return 1 // (pid - 2)

    with pytest.raises(ZeroDivisionError):
        Patience(work).each([1, 2, 3])


# ---- what is shown


def test_the_json_of_ps_is_that_of_the_golden_file_and_fits_the_schema() -> None:
    schema = json.loads((SCHEMAS / "ps.schema.json").read_text())
    later = guest(
        looked_ns=502 * SECOND_NS, guest_cpu_s=4.5, counters=counters(exits=1000, hypercalls={"poll": 900})
    )
    unread = running._blank(1, "it belongs to the user 0, and you are 1000")._with(
        cgroup="", container="", looked_ns=0
    )
    shown = ps.json_of([(later, later.since(guest())), (unread._with(user="root"), None)])
    found = json.loads(report.to_json(shown))
    assert found == json.loads((SCHEMAS / "ps.golden.json").read_text())
    assert problems(found, schema) == []
    assert problems(found | {"more": 1}, schema)
    assert problems({**found, "guests": [found["guests"][0] | {"uptime_s": -1}]}, schema)
    assert set(schema["$defs"]["guest"]["properties"]) == {*RunningGuest.__slots__, "rates"}
    assert schema["$defs"]["guest"]["properties"]["state"]["enum"] == [str(state) for state in RunState]


def test_the_json_of_stats_is_that_of_the_golden_file_and_fits_the_schema() -> None:
    schema = json.loads((SCHEMAS / "stats.schema.json").read_text())
    later = guest(looked_ns=502 * SECOND_NS, guest_cpu_s=4.5, counters=counters(exits=1000, net_rx_packets=7))
    found = json.loads(report.to_json(stats.json_of(later, later.since(guest()), LEAK, HEAP)))
    assert found == json.loads((SCHEMAS / "stats.golden.json").read_text())
    assert problems(found, schema) == []
    assert problems(found | {"more": 1}, schema)
    assert problems(json.loads(report.to_json(stats.json_of(guest(), None, None, None))), schema) == []
    shared = json.loads((SCHEMAS / "ps.schema.json").read_text())["$defs"]["guest"]["properties"]
    assert schema["$defs"]["guest"]["properties"] == {key: it for key, it in shared.items() if key != "rates"}
    assert set(schema["$defs"]["growth"]["properties"]) == set(Growth.__slots__)
    assert set(schema["$defs"]["heap"]["properties"]) == set(HeapUse.__slots__)


def test_stats_say_what_a_guest_does() -> None:
    counted = counters(
        exits=1000,
        hypercalls={"poll": 900, "net_read": 5},
        net_rx_packets=7,
        net_rx_bytes=7000,
        block_reads=2,
    )
    devices = {"a": "net", "b": "net", "disk\x1b": "block"}
    later = guest(looked_ns=502 * SECOND_NS, counters=counted, devices=devices)
    lines = stats.text_of(later, later.since(guest()), LEAK, HEAP).splitlines()
    assert lines == [
        "app in process 4711 (sandbox): waits, up 1m40s",
        "cpu        0.0 % now, 4.00 s in all: guest 3.50 s, monitor 0.50 s",
        "memory     5.0 MiB of 64 MiB touched; 6.0 MiB in the whole process",
        "heap       3.6 MiB used of 58.7 MiB (ocaml-solo5)",
        "growth     +3.5 MiB/h (3.3 MiB to 3.9 MiB), full in 16h40m (15h09m to 17h32m)",
        "exits      1000 (50.0/s)",
        "hypercalls poll 900 (50.0/s), net_read 5 (2.5/s)",
        "sandbox    0 hypercalls by a signal, 0 instructions emulated, 0 exceptions delivered",
        "console    0 B, 0 lost",
        "net        a + b: in 7 (3.5/s) frames, 6.8 KiB (3.4 KiB/s); out 0 frames, 0 B; 0 dropped, 0 errors",
        "block      disk\\x1b: 2 (1.0/s) reads, 0 B; 0 writes, 0 B; 0 flushes, 0 errors",
    ]


# ---- the screen of top


def crowd(count: int) -> list[top.Seen]:
    """Guests with different numbers: the higher the process, the less CPU."""
    found = []
    for i in range(count):
        then = guest(id=f"{i}", pid=i + 1, name=f"guest{i % 7}")
        now = guest(
            id=f"{i}", pid=i + 1, name=f"guest{i % 7}", looked_ns=502 * SECOND_NS, guest_cpu_s=3.5 + 1 / (i + 1),
            touched_bytes=i + 1 << 12, uptime_s=float(i), counters=counters(exits=900 + i, hypercalls={"poll": 800}),
            state=list(RunState)[i % len(RunState)],
        )  # fmt: skip
        found.append(top.Seen(now, now.since(then), None))
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 20, 200])
@pytest.mark.parametrize("size", [(1, 1), (5, 2), (20, 3), (19, 4), (20, 4), (40, 8), (80, 24), (300, 400)])
def test_a_screen_fits_each_window(count: int, size: tuple[int, int]) -> None:
    width, height = size
    lines = top.screen(crowd(count), top.View(), width, height)
    assert len(lines) <= height
    assert max(len(line.text) for line in lines) <= width
    assert all(line.text.isprintable() for line in lines)
    if width >= 80 and height >= 24:
        assert lines[0].text.startswith(f"{count} guest")
        assert lines[1].text.split() == [word for name in ps.HEAD for word in name.split()]
        assert lines[-1].text.startswith("q:quit  [c]pu m:memory e:exits u:uptime n:name p:pid")
        shown = [line for line in lines[2:-1] if line.text]
        assert len(shown) == min(count, height - 3)


def test_a_narrow_window_shows_pid_and_name() -> None:
    seen = crowd(3)
    for width in (16, 30, 45, 60, 80):
        lines = top.screen(seen, top.View(), width, 10)
        assert lines[1].text.split()[0] == "PID" and lines[1].text.endswith("NAME"), width
        assert [line.text.split()[-1] for line in lines[2:5]] == ["guest0", "guest1", "guest2"]


def shown_pids(seen: list[top.Seen], view: top.View) -> list[int]:
    return [int(line.text.split()[0]) for line in top.screen(seen, view, 80, 6)[2:-1] if line.text]


def test_keys_sort_and_turn_the_order() -> None:
    seen, view = crowd(9), top.View()
    assert shown_pids(seen, view) == [1, 2, 3]  # by CPU
    for key, first in (
        ("m", [9, 8, 7]),
        ("e", [9, 8, 7]),
        ("u", [9, 8, 7]),
        ("p", [1, 2, 3]),
        ("n", [1, 8, 2]),
    ):
        view.press(key)
        assert shown_pids(seen, view) == first, key
    view.press("p")
    view.press("p")
    assert shown_pids(seen, view) == [9, 8, 7]
    view.press("p")
    assert shown_pids(seen, view) == [1, 2, 3]


def test_the_list_is_moved_within_its_ends() -> None:
    seen, view = crowd(9), top.View(order="p")
    for first, pids in ((2, [3, 4, 5]), (100, [7, 8, 9]), (-5, [1, 2, 3])):
        view.first = first
        assert shown_pids(seen, view) == pids
    assert top.screen(seen, view, 80, 6)[-1].text.endswith("  1-3 of 9")
    view.first = 3
    assert shown_pids(seen[:2], view) == [1, 2]


def test_a_wedged_guest_stands_out_and_a_full_one_is_foretold() -> None:
    wedged = top.Seen(guest(state=RunState.WEDGED), None, LEAK)
    line = top.screen([wedged], top.View(), 120, 5)[2]
    assert line.style == "alarm"
    assert line.text.endswith("app  full in 16h40m")


# ---- growth


def grown(samples: list[tuple[float, int]], limit: int = 64 << 20) -> Growth | None:
    trend = Trend()
    for at_s, touched in samples:
        trend.add(at_s, touched)
    return trend.growth(limit)


def leak(at: int, *, per_s: int = 10240, noise: int = 0) -> tuple[float, int]:
    return float(at), (1 << 20) + per_s * at + noise * (at * 7919 % 13)


def test_a_leak_is_foretold_with_an_interval() -> None:
    for noise in (0, 2000):
        found = grown([leak(at, noise=noise) for at in range(100)])
        assert found
        assert found.least <= found.bytes_per_s <= found.most
        assert found.bytes_per_s == pytest.approx(10240, rel=0.02)
        left = (64 << 20) - leak(99)[1]
        assert found.full_in_least_s <= found.full_in_s <= found.full_in_most_s
        assert found.full_in_s == pytest.approx(left / 10240, rel=0.05)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [leak(at) for at in range(10)],  # too few
        [(at / 10, 1 << 20) for at in range(100)],  # too short
        [leak(at, per_s=0) for at in range(100)],  # no growth
        [leak(at, per_s=-10240) for at in range(100)],
        [(float(at), (1 << 20) * (1 + (at > 50))) for at in range(100)],  # one jump
        [
            (float(at), (1 << 20) + 500000 * min(at, 40)) for at in range(100)
        ],  # a start, or a cache that is full now
        [(float(at), (1 << 20) + 50000 * (at * 7919 % 97)) for at in range(100)],  # up and down
        [(5.0, at) for at in range(100)],  # no time passes
    ],
)
def test_nothing_is_said_that_is_not_sure(samples: list[tuple[float, int]]) -> None:
    assert grown(samples) is None


def test_the_samples_of_a_long_time_are_few_and_new() -> None:
    trend = Trend()
    for at in range(20000):
        trend.add(*leak(at))
    assert len(trend._samples) <= trend_of.SAMPLES_MAX
    assert trend._samples[0][0] >= trend._samples[-1][0] - trend_of.WINDOW_S
    found = trend.growth(1 << 30)
    assert found and found.bytes_per_s == pytest.approx(10240, rel=0.01)


def test_a_name_cannot_move_the_cursor() -> None:
    cells = ps.row(guest(name="a\x1b[2Jb\nc", container="\x1b]0;x"), None)
    assert all(cell.isprintable() for cell in cells)


@pytest.mark.parametrize(
    ("shown", "is_shown"),
    [
        (columns.duration(0.4), "0s"),
        (columns.duration(-5), "0s"),
        (columns.duration(185), "3m05s"),
        (columns.duration(7803), "2h10m"),
        (columns.duration(4 * 86400 + 3 * 3600), "4d03h"),
        (columns.size(512), "512 B"),
        (columns.size(1536 << 10), "1.5 MiB"),
        (columns.size(1 << 90), "1073741824.0 EiB"),
        (columns.rate(0), "0"),
        (columns.rate(0.25), "0.25"),
        (columns.rate(12.53), "12.5"),
        (columns.rate(1340.2), "1340"),
        (columns.rate(234567), "235k"),
        (columns.rate(2.1e6), "2.1M"),
        (columns.rate(1e19), "1.0e+19"),
    ],
)
def test_numbers_are_short(shown: str, is_shown: str) -> None:
    assert shown == is_shown


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert columns.table([("A", "NAME"), ("100", "x"), ("2", "long name")], (0,)) == [
        "  A  NAME",
        "100  x",
        "  2  long name",
    ]


# ---- words


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--bad"], "Invalid option: `--bad'"),
        (["--every"], "--every needs a value: --every=VALUE"),
        (["--every="], "--every needs a value: --every=VALUE"),
        (["--every=x"], "--every=x: a number of seconds from 1 to 10 is needed"),
        (["--every", "nan"], "--every=nan: a number of seconds from 1 to 10 is needed"),
        (["--every=1e3"], "--every=1e3: a number of seconds from 1 to 10 is needed"),
        (["--every=0.5"], "--every=0.5: a number of seconds from 1 to 10 is needed"),
        (["1", "2\x1b"], "`2\\x1b' is one word too many"),
        ([], "a PID is needed"),
    ],
)
def test_wrong_words_are_named(argv: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = Words("top", argv, flags=("--json",), valued=("--every",), usage="usage: x")
    words.seconds("--every", 2, least=1, most=10)
    assert words.answered(least=1, most=1, needed="a PID is needed") == 1
    assert capfd.readouterr().err == f"tender: top: {said}\nusage: x\n"


def test_right_words_are_read_in_both_forms() -> None:
    for argv in (["--every=2.5", "--json", "7"], ["7", "--json", "--every", "2.5"]):
        words = Words("top", argv, flags=("--json",), valued=("--every",), usage="")
        assert words.seconds("--every", 1, least=1, most=10) == 2.5
        assert words.answered(least=1, most=1, needed="") is None
        assert (words.flags, words.rest) == ({"--json"}, ["7"])


def test_a_process_that_ends_meanwhile_is_no_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = running.Watch()
    assert watch._look_at(1 << 22) == (None, [])

    def gone(pid: int) -> None:
        raise DebugError("process 7: its memory map cannot be read", errno=3)

    monkeypatch.setattr(running, "program_of", gone)
    known, found = watch._look_at(os.getpid())
    assert found == [] and known is not None and known.program is None
