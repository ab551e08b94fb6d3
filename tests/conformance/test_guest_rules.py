"""Rules beyond the ABI on which unikernels and their launchers rely, as far as no other row shows them."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import AGAIN, L_NET, L_POLL, NET_READ, NET_WRITE, OK, POLL, Bare
from support import Guest

from tender import NetFd

backends = pytest.mark.backends
Front = Callable[[str], str]
A_DAY_NS = 86400 * 10**9


@backends
def test_sigterm_ends_the_command_as_process_1_of_a_container(front: Front, guest: Guest) -> None:
    """The kernel drops a signal for the first process of a PID namespace unless the process has a handler
    for it. So the command must have one."""
    tender = [front("solo5-hvt"), "--mem=2", str(guest("spin"))]
    command = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child", *tender]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as outside:
        assert outside.stdout and outside.stderr
        assert outside.stdout.readline() == "ready\n"
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        (first,) = map(int, children)
        namespaces = Path(f"/proc/{first}/status").read_text()
        assert re.search(r"^NSpid:(\s\d+)*\s1$", namespaces, re.M), namespaces
        os.kill(first, signal.SIGTERM)
        assert outside.stderr.read() == "solo5-hvt: Exiting on signal 15\n"
        assert outside.wait(timeout=120) == 1


def test_the_hosts_kernel_does_not_execute_our_unikernels(guest: Guest) -> None:
    """Their interpreter does not exist: a shell ends with 127, and no code of theirs runs."""
    for name in ("hello", "args"):
        done = subprocess.run(
            ["sh", "-c", '"$0"', str(guest(name))], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (127, b"")


@backends
def test_an_idle_loop_wakes_for_each_frame_and_reads_until_again() -> None:
    """An idle MirageOS does the same: it yields for a day, reads until AGAIN, answers, and yields again."""
    frames = [b"\x01" * 60, b"\x02" * 1514, b"\x03" * 14]
    guest = Bare([("service0", "net")])
    turns = []
    for frame in frames:
        buffers = [guest.place(bytes(1514)) for _ in range(2)]
        turns.append(
            (
                guest.call(POLL, L_POLL, A_DAY_NS, 0, 0),
                *(guest.call(NET_READ, L_NET, 1, buffer, 1514, 77) for buffer in buffers),
                guest.call(NET_WRITE, L_NET, 1, buffers[0], len(frame), 77),
            )
        )
    guest.halt()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(120)
    answers: list[bytes] = []

    def talk() -> None:
        for frame in frames:
            ours.send(frame)
            answers.append(ours.recv(2048))

    with ours, theirs:
        host = threading.Thread(target=talk)
        host.start()
        ran = guest.run(net=NetFd(theirs.fileno()))
        host.join()
    assert ran.result.ok and answers == frames, ran.result
    for (polled, first, second, written), frame in zip(turns, frames, strict=True):
        assert ran.at(polled)[1:] == (2, 1)
        assert ran.at(first)[2:] == (len(frame), OK)
        assert ran.at(second)[2:] == (1514, AGAIN)
        assert ran.at(written)[3] == OK
