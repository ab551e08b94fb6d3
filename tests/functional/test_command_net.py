"""The native command and a guest with a network on KVM: every way to end, under the command's own
system-call filter.

With two processors the guest has a network ring and a thread that serves the ring. The end of such
a run needs more system calls. COMMAND_NET_RUNS in the environment sets how often each case is
repeated.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Guest, TapInterface

pytestmark = pytest.mark.kvm
RUNS = int(os.environ.get("COMMAND_NET_RUNS", "2"))
ECHO = {
    "tender": ["tender", "--backend=kvm", "--net={}"],
    "solo5-hvt": ["tender", "solo5-hvt", "--net:service0={}"],
}
MEMORY = [16, 64, 512]
native = {**os.environ, "TENDER_LAUNCHER": "native", "TENDER_BACKEND": "kvm"}


@pytest.fixture
def start(tender_cmd: list[str], guest: Guest, tap: TapInterface) -> Callable[..., subprocess.Popen[str]]:
    def begin(front: str, mem: int, *options: str) -> subprocess.Popen[str]:
        words = [word.format(tap.name) for word in ECHO[front][1:]]
        return subprocess.Popen(
            [*tender_cmd, *words, f"--mem={mem}", *options, str(guest("echo"))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=native,
        )  # fmt: skip

    return begin


@pytest.mark.tap
@pytest.mark.parametrize("mem", MEMORY)
@pytest.mark.parametrize("front", ECHO)
def test_a_signal_ends_the_command_with_1_and_its_line(
    start: Callable[..., "subprocess.Popen[str]"], front: str, mem: int
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT) * RUNS:
        with start(front, mem) as command:
            assert command.stdout and command.stdout.readline().startswith("echo: service0")
            command.send_signal(number)
            _, said = command.communicate(timeout=60)
        assert (command.returncode, said) == (1, f"{front}: Exiting on signal {number.value}\n")


@pytest.mark.tap
@pytest.mark.parametrize("mem", MEMORY)
def test_a_time_limit_ends_the_command_with_1_and_its_line(
    start: Callable[..., "subprocess.Popen[str]"], mem: int
) -> None:
    for _ in range(RUNS):
        with start("tender", mem, "--timeout=0.3") as command:
            _, said = command.communicate(timeout=60)
        assert (command.returncode, said) == (
            1,
            "tender: the guest was stopped: its time limit of 0.3 s is over\n",
        )


@pytest.mark.parametrize("mem", MEMORY)
@pytest.mark.parametrize("words", [[], ["--no-net-ring"]], ids=["ring", "no-ring"])
def test_a_guest_that_halts_gives_its_status(
    tender_cmd: list[str], guest: Guest, mem: int, words: list[str]
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(RUNS):
            done = subprocess.run(
                [*tender_cmd, "--backend=kvm", f"--mem={mem}", f"--net=@{theirs.fileno()}", *words, guest("ring"), "none"],
                capture_output=True, text=True, timeout=60, check=False, pass_fds=[theirs.fileno()], env=native,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("front", ["tender", "solo5-hvt"])
def test_a_busy_guest_is_served_to_its_end(tender_cmd: list[str], guest: Guest, front: str) -> None:
    """With two processors so many frames come at a time that the ring's thread serves them, under the
    filter.
    """
    words = {"tender": ["--net=@{}"], "solo5-hvt": ["solo5-hvt", "--net:service0=@{}"]}[front]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(60)
    offered = len(os.sched_getaffinity(0)) > 1
    with ours, theirs:
        command = [*tender_cmd, *(word.format(theirs.fileno()) for word in words), "--mem=64"]
        with subprocess.Popen(
            [*command, str(guest("ring")), "echo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[theirs.fileno()], env=native,
        ) as running:  # fmt: skip
            if offered:
                frames = [bytes(14) + bytes([n]) * 100 for n in range(8)]
                for _ in range(250):
                    for frame in frames:
                        ours.send(frame)
                    assert [ours.recv(2048) for _ in frames] == frames
                ours.send(bytes(14) + b"QUIT")
            said, complained = running.communicate(timeout=60)
        assert (running.returncode, complained) == (0 if offered else 1, "")
        assert said == ("echo: 2001 frames\n" if offered else "ring: FAILED none is offered\n")


@pytest.mark.parametrize("case", ["send-bad", "read-bad", "drain-bad"])
def test_a_ring_that_names_forbidden_memory_ends_the_run_with_a_line(
    tender_cmd: list[str], guest: Guest, case: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(RUNS):
            done = subprocess.run(
                [*tender_cmd, "--backend=kvm", "--mem=64", f"--net=@{theirs.fileno()}", guest("ring"), case],
                capture_output=True, text=True, timeout=60, check=False, pass_fds=[theirs.fileno()], env=native,
            )  # fmt: skip
            assert done.returncode == 1 and done.stderr.startswith("tender: "), (done.returncode, done.stderr)
            assert "guest" in done.stderr or "hypercall" in done.stderr, done.stderr


@pytest.mark.parametrize("mem", MEMORY)
def test_with_disks_in_addition_to_the_networks(
    tender_cmd: list[str], guest: Guest, tmp_path: Path, mem: int
) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    theirs = [pair[1].fileno() for pair in pairs]
    words = [f"--net=service{at}=@{fd}" for at, fd in enumerate(theirs)]
    for at in range(2):
        (tmp_path / str(at)).write_bytes(bytes(1 << 20))
        words.append(f"--block=storage{at}={tmp_path / str(at)}")
    try:
        for _ in range(RUNS):
            done = subprocess.run(
                [*tender_cmd, "--backend=kvm", f"--mem={mem}", *words, guest("nets_and_blocks")],
                capture_output=True, text=True, timeout=60, check=False, pass_fds=theirs, env=native,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            assert "storage1 holds storage1" in done.stdout
    finally:
        for pair in pairs:
            pair[0].close()
            pair[1].close()
