"""A sandbox with a hostile guest, examined from outside: what its process has, and that it ends."""

import ctypes
import errno
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_rig import (
    FD_CONSOLE,
    FD_CONTROL,
    FD_LARGE,
    FD_NET,
    FD_SMALL,
    FD_STDERR,
    FD_STOP,
    LARGE,
    LIMIT,
    READ,
    SOON,
    Rig,
    wait_until,
)
from support import Guest, sandbox_of

from tender import DISCARD, ExitReason, Vm
from tender.backend import sandbox as sandbox_module
from tender.backend.sandbox import SandboxVm

# ---- resources


def test_a_guest_that_spins_is_stopped_and_gone_after_close(rig: Rig) -> None:
    vm = rig.vm("spin")
    assert isinstance(vm._machine, SandboxVm)
    pid = vm.pid
    with vm:
        assert vm.run(timeout=0.1).reason == ExitReason.TIMEOUT
    assert not Path(f"/proc/{pid}").exists()


def test_a_flood_to_a_slow_reader_is_stopped(rig: Rig) -> None:
    read_end, write_end = os.pipe()
    try:
        started = time.monotonic()
        result = rig.run("flood", console=write_end, timeout=0.2)
        assert result.reason == ExitReason.TIMEOUT
        assert time.monotonic() - started < SOON
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_read_of_words_that_never_come_is_ended(rig: Rig) -> None:
    started = time.monotonic()
    result = rig.run(f"call={READ},{FD_CONTROL},b,1", timeout=0.2)
    assert result.reason == ExitReason.TIMEOUT
    assert time.monotonic() - started < SOON


# ---- from outside


def running(rig: Rig) -> tuple[Vm, int]:
    vm = rig.vm("say=up", "spin", console=DISCARD)
    assert isinstance(vm._machine, SandboxVm)
    vm.start()
    wait_until(lambda: vm.counters.hypercalls["puts"] > 0)
    return vm, vm.pid


