"""What the tests of the debugger share: guests under the command, and gdb in batch mode."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
