"""Without root and without a capability: the sandbox runs a guest with no network, or with an
inherited TAP descriptor.
"""

import fcntl
import os
import re
import struct
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Guest, TapInterface

from tender import CAPTURE, ExitReason, Image, NetFd, Vm, VmConfig
from tender.backend.sandbox import ISOLATION, PROGRAM, SandboxVm
from tender.native import lib

NOBODY = 65534
IFF_TAP, IFF_NO_PI = 2, 0x1000  # linux/if_tun.h


@pytest.fixture
def open_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sandbox program by a descriptor: the user nobody may be unable to search this checkout's
    directories.
    """
    fd = os.open(PROGRAM, os.O_RDONLY)
    defaults = SandboxVm.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "program", f"/proc/self/fd/{fd}")
    yield
    os.close(fd)


def lose_rights() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    status = Path("/proc/self/status").read_text()
    assert os.geteuid() != 0
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE)
    with pytest.raises(PermissionError):
        os.setuid(0)


@contextmanager
def as_nobody(body: Callable[[], None]) -> Iterator[None]:
    """Runs `body` in a child of this process that has no rights. At the block's end its failure
    becomes this test's.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            lose_rights()
            body()
            status = 0
        except BaseException:
            os.write(write_end, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write_end)
    try:
        yield
    finally:
        with os.fdopen(read_end) as file:
            said = file.read()
        status = os.waitpid(pid, 0)[1]
    assert status == 0, said


def may_make_user_namespaces() -> bool:
    """Returns what `unshare` finds on this host. The sandbox has to find out by itself."""
    return subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0


def test_a_guest_runs_without_any_right(guest: Guest, open_program: None) -> None:
    with Image.open(guest("hello")) as image:

        def run() -> None:
            with Vm(image, VmConfig(mem=16), console=CAPTURE, backend="sandbox") as vm:
                assert isinstance(vm._machine, SandboxVm)
                result = vm.run(timeout=60)
                assert result.ok and result.console is not None and b"Hello, World" in result.console
                status = Path(f"/proc/{vm.pid}/status").read_text()
                assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
                assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
                if may_make_user_namespaces():
                    assert vm.isolation == ISOLATION
                    assert vm.memory(lib.HVT_BOOT_INFO_GPA, 8) == (16 << 20).to_bytes(8, "little")

        run_here(image)
        with as_nobody(run):
            pass


def run_here(image: Image) -> None:
    """Runs once with this process's rights: a child that has lost them need not import anything more."""
    with Vm(image, VmConfig(mem=16), console=CAPTURE, backend="sandbox") as vm:
        assert vm.run(timeout=60).ok


def open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, lib.TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


@pytest.mark.tap
def test_an_inherited_tap_is_all_that_a_network_needs(
    guest: Guest, tap: TapInterface, open_program: None
) -> None:
    fd = open_tap(tap.name)
    try:
        with Image.open(guest("hello")) as hello, Image.open(guest("echo")) as image:
            run_here(hello)
            config = VmConfig(mem=8, args=("--pings=3",), net=NetFd(fd))
            Vm(image, config, backend="sandbox").close()

            def run() -> None:
                with Vm(image, config, console=CAPTURE, backend="sandbox") as vm:
                    result = vm.run(timeout=60)
                    assert result.reason == ExitReason.EXIT and result.ok, result.message
                    assert result.counters.net_tx_packets >= 3

            with as_nobody(run):
                words = [
                    "ping",
                    "-q",
                    "-c",
                    "3",
                    "-i",
                    "0.05",
                    "-w",
                    "60",
                    "10.0.0.2",
                ]  # until the third reply, or a minute: status 1
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout
    finally:
        os.close(fd)
