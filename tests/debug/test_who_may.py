"""Who may look into a guest: the kernel's rules, one by one. It changes settings, so it runs in the test VM only."""

import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ip

from tender.debug import find, ptrace
from tender.debug.target import DebugError

libc = ctypes.CDLL(None)
PR_CAPBSET_DROP = 24  # <linux/prctl.h>
SYS_CAPSET = 126  # <asm/unistd_64.h>; its header is _LINUX_CAPABILITY_VERSION_3

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(
        "KVMBOX" not in os.environ, reason="changes settings of the machine: only in the test VM"
    ),
]

StartGuest = Callable[..., Any]  # conftest.py
USER = 1000
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """The settings of the machine are put back after a test."""
    before = {path: path.read_text() for path in (YAMA, NAMESPACES)}
    os.chmod("/dev/kvm", 0o666)
    yield
    for path, text in before.items():
        path.write_text(text)


def look(pid: int, *, uid: int) -> str:
    """What another process of the user sees, which is no parent of the guest's process and has no capability."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            for capability in range(64):
                if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                    break
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            assert not libc.syscall(SYS_CAPSET, struct.pack("<Ii", 0x20080522, 0), bytes(24))
            os.write(writer, attach(pid).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        seen = file.read()
    os.waitpid(child, 0)
    return seen


def attach(pid: int) -> str:
    """Attaches and detaches; "ok", or what the error says."""
    try:
        guest = find.guests_of(pid)[0]
        ptrace.seize(guest.tid)
        ptrace.interrupt(guest.tid)
        ptrace.wait(guest.tid)
        ptrace.getregs(guest.tid)
        ptrace.detach(guest.tid)
    except DebugError as error:
        return f"{error.message} / {error.hint}"
    return "ok"


def start(guest: Path, backend: str, *options: str, root: bool = False) -> "subprocess.Popen[bytes]":
    ids: dict[str, Any] = {} if root else {"user": USER, "group": USER, "extra_groups": ()}
    process = subprocess.Popen(
        [
            *(WITHOUT_RIGHTS if root else ()),
            "tender",
            f"--backend={backend}",
            "--mem=16",
            *options,
            guest,
            "sleep",
        ],
        stdout=subprocess.PIPE,
        **ids,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("backend", ["sandbox", "kvm"])
@pytest.mark.parametrize("namespaces", ["0", "1000"])
@pytest.mark.parametrize(
    ("yama", "options", "expected"),
    [
        ("0", (), "ok"),
        (
            "1",
            (),
            "ptrace_scope is 1: only its parent or root may attach / sudo tender debug PID; or start it with",
        ),
        ("1", ("--debuggable",), "ok"),
        ("2", ("--debuggable",), "ptrace_scope is 2: only root may attach / sudo tender debug PID"),
    ],
)
def test_the_users_other_processes_may_as_yama_says(
    guest: Callable[[str], Path],
    backend: str,
    namespaces: str,
    yama: str,
    options: tuple[str, ...],
    expected: str,
) -> None:
    NAMESPACES.write_text(namespaces)
    YAMA.write_text(yama)
    with start(guest("debug"), backend, *options) as process:
        try:
            seen = look(process.pid, uid=USER)
        finally:
            process.kill()
    assert expected.replace("PID", str(process.pid)) in seen


@pytest.mark.parametrize("backend", ["sandbox", "kvm"])
@pytest.mark.tap
@pytest.mark.parametrize("option", ["--verbose", "--net-reattach"])
def test_an_observer_of_the_end_lets_no_other_process_in(
    guest: Callable[[str], Path], tmp_path: Path, backend: str, option: str
) -> None:
    """With --net-reattach the command stays the parent of the sandbox's process. No user namespace lets its owner in."""
    NAMESPACES.write_text("0")
    YAMA.write_text("1")
    os.chown(tmp_path, USER, USER)
    for folder in tmp_path.parents[:2]:
        os.chmod(folder, 0o755)
    ip("tuntap", "add", "tapw0", "mode", "tap", "user", str(USER))
    try:
        ip("link", "set", "tapw0", "up")
        options = (option, "--net=tapw0", f"--core={tmp_path}", "--timeout=100")
        with start(guest("net_rx_poll"), backend, *options) as process:
            try:
                seen = look(process.pid, uid=USER)
                process.send_signal(signal.SIGQUIT)
                assert process.wait(120) == 1
            finally:
                process.kill()
    finally:
        ip("link", "del", "tapw0")
    assert "ptrace_scope is 1: only its parent or root may attach" in seen
    assert [name.startswith("core.") for name in os.listdir(tmp_path)] == [True]


@pytest.mark.parametrize("backend", ["sandbox", "kvm"])
def test_root_without_capabilities_may(guest: Callable[[str], Path], backend: str) -> None:
    """As in a container that may do nothing."""
    with start(guest("debug"), backend, root=True) as process:
        try:
            assert look(process.pid, uid=0) == "ok"
        finally:
            process.kill()


def test_no_program_of_core_pattern_gets_a_core(guest: Callable[[str], Path], tmp_path: Path) -> None:
    """The control is a process with a limit of 0: its core goes to the program all the same."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    took = Path("/tmp/tender-core-of")
    program = Path("/tmp/tender-core-handler")
    program.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$1" >>{took}\n')
    program.chmod(0o755)
    pattern.write_text(f"|{program} %P")
    try:
        with start(guest("debug"), "sandbox") as process:
            os.kill(process.pid, 8)  # SIGFPE that is sent: the program's handler ignores it
            _crash(process.pid)
            assert process.wait(120) < 0
        control = subprocess.Popen(["sh", "-c", "ulimit -c 0; kill -ABRT $$"])
        assert control.wait(120) < 0
        reader = subprocess.run(
            ["timeout", "60", "sh", "-c", f"until [ -s {took} ]; do :; done; cat {took}"],
            capture_output=True,
            text=True,
        )
        assert reader.stdout.split() == [str(control.pid)]
    finally:
        pattern.write_text(before)


def _crash(pid: int) -> None:
    """Has the guest's process make a call that its filter kills it for."""
    (guest,) = find.guests_of(pid)
    ptrace.seize(pid)
    ptrace.interrupt(pid)
    ptrace.wait(pid)
    registers = ptrace.getregs(pid)
    at = guest.base + guest.note["syscall_instruction"]
    ptrace.setregs(pid, registers | {"rip": at, "rax": 39, "orig_rax": (1 << 64) - 1})  # getpid
    ptrace.detach(pid)


def test_a_core_of_the_end_is_written_also_where_only_parents_may_trace(
    guest: Callable[[str], Path], tmp_path: Path
) -> None:
    YAMA.write_text("1")
    os.chown(tmp_path, USER, USER)
    for folder in tmp_path.parents[:2]:
        os.chmod(folder, 0o755)
    for backend in ("sandbox", "kvm"):
        done = subprocess.run(
            ["tender", f"--backend={backend}", "--mem=16", f"--core={tmp_path}", guest("debug"), "fault"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            user=USER,
            group=USER,
            extra_groups=(),
        )
        assert done.returncode == 255, done.stderr
        assert b"tender: core: " in done.stderr
    assert len(os.listdir(tmp_path)) == 2
