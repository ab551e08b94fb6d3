"""With each backend the native command is its guest's process: what is done to or read of the command
applies to the guest.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import Guest, TapInterface, ip, sandbox_of

pytestmark = pytest.mark.backends

FRONTS = [["tender"], ["solo5-hvt"], ["solo5-spt"]]
LIMIT_S = 120


def wait_until(what: str, holds: object) -> None:
    deadline = time.monotonic() + LIMIT_S
    assert callable(holds)
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def running(command: list[str], **values: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A command whose guest has printed its first line. It is killed at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **values) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None and process.stdout.readline(), process.stderr.read()
            yield process
        finally:
            process.kill()


def command_of(tender_cmd: list[str], front: list[str], image: Path, *options: str) -> list[str]:
    words = [] if front == ["tender"] else front
    return [*tender_cmd, *words, "--mem=16", *options, str(image)]


@pytest.mark.parametrize("front", FRONTS, ids=lambda words: words[0])
def test_figures_of_the_process_are_the_guests(
    tender_cmd: list[str], guest: Guest, backend: str, front: list[str]
) -> None:
    with running(command_of(tender_cmd, front, guest("spin"))) as process:
        if backend == "sandbox":
            assert sandbox_of(process.pid).pid == process.pid
        seen = psutil.Process(process.pid)
        assert seen.children() == []
        used = seen.cpu_times().user
        wait_until("its processor time grows", lambda: seen.cpu_times().user > used + 0.2)
        process.terminate()
        assert process.wait(LIMIT_S) == 1


def test_its_memory_is_the_guests(tender_cmd: list[str], guest: Guest, backend: str) -> None:
    size = {}
    for mem in (8, 264):
        with running([*tender_cmd, f"--mem={mem}", str(guest("spin"))]) as process:
            size[mem] = psutil.Process(process.pid).memory_info().vms
    assert 256 << 20 <= size[264] - size[8] < 264 << 20


@pytest.mark.parametrize("front", FRONTS, ids=lambda words: words[0])
def test_sigstop_priority_and_processors_reach_the_guest(
    tender_cmd: list[str], guest: Guest, backend: str, front: list[str]
) -> None:
    with running(command_of(tender_cmd, front, guest("spin"))) as process:
        seen = psutil.Process(process.pid)
        process.send_signal(signal.SIGSTOP)
        wait_until("it stands still", lambda: seen.status() == psutil.STATUS_STOPPED)
        used = seen.cpu_times().user
        assert all(thread.user_time <= used for thread in seen.threads())
        time.sleep(0.05)
        assert seen.cpu_times().user == used
        process.send_signal(signal.SIGCONT)
        wait_until("it goes on", lambda: seen.cpu_times().user > used)
        os.setpriority(os.PRIO_PROCESS, process.pid, 5)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 5
        one = {min(os.sched_getaffinity(0))}
        os.sched_setaffinity(process.pid, one)
        assert os.sched_getaffinity(process.pid) == one
        process.terminate()
        assert process.wait(LIMIT_S) == 1


def test_a_killed_command_has_left_its_interface(
    tender_cmd: list[str], guest: Guest, backend: str, tap: TapInterface
) -> None:
    """The interface can be deleted immediately after the command is reaped. This is tried thirty times."""
    for _ in range(30):
        with running([*tender_cmd, "--mem=16", f"--net={tap.name}", str(guest("echo"))]) as process:
            process.kill()
            assert process.wait(LIMIT_S) == -signal.SIGKILL
            ip("link", "set", tap.name, "down")
            ip("tuntap", "del", tap.name, "mode", "tap")
            ip("tuntap", "add", tap.name, "mode", "tap")
            tap.up()


def test_a_killed_command_has_left_its_disk(
    tender_cmd: list[str], guest: Guest, backend: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    words = [*tender_cmd, "--mem=16", f"--block={disk}"]
    other = [*words, str(guest("disk"))]
    with running([*words, str(guest("block_trap"))]) as process:
        assert subprocess.run(other, capture_output=True, check=False, timeout=LIMIT_S).returncode == 1
        process.kill()
        assert process.wait(LIMIT_S) == -signal.SIGKILL
        assert subprocess.run(other, capture_output=True, check=False, timeout=LIMIT_S).returncode == 0


def test_a_signal_for_the_death_of_its_parent_is_kept(
    tender_cmd: list[str], guest: Guest, backend: str
) -> None:
    """An orchestrator asks for the signal (PR_SET_PDEATHSIG). It is kept although the process changes
    its user and rights.
    """
    parent = (
        "import ctypes, signal, subprocess, sys\n"
        "ask = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
        "process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, preexec_fn=ask)\n"
        "process.stdout.readline()\n"
        "print(process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = ["/usr/bin/env", "python3", "-c", parent, *tender_cmd, "--mem=16", str(guest("spin"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outside:
        assert outside.stdout is not None
        pid = int(outside.stdout.readline())
        outside.kill()
        outside.wait(LIMIT_S)
    wait_until("it ends with its parent", lambda: not psutil.pid_exists(pid) or is_over(pid))


@pytest.mark.parametrize(
    ("front", "options", "words"),
    [(["tender"], 0, 8000), (["solo5-spt"], 0, 8000), (["tender"], 20000, 0)],
    ids=["arguments", "arguments of solo5-spt's", "options"],
)
def test_more_words_than_the_guests_stack_holds_are_passed(
    tender_cmd: list[str], guest: Guest, backend: str, front: list[str], options: int, words: int
) -> None:
    """The process that becomes the guest has 64 KiB of stack, where the kernel puts a command's words."""
    command = [*command_of(tender_cmd, front, guest("exit_status"), *["-q"] * options), "3", *[""] * words]
    assert subprocess.run(command, check=False, timeout=LIMIT_S).returncode == 3


def is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