def test_a_running_sandbox_has_no_rights(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert re.search(r"Max stack size +65536 +65536 ", Path(f"/proc/{pid}/limits").read_text())
        assert status["Threads"].strip() == "1"
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +1 +1 ", limits)
        assert re.search(r"Max processes +0 +0 ", limits)
        assert re.search(r"Max open files +65 +65 ", limits)
        assert re.search(rf"Max file size +{LARGE} +{LARGE} ", limits)
        vm.stop()
        result = vm.wait(LIMIT)
        assert result.reason == ExitReason.STOPPED


def assert_is_not_root(pid: int) -> None:
    """The kernel shows no user, group or supplementary group of root to a process outside, and no way
    to get them back.
    """
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
        assert int(status[kind], 16) == 0, kind
    if os.geteuid() == 0:
        uids, gids = status["Uid"].split(), status["Gid"].split()
        assert len(set(uids)) == 1 and uids[0] != "0"
        assert len(set(gids)) == 1 and gids[0] != "0"
        assert status["Groups"].split() == []
    else:
        assert set(status["Uid"].split()) == {str(os.geteuid())}


def test_the_sandbox_process_of_a_monitor_that_is_root_is_not_root(rig: Rig) -> None:
    """The monitor itself is unchanged."""
    before = (os.getresuid(), os.getresgid(), os.getgroups(), Path("/proc/self/status").stat().st_uid)
    vm, pid = running(rig)
    with vm:
        assert_is_not_root(pid)
        assert {"uid", "capabilities"} <= set(vm.isolation)
        assert os.stat("/proc/self/mem").st_uid == os.geteuid()
        assert vm.memory(0x10000, 8)  # the monitor can still read the guest's memory, and end the guest
    assert before == (os.getresuid(), os.getresgid(), os.getgroups(), Path("/proc/self/status").stat().st_uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
@pytest.mark.parametrize(
    "change",
    [
        "os.seteuid(65534); os.seteuid(0)",
        "os.setegid(65534); os.setegid(0)",
        "os.setgroups([0, 4, 27])",
        "os.setresuid(0, 0, 1)",
        "os.setreuid(65534, 0)",
        "os.seteuid(65534)",
    ],
)
def test_a_program_that_changes_its_user_has_no_sandbox_that_is_root(guest: Guest, change: str) -> None:
    """The C library changes the user of every thread, so also of the thread that makes sandboxes."""
    code = (
        "import os, sys, tender\n"
        "def made():\n"
        "    config = tender.VmConfig(mem=8)\n"
        "    with tender.Vm(image, config, backend='sandbox', console=tender.DISCARD) as vm:\n"
        "        assert 'uid' in vm.isolation, vm.isolation\n"
        "        lines = open(f'/proc/{vm.pid}/status').read().splitlines()\n"
        "        return [line.split()[1:] for line in lines if line.startswith(('Uid:', 'Gid:', 'Groups:'))]\n"
        "with tender.Image.open(sys.argv[1]) as image:\n"
        "    before = made()\n"
        f"    {change}\n"
        "    after = made()\n"
        "assert before == after, (before, after)\n"
        "assert '0' not in before[0] + before[1] and before[2] == [], before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(guest("args"))],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="root's groups, and a program that is root's alone")
def test_a_program_file_that_only_root_can_read_is_executed(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation under umask 077 leaves the program like this. The caller's supplementary groups
    are not passed on.
    """
    own = tmp_path / "tender-sandbox"
    own.write_bytes(Path(sandbox_module.PROGRAM).read_bytes())
    own.chmod(0o700)
    tmp_path.chmod(0o700)
    code = (
        "import os, sys, tender\n"
        "from tender.backend import sandbox\n"
        "os.setgroups([0, 4, 27])\n"
        "sandbox.SandboxVm.__init__.__kwdefaults__['program'] = sys.argv[2]\n"
        "with tender.Image.open(sys.argv[1]) as image, tender.Vm(image, tender.VmConfig(mem=8), backend='sandbox') as vm:\n"
        "    status = open(f'/proc/{vm.pid}/status').read()\n"
        "    assert '\\nGroups:\\t \\n' in status, status\n"
        "    assert 'uid' in vm.isolation, vm.isolation\n"
        "    assert os.getgroups() == [0, 4, 27]\n"
        "    assert vm.run(timeout=120).ok\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(guest("args")), str(own)],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_limit_on_namespaces_that_is_reached_once_is_not_remembered(guest: Guest) -> None:
    """The limits are those of a user namespace around the process: on each kind alone, on all, and
    then on none.
    """
    code = (
        "import sys, tender\n"
        "kinds = ('user', 'net', 'mnt', 'pid', 'ipc')\n"
        "def layers(limited):\n"
        "    for kind in kinds:\n"
        "        open(f'/proc/sys/user/max_{kind}_namespaces', 'w').write('0' if kind in limited else '1000')\n"
        "    with tender.Image.open(sys.argv[1]) as i, tender.Vm(i, tender.VmConfig(mem=8), backend='sandbox') as vm:\n"
        "        given = vm.isolation\n"
        "        assert vm.run(timeout=120).ok\n"
        "    return {name for name in given if name.endswith('-namespace')}\n"
        "none = layers(kinds)\n"
        "each = [len(layers((kind,))) for kind in kinds]\n"
        "print(len(none), min(each) >= 4, len(layers(())))\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", code, str(guest("args"))],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    if "unshare: " in done.stderr:
        pytest.skip(f"this host gives no user namespace: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-3:] == ["0", "True", "5"]


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, PTRACE_SECCOMP_GET_FILTER = 0x4206, 0x4207, 17, 0x420C
ALLOW, TRAP, KILL_PROCESS = 0x7FFF0000, 0x00030000, 0x80000000  # linux/seccomp.h
BPF_RET_K = 0x06


def filters_in_force(pid: int) -> list[list[tuple[int, int]]]:
    """Returns code and number of each instruction of each filter, in the order of their installation,
    as the kernel has them.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int, address: int = 0, data: int = 0) -> int:
        done: int = libc.ptrace(
            ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)
        )
        if done < 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")
        return done

    ptrace(PTRACE_SEIZE)
    try:
        ptrace(PTRACE_INTERRUPT)
        os.waitpid(pid, 0x40000000)  # __WALL: the process is a child of another thread
        found: list[list[tuple[int, int]]] = []
        while True:
            buffer = ctypes.create_string_buffer(8 * 4096)
            try:
                length = ptrace(PTRACE_SECCOMP_GET_FILTER, len(found), ctypes.addressof(buffer))
            except OSError as error:
                if error.errno != errno.ENOENT:  # there are no more filters
                    raise
                return found
            found.append(
                [(code, k) for code, _, _, k in struct.iter_unpack("<HBBI", buffer.raw[: 8 * length])]
            )
    finally:
        ptrace(PTRACE_DETACH)


def test_each_filter_in_force_ends_the_process_and_not_a_thread(rig: Rig) -> None:
    """The kernel's own copies are read: the guard of the disks, and the filter of all calls. No
    verdict is an error either.
    """
    vm, pid = running(rig)
    with vm:
        found = filters_in_force(pid)
    verdicts = [{k for code, k in instructions if code == BPF_RET_K} for instructions in found]
    assert verdicts == [{ALLOW, KILL_PROCESS}, {ALLOW, TRAP, KILL_PROCESS}]


def test_a_running_sandbox_holds_the_descriptors_it_was_given_and_no_other(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        fds = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        assert fds == {FD_CONTROL, FD_STOP, FD_NET, FD_SMALL, FD_LARGE}
        for fd, path in ((FD_SMALL, rig.small), (FD_LARGE, rig.large)):
            assert os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), path.stat())


NAMESPACES = {
    "user-namespace": "user",
    "network-namespace": "net",
    "mount-namespace": "mnt",
    "pid-namespace": "pid",
    "ipc-namespace": "ipc",
}


def test_a_running_sandbox_is_in_namespaces_of_its_own_with_an_empty_root(rig: Rig) -> None:
    vm, pid = running(rig)
    with vm:
        assert isinstance(vm._machine, SandboxVm)
        given = vm.isolation
        for name, short in NAMESPACES.items():
            ours, theirs = os.readlink(f"/proc/self/ns/{short}"), os.readlink(f"/proc/{pid}/ns/{short}")
            assert (ours != theirs) == (name in given), name
        if "empty-root" in given:
            """The kernel's list of the process's own descriptors, which no one can put a file into."""
            own = sorted(os.listdir(f"/proc/{pid}/fdinfo"))
            assert sorted(os.listdir(f"/proc/{pid}/root")) == sorted(os.listdir(f"/proc/{pid}/cwd")) == own


def test_this_host_gives_every_isolation_layer(rig: Rig) -> None:
    """The sandbox has the namespaces that clone(2) allows on this host, which another program tries
    here.
    """
    done = subprocess.run(
        ["unshare", "--user", "--net", "--mount", "--pid", "--ipc", "--fork", "true"], check=False
    )
    vm = rig.vm()
    with vm:
        assert isinstance(vm._machine, SandboxVm)
        if done.returncode == 0:
            assert set(NAMESPACES) | {"empty-root", "seccomp-filter", "capabilities"} <= set(vm.isolation)
        elif os.geteuid() == 0:
            assert "network-namespace" in vm.isolation


@pytest.mark.parametrize("required", ["", "network-namespace", "pid-namespace"])
def test_the_commands_sandbox_has_the_same_isolation_layers(
    rig: Rig, guest: Guest, tender_cmd: list[str], required: str
) -> None:
    """The sandbox is the command's own process. It has a network namespace if that is required.
    With a required pid namespace it is a child process.
    """
    with rig.vm() as vm:
        assert isinstance(vm._machine, SandboxVm)
        had = set(vm.isolation)
        given = had - {"network-namespace", "pid-namespace"} | ({required} & had)
        if required and required not in given:
            pytest.skip("this host refuses it")
    command = [*tender_cmd, "--backend=sandbox", "--mem=8", str(guest("spin"))]
    if required:
        command.insert(-1, f"--require={required}")
    is_child = required == "pid-namespace"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout and running.stdout.readline() == "ready\n"
            sandbox = sandbox_of(running.pid)
            assert (sandbox.pid != running.pid) == is_child
            proc = Path(f"/proc/{sandbox.pid}")
            status = dict(
                line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
            )
            assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
            assert_is_not_root(sandbox.pid)
            assert re.search(r"Max stack size +65536 +65536 ", (proc / "limits").read_text())
            # The arguments are on that stack, and contain no path of the host.
            words = [b"tender-sandbox"] if is_child else [Path(word).name.encode() for word in command[:-1]]
            assert (proc / "cmdline").read_bytes() == b"".join(word + b"\0" for word in [*words, b"spin.elf"])
            fds = {FD_CONTROL, FD_STOP, FD_CONSOLE} if is_child else {FD_CONSOLE, FD_STDERR}
            assert {int(name) for name in os.listdir(proc / "fd")} == fds
            if is_child:
                given |= {"network-namespace"} & had
            for name, short in NAMESPACES.items():
                ours, theirs = os.readlink(f"/proc/self/ns/{short}"), os.readlink(proc / "ns" / short)
                assert (ours != theirs) == (name in given), name
            if "empty-root" in given:
                assert sorted(os.listdir(proc / "root")) == sorted(os.listdir(proc / "fdinfo"))
            assert (proc / "environ").read_bytes() == b""
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--block=DIRECTORY/a=b.img"], ["--block=a=b.img"]),
        (["--block:storage=DIRECTORY/disk.img:raw"], ["--block:storage=disk.img:raw"]),
        (["--block", "DIRECTORY/disk.img"], ["--block", "disk.img"]),
        (["--block", "DIRECTORY/a=b.img"], ["--block", "a=b.img"]),
        (["--block", "DIRECTORY/a=b.img:raw"], ["--block", "a=b.img:raw"]),
        (["--mem", "16", "--block", "DIRECTORY/x=y/disk.img"], ["--mem", "16", "--block", "disk.img"]),
        (["--block=DIRECTORY/x=y/disk.img", "--"], ["--block=disk.img", "--"]),
    ],
)
def test_the_arguments_of_the_process_name_no_directory_of_the_host(
    guest: Guest, tender_cmd: list[str], tmp_path: Path, words: list[str], shown: list[str]
) -> None:
    """The words are on the process's stack, which the guest can read. The words after the image belong
    to the guest.
    """
    (tmp_path / "x=y").mkdir()
    for name in ("disk.img", "a=b.img", "x=y/disk.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    given = [word.replace("DIRECTORY", str(tmp_path)) for word in words]
    command = [*tender_cmd, "--backend=sandbox", *given, str(guest("block_trap")), "/a/b=c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout and running.stdout.readline() == "block_trap: reads\n"
            seen = Path(f"/proc/{running.pid}/cmdline").read_bytes().decode().split("\0")
            assert seen == ["tender", "--backend=sandbox", *shown, "block_trap.elf", "/a/b=c", ""]
        finally:
            running.kill()
    assert running.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", ["SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"])
@pytest.mark.parametrize("name", ["spin", "sleep"])
def test_a_fault_signal_from_another_process_is_not_the_guests_fault(
    guest: Guest, tender_cmd: list[str], name: str, number: str
) -> None:
    command = [*tender_cmd, "--backend=sandbox", "--mem=8", str(guest(name))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout and running.stdout.readline() == "ready\n"
            status = Path(f"/proc/{running.pid}/status")
            for _ in range(30):
                running.send_signal(getattr(signal, number))
                wait_until(lambda: "ShdPnd:\t0000000000000000\n" in status.read_text())
            assert running.poll() is None
            running.terminate()
            _, said = running.communicate(timeout=SOON)
        finally:
            running.kill()
    assert (running.returncode, said) == (1, "tender: Exiting on signal 15\n")


@pytest.mark.parametrize(
    "refused", [(kind,) for kind in NAMESPACES.values()] + [("user", "net"), ("user", "mnt")]
)
def test_the_command_runs_where_namespaces_are_refused(
    guest: Guest, tender_cmd: list[str], refused: tuple[str, ...]
) -> None:
    """The limits are those of a user namespace around it. What was begun before the refusal is undone
    or done in another way.
    """
    limits = "".join(f"echo 0 > /proc/sys/user/max_{kind}_namespaces && " for kind in refused)
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limits + 'exec "$@"', "sh", *tender_cmd]
    done = subprocess.run(
        [*command, "--backend=sandbox", "--mem=8", str(guest("exit_status")), "3"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if "unshare: " in done.stderr:
        pytest.skip(f"this host gives no user namespace: {done.stderr}")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_sandbox_can_be_looked_into_by_its_own_user_and_leaves_no_core(rig: Rig) -> None:
    """The process is dumpable: its files in /proc belong to its user. 1 is no core, also where core_pattern names a
    program (core(5)).
    """
    vm, pid = running(rig)
    with vm:
        found = re.search(r"^Uid:\s+\d+\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert found
        user = int(found[1])
        assert os.stat(f"/proc/{pid}/mem").st_uid == user
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)
