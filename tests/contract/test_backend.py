"""Which backend a guest gets: by an option, by the environment, or by "auto". Also, that the backends of
the tests are real."""

import json
import os
import pty
import subprocess
import sys
import tty
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import Guest, find_kvm_likely

import tender.backend.kvm
from tender import CAPTURE, ConfigError, Image, KvmUnavailable, Vm, VmConfig, run
from tender.backend import trial

SMALL = VmConfig(mem=8)
FALLBACK = (
    "tender: no usable KVM ({reason}): the guest runs in the sandbox, a process behind a system-call filter, "
    "which isolates less than a virtual machine\n"
)
MISSING = "Could not open: /dev/kvm: No such file or directory"
WITHOUT_DEVICES = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
"""A command's prefix: the command finds an empty /dev, and so no KVM. tools/with_net and the test VM have
the right to do that."""


def command(words: Sequence[str | Path]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


# ---- the backends of the tests


@pytest.mark.backends
def test_the_mark_backends_selects_the_backend_of_library_and_command(
    guest: Guest, tender_cmd: list[str], request: pytest.FixtureRequest
) -> None:
    """This holds although the body does not name the fixture `backend`."""
    backend = request.node.callspec.params["backend"]
    result = run(guest("hello"), SMALL, console=CAPTURE)
    assert (result.backend, result.ok) == (backend, True)
    done = command([*tender_cmd, "--mem=8", "--json", guest("hello")])
    assert json.loads(done.stderr)["backend"] == backend


@pytest.mark.backends
def test_the_doctors_trial_does_every_step_on_each_backend() -> None:
    """The trial makes a far return with only two words on its stack. In ring 3 a processor may want to read four."""
    with Image.from_bytes(trial.elf(), name="trial") as image:
        result = run(image, VmConfig(mem=4), console=CAPTURE, timeout=60)
    assert (result.console, result.reason, result.status) == (b"012345", "exit", 0), result.message


# ---- with a KVM


@pytest.mark.kvm
def test_auto_uses_a_usable_kvm_without_a_message(
    guest: Guest, tender_cmd: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENDER_BACKEND", raising=False)
    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=CAPTURE) as vm:
        assert (vm.backend, vm.fallback) == ("kvm", "")
        assert vm.run().backend == "kvm"
    for words in ([], ["--backend=auto"]):
        done = command([*tender_cmd, *words, "--mem=8", guest("exit_status"), "3"])
        assert (done.returncode, done.stderr) == (3, "")
    done = command([*tender_cmd, "--json", "--mem=8", guest("hello")])
    assert json.loads(done.stderr)["backend"] == "kvm"


@pytest.mark.kvm
def test_the_next_vm_takes_the_memory_slot_of_the_machine_that_stays_open(guest: Guest) -> None:
    """The next VM takes the memory slot of the machine that stays open. Otherwise KVM would inform that
    machine too of each change at the same addresses, and walk its page tables.

    The test runs in a separate process, whose first VM it makes. While a slot exists, adding another at the
    same place is EEXIST.
    """
    program = f"""
import contextlib, errno, fcntl, os, struct, tender, time
from tender.native import ffi

KVM_SET_USER_MEMORY_REGION = 0x4020AE46  # linux/kvm.h

def machines():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing, and those closed meanwhile
            if os.readlink(f"/proc/self/fd/{{fd}}") == "anon_inode:kvm-vm":
                found.append(int(fd))
    return found

def slot_one_at_zero(machine):
    slot = struct.pack("IIQQQ", 1, 0, 0, 4096, int(ffi.cast("uintptr_t", page)) & ~4095)
    try:
        return fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, slot) and 0
    except OSError as error:
        return -error.errno

page = ffi.new("char[8192]") + 4096
with tender.Image.open({str(guest("hello"))!r}) as image:
    tender.run(image, console=tender.DISCARD)
    [machine] = machines()
    kept = os.dup(machine)
    assert slot_one_at_zero(kept) == -errno.EEXIST
    for _ in range(3):
        assert tender.run(image, console=tender.CAPTURE, backend="kvm").ok
    deadline = time.monotonic() + 60
    while machines() != [kept]:  # a background thread closes the others
        assert time.monotonic() < deadline, machines()
    assert slot_one_at_zero(kept) == 0
"""
    done = command([sys.executable, "-P", "-c", program])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.kvm
def test_the_doctor_finds_this_kvm_usable(tender_cmd: list[str]) -> None:
    done = command([*tender_cmd, "doctor", "--kvm"])
    assert (done.returncode, done.stdout) == (0, "usable\n")
    done = command([*tender_cmd, "doctor", "--json"])
    assert done.returncode == 0
    trial = [check for check in json.loads(done.stdout)["checks"] if check["what"] == "trial VM"]
    assert trial[0]["level"] == "ok"


# ---- without a KVM


@pytest.mark.parametrize("words", [[], ["--backend=auto"]])
def test_auto_without_a_kvm_prints_one_line_and_runs_the_guest(
    guest: Guest, tender_cmd: list[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("TENDER_BACKEND", raising=False)
    done = command([*WITHOUT_DEVICES, *tender_cmd, *words, "--mem=8", guest("exit_status"), "3"])
    assert (done.returncode, done.stderr) == (3, FALLBACK.format(reason=MISSING))
    done = command([*WITHOUT_DEVICES, *tender_cmd, *words, "-q", "--mem=8", guest("exit_status"), "3"])
    assert (done.returncode, done.stderr) == (3, "")
    done = command([*WITHOUT_DEVICES, *tender_cmd, *words, "-q", "--json", "--mem=8", guest("hello")])
    assert done.returncode == 0 and json.loads(done.stderr)["backend"] == "sandbox"


@pytest.mark.parametrize("launcher", ["", "python"])
@pytest.mark.parametrize("front", [[], ["solo5-hvt"], ["solo5-hvt.2"], ["solo5-spt"]], ids=" ".join)
@pytest.mark.parametrize("is_terminal", [False, True], ids=["pipe", "terminal"])
def test_under_solo5_hvts_names_the_fallback_is_reported_only_on_a_terminal(
    guest: Guest, tender_cmd: list[str], monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool, front: list[str], launcher: str,
) -> None:  # fmt: skip
    """A manager keeps stderr as the guest's console, where the message would be one more line at each
    start."""
    monkeypatch.delenv("TENDER_BACKEND", raising=False)
    monkeypatch.setenv("TENDER_LAUNCHER", launcher)
    words = [*WITHOUT_DEVICES, *tender_cmd, *front, "--mem=8", str(guest("exit_status")), "3"]
    reader, writer = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        tty.setraw(writer)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=writer, timeout=60, check=False)
    os.write(writer, b"\0")
    said = b""
    while not said.endswith(b"\0"):
        said += os.read(reader, 4096)
    os.close(reader)
    os.close(writer)
    line = FALLBACK.format(reason=MISSING)
    if front:
        line = line.replace("tender:", f"{front[0]}:", 1) if is_terminal else ""
    assert (done.returncode, said.decode().rstrip("\0")) == (3, line)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_requesting_kvm_where_there_is_none_is_an_error(
    guest: Guest, tender_cmd: list[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("TENDER_BACKEND", "kvm" if by == "environment" else "auto")
    words = ["--backend=kvm"] if by == "option" else []
    done = command([*WITHOUT_DEVICES, *tender_cmd, *words, "--mem=8", guest("hello")])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tender: {MISSING}\ntender: hint: ")


def test_requesting_the_sandbox_prints_no_message(
    guest: Guest, tender_cmd: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENDER_BACKEND", "kvm")
    done = command([*WITHOUT_DEVICES, *tender_cmd, "--backend=sandbox", "--mem=8", guest("exit_status"), "3"])
    assert (done.returncode, done.stderr) == (3, "")
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    done = command([*WITHOUT_DEVICES, *tender_cmd, "--mem=8", guest("exit_status"), "3"])
    assert (done.returncode, done.stderr) == (3, "")


def test_the_library_gives_the_reason_for_the_fallback(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(handle: object, path: str = "/dev/kvm") -> int:
        raise KvmUnavailable("no KVM in this test")

    monkeypatch.setattr(tender.backend.kvm, "open_kvm", none_here)
    find_kvm_likely(monkeypatch)
    with Image.open(guest("hello")) as image:
        with Vm(image, SMALL, console=CAPTURE) as vm:
            assert (vm.backend, vm.fallback) == ("sandbox", "no KVM in this test")
            assert vm.run().ok
        with Vm(image, SMALL, console=CAPTURE, backend="sandbox") as vm:
            assert (vm.backend, vm.fallback) == ("sandbox", "")
        with pytest.raises(KvmUnavailable, match="no KVM in this test"):
            Vm(image, SMALL, backend="kvm")


@pytest.mark.parametrize(
    ("there", "unfit"),
    [
        ({"/dev/kvm", "/sys/module/kvm", "/sys/module/kvm_intel"}, False),
        ({"/dev/kvm", "/sys/module/kvm", "/sys/module/kvm_amd"}, False),
        ({"/dev/kvm", "/sys/module/kvm", "/sys/module/kvm_pvm"}, True),
        ({"/dev/kvm"}, False),  # there is no /sys that could tell
        ({"/sys/module/kvm"}, False),  # there is no /dev/kvm; the open will fail
        (set(), False),
    ],
)
def test_auto_does_not_use_a_kvm_without_a_vendors_module(guest: Guest, there: set[str], unfit: bool) -> None:
    program = f"""
import tender, tender.backend.kvm
def open_kvm(handle, path="/dev/kvm"):
    tried.append(path)
    raise tender.KvmUnavailable("tried")

tried = []
tender.backend.kvm.open_kvm = open_kvm
with tender.Image.open({str(guest("hello"))!r}) as image, tender.Vm(image, console=tender.CAPTURE) as vm:
    print(vm.backend, tried, vm.fallback)
"""
    empty = "mount -t tmpfs none /dev && mount -t tmpfs none /sys/module"
    script = f'{empty} && mkdir -p /dev/shm {" ".join(there)} && exec "$@"'
    done = command(["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-P", "-c", program])
    assert (done.returncode, done.stderr) == (0, "")
    if unfit:
        assert done.stdout.startswith("sandbox [] /dev/kvm belongs to neither kvm_intel nor")
    else:
        assert done.stdout == "sandbox ['/dev/kvm'] tried\n"


def test_an_unknown_backend_is_refused(guest: Guest, tender_cmd: list[str]) -> None:
    with (
        Image.open(guest("hello")) as image,
        pytest.raises(ConfigError, match=r"'xen' is none of auto, kvm, "),
    ):
        Vm(image, SMALL, backend="xen")  # type: ignore[arg-type]
    done = command([*tender_cmd, "--backend=xen", guest("hello")])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tender: Malformed argument to --backend\ntender: hint: got 'xen': write ")
