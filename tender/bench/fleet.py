"""Live VMs of one kind, for `memory` and `density`: one more at a time, what they keep, and all ended together."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tender.bench import facts
from tender.bench.footprint import Footprint, of_process
from tender.bench.subjects import BenchError

_LIMIT_S = 60


class Refused(BenchError):
    """There is no room for one more."""


class Fleet:
    """VMs of one image that wait in poll. `held`: the process that holds them, not counted as it was without any."""

    def __init__(self, name: str, mem_bytes: int) -> None:
        self.name = name
        self.mem_bytes = mem_bytes
        self.pids: list[int] = []
        self.count = 0

    def grow(self) -> float:
        """One more; milliseconds to its first console byte. Raises Refused, BenchError."""
        raise NotImplementedError

    def footprint(self) -> Footprint:
        """Of all VMs together. Raises OSError."""
        return _sum([of_process(pid, self.mem_bytes) for pid in self.pids])

    def close(self) -> None:
        """Ends all. Idempotent."""

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        self.close()


class LibraryFleet(Fleet):
    """VMs of one process through the library: tender.bench.resident."""

    def __init__(self, name: str, image: str, mem_mib: int, backend: str) -> None:
        super().__init__(name, mem_mib << 20)
        words = (sys.executable, "-P", "-m", "tender.bench.resident", backend, image, str(mem_mib))
        self._holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._empty: Footprint | None = None

    def grow(self) -> float:
        orders = self._holder.stdin
        assert orders
        if self._empty is None:  # what one more VM costs is without what the image and the imports did
            self._answer()
            self._empty = of_process(self._holder.pid, self.mem_bytes)
        orders.write("one more\n")
        orders.flush()
        line = self._answer()
        if line.startswith("refused "):
            raise Refused(line.partition(" ")[2].strip())
        *_, console, pid = map(int, line.split())
        self.count += 1
        if pid >= 0:
            self.pids.append(pid)
        return console / 1e6

    def _answer(self) -> str:
        assert self._holder.stdout
        line = self._holder.stdout.readline()
        if not line:
            raise BenchError(
                f"{self.name}: the process that holds the VMs ended with {self._holder.wait()}; see its message"
            )
        return line

    def footprint(self) -> Footprint:
        holder = of_process(self._holder.pid, self.mem_bytes)
        empty = self._empty or holder
        own = Footprint(
            pss=holder.pss - empty.pss, private=holder.private - empty.private, guest=holder.guest
        )
        if self.pids:  # the guests are in processes of their own: none of the holder's memory is theirs
            own.guest = 0.0
        return _sum([own, *(of_process(pid, self.mem_bytes) for pid in self.pids)])

    def close(self) -> None:
        if self._holder.stdin:
            self._holder.stdin.close()
        try:
            self._holder.wait(facts.limit_s(_LIMIT_S))
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()


class PeerFleet(Fleet):
    """A process a VM. It is ready when the guest has said something."""

    def __init__(self, name: str, command: Sequence[str], mem_mib: int) -> None:
        super().__init__(name, mem_mib << 20)
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
        while b"ready\n" not in said:
            if not select.select([fd], [], [], facts.limit_s(_LIMIT_S))[0]:
                raise Refused(f"{self.name}: says nothing for {_LIMIT_S} s")
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
