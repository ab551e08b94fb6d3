"""System calls and KVM ioctls of one boot, counted under strace.

The library is traced twice, for few and for more boots, and the difference divided: what the process does
once (start, imports, opening the image) cancels out exactly.
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
    """Whether strace is here, and may trace a process."""
    if not available():
        return False
    return of_command(("true",)) is not None


def strace(log: Path) -> "tuple[str, ...]":
    """The words before a command that is to be traced into `log`, with all that it starts."""
    return ("strace", "-f", "-qq", "-e", "signal=none", "-s", "0", "-o", str(log))


PROGRAM = "calls of tender-sandbox"


def count_lines(log: str) -> "Counter[str]":
    """Calls by name in strace's output; KVM's ioctls by request.

    PROGRAM: those of processes that execveat() made, which is how the sandbox starts: there is no libc in it, so
    their number is its own; without read(), the last of which it makes only if it is not stopped before.
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
    """What one run of `command` calls; None if strace may not trace here."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        done = subprocess.run(
            [*strace(log), *command], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode or not log.exists():
            return None
        return count_lines(log.read_text(errors="replace"))


def of_library(worker: Sequence[str]) -> "dict[str, float] | None":
    """Calls of one boot in a warm process, by name; None if strace may not trace here."""
    few, more = of_command(worker, "boot\n" * 2), of_command(worker, "boot\n" * 6)
    if few is None or more is None:
        return None
    per_boot = {name: (more[name] - few[name]) / 4 for name in more}
    # the worker's own: its line out, and its clocks (its lines in come in one read)
    for call, count in (("write", 1), ("getrusage", 2), ("clock_gettime", 2)):
        per_boot[call] = per_boot.get(call, 0) - count
        per_boot["system calls"] -= count
    return {name: count for name, count in sorted(per_boot.items()) if count}
