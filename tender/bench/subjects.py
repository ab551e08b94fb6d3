"""The subjects of a measurement: the library in a warm process, and any command that boots the guest and ends.

A subject is started once per run, gives one Sample for each boot(), and is closed.
"""

import os
import re
import select
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence

from tender.bench import facts
from tender.bench.points import LIBRARY_POINTS, PROCESS_POINTS, Sample
from tender.errors import ConfigError, TenderError

LIMIT_S = 60  # a boot that takes longer is taken for a hang


def _limit_ms() -> "float | None":
    limit = facts.limit_s(LIMIT_S)
    return None if limit is None else limit * 1000


class BenchError(TenderError):
    """A subject could not be measured."""


class Subject:
    """Something that boots the guest. `command` is what a reader types to see the same."""

    kind = ""
    points: "tuple[str, ...]" = ()

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = tuple(command)

    def boot(self) -> Sample:
        """One boot to its end. Raises BenchError."""
        raise NotImplementedError

    def close(self) -> None:
        """End what the constructor started. Idempotent."""


class LineSubject(Subject):
    """One process for all boots. A line on its standard input starts a boot, and it answers with a line of numbers.

    With `piped` the guest's console is a pipe from `console_fd` of that process to this process, and `console_seen` is
    the time when its first bytes were seen here. It is the same point for all subjects. The output is read and
    discarded after the boot, so a guest may print as much as a pipe holds.
    """

    kind = "library"
    points: "tuple[str, ...]" = (*LIBRARY_POINTS, "console_seen")

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        piped: bool,
        console_fd: int = 3,
        environment: "Mapping[str, str] | None" = None,
    ) -> None:
        super().__init__(name, command)
        self._pipe, write_end = os.pipe2(os.O_CLOEXEC) if piped else (-1, -1)
        actions: list[tuple[object, ...]] = []
        to_us, from_us = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, from_us[0], 0), (os.POSIX_SPAWN_DUP2, to_us[1], 1)]
        if piped:
            os.set_blocking(self._pipe, False)
            actions.append((os.POSIX_SPAWN_DUP2, write_end, console_fd))
        try:
            surroundings = {**os.environ, **(environment or {})}
            self._pid = os.posix_spawnp(command[0], self.command, surroundings, file_actions=actions)
        except OSError as error:
            raise BenchError(f"{name}: {command[0]}: {error.strerror}") from error
        finally:
            for fd in (from_us[0], to_us[1], write_end):
                if fd >= 0:
                    os.close(fd)
        self._orders, self._answers = from_us[1], os.fdopen(to_us[0])

    def boot(self) -> Sample:
        seen = 0
        try:
            os.write(self._orders, b"boot\n")
            if self._pipe >= 0:
                seen = self._await_console()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(
                f"{self.name}: the process that boots ended with {self._reap()}; see its message"
            )
        if self._pipe >= 0:
            _drain(self._pipe)
        return self.parse(line, seen)

    def parse(self, line: str, seen: int) -> Sample:
        return parse_worker_line(line, seen)

    def _await_console(self) -> int:
        """The time of the console's first byte, or 0 if the answer comes before it."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._answers, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(_limit_ms())]
        now = time.monotonic_ns()
        if not ready:
            os.kill(self._pid, signal.SIGKILL)
        return now if self._pipe in ready else 0

    def _reap(self) -> int:
        pid, self._pid = self._pid, -1
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid > 0 else 0

    def close(self) -> None:
        if self._orders < 0:
            return
        os.close(self._orders)
        self._orders = -1
        self._reap()
        self._answers.close()
        if self._pipe >= 0:
            os.close(self._pipe)


def _drain(pipe: int) -> None:
    try:
        while os.read(pipe, 65536):
            pass
    except BlockingIOError:
        pass


_WORKER_CONSOLE_FD = 3


class LibrarySubject(LineSubject):
    """tender.Vm in a process that has opened the Image: tender.bench.worker. `mode` is the worker's.

    python  the Python of the installation to measure
    silent  discard the console, and do not watch it
    worker  Python's arguments for another program with the interface of that module
    """

    def __init__(
        self,
        name: str,
        image: str,
        mem_mib: int,
        *,
        mode: str = "kvm",
        args: Sequence[str] = (),
        python: str = sys.executable,
        silent: bool = False,
        worker: Sequence[str] = ("-m", "tender.bench.worker"),
    ) -> None:
        piped = not mode.endswith("kvm") and not silent
        words = (mode, image, str(mem_mib), str(_WORKER_CONSOLE_FD if piped else -1), *args)
        command = (python, "-P", *worker, *words)
        super().__init__(name, command, piped=piped, console_fd=_WORKER_CONSOLE_FD)


def parse_worker_line(line: str, seen: int = 0) -> Sample:
    """The Sample of a line of tender.bench.worker."""
    *stamps, cpu_ns, faults = (int(word) for word in line.split())
    start = stamps[0]
    points = {name: stamp - start for name, stamp in zip(LIBRARY_POINTS, stamps, strict=True) if stamp}
    if seen:
        points["console_seen"] = seen - start
    return Sample(points, cpu_ns=cpu_ns, minor_faults=faults)


class ProcessSubject(Subject):
    """A command, spawned for each boot with its standard output on a pipe."""

    kind = "process"
    points = PROCESS_POINTS

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        counted: bool = False,
        environment: "Mapping[str, str] | None" = None,
    ) -> None:
        super().__init__(name, command)
        self._counted = counted
        self._environment = {**os.environ, **(environment or {})}

    def boot(self) -> Sample:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, write_end, 1),
            (os.POSIX_SPAWN_DUP2, null, 2),
        ]
        try:
            spawn = time.monotonic_ns()
            try:
                pid = os.posix_spawnp(self.command[0], self.command, self._environment, file_actions=actions)
            except OSError as error:
                raise BenchError(f"{self.name}: {self.command[0]}: {error.strerror}") from error
            os.close(write_end)
            write_end = -1
            return self._follow(pid, read_end, spawn)
        finally:
            for fd in (read_end, null, write_end):
                if fd >= 0:
                    os.close(fd)

    def _follow(self, pid: int, pipe: int, spawn: int) -> Sample:
        points = {"spawn": 0}
        first_cpu = None
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            if not poll.poll(_limit_ms()):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise BenchError(f"{self.name}: killed because it still ran after {LIMIT_S} s")
            now = time.monotonic_ns()
            if not os.read(pipe, 65536):
                points["console_eof"] = now - spawn
                break
            if "first_console" not in points:
                points["first_console"] = now - spawn
                first_cpu = _cpu_ns(pid) if self._counted else None
        _, status, usage = os.wait4(pid, 0)
        points["reaped"] = time.monotonic_ns() - spawn
        if status:
            raise BenchError(
                f"{self.name}: {shlex.join(self.command)}: ended with {os.waitstatus_to_exitcode(status)}"
            )
        cpu_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
        return Sample(points, cpu_ns=cpu_ns, minor_faults=usage.ru_minflt, first_console_cpu_ns=first_cpu)


def _cpu_ns(pid: int) -> "int | None":
    """CPU time of a process. It is exact if there is one CPU, because this process then runs on it."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[0])
    except OSError:
        return None


_SUFFIXED = re.compile(r"\{elf(?::(\.\w+))?\}")


def _beside(image: str, suffix: "str | None") -> str:
    return image if suffix is None else os.path.splitext(image)[0] + suffix


def parse_peer(text: str, image: str) -> "tuple[str, tuple[str, ...]]":
    """The name and the command of `--peer`: `NAME=command {elf}`, or `command {elf}`, which has the program's name.

    `{elf:.spt}` is the file next to the image that has this suffix: the same unikernel, built for the peer.

    Raises ConfigError for an empty command, or a command without the image.
    """
    name, equals, rest = text.partition("=")
    named = bool(equals) and name.replace("-", "_").isidentifier()
    command = rest if named else text
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--peer: {text!r}: {error}") from error
    if not words:
        raise ConfigError(f"--peer: {text!r} names no command", hint="--peer 'solo5-hvt --mem=16 {elf}'")
    if not any(_SUFFIXED.search(word) for word in words):
        raise ConfigError(
            f"--peer: {text!r} does not contain the image", hint=f"write {{elf}}: {command} {{elf}}"
        )
    filled = tuple(_SUFFIXED.sub(lambda m: _beside(image, m[1]), word) for word in words)
    return (name if named else os.path.basename(words[0])), filled
