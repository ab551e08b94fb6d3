"""Live VMs of one kind, for `memory` and `density`: they start one at a time, are measured, and end together."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from harness.footprint import Footprint, of_process
from tender.bench import facts
from tender.bench.subjects import BenchError

_LIMIT_S = 60
HELD_MAX = {"sandbox": 5000, "kvm": 250}
"""The VMs in one process of ours, by backend. In the sandbox each VM takes three descriptors and four mappings of the
process, which may have about 20,000 and 65,000 of them. With KVM the kernel informs each VM of a process about every
change of the process's address space. So each VM makes the next one more expensive: some hundred VMs, by a tenth."""


class Refused(BenchError):
    """There is no space for one more VM."""


class Fleet:
    """VMs of one image that wait in poll."""

    def __init__(self, name: str, mem_bytes: int) -> None:
        self.name = name
        self.mem_bytes = mem_bytes
        self.pids: list[int] = []
        self.count = 0

    def grow(self) -> float:
        """Start one more VM. Returns the milliseconds to its first console byte. Raises Refused, BenchError."""
        raise NotImplementedError

    def footprint(self) -> Footprint:
        """The memory of all VMs together. Raises OSError."""
        return _sum([of_process(pid, self.mem_bytes) for pid in self.pids])

    def close(self) -> None:
        """End all VMs. Idempotent."""

    def assert_gone(self) -> None:
        """After close(): wait until all their processes have ended. Raises BenchError if one stays."""

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        self.close()


class _Holder:
    """A process that makes VMs through the library and keeps them: resident.py."""

    def __init__(self, name: str, words: Sequence[str], mem_bytes: int) -> None:
        self.name = name
        self.count = 0
        self.mem_bytes = mem_bytes
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._empty: Footprint | None = None

    def grow(self) -> "tuple[int, int]":
        """Start one more VM. Returns the nanoseconds to its first console byte, and its process or -1.

        Raises Refused, BenchError.
        """
        orders = self._process.stdin
        assert orders
        if self._empty is None:  # the cost of a VM does not include that of the image and of the imports
            self._answer()
            self._empty = of_process(self._process.pid, self.mem_bytes, without_files=True)
        orders.write("one more\n")
        orders.flush()
        line = self._answer()
        if line.startswith("refused "):
            raise Refused(line.partition(" ")[2].strip())
        *_, console, pid = map(int, line.split())
        self.count += 1
        return console, pid

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(
                f"{self.name}: the process that holds the VMs ended with {self._process.wait()}; see its message"
            )
        return line

    def footprint(self) -> Footprint:
        """The memory by which the process has grown since it was without VMs."""
        now = of_process(self._process.pid, self.mem_bytes, without_files=True)
        empty = self._empty or now
        return Footprint(pss=now.pss - empty.pss, private=now.private - empty.private, guest=now.guest)

    def let_go(self) -> None:
        """Let the process begin to end its VMs."""
        if self._process.stdin:
            self._process.stdin.close()

    def wait(self) -> None:
        limit = facts.limit_s(_LIMIT_S + self.count / 100)
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


class LibraryFleet(Fleet):
    """VMs of the library, up to `held` per process."""

    def __init__(
        self, name: str, image: str, mem_mib: int, backend: str, *, args: Sequence[str] = (), held: int = 0
    ) -> None:
        super().__init__(name, mem_mib << 20)
        self._held = held or HELD_MAX[backend]
        self._words = (
            sys.executable,
            "-P",
            str(Path(__file__).with_name("resident.py")),
            backend,
            image,
            str(mem_mib),
            *args,
        )
        self._holders: list[_Holder] = []
        self._born: dict[int, str] = {}

    def grow(self) -> float:
        if not self._holders or self._holders[-1].count == self._held:
            self._holders.append(_Holder(self.name, self._words, self.mem_bytes))
        console, pid = self._holders[-1].grow()
        self.count += 1
        if pid >= 0:
            self.pids.append(pid)
            self._born[pid] = _start_time(pid)
        return console / 1e6

    def footprint(self) -> Footprint:
        own = _sum([holder.footprint() for holder in self._holders])
        if self.pids:  # the guests have processes of their own, so the holders have no guest memory
            own.guest = 0.0
        return _sum([own, super().footprint()])

    def close(self) -> None:
        holders, self._holders = self._holders, []
        for holder in holders:
            holder.let_go()
        for holder in holders:
            holder.wait()

    def assert_gone(self) -> None:
        end = time.monotonic() + _LIMIT_S
        left = dict(self._born)
        while left := {pid: born for pid, born in left.items() if _start_time(pid) == born}:
            if time.monotonic() > end:
                raise BenchError(f"{self.name}: {len(left)} of its processes did not end: {sorted(left)[:5]}")
            time.sleep(0.05)


def _start_time(pid: int) -> str:
    """Distinguishes a process from a later one with the same number. "" if there is none, or it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class PeerFleet(Fleet):
    """One process for each VM. A VM is ready when its guest has printed `ready`."""

    def __init__(self, name: str, command: Sequence[str], mem_mib: int, *, ready: str = "ready\n") -> None:
        super().__init__(name, mem_mib << 20)
        self._ready = ready.encode()
        self._command = tuple(command)
        self._processes: list[subprocess.Popen[bytes]] = []

    def grow(self) -> float:
        start = time.monotonic_ns()
        try:
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Refused(f"{self._command[0]}: {error.strerror}") from error
        self._processes.append(process)
        assert process.stdout
        fd = process.stdout.fileno()
        said = b""
        while self._ready not in said:
            if not select.select([fd], [], [], facts.limit_s(_LIMIT_S))[0]:
                raise Refused(f"{self.name}: printed nothing for {_LIMIT_S} s")
            piece = os.read(fd, 4096)
            if not piece:
                raise Refused(f"{self.name}: ended with {process.wait()}")
            said += piece
        self.count += 1
        self.pids.append(process.pid)
        return (time.monotonic_ns() - start) / 1e6

    def close(self) -> None:
        processes, self._processes = self._processes, []
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
            if process.stdout:
                process.stdout.close()


def _sum(parts: "list[Footprint]") -> Footprint:
    guests = [part.guest for part in parts]
    return Footprint(
        pss=sum(part.pss for part in parts),
        private=sum(part.private for part in parts),
        guest=None if None in guests else sum(guest for guest in guests if guest is not None),
    )
