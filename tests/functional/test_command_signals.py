"""How the native command handles the signal state that it is started with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.backends
LAUNCHERS = ["native", "python"]
BLOCKED = {
    "term": [15],
    "int": [2],
    "all": sorted(map(int, signal.valid_signals())),
}


def wait_until_it_hears(command: "subprocess.Popen[bytes]", number: int) -> None:
    """Waits until the command blocks the signal or has a handler for it. It does from its main()
    on.

    Popen() returns earlier, when the program is executed.
    """
    deadline, bit = time.monotonic() + 60, 1 << number - 1
    while True:
        with open(f"/proc/{command.pid}/status") as status:
            fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        if (int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) & bit:
            return
        assert command.poll() is None and time.monotonic() < deadline, fields


@pytest.mark.parametrize("front", [[], ["solo5-hvt"]], ids=["tender", "solo5-hvt"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_the_start_has_the_same_end(
    tender_cmd: list[str], guest: Guest, backend: str, launcher: str, front: list[str], number: signal.Signals
) -> None:
    """The signal comes from the first moment that the command can notice, in steps that cover the
    start and what follows.
    """
    ends = set()
    environment = {**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": backend}
    for step in range(24):
        with subprocess.Popen(
            [*tender_cmd, *front, str(guest("flood"))], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment,
        ) as command:  # fmt: skip
            try:
                wait_until_it_hears(command, number)
                at_ns = time.monotonic_ns() + step * step * 200_000
                while time.monotonic_ns() < at_ns:
                    pass
                command.send_signal(number)
                _, said = command.communicate(timeout=60)
            finally:
                command.kill()
        ends.add((command.returncode, said.decode()))
    assert ends == {(1, f"{front[0] if front else 'tender'}: Exiting on signal {number.value}\n")}


def block(numbers: list[int]) -> Callable[[], object]:
    return lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("blocked", BLOCKED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_guest_although_the_command_inherits_it_blocked(
    tender_cmd: list[str], guest: Guest, backend: str, launcher: str, blocked: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*tender_cmd, f"--backend={backend}", str(guest("flood"))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TENDER_LAUNCHER": launcher},
        preexec_fn=block(BLOCKED[blocked]),
    ) as command:  # fmt: skip
        try:
            assert command.stdout and command.stdout.read(1)
            command.send_signal(number)
            _, said = command.communicate(timeout=60)
        finally:
            command.kill()
    assert (command.returncode, said) == (1, f"tender: Exiting on signal {number.value}\n".encode())


@pytest.mark.parametrize("blocked", ["term", "all"])
def test_a_signal_from_before_the_start_ends_the_command_like_any_other(
    tender_cmd: list[str], guest: Guest, backend: str, blocked: str
) -> None:
    """The signal is pending when the program starts: earlier than any signal that is sent to it."""
    before = (
        f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {BLOCKED[blocked]!r});"
        "os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", before, *tender_cmd, f"--backend={backend}", guest("spin")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "TENDER_LAUNCHER": "native"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "tender: Exiting on signal 15\n")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_line_that_nobody_reads_does_not_end_the_command(
    tender_cmd: list[str], guest: Guest, backend: str, launcher: str
) -> None:
    """The memory size 5 MiB is adjusted, and the command writes a line about that before the guest
    starts.
    """
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*tender_cmd, f"--backend={backend}", "--mem=5", guest("hello")],
            stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False,
            env={**os.environ, "TENDER_LAUNCHER": launcher},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 0 and done.stdout


# ---- signals that the command inherits as ignored: nohup, a shell's background, systemd, a parent
# that never waits

IGNORED = {
    "nothing": [],
    "hup": [signal.SIGHUP],
    "term": [signal.SIGTERM],
    "chld": [signal.SIGCHLD],
    "pipe": [signal.SIGPIPE],
    "urg": [signal.SIGURG],
    "alrm": [signal.SIGALRM],
    "faults": [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS],
    "all": sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGINT}),
}
FRONTS: list[list[str]] = [[], ["solo5-hvt"]]


def inherit(ignored: Sequence[int], blocked: Sequence[int]) -> Callable[[], object]:
    def prepare() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    return prepare


def start(
    command: list[str], launcher: str, ignored: Sequence[int], blocked: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=False,
        env={**os.environ, "TENDER_LAUNCHER": launcher}, preexec_fn=inherit(ignored, blocked),
    )  # fmt: skip


def stopped(command: "subprocess.Popen[bytes]", *numbers: int) -> tuple[int, str]:
    """Returns the command's status and last lines after it received these signals while its guest ran."""
    with command:
        try:
            assert command.stdout and command.stdout.read(1)
            for number in numbers:
                command.send_signal(number)
            _, said = command.communicate(timeout=60)
        finally:
            command.kill()
    return command.returncode, said.decode()


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("front", FRONTS, ids=["tender", "solo5-hvt"])
@pytest.mark.parametrize("ignored", IGNORED)
def test_sigterm_stops_the_guest_whatever_is_ignored(
    tender_cmd: list[str], guest: Guest, launcher: str, front: list[str], ignored: str
) -> None:
    command = start([*tender_cmd, *front, "--mem=8", str(guest("sleep"))], launcher, IGNORED[ignored])
    program = front[0] if front else "tender"
    assert stopped(command, signal.SIGTERM) == (1, f"{program}: Exiting on signal 15\n")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("front", FRONTS, ids=["tender", "solo5-hvt"])
