"""What is measured: the library in a warm process, and any command that boots the guest and ends.

A subject is started once per run, gives one Sample per boot(), and is closed.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tender.bench.points import LIBRARY_POINTS, PROCESS_POINTS, Sample
from tender.errors import ConfigError, TenderError

_LIMIT_S = 60  # a boot that takes longer hangs


class BenchError(TenderError):
    """A subject could not be measured."""


class Subject:
    """Something that boots the guest. `command` is what a reader would type to see the same."""

    kind = ""
    points: "tuple[str, ...]" = ()

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = tuple(command)

    def boot(self) -> Sample:
        """One boot to its end. Raises BenchError."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what start-up began. Idempotent."""


class LibrarySubject(Subject):
    """tender.Vm in a process that has opened the Image: tender.bench.worker."""

    kind = "library"
    points = LIBRARY_POINTS

    def __init__(self, name: str, image: str, mem_mib: int) -> None:
        command = (sys.executable, "-P", "-m", "tender.bench.worker", image, str(mem_mib))
        super().__init__(name, command)
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def boot(self) -> Sample:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write("boot\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(
                f"{self.name}: the process that boots ended with {self._process.wait()}; see its message"
            )
        return parse_worker_line(line)

    def close(self) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def parse_worker_line(line: str) -> Sample:
    """The Sample that a line of tender.bench.worker stands for."""
    *stamps, cpu_ns, faults = (int(word) for word in line.split())
    start = stamps[0]
    points = {name: stamp - start for name, stamp in zip(LIBRARY_POINTS, stamps, strict=True) if stamp}
    return Sample(points, cpu_ns=cpu_ns, minor_faults=faults)


class ProcessSubject(Subject):
    """A command, spawned for each boot with its standard output on a pipe."""

    kind = "process"
    points = PROCESS_POINTS

    def __init__(self, name: str, command: Sequence[str], *, counted: bool = False) -> None:
        super().__init__(name, command)
        self._counted = counted

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
                pid = os.posix_spawnp(self.command[0], self.command, os.environ, file_actions=actions)
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
            if not poll.poll(_LIMIT_S * 1000):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise BenchError(f"{self.name}: still running after {_LIMIT_S} s: ended")
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
    """CPU time of a process that is not running this moment: exact if there is one CPU, and we are on it."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[0])
    except OSError:
        return None


def parse_peer(text: str, image: str) -> "tuple[str, tuple[str, ...]]":
    """(name, command) of `--peer`: `NAME=command {elf}` or `command {elf}`, named after the program.

    Raises ConfigError for an empty command, or one that does not say where the image goes.
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
    if not any("{elf}" in word for word in words):
        raise ConfigError(
            f"--peer: {text!r} does not say where the image goes", hint=f"write {{elf}}: {command} {{elf}}"
        )
    filled = tuple(word.replace("{elf}", image) for word in words)
    return (name if named else os.path.basename(words[0])), filled
