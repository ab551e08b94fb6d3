"""`tender trace`, the ring that it reads, and the flight recorder, on both backends."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import json_schema
import pytest
from support import Guest

from tender import Image, Vm, VmConfig
from tender.debug import ptrace
from tender.debug.find import Guest as Found
from tender.debug.find import guests_of
from tender.debug.trace import _GRANT, LAST, RECORD, Ring

StartGuest = Callable[..., Any]  # conftest.py
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "trace.schema.json").read_text())
LIMIT_S = 120


def traced(*words: str, status: int = 0, complaint: str = "") -> list[str]:
    command = [sys.executable, "-P", "-m", "tender", "trace", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (status, complaint)
    return done.stdout.splitlines()


@contextmanager
def polling(guest: Guest, **config: Any) -> Iterator[tuple[Vm, Found]]:
    """A guest of the library that polls for ever, one millisecond each."""
    ready = threading.Event()
    with (
        Image.open(guest("debug")) as image,
        Vm(
            image, VmConfig(mem=16, args=("poll", "100000000"), **config), console=lambda _: ready.set()
        ) as vm,
    ):
        vm.start(timeout=LIMIT_S)
        assert ready.wait(LIMIT_S)
        (found,) = guests_of(vm.pid if vm.backend == "sandbox" else os.getpid())
        yield vm, found
        vm.stop()
        assert vm.wait(LIMIT_S).reason == "stopped"


def until(
    holds: Callable[[], object], *, pause: Callable[[], object] = lambda: threading.Event().wait(0.002)
) -> None:
    """Waits until this holds; the limit is the test's."""
    while not holds():
        pause()


@pytest.mark.backends
def test_calls_are_recorded_only_while_somebody_asks(guest: Guest) -> None:
    with polling(guest) as (_, found):
        ring = Ring(found)
        assert (ring.is_on(), ring.head(), ring.take()) == (False, 0, [])

        lines = traced("--count=3", str(found.pid))
        assert not ring.is_on()
        objects = [json.loads(text) for text in traced("--json", "--count=2", "-e", "poll", str(found.pid))]
        assert not ring.is_on()

    assert [text.partition(" <")[0] for text in lines] == ["poll(1.0ms) = 0, ready 0x0"] * 3
    assert all(text.endswith("poll_wait < wait_once < main") for text in lines[1:])
    assert [json_schema.problems(it, SCHEMA) for it in objects] == [[]] * 3
    assert [(it["name"], it["results"]) for it in objects[:2]] == [("poll", {"ready_set": 0, "ret": 0})] * 2
    assert all(it["duration_ns"] >= 1_000_000 for it in objects[:2])
    assert objects[2]["calls"] == 2


