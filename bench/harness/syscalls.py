"""The system calls and KVM ioctls of one boot, counted with strace.

The library is traced twice, for few and for more boots, and the difference is divided by the difference in boots. What
the process does once (start, imports, opening the image) cancels out exactly.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
_KVM_IOCTL = re.compile(r"^(?:\d+ +)?ioctl\(\d+(?:<[^>]*>)?, (KVM_\w+)")
_PID = re.compile(r"^(\d+) ")
_RESUMED = re.compile(r"^(?:\d+ +)?<\.\.\.")


def available() -> bool:
    return shutil.which("strace") is not None


def may_trace() -> bool:
    """Whether strace is installed and may trace a process."""
    if not available():
        return False
    return of_command(("true",)) is not None


def strace(log: Path) -> "tuple[str, ...]":
    """The words in front of a command that trace it, and all processes that it starts, to `log`."""
    return ("strace", "-f", "-qq", "-e", "signal=none", "-s", "0", "-o", str(log))


PROGRAM = "calls of tender-sandbox"


def count_lines(log: str) -> "Counter[str]":
    """The calls in strace's output by name, and KVM's ioctls by request.

    PROGRAM counts the calls of processes that execveat() made, which is how a sandbox process starts. It has no libc, so
    all these calls are its own. read() is not counted, because the process makes its last read() only if it is not
    stopped before.
    """
    found: Counter[str] = Counter()
    programs = set()
    for line in log.splitlines():
        if _RESUMED.match(line):
            continue
        call = _CALL.match(line)
        if call is None:
            continue
        found["system calls"] += 1
        kvm = _KVM_IOCTL.match(line)
        found[kvm[1] if kvm else call[1]] += 1
        pid = _PID.match(line)
        if pid and pid[1] in programs and call[1] != "read":
            found[PROGRAM] += 1
        if pid and call[1] == "execveat":
            programs.add(pid[1])
    return found


def of_command(command: Sequence[str], stdin: str = "") -> "Counter[str] | None":
    """The calls of one run of `command`. None if strace may not trace here."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        done = subprocess.run(
            [*strace(log), *command], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode or not log.exists():
            return None
        return count_lines(log.read_text(errors="replace"))


def of_library(worker: Sequence[str]) -> "dict[str, float] | None":
    """The calls of one boot in a warm process, by name. None if strace may not trace here."""
    few, more = of_command(worker, "boot\n" * 2), of_command(worker, "boot\n" * 6)
    if few is None or more is None:
        return None
    per_boot = {name: (more[name] - few[name]) / 4 for name in more}
    # Calls of the worker itself: its line of output, and its clocks. Its input comes in one read.
    for call, count in (("write", 1), ("getrusage", 2), ("clock_gettime", 2)):
        per_boot[call] = per_boot.get(call, 0) - count
        per_boot["system calls"] -= count
    return {name: count for name, count in sorted(per_boot.items()) if count}
