"""Guests are watched from outside: which run, what they do, and who is shown what. No guest is stopped or changed by it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from json_schema import problems
from support import Guest

import tender
from tender import DISCARD, Image, RunningGuest, RunState, Vm, VmConfig
from tender.cli import ps as ps_command
from tender.cli import say
from tender.debug import find
from tender.debug.attach import attach
from tender.watch import running, trend

pytestmark = pytest.mark.backends

StartGuest = Callable[..., Any]  # conftest.py
FOREVER = "4000000000"
LIMIT_S = 120
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def seen(pid: int, **options: Any) -> RunningGuest:
    """The only guest of a process."""
    (found,) = (guest for guest in tender.running(**options) if pid in (guest.pid, guest.holder))
    return found


def awaited(pid: int, state: RunState) -> RunningGuest:
    """The guest of a process when it is in a state."""
    limit = time.monotonic() + LIMIT_S
    last = seen(pid)
    while last.state != state:
        assert time.monotonic() < limit, last
        last = seen(pid, before=[last])
    return last


# ---- what is seen


def test_a_guest_of_the_command_is_seen_with_what_it_is(start_guest: StartGuest, backend: str) -> None:
    run = start_guest("debug", "poll", FOREVER)
    first = awaited(run.pid, RunState.WAITS)
    assert (first.pid, first.tid, first.holder) == (run.pid,) * 3
    assert (first.backend, first.name, first.why) == (backend, "debug", "")
    assert Path(first.image).samefile(run.path)
    assert first.mem_bytes == 16 << 20
    assert 0 < first.touched_bytes <= first.mem_bytes
    assert first.resident_bytes > 0
    assert 0 < first.uptime_s < LIMIT_S
    assert first.counters and first.counters.console_bytes == len("ready\n")
    while (later := seen(run.pid)).counters == first.counters:
        assert run.process.poll() is None
    rates = later.since(first)
    assert later.id == first.id and rates
    assert rates.hypercalls["poll"] > 0 and rates.counters["exits"] > 0
    assert 0 <= rates.cpu_percent < 200


def test_states_are_told_apart(start_guest: StartGuest) -> None:
    spins, sleeps = start_guest("debug", "spin", FOREVER), start_guest("debug", "sleep")
    assert awaited(spins.pid, RunState.COMPUTES).cpu_s >= 0
    awaited(sleeps.pid, RunState.WAITS)
    os.kill(sleeps.pid, signal.SIGSTOP)
    awaited(sleeps.pid, RunState.STOPPED)
    os.kill(sleeps.pid, signal.SIGCONT)
    awaited(sleeps.pid, RunState.WAITS)
    target = attach(find.guests_of(spins.pid)[0])
    try:
        assert seen(spins.pid).state == RunState.HELD
    finally:
        target.detach()
    awaited(spins.pid, RunState.COMPUTES)


@pytest.mark.parametrize("how", [("spin", FOREVER), ("wedge",)])
def test_a_guest_that_computes_without_a_hypercall_is_wedged(
    how: tuple[str, ...], start_guest: StartGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WEDGED_S", 0.2)
    wedged = awaited(start_guest("debug", *how).pid, RunState.WEDGED)
    assert wedged.silent_s >= 0.2


def test_a_guest_that_makes_hypercalls_is_not_wedged(
    start_guest: StartGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WEDGED_S", 0.0001)
    run = start_guest("debug", "poll", FOREVER)
    last = seen(run.pid)
    for _ in range(5):
        while (now := seen(run.pid, before=[last])).counters == last.counters:
            assert run.process.poll() is None
        assert (now.silent_s, now.state == RunState.WEDGED) == (0.0, False)
        last = now


def test_the_memory_that_a_guest_touches_is_seen_to_grow(start_guest: StartGuest) -> None:
    few, many = start_guest("debug", "sleep", mem="64"), start_guest("debug", "print", str(8 << 20), mem="64")
    awaited(many.pid, RunState.WAITS)  # its console's reader reads nothing
    assert seen(many.pid).touched_bytes - seen(few.pid).touched_bytes >= 7 << 20


def test_a_guest_that_is_watched_ends_as_if_nobody_had_looked(start_guest: StartGuest) -> None:
    run = start_guest("debug", "poll", "300")
    looks = 0
    watch = running.Watch()
    while run.process.poll() is None:
        for one in watch.look():
            if one.pid == run.pid:
                looks += 1
                status = Path(f"/proc/{run.pid}/status").read_text()
                assert "TracerPid:\t0\n" in status or not one.counters
    assert looks > 3
    assert run.end() == (0, b"ready\nwaited 300\n", b"")
    assert not [one for one in watch.look() if one.pid == run.pid]


# ---- stats


def stats(*words: str, limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*_command(), "stats", *words], capture_output=True, text=True, timeout=limit_s, check=False, cwd="/"
    )


def test_stats_show_what_happened_between_two_looks(start_guest: StartGuest, backend: str) -> None:
    run = start_guest("debug", "poll", FOREVER)
    done = stats(str(run.pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"debug in process {run.pid} ({backend}): ")
    assert re.search(r"^hypercalls puts 1, poll \d+ \([\d.]+/s\)$", done.stdout, re.MULTILINE)
    schema = json.loads((SCHEMAS / "stats.schema.json").read_text())
    done = stats("--json", str(run.pid))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert problems(found, schema) == []
    assert found["rates"]["hypercalls"]["poll"] > 0


def test_stats_of_a_guest_that_ends_end_with_it(guest: Guest, tender_cmd: list[str]) -> None:
    with subprocess.Popen(
        [*tender_cmd, "--mem=16", str(guest("debug")), "print", str(1 << 20)], stdout=subprocess.PIPE
    ) as run:
        awaited(run.pid, RunState.WAITS)
        with subprocess.Popen(
            [*_command(), "stats", "--json", "--watch=0.1", str(run.pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        ) as watching:
            assert watching.stdout
            for _ in range(3):
                assert json.loads(watching.stdout.readline())["guest"]["pid"] == run.pid
            run.communicate(timeout=LIMIT_S)
            _, said = watching.communicate(timeout=LIMIT_S)
    assert (run.returncode, watching.returncode) == (0, 0)
    assert said == f"tender: stats: process {run.pid}: its guest has ended\n"


def test_stats_show_the_heap_of_a_guest_that_leaks(start_guest: StartGuest) -> None:
    run = start_guest("leak", "4096", "1000000")
    with subprocess.Popen(
        [*_command(), "stats", "--json", "--watch=0.1", str(run.pid)],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as watching:
        assert watching.stdout
        heaps: list[dict[str, Any]] = []
        while len(heaps) < 2 or heaps[-1]["used_bytes"] <= heaps[0]["used_bytes"]:
            found = json.loads(watching.stdout.readline())
            heaps += [found["heap"]] if found["heap"] else []
            assert run.process.poll() is None, "it was full first"
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=LIMIT_S)
    assert watching.returncode == 0
    assert heaps[0]["kind"] == "guest library"
    assert heaps[-1]["used_bytes"] < heaps[-1]["total_bytes"] <= 16 << 20


def test_stats_refuse_what_is_no_guest() -> None:
    for word, said in (
        (str(os.getpid()), f"process {os.getpid()}: it runs no guest"),
        ("99999999", "process 99999999: there is no such process"),
    ):
        done = stats(word)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"tender: stats: {said}\ntender: hint: `tender ps` lists the guests here\n"


def test_a_planted_leak_is_foretold_in_time(start_guest: StartGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It touches 64 KiB each 20 ms, of 64 MiB: it is full after 20 s, or later where polls take longer."""
    monkeypatch.setattr(trend, "SPAN_MIN_S", 2.0)
    monkeypatch.setattr(running, "_SMAPS_SHARE", 1.0)
    run = start_guest("leak", str(64 << 10), "20000000", mem="64")
    watch, samples, foretold = running.Watch(), trend.Trend(), None
    while not foretold:
        assert run.process.poll() is None, "it was full before anything was said"
        time.sleep(0.1)  # between two samples
        (now,) = watch.look([run.pid])
        samples.add(now.looked_ns / 1e9, now.touched_bytes)
        foretold = samples.growth(now.mem_bytes)
    said_at = time.monotonic()
    assert run.end() == (0, b"ready\nfull\n", b"")
    took_s = time.monotonic() - said_at
    assert 0.5 * foretold.full_in_least_s <= took_s <= 1.5 * foretold.full_in_most_s, (took_s, foretold)


