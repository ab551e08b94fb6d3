"""Failures while a guest runs which the guest did not cause: the exit status lets a manager start it again.

Albatross takes the statuses 1 and 60 to 64 for "never again" and 2 for "again". Status 1 means that the
guest could not start, or that it caused the end itself. The status of both fronts agrees with the JSON.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support import Guest, sandbox_of

from tender import CAPTURE, DISCARD, ExitReason, Image, Vm, VmConfig, run
from tender.native import ffi, lib
from tender.outcome import explain

NEVER_AGAIN = {1, *range(60, 65)}
SMALL = VmConfig(mem=4)
Front = Callable[[str], str]


def wait_for_guest(process: "subprocess.Popen[str]") -> psutil.Process:
    """Waits until the guest has printed a line; returns its process."""
    assert process.stdout is not None and process.stdout.readline()
    return sandbox_of(process.pid)


@pytest.mark.parametrize("launcher", ["native", "python"])
@pytest.mark.parametrize("name", ["tender", "solo5-hvt", "solo5-hvt.2"])
def test_after_a_kill_from_outside_the_guest_may_be_started_again(
    front: Front, guest: Guest, monkeypatch: pytest.MonkeyPatch, name: str, launcher: str
) -> None:
    """The kernel kills a process like this when memory is short. With the native command the killed process
    is the command itself, as with solo5-spt."""
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    monkeypatch.setenv("TENDER_LAUNCHER", launcher)
    command = [front(name), "--mem=4", str(guest("sleep"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guests = wait_for_guest(process)
        assert (guests.pid == process.pid) == (launcher == "native")
        guests.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        (-signal.SIGKILL, "")
        if launcher == "native"
        else (
            2,
            f"{name}: sandbox: the process was killed from outside (SIGKILL): by another process,"
            " or because memory ran out\n",
        )
    )


def test_the_json_agrees_with_the_status(front: Front, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This needs a second process, which observes the guest's. Python has one here; the native command does
    not."""
    monkeypatch.setenv("TENDER_LAUNCHER", "python")
    command = [front("tender"), "--backend=sandbox", "--mem=4", "--json", str(guest("spin"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_guest(process).kill()
        _, said = process.communicate(timeout=60)
    result = json.loads(said.splitlines()[-1])
    assert (process.returncode, result["status"], result["reason"]) == (2, 2, "sandbox-died")
    assert result["guest_status"] is None


def test_a_killed_command_leaves_no_report_of_an_earlier_run(
    front: Front, guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The native command is the process that is killed, so no process is left to write the report. The
    command emptied the file before the run."""
    monkeypatch.setenv("TENDER_LAUNCHER", "native")
    report = tmp_path / "report.json"
    report.write_text('{"status": 0}\n')
    command = [front("tender"), "--backend=sandbox", "--mem=4", f"--json={report}", str(guest("sleep"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_guest(process).send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said, report.read_text()) == (-signal.SIGKILL, "", "")


WITHOUT_VCPU = textwrap.dedent("""
    import os, sys
    from tender.backend.kvm import KvmVm
    original = KvmVm.__init__

    def made(self, *args, **values):
        original(self, *args, **values)
        fds = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        [vcpu] = [fd for fd in fds if "kvm-vcpu" in os.readlink(f"/proc/self/fd/{fd}")]
        os.dup2(os.open("/dev/null", os.O_RDWR), vcpu)  # KVM_RUN then fails with ENOTTY, as if the kernel had lost its KVM

    KvmVm.__init__ = made
    from tender.cli.main import guarded
    os._exit(guarded(sys.argv[1:]))
""")


@pytest.mark.kvm
@pytest.mark.parametrize("words", [("run", "--backend=kvm", "--json"), ("solo5-hvt",)])
def test_after_a_failed_kvm_run_the_guest_may_be_started_again(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TENDER_BACKEND", "kvm")
    command = [sys.executable, "-P", "-c", WITHOUT_VCPU, *words, "--mem=4", str(guest("hello"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    program = "tender" if "run" in words else "solo5-hvt"
    message = "KVM: ioctl (RUN) failed: Inappropriate ioctl for device"
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: {message}\n")
    if "--json" in words:
        result = json.loads(done.stderr.splitlines()[1])
        assert (result["reason"], result["status"], result["message"]) == ("host-error", 2, message)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (lib.EVENT_HOST_ERROR, ExitReason.HOST_ERROR),
        (lib.EVENT_ENTRY_FAILURE, ExitReason.ENTRY_FAILURE),
        (lib.EVENT_INTERNAL_ERROR, ExitReason.INTERNAL_ERROR),
    ],
)
def test_after_each_failure_of_kvm_the_guest_may_be_started_again(kind: int, reason: str) -> None:
    event = ffi.new("struct vm_event *", {"kind": kind, "os_error": 12, "detail": 3})
    assert explain(event, "kvm")[:2] == (reason, 2)


@pytest.mark.backends
@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("write_text", (), ExitReason.TRANSLATION_FAULT),
        ("bad_port", (), ExitReason.BAD_PORT),
        ("bad_hypercall", (), ExitReason.BAD_HYPERCALL),
        ("gate", ("--wild",), ExitReason.BAD_ACCESS),
        ("triple", (), ExitReason.UNHANDLED_EXIT),
    ],
)
def test_an_end_that_the_guest_caused_has_status_1(
    guest: Guest, name: str, args: tuple[str, ...], reason: str
) -> None:
    result = run(guest(name), VmConfig(mem=16, args=args), console=CAPTURE, timeout=60)
    assert (result.reason, result.status) == (reason, 1)


@pytest.mark.backends
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["tender", "solo5-hvt"])
def test_a_requested_stop_has_status_1(front: Front, guest: Guest, name: str, number: int) -> None:
    command = [front(name), "--mem=4", str(guest("sleep"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, f"{name}: Exiting on signal {number}\n")


@pytest.mark.backends
def test_a_guest_that_cannot_start_has_status_1(front: Front, guest: Guest, tmp_path: Path) -> None:
    for words in (["--mem=4", tmp_path / "missing"], ["--mem=4", guest("disk")], ["--mem=4", "/dev/null"]):
        done = subprocess.run([front("solo5-hvt"), *words], capture_output=True, timeout=60, check=False)
        assert done.returncode == 1


def test_no_end_that_the_host_caused_means_never_again(guest: Guest) -> None:
    """This holds in the library too, where the result is the only report."""
    with Image.open(guest("spin")) as image, Vm(image, SMALL, console=DISCARD, backend="sandbox") as vm:
        vm.start(timeout=60)
        os.kill(vm.pid, signal.SIGKILL)
        result = vm.wait(120)
    assert result.status not in NEVER_AGAIN and not result.ok
