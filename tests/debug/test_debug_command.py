"""`tender debug` as a user runs it: with gdb, for other clients, from the first instruction on, and when it is refused.

And what becomes of a guest whose debugger is killed.
"""

import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Guest

from tender.debug.gdb_packets import framed

LIMIT_S = 120
WAITS = "20000"
POLL = ("poll", WAITS)
TO_WAIT = ("break wait_once", "continue", "bt", "delete")
STACK = r"wait_once \(\).*\n.* in wait \(.*\n(.* in main \()?"

StartGuest = Callable[..., Any]  # conftest.py
Gdb = Callable[..., str]


Debug = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def debug(tender_cmd: list[str], environment: dict[str, str]) -> Debug:
    """A function: debug("--batch", "1") runs `tender debug --batch 1`."""

    def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*tender_cmd, "debug", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            env={**environment, **variables},
        )

    return run


def commands(*words: str) -> list[str]:
    """Returns options that run these commands of gdb one after the other."""
    return ["--batch", *(f"--ex={it}" for it in ("set width 0", *words))]


# ---- gdb of the command


@pytest.mark.backends
@pytest.mark.parametrize("after", [False, True], ids=["options", "words for gdb"])
def test_gdb_shows_the_stack_of_a_guest_that_runs_and_leaves_it(
    after: bool, debug: Debug, start_guest: StartGuest
) -> None:
    running = start_guest("debug", *POLL)
    words = commands(*TO_WAIT, "detach")
    if after:
        done = debug(str(running.pid), "--", *(it.replace("--", "-", 1) for it in words))
    else:
        done = debug(*words, str(running.pid))
    assert done.returncode == 0, done.stderr
    assert re.search(STACK, done.stdout), done.stdout
    assert done.stderr == ""
    running.check_went_on()


@pytest.mark.backends
def test_status_is_gdbs_own(debug: Debug, start_guest: StartGuest) -> None:
    running = start_guest("debug", *POLL)
    assert debug(*commands("detach", "quit 7"), str(running.pid)).returncode == 7
    running.check_went_on()


ENDS = {"big_puts": (), "exit_status": ("3",), "args": ("one", "two words")}