# ---- a library's VMs


def test_the_vms_of_a_library_are_seen_before_while_and_after_they_run(guest: Guest, backend: str) -> None:
    def mine() -> dict[str, RunningGuest]:
        return {one.name: one for one in tender.running() if one.holder == os.getpid()}

    config = VmConfig(mem=16, args=("sleep",))
    with Image.open(guest("debug")) as sleeps, Image.open(guest("hello_nogate")) as ends:
        with (
            Vm(sleeps, config, console=DISCARD, backend=backend) as one,  # type: ignore[arg-type]
            Vm(ends, VmConfig(mem=16), console=DISCARD, backend=backend) as two,  # type: ignore[arg-type]
        ):
            assert {name: it.state for name, it in mine().items()} == dict.fromkeys(
                ("debug", "hello_nogate"), RunState.IDLE
            )
            one.start()
            while not one.counters.hypercalls["poll"]:
                assert one.pid
            two.run()
            found = mine()
            assert found["debug"].state == RunState.WAITS
            assert found["hello_nogate"].state == RunState.ENDED
            assert {it.backend for it in found.values()} == {backend}
            for name, vm in (("debug", one), ("hello_nogate", two)):
                counted = found[name].counters
                assert counted and counted.hypercalls == vm.counters.hypercalls
                assert found[name].touched_bytes > 0
        assert not mine()


# ---- who sees what


def ps(*words: str, status: int = 0) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tender", "ps", "--json", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
    )
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert problems(found, json.loads((SCHEMAS / "ps.schema.json").read_text())) == []
    return {str(one["pid"]): one for one in found["guests"]}, done.stderr