def test_a_background_jobs_guest_does_not_hear_the_terminals_interrupt(
    tender_cmd: list[str], guest: Guest, launcher: str, front: list[str]
) -> None:
    """A shell ignores SIGINT for what it starts in the background. solo5-hvt handles it all the same."""
    words = [*tender_cmd, *front, "--mem=8", str(guest("sleep"))]
    command = start(words, launcher, [signal.SIGINT])
    if front:
        assert stopped(command, signal.SIGINT) == (1, "solo5-hvt: Exiting on signal 2\n")
    else:
        assert stopped(command, signal.SIGINT, signal.SIGTERM) == (1, "tender: Exiting on signal 15\n")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_hangup_ends_the_command_unless_it_is_ignored(
    tender_cmd: list[str], guest: Guest, launcher: str
) -> None:
    words = [*tender_cmd, "--mem=8", str(guest("sleep"))]
    assert stopped(start(words, launcher, []), signal.SIGHUP) == (-signal.SIGHUP, "")
    of_nohup = start(words, launcher, [signal.SIGHUP])
    assert stopped(of_nohup, signal.SIGHUP, signal.SIGTERM) == (1, "tender: Exiting on signal 15\n")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("how", ["ignored", "blocked"])
@pytest.mark.parametrize("which", IGNORED)
def test_a_guest_ends_as_without_ignored_signals(
    tender_cmd: list[str], guest: Guest, launcher: str, how: str, which: str
) -> None:
    """The guest ends by its own status, by a fault, by a trap that it serves itself, or by its time
    limit.
    """
    ends: tuple[tuple[list[str], int], ...] = (
        (["exit_status", "3"], 3),
        (["write_text"], 1),
        (["traps", "--kind=divide"], 255),
        (["--timeout=0.2", "spin"], 1),
    )
    numbers = [int(number) for number in IGNORED[which]]
    for words, status in ends:
        named = [str(guest(word)) if word.isidentifier() else word for word in words]
        ignored, blocked = (numbers, []) if how == "ignored" else ([], numbers)
        with start([*tender_cmd, "--mem=8", *named], launcher, ignored, blocked) as command:
            try:
                _, said = command.communicate(timeout=60)
            finally:
                command.kill()
        assert command.returncode == status, (words, said)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_how_the_sandbox_process_died_is_reported_although_sigchld_is_ignored(
    tender_cmd: list[str], guest: Guest, backend: str, launcher: str
) -> None:
    """With SIGCHLD ignored the kernel would reap the process immediately, and report its death to
    nobody.
    """
    if backend != "sandbox":
        return  # that backend has no process of its own
    words = ["--mem=8", "--require=pid-namespace", str(guest("sleep"))]
    command = start([*tender_cmd, *words], launcher, [signal.SIGCHLD])
    with command:
        try:
            assert command.stdout and command.stdout.read(1)
            tasks = Path(f"/proc/{command.pid}/task").iterdir()
            children = [pid for task in tasks for pid in (task / "children").read_text().split()]
            assert children
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)
            _, said = command.communicate(timeout=60)
        finally:
            command.kill()
    assert command.returncode == 2 and b"SIGKILL" in said
