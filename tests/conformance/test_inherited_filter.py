"""Under the filter that urunc 0.5 to 0.7 installs before it executes solo5-hvt, a guest runs on KVM, and
errors are reported.

Under that filter Python cannot start, no process can be made, and no filter of our own can be installed
(bindings/command/inherited_filter.c).
"""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest, TapInterface

INHERITED_FILTER = Path(__file__).resolve().parents[1] / "inherited_filter.py"

Done = subprocess.CompletedProcess[str]


def run(command: list[str]) -> Done:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")


def filtered(command: list[str], *more: str) -> list[str]:
    return [sys.executable, str(INHERITED_FILTER), *more, *command]


@pytest.fixture
def solo5_hvt(tender_cmd: list[str]) -> list[str]:
    return [*tender_cmd, "solo5-hvt", "--mem=8"]


@pytest.mark.kvm
def test_a_guest_runs_and_its_disk_works(solo5_hvt: list[str], guest: Guest, disk: Path) -> None:
    command = [*solo5_hvt, f"--block:storage={disk}", str(guest("disk"))]
    free, confined = run(command), run(filtered(command))
    assert (confined.returncode, confined.stdout, confined.stderr) == (0, free.stdout, "")


def assert_confined(pid: int) -> None:
    """The process has no capability, can get no new privilege, and has our filter in addition to the
    inherited one."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp_filters"]) == ("1", "2")


@pytest.mark.kvm
@pytest.mark.parametrize(
    "call", ["ppoll", "eventfd2", "fcntl", "rt_sigprocmask", "landlock_create_ruleset", "setgroups"]
)
def test_one_refused_call_disables_no_other_isolation_layer(
    solo5_hvt: list[str], guest: Guest, call: str
) -> None:
    """Whatever a filter around the command refuses, the command gives up its capabilities and installs its
    own filter."""
    running = subprocess.Popen(
        filtered([*solo5_hvt, str(guest("spin"))], f"-{call}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    try:
        assert running.stdout is not None and running.stdout.read(1), "the guest has not begun"
        assert_confined(running.pid)
        running.send_signal(signal.SIGTERM)
        _, stderr = running.communicate(timeout=60)
        assert (running.returncode, stderr) == (1, b"solo5-hvt: Exiting on signal 15\n")
    finally:
        running.kill()


OURS = ("+prctl", "+seccomp", "+capset", "+eventfd2")


@pytest.mark.kvm
@pytest.mark.parametrize("more", [(), OURS], ids=["urunc's", "a filter that allows ours"])
@pytest.mark.parametrize("name", ["sleep", "spin"])
def test_a_signal_stops_the_guest_under_the_filter(
    solo5_hvt: list[str], guest: Guest, name: str, more: tuple[str, ...]
) -> None:
    running = subprocess.Popen(
        filtered([*solo5_hvt, str(guest(name))], *more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
    )  # fmt: skip
    assert running.stdout is not None and running.stdout.read(1), "the guest has not begun"
    if more:
        assert_confined(running.pid)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (1, "solo5-hvt: Exiting on signal 15\n")


@pytest.mark.kvm
@pytest.mark.tap
def test_the_network_works(solo5_hvt: list[str], guest: Guest, tap: TapInterface) -> None:
    command = filtered([*solo5_hvt, f"--net:service0={tap.name}", str(guest("echo"))])
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/")
    try:
        assert running.stdout is not None and running.stdout.read(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(120)
            udp.sendto(b"hello", ("10.0.0.2", 7))
            assert udp.recv(100) == b"hello"
    finally:
        running.kill()
        running.wait()


@pytest.mark.backends
def test_errors_are_reported_under_the_filter(solo5_hvt: list[str], guest: Guest, disk: Path) -> None:
    for words in (["absent.elf"], [str(disk)], [str(guest("disk"))]):
        free, confined = run([*solo5_hvt, *words]), run(filtered([*solo5_hvt, *words]))
        assert (confined.returncode, confined.stdout, confined.stderr) == (1, "", free.stderr)


def test_that_a_sandbox_is_impossible_is_reported(
    solo5_hvt: list[str], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    done = run(filtered([*solo5_hvt, str(guest("args"))]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "solo5-hvt: sandbox: the image's template: Function not implemented\n"


def test_the_filter_is_in_force() -> None:
    """The other tests depend on this: a call that the filter does not allow kills a program that does not
    handle SIGSYS."""
    done = run(filtered(["/bin/sh", "-c", "kill -0 $$; cd /; echo alive"]))
    assert done.returncode == -signal.SIGSYS


@pytest.mark.parametrize("refused", [None, "readv", "writev"])
@pytest.mark.parametrize("error", [1, 38], ids=["EPERM", "ENOSYS"])
def test_tcp_segments_are_not_used_without_readv_and_writev(
    guest: Guest, refused: str | None, error: int
) -> None:
    """A frame with a header needs both calls. Without one of them a guest with TCP segments could not
    receive, or could not send."""
    code = (
        "import socket, sys; from tender import Image; from tender.native import ffi, lib, vm_handle\n"
        "pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "settings = ffi.new('struct device_settings *', {'fd': pair[0].fileno()})\n"
        "entry, error = ffi.new('struct mft_entry *', {'type': 2}), ffi.new('struct device_error *')\n"
        "with vm_handle() as vm, Image.open(sys.argv[1]) as image:\n"
        "    assert lib.tn_vm_make(vm) == 0\n"
        "    assert lib.tn_vm_attach(vm, 1, settings, image.elf.c, lib.RING_WORKER, entry, error) == 0\n"
        "    use = settings.use\n"
        "    print('segments' if use == lib.NET_SEGMENTS else 'plain' if use == lib.NET_PLAIN else use)"
    )
    command = [sys.executable, "-P", "-c", code, str(guest("ring"))]
    done = run(filtered(command, f"-{refused}:{error}") if refused else command)
    assert (done.returncode, done.stdout) == (0, "plain\n" if refused else "segments\n"), done.stderr