@pytest.mark.backends
@pytest.mark.parametrize("name", ENDS)
def test_a_guest_from_its_first_instruction_does_what_it_does_undebugged(
    name: str, debug: Debug, guest: Guest, tender_cmd: list[str]
) -> None:
    words = ["--mem=16", str(guest(name)), *ENDS[name]]
    plain = subprocess.run(
        [*tender_cmd, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    done = debug(*commands("print $rip == (long)&_start", "continue", "continue", "quit $_exitcode"), *words)
    assert done.returncode == plain.returncode, done.stderr
    assert "$1 = 1\n" in done.stdout
    assert plain.stdout in done.stdout


def test_a_guest_that_does_not_start_has_the_status_of_its_command(debug: Debug) -> None:
    done = debug(*commands("continue"), "--backend=sandbox", "/absent.elf")
    assert done.returncode == 1
    assert done.stderr.startswith("tender: /absent.elf: "), done.stderr


TWO = """
import sys
from tender import DISCARD, Image, Vm, VmConfig
with (
    Image.open(sys.argv[1]) as image,
    Vm(image, VmConfig(mem=16, args=("poll", "1000000000")), console=DISCARD) as one,
    Vm(image, VmConfig(mem=24, args=("spin", "100000000000")), console=DISCARD) as two,
):
    one.start()
    two.start()
    print("started", flush=True)
    sys.stdin.read()
"""


@contextmanager
def two_guests(path: Path) -> Iterator[int]:
    """Yields a process with two guests: one waits, the other computes."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", TWO, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"started\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.backends
def test_one_of_two_guests_of_a_process_is_chosen(debug: Debug, guest: Guest) -> None:
    with two_guests(guest("debug")) as pid:
        done = debug("--batch", str(pid))
        assert done.returncode == 1
        assert f"process {pid}: it has 2 guests" in done.stderr
        rows = dict(re.findall(r"--vm (\d): .* (\d+) MiB", done.stderr))
        assert sorted(rows.values()) == ["16", "24"]
        for number, mem in rows.items():
            function = "wait_once" if mem == "16" else "tick"
            done = debug(
                *commands(f"break {function}", "continue", "bt", "detach"), f"--vm={number}", str(pid)
            )
            assert done.returncode == 0, done.stderr
            assert re.search(rf"#0 .*{function} \(", done.stdout), done.stdout


# ---- other clients


@pytest.mark.backends
def test_a_client_of_stdio_gets_the_symbols_through_the_connection(
    gdb: Gdb, start_guest: StartGuest, tender_cmd: list[str]
) -> None:
    running = start_guest("debug", *POLL)
    told = gdb(*TO_WAIT, "detach", target=f"| {tender_cmd[0]} debug --stdio {running.pid}")
    assert re.search(STACK, told), told
    assert "??" not in told and "Can't read data" not in told
    running.check_went_on()


@pytest.mark.parametrize("place", ["{}/gdb.sock", "127.0.0.1:0", ":0", "localhost:0", "[::1]:0"])
def test_a_client_connects_to_a_place(
    place: str,
    gdb: Gdb,
    start_guest: StartGuest,
    listening: Callable[..., Any],
    tmp_path: Path,
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    with listening(place.format(tmp_path), str(running.pid)) as (process, shown):
        if shown.startswith("/"):
            assert stat.S_IMODE(os.stat(shown).st_mode) == 0o600
        told = gdb(*TO_WAIT, "detach", target=shown)
        assert re.search(STACK, told), told
        assert process.wait(LIMIT_S) == 0
    assert not os.path.exists(tmp_path / "gdb.sock")
    running.check_went_on()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("place", ["127.0.0.1:0", "[::1]:0"])
def test_a_client_of_another_user_is_refused_and_the_users_own_is_served(
    place: str, gdb: Gdb, start_guest: StartGuest, listening: Callable[..., Any]
) -> None:
    """The other user's process sends what would end the guest, and stays or leaves at once."""
    kill = framed(b"k")
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    with listening(place, str(running.pid)) as (process, shown):
        host, _, port = shown.rpartition(":")
        address = f"({host.strip('[]')!r}, {port})"
        for end in ("pass", "c.recv(1)", "c.shutdown(socket.SHUT_WR); c.recv(1)"):
            subprocess.run(
                [
                    *(
                        "setpriv",
                        "--reuid=1000",
                        "--regid=1000",
                        "--clear-groups",
                        "/usr/bin/env",
                        "python3",
                        "-c",
                    ),
                    f"import socket\nc = socket.create_connection({address})\ntry:\n c.sendall({kill!r}); {end}\n"
                    "except ConnectionError: pass",
                ],
                timeout=LIMIT_S,
                check=True,
                cwd="/",
            )
        assert re.search(STACK, gdb(*TO_WAIT, "detach", target=shown))
        assert process.wait(LIMIT_S) == 0
        assert process.stderr.read() == (
            "tender: debug: a client of another user has been refused\n"
            "tender: hint: --listen=PATH: a unix socket is yours alone\n"
        )
    running.check_went_on()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_a_client_came_is_the_status(
    number: signal.Signals, start_guest: StartGuest, listening: Callable[..., Any], tmp_path: Path
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    with listening(str(tmp_path / "gdb.sock"), str(running.pid)) as (process, _):
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 128 + number
        assert process.stderr.read() == ""
    assert not os.path.exists(tmp_path / "gdb.sock")
    running.check_went_on()


def test_a_place_that_is_in_use_or_of_another_host_is_refused(
    debug: Debug, start_guest: StartGuest, tmp_path: Path
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(stale))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for place, words in (
            (str(stale), "Address already in use"),
            (str(tmp_path / "absent" / "socket"), "No such file"),
            (str(tmp_path / ("x" * 200)), "too long"),
            (f"127.0.0.1:{port}", "Address already in use"),
            ("0.0.0.0:0", "this host only"),
            ("[::]:0", "this host only"),
            ("192.0.2.1:0", "this host only"),
            ("example.org:0", "this host only"),
            ("127.0.0.1:65536", "at most 65535"),
        ):
            done = debug(f"--listen={place}", str(running.pid))
            assert done.returncode == 1, place
            assert words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert stale.exists()
    running.check_went_on()


# ---- what is refused


@contextmanager
def a_process(kind: str) -> Iterator[int]:
    """Yields the number of a process without a guest."""
    if kind == "the first":
        yield 1
        return
    with subprocess.Popen(["sleep", "1000"]) as process:
        if kind != "no guest":
            process.kill()
        if kind == "absent":
            process.wait()
        elif kind == "zombie":
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("the first", "runs no guest|does not let you look"),
        ("absent", "there is no such process"),
        ("zombie", "has ended|runs no guest|no such process"),
        ("no guest", "it runs no guest"),
    ],
)
def test_a_process_without_a_guest_is_refused(kind: str, words: str, debug: Debug) -> None:
    with a_process(kind) as pid:
        for form in (("--batch",), ("--stdio",), ("--listen=127.0.0.1:0",)):
            done = debug(*form, str(pid))
            assert done.returncode == 1
            assert re.search(rf"tender: debug: process {pid}: .*({words})", done.stderr), done.stderr


def test_what_cannot_be_debugged_is_refused_and_the_guest_goes_on(
    debug: Debug, start_guest: StartGuest, guest: Guest, tmp_path: Path
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    pid = str(running.pid)
    text = tmp_path / "text"
    text.write_text("no ELF file")
    for options, words in (
        ((f"--image={guest('hello')}",), "it is not the image of this guest: the code at 0x"),
        (("--image=/absent.elf",), "/absent.elf: No such file"),
        ((f"--image={text}",), "no ELF file"),
        (("--vm=2",), "no VM 2"),
        (("--vm=0",), "is no number"),
        (("--vm=" + "9" * 5000,), "is no number"),
        (("--frob",), "frob"),
        (("--stdio", "--listen=:0"), "exclude each other"),
    ):
        done = debug("--batch", *options, pid)
        assert done.returncode == 1, options
        assert words in done.stderr and "Traceback" not in done.stderr, done.stderr
    running.check_went_on()


def test_without_gdb_the_command_says_so(debug: Debug, start_guest: StartGuest, tmp_path: Path) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    done = debug(str(running.pid), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "there is no gdb in PATH" in done.stderr and "--listen" in done.stderr
    running.check_went_on()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("command", ["debug", "core", "report", "trace"])
def test_a_refusal_has_the_commands_name_and_repeats_what_was_typed(
    command: str, start_guest: StartGuest, tender_cmd: list[str]
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    done = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *tender_cmd, command, str(running.pid)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
    )
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert re.fullmatch(
        rf"tender: {command}: process {running.pid}: it belongs to the user \d+ \(of a guest that root runs\), "
        r"and you are the user 1000",
        first,
    )
    assert hint == f"tender: hint: sudo tender {command} {running.pid}"
    running.check_went_on()


# ---- debuggers that are killed


def children(pid: int) -> list[int]:
    try:
        return [int(it) for it in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.backends
@pytest.mark.parametrize("victim", ["command", "gdb", "guard", "debugger"])
def test_a_guest_that_was_started_ends_with_its_debugger(
    victim: str,
    backend: str,
    guest: Guest,
    tender_cmd: list[str],
    environment: dict[str, str],
) -> None:
    words = commands("break wait_once", "continue", "echo stopped\\n", "delete", "continue")
    with subprocess.Popen(
        [*tender_cmd, "debug", *words, f"--backend={backend}", "--mem=16", guest("debug"), *POLL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as command:
        assert command.stdout
        for line in command.stdout:
            if line == b"stopped\n":
                break
        else:
            pytest.fail("gdb has not stopped")
        (gdb,) = (it for it in children(command.pid) if "gdb" in Path(f"/proc/{it}/comm").read_text())
        (guard,) = set(children(command.pid)) - {gdb}
        (debugger,) = children(guard)
        (started,) = children(debugger)
        ended = os.pidfd_open(started)
        os.kill(
            {"command": command.pid, "gdb": gdb, "guard": guard, "debugger": debugger}[victim], signal.SIGKILL
        )
        try:
            assert select.select([ended], [], [], LIMIT_S)[0], "the guest goes on"
            command.stdout.read()  # gdb and the guard have it too: they end
        finally:
            os.close(ended)


def test_a_guest_goes_on_when_gdb_is_killed(
    start_guest: StartGuest, tender_cmd: list[str], environment: dict[str, str]
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    words = commands("break wait_once", "continue", "echo stopped\\n", "delete", "continue")
    for _ in range(2):
        with subprocess.Popen(
            [*tender_cmd, "debug", *words, str(running.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as command:
            assert command.stdout
            for line in command.stdout:
                if line == b"stopped\n":
                    break
            else:
                pytest.fail("gdb has not stopped")
            (gdb,) = (it for it in children(command.pid) if "gdb" in Path(f"/proc/{it}/comm").read_text())
            os.kill(gdb, signal.SIGKILL)
            assert command.wait(LIMIT_S) == 128 + signal.SIGKILL
    running.check_went_on()
