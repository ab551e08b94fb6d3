"""What the native command makes of the signals' state that it was started with."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from support import Guest

pytestmark = pytest.mark.doors
LAUNCHERS = ["native", "python"]
BLOCKED = {
    "term": [15],
    "int": [2],
    "all": sorted(map(int, signal.valid_signals())),
}


def block(numbers: list[int]) -> Callable[[], object]:
    return lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("blocked", BLOCKED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_guest_although_the_command_inherits_it_blocked(
    tender_cmd: list[str], guest: Guest, door: str, launcher: str, blocked: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*tender_cmd, f"--backend={door}", str(guest("flood"))],
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
def test_a_signal_of_before_the_command_ends_it_as_any_other(
    tender_cmd: list[str], guest: Guest, door: str, blocked: str
) -> None:
    """Pending when the program starts: earlier than any that is sent to it."""
    before = (
        f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {BLOCKED[blocked]!r});"
        "os.kill(os.getpid(), signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", before, *tender_cmd, f"--backend={door}", guest("spin")],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "TENDER_LAUNCHER": "native"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "tender: Exiting on signal 15\n")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_line_that_nobody_reads_does_not_end_it(
    tender_cmd: list[str], guest: Guest, door: str, launcher: str
) -> None:
    """5 MiB: the memory's size is adjusted, which is said before the guest starts."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*tender_cmd, f"--backend={door}", "--mem=5", guest("hello")],
            stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False,
            env={**os.environ, "TENDER_LAUNCHER": launcher},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 0 and done.stdout
