"""The native command's filter on KVM: the instructions that ship, compared with a list of everything that
is allowed."""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bpf_machine import X86_64, Call, Filter, run

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = ROOT / "bindings"
ALLOW, KILL = 0x7FFF0000, 0x80000000  # linux/seccomp.h
GUARD = 0x0D15C0DE
"""A mark in place of a verdict: there rights.c inserts the check that decides.
tests/native/test_kvm_rights.c tries it on the kernel."""
GUARDED = {
    "plain": {"write"},
    "devices": {"write", "writev", "pwrite64"},
    "inherited": {"write", "writev", "pwrite64"},
}
KVM_RUN, KVM_GET_REGS, KVM_SET_SIGNAL_MASK, KVM_CREATE_VM = 0xAE80, 0x8090AE81, 0x4004AE8B, 0xAE01
KVM_SET_GUEST_DEBUG, KVM_GET_XSAVE, KVM_SET_XSAVE = 0x4048AE9B, 0x9000AEA4, 0x5000AEA5
KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_MSRS = 0x4090AE82, 0x4138AE84, 0x4008AE89
TEARDOWN_SOCKET, TEARDOWN_LOCK, OWN_PROCESS = 0xFFFFF001, 0xFFFFF002, 0xFFFFF003  # filled in by rights.c
F_SETFD, F_OFD_GETLK, F_OFD_SETLK = 2, 36, 37  # linux/fcntl.h
TUNSETOFFLOAD, TUNSETIFF = 0x400454D0, 0x400454CA
ARRAYS = {
    "plain": "kvm_filter_rules",
    "devices": "kvm_filter_device_rules",
    "inherited": "kvm_filter_inherited_rules",
}
ALWAYS = {
    "plain": {
        "ppoll", "clock_gettime", "rt_sigprocmask", "rt_sigtimedwait", "rt_sigreturn",
        "rt_sigaction", "restart_syscall", "gettid", "futex", "exit_group",
    },
    "devices": {"read", "pread64", "fdatasync", "readahead", "readv", "sched_yield"},
    "inherited": {"epoll_create1", "epoll_ctl", "epoll_pwait", "close", "timerfd_settime"},
}  # fmt: skip

