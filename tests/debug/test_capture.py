"""`tender capture`: the frames of a guest's network, as tshark reads them, on both backends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest, TapInterface

LIMIT_S = 120
COMMAND = [sys.executable, "-P", "-m", "tender", "capture"]


def fields(path: Path, *names: str) -> list[list[str]]:
    """What tshark finds in a file: these fields of each frame."""
    asked = [word for name in names for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", *asked], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.tap
@pytest.mark.backends
def test_requests_and_replies_of_a_guest_are_in_the_file_with_their_direction(
    guest: Guest, tap: TapInterface, tender_cmd: list[str], tmp_path: Path
) -> None:
    tap.be_quiet()
    file = tmp_path / "echo.pcapng"
    command = [
        *tender_cmd,
        "--mem=16",
        "--console=/dev/null",
        f"--net:service0={tap.name}",
        str(guest("echo")),
    ]
    with subprocess.Popen([*command, "--pings=3"]) as running:
        try:
            tap.carries()
            words = [*COMMAND, f"--write={file}", "--count=8", str(running.pid)]
            with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as capture:
                assert capture.stderr
                assert capture.stderr.readline() == f"tender: capture: service0 ({tap.name})\n"
                ping = subprocess.run(
                    ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "60", "10.0.0.2"],
                    capture_output=True,
                    timeout=LIMIT_S,
                )
                assert ping.returncode == 0
                said = capture.stderr.read()
            assert (capture.returncode, said) == (0, "tender: capture: 8 frames\n")
            assert running.wait(LIMIT_S) == 0
        finally:
            running.kill()
    found = fields(
        file,
        "frame.interface_name",
        "frame.interface_description",
        "frame.packet_flags_direction",
        "_ws.col.Protocol",
    )
    assert {tuple(row[:2]) for row in found} == {(tap.name, "service0")}
    into, out = "0x00000001", "0x00000002"
    assert [tuple(row[2:]) for row in found] == [(into, "ARP"), (out, "ARP")] + [
        (into, "ICMP"),
        (out, "ICMP"),
    ] * 3


REFUSED = {
    "no file": (["1"], "a file is needed"),
    "no PID": (["-w", "x"], "a PID is needed"),
    "two": (["-w", "x", "1", "2"], "2: one PID is enough"),
    "no guest": (["-w", "x", str(os.getpid())], "it runs no guest"),
}


@pytest.mark.parametrize("words, complaint", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_captured_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tender.cli import capture

    assert capture.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("tender: capture: ") and complaint in said


@pytest.mark.backends
def test_a_network_without_an_interface_and_an_unknown_one_are_refused(
    guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    command = [*tender_cmd, "--mem=16", f"--net:service0=@{near.fileno()}", str(guest("echo"))]
    with near, far, subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(near.fileno(),)) as running:
        try:
            assert running.stdout
            assert running.stdout.readline().startswith(b"echo: ")
            for words, complaint in (
                ([], "service0: it is no TAP interface, so its frames cannot be seen from outside"),
                (["--net=other"], "the guest has no network other"),
            ):
                done = subprocess.run(
                    [*COMMAND, f"--write={tmp_path / 'none'}", *words, str(running.pid)],
                    capture_output=True,
                    text=True,
                    timeout=LIMIT_S,
                )
                assert done.returncode == 1
                assert complaint in done.stderr.splitlines()[0]
                assert not (tmp_path / "none").exists()
        finally:
            running.kill()
