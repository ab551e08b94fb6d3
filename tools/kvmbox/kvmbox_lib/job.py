"""One command in the test VM: its streams, its signals and its end."""

import os
import select
import signal
import struct
import time
from typing import Protocol

from .channel import STDIN_CHUNK, Channel, Kind, fields
from .errors import Interrupted, KvmboxError, say
from .signals import TIMED_OUT, Signals, status_of

GRACE_S = 10.0  # from the signal that should end the command to the end of the test VM
WRITE_MAX = select.PIPE_BUF  # a pipe that polls writable accepts this much without blocking


class _Selectable(Protocol):
    def fileno(self) -> int: ...


class Job:
    """Relays one command. run() is called only once."""

    def __init__(
        self, channel: Channel, signals: Signals, stdin: int | None = None, idle_limit_s: float | None = None
    ) -> None:
        self._channel = channel
        self._signals = signals
        self._stdin = stdin
        self._input_free = stdin is not None  # the command has read all input that was sent
        self._idle_limit_s = idle_limit_s
        self._last_output = time.monotonic()
        self._ending: tuple[float, int] | None = None  # when to stop waiting, and the status then
        self._timed_out = False

    def run(self, command: list[str], cwd: str, environment: dict[bytes, bytes]) -> int:
        """The command's exit status, or 124 at a time limit.

        Raises Interrupted if the command does not end within GRACE_S of the signal.
        """
        words = [os.fsencode(word) for word in command]
        variables = [name + b"=" + value for name, value in environment.items()]
        self._signals.note_only()
        self._channel.send(Kind.JOB, fields([os.fsencode(cwd), b"%d" % len(words), *words, *variables]))
        if self._stdin is None:
            self._channel.send(Kind.STDIN)
        while True:
            while (frame := self._channel.take()) is not None:
                kind, payload = frame
                if kind is Kind.EXIT:
                    return TIMED_OUT if self._timed_out else int(struct.unpack("<i", payload)[0])
                self._accept(kind, payload)
            self._relay()

    def _accept(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.STDIN:
            self._input_free = self._stdin is not None
            return
        self._last_output = time.monotonic()
        if kind is Kind.STDOUT:
            self._write(1, payload)
        elif kind is Kind.STDERR:
            self._write(2, payload)
        else:
            raise KvmboxError(f"the test VM sent {kind.name} while a command ran")

    def _relay(self) -> None:
        sources: list[_Selectable | int] = [self._channel]
        if self._input_free and self._stdin is not None:
            sources.append(self._stdin)
        readable = self._wait(sources, [])
        if self._channel in readable:
            self._channel.read()
        if self._stdin is not None and self._stdin in readable:
            self._send_input(self._stdin)

    def _send_input(self, stdin: int) -> None:
        data = os.read(stdin, STDIN_CHUNK)
        self._channel.send(Kind.STDIN, data)
        self._input_free = False
        if not data:
            self._stdin = None

    def _write(self, fd: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            self._wait([], [fd])
            at += os.write(fd, data[at : at + WRITE_MAX])
        self._last_output = time.monotonic()

    def _wait(self, read: list[_Selectable | int], write: list[int]) -> list[_Selectable | int]:
        """Wait until something is readable or writable, and return the readable ones. Handles signals and limits."""
        while True:
            self._check_limits()
            readable, writable, _ = select.select([*read, self._signals], write, [], self._patience_s())
            if self._signals in readable:
                for number in self._signals.take():
                    self._forward(number)
                readable.remove(self._signals)
            if readable or writable:
                return readable

    def _forward(self, number: int) -> None:
        """Pass a signal on. A second signal means that the sender does not want to wait."""
        if self._ending:
            raise Interrupted(self._ending[1])
        self._ending = (time.monotonic() + GRACE_S, status_of(number))
        self._timed_out = number == signal.SIGALRM
        if self._timed_out:
            say("a time limit is over: ending the command")
        passed_on = signal.SIGTERM if self._timed_out else number
        self._channel.send(Kind.KILL, bytes([passed_on]))

    def _patience_s(self) -> float | None:
        limits = []
        if self._ending:
            limits.append(self._ending[0])
        elif self._idle_limit_s:
            limits.append(self._last_output + self._idle_limit_s)
        return max(0.0, min(limits) - time.monotonic()) if limits else None

    def _check_limits(self) -> None:
        now = time.monotonic()
        if self._ending:
            if now >= self._ending[0]:
                raise Interrupted(self._ending[1])
        elif self._idle_limit_s and now >= self._last_output + self._idle_limit_s:
            self._forward(signal.SIGALRM)