PRINTER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "runner.h"
#define TEARDOWN_SOCKET_FD 0xfffff001u
#define TEARDOWN_LOCK_FD   0xfffff002u
#define OWN_PROCESS    0xfffff003u
#define GUARDED        0x0d15c0deu
#define ALLOW_FOR(types) SECCOMP_RET_ALLOW /* of a guest that has every kind of device */
#define GUARD_FOR(types) GUARDED
#include "kvm_filter.inc"
int main(void)
{
    for (size_t i = 0; i < sizeof FILTER / sizeof *FILTER; i++)
        printf("%u %u %u %u\n", FILTER[i].code, FILTER[i].jt, FILTER[i].jf, FILTER[i].k);
    return sizeof kvm_filter_rules > sizeof kvm_filter_device_rules;
}
"""


def always(name: str) -> set[str]:
    kinds = {"plain": 1, "devices": 2, "inherited": 3}[name]
    return set[str]().union(*list(ALWAYS.values())[:kinds])


@pytest.fixture(scope="module", params=["plain", "devices", "inherited"])
def name(request: pytest.FixtureRequest) -> str:
    """The name of one of the filters."""
    return str(request.param)


@pytest.fixture(scope="module")
def built(name: str, tmp_path_factory: pytest.TempPathFactory) -> Filter:
    place = tmp_path_factory.mktemp("kvm_filter")
    kvm = BINDINGS / "machine" / "kvm"
    rules = [
        kvm / "kvm_filter_rules.txt",
        kvm / "kvm_filter_device_rules.txt",
        kvm / "kvm_filter_inherited_rules.txt",
    ]
    written = [place / "kvm_filter.inc", place / "kvm_filter_shape.h"]
    generator = BINDINGS / "machine" / "sandbox" / "gen_filter.py"
    subprocess.run([sys.executable, generator, *rules, *written, "--by-number", "cc"], check=True)
    (place / "print.c").write_text(PRINTER)
    subprocess.run(
        [
            "cc",
            "-Wall",
            "-Werror",
            f"-DFILTER={ARRAYS[name]}",
            f"-I{place}",
            f"-I{BINDINGS / 'core'}",
            f"-I{BINDINGS / 'machine'}",
            f"-I{ROOT / 'abi'}",
            place / "print.c",
            "-o",
            place / "print",
        ],
        check=True,
    )
    lines = subprocess.run([place / "print"], check=True, capture_output=True, text=True).stdout.splitlines()
    header = subprocess.run(
        ["cc", "-E", "-dM", "-"],
        input="#include <asm/unistd_64.h>\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", header, re.M)}
    return Filter([tuple(map(int, line.split())) for line in lines], numbers)  # type: ignore[misc]


def test_the_filter_allows_only_the_calls_on_the_list(built: Filter, name: str) -> None:
    names = {number: name for name, number in built.numbers.items()}
    for nr in range(1200):
        expected = (
            GUARD if names.get(nr) in GUARDED[name] else ALLOW if names.get(nr) in always(name) else KILL
        )
        assert run(built, Call(nr)).verdict == expected, names.get(nr, nr)
        assert run(built, Call(nr | 0x40000000)).verdict == KILL, "a number of the x32 ABI"
        assert run(built, Call(nr, arch=0x40000003)).verdict == KILL, "the 32-bit entry"
    assert set(built.numbers) >= always(name)


def calls_of(path: Path, section: str = "") -> set[str]:
    """Returns the calls that the rules name, or those of one section of the file."""
    text = path.read_text()
    if section:
        text = text.split(f"[{section}]")[1].split("\n[")[0]
    found = re.findall(r"^(\w+) *\|", text, re.M)
    return set(found) - {"any"}


def test_the_threat_model_has_the_number_of_calls() -> None:
    text = " ".join((ROOT / "docs" / "threat-model.md").read_text().split())
    plain = calls_of(BINDINGS / "machine/kvm/kvm_filter_rules.txt")
    net, block = (calls_of(BINDINGS / f"devices/{kind}/filter_rules.txt", "kvm") for kind in ("net", "block"))
    assert plain >= {"ioctl", "write", "tgkill"} and "sched_yield" in net and "pwrite64" in block
    assert f"It keeps only {len(plain)} system calls" in text
    assert f"{len(net - plain)} for a network" in text
    assert f"{len(block - plain)} for a disk" in text


def test_a_vcpu_can_be_run_and_read_but_no_vm_can_be_made(built: Filter) -> None:
    def asked(request: int) -> int:
        return run(built, Call(built.numbers["ioctl"], args=(5, request, 0, 0, 0, 0))).verdict

    assert [asked(one) for one in (KVM_RUN, KVM_GET_REGS, TUNSETOFFLOAD)] == [ALLOW] * 3
    assert [asked(one) for one in (KVM_SET_GUEST_DEBUG, KVM_GET_XSAVE, KVM_SET_XSAVE)] == [ALLOW] * 3
    others = (KVM_CREATE_VM, KVM_SET_SIGNAL_MASK, KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_MSRS, TUNSETIFF)
    assert {asked(one) for one in (*others, KVM_RUN + 1, 0)} == {KILL}


def test_a_message_can_go_only_to_the_sockets_peer_with_the_flags_in_use(built: Filter) -> None:
    def asked(flags: int, address: int) -> int:
        return run(built, Call(built.numbers["sendto"], args=(5, 1, 1, flags, address, 0))).verdict

    in_use = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    assert asked(in_use, 0) == ALLOW
    assert {asked(in_use, address) for address in (1, 1 << 32, (1 << 64) - 1)} == {KILL}
    assert {asked(in_use ^ 1 << bit, 0) for bit in range(32)} == {KILL}


def test_the_console_is_written_only_at_its_offset_with_the_flag_in_use(built: Filter) -> None:
    def asked(position: int, flags: int) -> int:
        return run(built, Call(built.numbers["pwritev2"], args=(1, 1, 1, position, 0, flags))).verdict

    here, nowait = (1 << 64) - 1, 8  # linux/fs.h: RWF_NOWAIT
    assert asked(here, nowait) == GUARD
    assert {asked(position, nowait) for position in (0, 1, 4096, (1 << 32) - 1, 1 << 63)} == {KILL}
    assert {asked(here, nowait ^ 1 << bit) for bit in range(32)} == {KILL}


def test_the_only_signal_is_the_kick_to_this_process(built: Filter) -> None:
    def asked(process: int, number: int) -> int:
        return run(built, Call(built.numbers["tgkill"], args=(process, 2, number, 0, 0, 0))).verdict

    assert asked(OWN_PROCESS, signal.SIGURG) == ALLOW
    others = [number for number in range(65) if number != signal.SIGURG]
    assert {asked(OWN_PROCESS, number) for number in others} == {KILL}
    assert {asked(process, signal.SIGURG) for process in (0, 1, 1000, OWN_PROCESS + 1, (1 << 32) - 1)} == {
        KILL
    }


def test_only_the_clocks_in_use_can_be_read_and_no_process_clock(built: Filter) -> None:
    def asked(clock: int) -> int:
        return run(built, Call(built.numbers["clock_gettime"], args=(clock, 1, 0, 0, 0, 0))).verdict

    in_use = (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC)
    assert [asked(clock) for clock in in_use] == [ALLOW] * 2
    of_process_one = ~1 << 3 | 2  # linux/posix-timers.h
    others = {*range(2, 64), of_process_one % (1 << 64), *(1 << bit for bit in range(1, 32))}
    assert {asked(clock) for clock in others} == {KILL}


def test_a_futex_can_only_be_waited_for_and_woken(built: Filter) -> None:
    def asked(operation: int) -> int:
        return run(built, Call(built.numbers["futex"], args=(1, operation, 0, 0, 0, 0))).verdict

    wait, wake, wait_bitset, private, realtime = 0, 1, 9, 128, 256  # linux/futex.h
    in_use = {wait, wake, wait | private, wake | private, wait_bitset | private | realtime}
    assert {operation for operation in range(1024) if asked(operation) == ALLOW} == in_use
    assert {asked(one ^ 1 << bit) for one in in_use for bit in range(10, 32)} == {KILL}


def test_sendmsg_works_on_one_socket_and_locks_on_one_descriptor(built: Filter) -> None:
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

    def asked(name: str, fd: int, second: int, third: int = flags) -> int:
        return run(built, Call(built.numbers[name], args=(fd, second, third, 0, 0, 0))).verdict

    for fd in (*range(100), TEARDOWN_LOCK):
        assert asked("sendmsg", fd, 1) == KILL
    for fd in (*range(100), TEARDOWN_SOCKET):
        assert asked("fcntl", fd, F_OFD_SETLK) == asked("fcntl", fd, F_OFD_GETLK) == KILL
    for command in (F_SETFD, F_OFD_GETLK - 1, F_OFD_SETLK + 1, 0, 6, 1024 + 6):
        assert asked("fcntl", TEARDOWN_LOCK, command) == KILL
    assert {asked("sendmsg", TEARDOWN_SOCKET, 1, flags ^ 1 << bit) for bit in range(32)} == {KILL}
    assert asked("sendmsg", TEARDOWN_SOCKET, 1) == ALLOW
    assert asked("fcntl", TEARDOWN_LOCK, F_OFD_SETLK) == asked("fcntl", TEARDOWN_LOCK, F_OFD_GETLK) == ALLOW


def test_the_filter_needs_few_steps_for_each_number(built: Filter) -> None:
    """The kernel runs the filter once for each number when it is installed. A list in the order of the
    rules would take 20 to 33 steps."""
    ways = [len(run(built, Call(nr)).path) for nr in range(470)]
    assert sum(ways) / len(ways) < 11


def test_every_instruction_of_the_filter_is_reached(built: Filter) -> None:
    reached: set[int] = set()
    of_kvm = (KVM_RUN, KVM_GET_REGS, KVM_SET_GUEST_DEBUG, KVM_GET_XSAVE, KVM_SET_XSAVE)
    requests = (0, *of_kvm, TUNSETOFFLOAD, F_OFD_GETLK, F_OFD_SETLK, 1, 128, 129, 9 | 128 | 256)
    descriptors = (0, TEARDOWN_SOCKET, TEARDOWN_LOCK, OWN_PROCESS)
    fourths = (0, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, (1 << 32) - 1, (1 << 64) - 1)
    every = itertools.product(
        descriptors, requests, (0, int(signal.SIGURG), fourths[1]), fourths, (0, 1, 1 << 32), (0, 8)
    )
    for args in every:
        for nr in {
            0,
            *(
                built.numbers[call]
                for call in (
                    "ioctl",
                    "fcntl",
                    "sendto",
                    "sendmsg",
                    "pwritev2",
                    "tgkill",
                    "futex",
                    "clock_gettime",
                )
            ),
        }:
            reached.update(run(built, Call(nr, args=args)).path)
    for nr in range(600):
        reached.update(run(built, Call(nr)).path)
    reached.update(run(built, Call(0, arch=0x40000003)).path)
    assert reached == set(range(len(built.code)))
    assert run(built, Call(built.numbers["ppoll"], arch=X86_64)).verdict == ALLOW