def test_ps_lists_guests_as_a_table_and_as_json(
    start_guest: StartGuest, tender_cmd: list[str], backend: str
) -> None:
    run = start_guest("debug", "poll", FOREVER)
    done = subprocess.run([*tender_cmd, "ps"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["PID", "BACKEND", "STATE", "UPTIME", "CPU", "%", "MEMORY", "EXITS/S", "NAME"]
    (mine,) = (row.split() for row in rows if row.split()[0] == str(run.pid))
    assert (mine[1], mine[-1]) == (backend, "debug")
    found, _ = ps("--interval=0.2")
    one = found[str(run.pid)]
    assert one["rates"]["seconds"] >= 0.2
    assert (one["rates"]["hypercalls"]["poll"] > 0, one["name"], one["backend"]) == (True, "debug", backend)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_guest_that_may_not_be_read_is_shown_with_what_is_known(start_guest: StartGuest) -> None:
    run = start_guest("debug", "sleep")
    found = {str(one["pid"]): one for one in json.loads(_as_another_user("--json")[0])["guests"]}
    one = found[str(run.pid)]
    assert (one["state"], one["backend"], one["counters"], one["name"]) == ("unknown", "", None, "debug")
    assert one["why"].startswith("it belongs to the user ")
    assert one["uptime_s"] >= 0 and one["resident_bytes"] > 0
    _, said = _as_another_user()
    assert f"tender: ps: process {run.pid} cannot be read: it belongs to the user " in said
    assert said.endswith("tender: hint: sudo tender ps\n")


def _as_another_user(*words: str) -> tuple[str, str]:
    """What `tender ps` prints for a user who need not be able to read this installation."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            status = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.setgroups([])
                os.setresgid(1000, 1000, 1000)
                os.setresuid(1000, 1000, 1000)
                sys.stdout, sys.stderr = say.Stdout(), say.Stderr()
                status = ps_command.main(list(words))
                say.flush()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return tuple(file.seek(0) or file.read() for file in (out, err))  # type: ignore[return-value]


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", "tender"]


NEW_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, for a pid namespace without a user namespace")
def test_a_guest_in_a_containers_pid_namespace_is_seen_from_the_host_and_from_inside(
    guest: Guest, tender_cmd: list[str], backend: str
) -> None:
    assert shutil.which("unshare")
    inside = f'"$0" --mem=16 "$1" sleep & echo $!; {sys.executable} -P -m tender ps --json; echo; read line; kill $!; wait'
    process = subprocess.Popen(
        [*NEW_PID_NAMESPACE, "sh", "-c", inside, tender_cmd[0], str(guest("debug"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd="/",
    )
    try:
        with process:
            assert process.stdout and process.stdin
            lines: list[str] = []
            while not lines or not lines[-1].startswith("{"):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            own = int(next(line for line in lines if line.strip().isdecimal()))
            limit = time.monotonic() + LIMIT_S
            found: list[RunningGuest] = []
            while not found:
                assert time.monotonic() < limit
                found = [it for it in tender.running() if it.counters and _inner_pid(it.pid) == own]
            assert (found[0].backend, found[0].name) == (backend, "debug")
            assert {one["pid"] for one in json.loads(lines[-1])["guests"]} <= {own}
            process.stdin.write("\n")
    finally:
        process.kill()


def _inner_pid(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
    return int(numbers[-1]) if len(numbers) > 1 else 0


# ---- a process that lets its reader wait

_TRAP = """
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(323, os.O_CLOEXEC)  # userfaultfd
if fd < 0:
    sys.exit(77)
import fcntl
fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("<3Q", 0xAA, 0, 0)))  # UFFDIO_API
file = os.memfd_create("x/_native.abi3.so")
os.truncate(file, 4096)
memory = mmap.mmap(file, 4096)
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("<4Q", place, 4096, 1, 0)))  # UFFDIO_REGISTER, for missing pages
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def trap() -> Iterator["subprocess.Popen[str]"]:
    """A process that looks like a program with our library. Who reads its memory waits until it ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _TRAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                assert process.wait() == 77
                pytest.skip("this kernel gives this user no userfaultfd")
            yield process
        finally:
            process.kill()


def test_a_process_that_lets_its_reader_wait_hides_no_other(start_guest: StartGuest) -> None:
    run = start_guest("debug", "sleep")
    with trap(), trap(), trap():
        found, _ = ps()
        assert found[str(run.pid)]["name"] == "debug"
        watch = running.Watch(limit_s=0.5)
        assert [one for one in watch.look() if one.pid == run.pid and one.counters]
        begin = time.monotonic()
        assert [one for one in watch.look() if one.pid == run.pid and one.counters]
        assert time.monotonic() - begin < LIMIT_S / 10


def test_no_module_of_a_run_watches_or_debugs(guest: Guest, tender_cmd: list[str]) -> None:
    program = (
        "import sys, tender; tender.run(sys.argv[1], tender.VmConfig(mem=16), console=tender.DISCARD);"
        "print([name for name in sys.modules if name.startswith(('tender.watch', 'tender.debug'))])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(guest("hello_nogate"))],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