@pytest.mark.backends
def test_a_killed_tracer_leaves_a_recording_that_ends_by_itself(guest: Guest) -> None:
    with polling(guest) as (_, found):
        ring = Ring(found)
        command = [sys.executable, "-P", "-m", "tender", "trace", str(found.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
            assert tracer.stdout
            assert tracer.stdout.readline()
            tracer.kill()
        assert tracer.returncode == -signal.SIGKILL
        assert ring.is_on()
        left = ring._word("shared_trace_limit") - ring.head()
        assert 0 < left <= _GRANT
        ring._put("shared_trace_limit", ring.head() + 5)  # as if so many calls had been made
        until(lambda: not ring.is_on())
        assert ring.head() == ring._word("shared_trace_limit")


@pytest.mark.backends
def test_a_recording_that_another_tracer_ended_goes_on_at_the_next_look_and_that_is_told(
    guest: Guest,
) -> None:
    with polling(guest) as (_, found):
        first, second = Ring(found), Ring(found)
        first.switch_on()
        second.switch_on()
        second.switch_off()
        until(lambda: len(first.take()) >= 1)
        assert (first.is_on(), first.gaps) == (True, 1)
        first.switch_off()
        assert not first.is_on()


@pytest.mark.backends
def test_the_flight_recorder_has_the_last_calls_from_the_start_and_no_tracer_ends_it(guest: Guest) -> None:
    with polling(guest, flight_recorder=True) as (vm, found):
        ring = Ring(found)
        assert ring.is_on()
        until(lambda: ring.head() >= 3)
        assert [it.name for it in ring.between(0, 3)] == ["puts", "poll", "poll"]
        assert len(traced("--count=2", str(found.pid))) == 2
        assert ring.is_on()
        calls = vm._look_into(lambda state: state.facts().hypercalls)
    assert 0 < len(calls) <= LAST + 1
    assert {it["name"] for it in calls[1:]} == {"poll"}
    assert all(int(str(it["begin_ns"])) < int(str(it["end_ns"])) for it in calls[:-1])


@pytest.mark.backends
def test_a_crash_report_has_the_last_calls(guest: Guest, tender_cmd: list[str]) -> None:
    command = [*tender_cmd, "--mem=16", "--flight-recorder", "--crash-report", str(guest("debug")), "fault"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 255
    assert "last hypercalls, oldest first:" in done.stderr
    assert "puts:" in done.stderr and "text ready" in done.stderr


@pytest.mark.backends
def test_all_calls_of_a_guest_that_is_started_are_shown_and_its_output_and_status_are_its_own(
    guest: Guest, tmp_path: Path
) -> None:
    out = tmp_path / "calls"
    command = [sys.executable, "-P", "-m", "tender", "trace", f"--output={out}", "--mem=16"]
    done = subprocess.run(
        [*command, str(guest("debug")), "poll", "3"], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.returncode, done.stdout) == (0, "ready\nwaited 3\n")
    names = [line.partition("(")[0] for line in out.read_text().splitlines()]
    assert names == ["puts", "poll", "poll", "poll", "puts", "halt"]

    done = subprocess.run(
        [*command, str(guest("debug")), "fault"], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 255


@pytest.mark.backends
def test_a_summary_counts_all_calls_and_their_time(guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "table"
    command = [
        sys.executable,
        "-P",
        "-m",
        "tender",
        "trace",
        "-c",
        "-o",
        str(out),
        str(guest("debug")),
        "poll",
        "7",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0
    head, *rows = [line.split() for line in out.read_text().splitlines()]
    assert head == ["%", "time", "seconds", "ns/call", "calls", "errors", "hypercall"]
    counts = {row[-1]: int(row[3]) for row in rows}
    assert counts == {"poll": 7, "puts": 2, "halt": 1}
    assert float(rows[0][1]) >= 0.007


def test_trace_events_are_one_json_document(guest: Guest, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    command = [sys.executable, "-P", "-m", "tender", "trace", "--format=chrome", "-o", str(out)]
    done = subprocess.run([*command, str(guest("debug")), "poll", "2"], capture_output=True, timeout=LIMIT_S)
    assert done.returncode == 0
    found = json.loads(out.read_text())
    named, *calls = found["traceEvents"]
    assert (named["ph"], named["name"], named["args"]["name"]) == ("M", "process_name", guest("debug").name)
    assert [it["name"] for it in calls] == ["puts", "poll", "poll", "puts", "halt"]
    assert all(it["ph"] == "X" and it["dur"] >= 0 and it["ts"] > 0 for it in calls)


@pytest.mark.backends
def test_the_librarys_iterator_gives_the_calls_until_the_guest_ends(guest: Guest) -> None:
    config = VmConfig(mem=16, args=("poll", "20"))
    with Image.open(guest("debug")) as image, Vm(image, config) as vm:
        calls = vm.hypercalls()
        vm.start(timeout=LIMIT_S)
        names = [call.name for call in calls]
        assert vm.wait(LIMIT_S).reason == "exit"
    assert names[:3] == ["puts", "poll", "poll"]


def test_a_hostile_ring_and_head_are_read_in_bounded_time(start_guest: StartGuest) -> None:
    running = start_guest("debug", "sleep", options=("--backend=sandbox",))
    (found,) = guests_of(running.pid)
    ring = Ring(found)
    at = ring._place()
    noise = bytearray(os.urandom(ring.records * RECORD.size))
    for index in range(ring.records):  # half of the records claim to be the right ones
        if index % 2:
            noise[index * RECORD.size + 16 : index * RECORD.size + 24] = (2 * ring.records + index).to_bytes(
                8, "little"
            )
    ptrace.write_memory(found.pid, at, bytes(noise))
    ring._put("shared_trace_head", 3 * ring.records)
    taken = ring.take()
    assert 0 < len(taken) <= ring.records // 2
    assert ring.lost == 3 * ring.records - len(taken)
    for forged in (0, 1 << 20, 1 << 62, (1 << 64) - 1):
        ring._put("shared_trace_head", forged)
        assert len(ring.take()) <= ring.records
        assert len(ring.last(256)) <= 257
    assert traced("--for=1", str(found.pid))[:-1] == []


def test_a_recording_that_the_guest_switches_off_is_switched_on_again_and_told(
    start_guest: StartGuest,
) -> None:
    running = start_guest("debug", "poll", "100000000", options=("--backend=sandbox",))
    (found,) = guests_of(running.pid)
    ring = Ring(found)
    ring.switch_on()
    ring._put("shared_trace_on", 0, 4)
    ring.take()
    assert (ring.is_on(), ring.gaps) == (True, 1)
    ring.switch_off()


REFUSED = {
    "no guest": ([str(os.getpid())], "it runs no guest"),
    "no process": (["2147483646"], "there is no such process"),
    "no kind": (["-e", "nonsense", "1"], "-e nonsense: no hypercall"),
    "no format": (["--format=xml", "1"], "--format=xml: not a format"),
    "no value": (["--count"], "--count: a value is needed"),
    "no number": (["--for=x", "1"], "--for: `x' is not a number"),
    "nothing": ([], "a PID or an IMAGE is needed"),
}


@pytest.mark.parametrize("words, complaint", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tender.cli import trace

    assert trace.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("tender: trace: ") and complaint in said
