"""What the tests of the debugger share: guests under the command, and gdb in batch mode."""

import ctypes
import fcntl
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
from support import Guest

LIMIT_S = 120
"""The longest wait for anything. On an emulated machine a session of gdb takes half a minute."""


class Running:
    """A guest that runs under the command, after its first line of output, which is "ready".

    Attributes:
        pid: The process of the command.
        path: The image.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process, self.pid, self.path = process, process.pid, path
        self.before = b""
        assert process.stdout
        while not self.before.endswith(b"ready\n"):
            more = process.stdout.read(1)
            assert more, f"the guest has ended after {self.before!r}: {self.end()}"
            self.before += more

    def end(self, limit: float = LIMIT_S) -> tuple[int, bytes, bytes]:
        """Waits for the end. Returns the status, all that the guest has printed, and stderr."""
        out, err = self.process.communicate(timeout=limit)
        return self.process.returncode, self.before + out, err

    def check_went_on(self) -> None:
        """A guest that waits in a loop goes on to the end. It is not waited for: SIGTERM is what it answers then."""
        assert self.process.poll() is None
        os.kill(self.pid, signal.SIGTERM)
        status, out, err = self.end()
        assert (status, out) == (1, b"ready\n") and b"signal 15" in err


StartGuest = Callable[..., Running]


@pytest.fixture
def start_guest(guest: Guest, tender_cmd: list[str]) -> Iterator[StartGuest]:
    """A function: start_guest("debug", "spin", "1000", options=(...)) runs a guest by the command until it is ready.

    The guest is killed at the end of the test, if it still runs.
    """
    with ExitStack() as stack:

        def start(name: str, *arguments: str, options: tuple[str, ...] = (), mem: str = "16") -> Running:
            process = subprocess.Popen(
                [*tender_cmd, f"--mem={mem}", *options, str(guest(name)), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,  # communicate() would lose what was read ahead
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Running(process, guest(name))

        yield start


Undebugged = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture(scope="session")
def undebugged(guest: Guest, tender_cmd: list[str]) -> Undebugged:
    """A function: undebugged("debug", "spin", "1000") is status, output and stderr of a run that nobody looks at.

    Each run is made once: on an emulated machine it takes seconds.
    """
    made: dict[tuple[str, ...], tuple[int, bytes, bytes]] = {}

    def run(name: str, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, bytes, bytes]:
        words = (*tender_cmd, "--mem=16", *options, str(guest(name)), *arguments)
        which = (os.environ.get("TENDER_BACKEND", ""), *words)
        if which not in made:
            done = subprocess.run(words, capture_output=True, timeout=LIMIT_S, check=False)
            made[which] = done.returncode, done.stdout, done.stderr
        return made[which]

    return run


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The user's own settings of gdb do not count, and nothing is asked of other hosts."""
    return {**os.environ, "HOME": str(tmp_path), "DEBUGINFOD_URLS": "", "TERM": "dumb"}


Listening = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", str]]]


@pytest.fixture
def listening(tender_cmd: list[str], environment: dict[str, str]) -> Listening:
    """A function: with listening("127.0.0.1:0", PID) as (process, place) runs `tender debug --listen=127.0.0.1:0 PID`.

    `place` is what gdb's `target remote` is given. Words after the first are those of the command.
    """

    @contextmanager
    def listens(place: str, *words: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
        with subprocess.Popen(
            [*tender_cmd, "debug", f"--listen={place}", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                assert process.stderr
                line = process.stderr.readline()
                found = re.search(r"in gdb: target remote (\S+)\n", line)
                assert found, line
                yield process, found[1]
            finally:
                process.kill()

    return listens


Gdb = Callable[..., str]


@pytest.fixture
def gdb(tmp_path: Path) -> Gdb:
    """A function: gdb("bt", "detach", image=PATH, target="| tender debug --stdio 1") runs these commands of gdb.

    It returns what gdb has printed, on both streams. gdb's status must be 0.
    """
    program = shutil.which("gdb")
    assert program, "gdb is missing: make setup"

    def run(*commands: str, image: Path | None = None, target: str = "", status: int = 0) -> str:
        first = ["set pagination off", "set confirm off", "set remotetimeout 60", "set width 0"]
        if target:
            first.append(f"target remote {target}")
        words = [program, "-nx", "-q", "-batch", *(f"-ex={it}" for it in (*first, *commands))]
        done = subprocess.run(
            [*words, *([str(image)] if image else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "HOME": str(tmp_path), "DEBUGINFOD_URLS": ""},
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    return run


@cache
def _kvm_gives_debug_exceptions() -> bool:
    """Whether the processor gives a guest of KVM a debug exception. Nothing of Tender takes part in the trial.

    The vCPU executes NOP and HLT in real mode, with a hardware breakpoint at the second. The numbers are of <linux/kvm.h>.
    """
    start, page = 0x1000, 4096
    with ExitStack() as stack:

        def opened(number: int) -> int:
            stack.callback(os.close, number)
            return number

        kvm = opened(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        memory = stack.enter_context(mmap.mmap(-1, page))
        memory[:2] = b"\x90\xf4"
        place = ctypes.c_char.from_buffer(memory)
        vm = opened(fcntl.ioctl(kvm, 0xAE01, 0))  # KVM_CREATE_VM
        region = struct.pack("<2I3Q", 0, 0, start, page, ctypes.addressof(place))
        del place  # the mapping can be closed again
        fcntl.ioctl(vm, 0x4020AE46, region)  # KVM_SET_USER_MEMORY_REGION
        vcpu = opened(fcntl.ioctl(vm, 0xAE41, 0))  # KVM_CREATE_VCPU
        run = stack.enter_context(mmap.mmap(vcpu, fcntl.ioctl(kvm, 0xAE04, 0)))  # KVM_GET_VCPU_MMAP_SIZE
        system = bytearray(312)
        fcntl.ioctl(vcpu, 0x8138AE83, system)  # KVM_GET_SREGS
        system[:8], system[12:14] = bytes(8), bytes(2)  # CS: base and selector
        fcntl.ioctl(vcpu, 0x4138AE84, system)  # KVM_SET_SREGS
        fcntl.ioctl(
            vcpu, 0x4090AE82, struct.pack("<18Q", *(0,) * 16, start, 2)
        )  # KVM_SET_REGS: RIP and RFLAGS
        control = struct.pack(
            "<2I8Q", 0x20001, 0, start + 1, *(0,) * 6, 0x602
        )  # KVM_GUESTDBG_ENABLE, _USE_HW_BP
        fcntl.ioctl(vcpu, 0x4048AE9B, control)  # KVM_SET_GUEST_DEBUG
        fcntl.ioctl(vcpu, 0xAE80, 0)  # KVM_RUN
        (reason,) = struct.unpack_from("<I", run, 8)
    assert reason in (4, 5), reason  # KVM_EXIT_DEBUG, KVM_EXIT_HLT
    return bool(reason == 4)


@pytest.fixture
def has_debug_registers(request: pytest.FixtureRequest) -> bool:
    """Whether hardware breakpoints hit: in the sandbox always, on KVM where the processor has them for guests."""
    on_kvm = request.node.get_closest_marker("kvm") is not None
    return not on_kvm or _kvm_gives_debug_exceptions()


@pytest.fixture
def needs_debug_registers(has_debug_registers: bool) -> None:
    """Skips where they do not hit."""
    if not has_debug_registers:
        pytest.skip(
            "this processor, an emulated one, gives no guest a debug exception (tools/kvmbox/README.md)"
        )
