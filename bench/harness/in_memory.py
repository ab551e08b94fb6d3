"""Makes a root directory in memory with all files that some commands read, to run the commands in it.

This is for the test VM (tools/kvmbox). There every open() of a file asks the host, and while the VM waits for the
answer, its clock leaps. A command whose files are in memory does not wait for the host. With `--icount` the elapsed time
of its run is then its instructions, and the time that the kernel's own timers made it wait.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from tender.bench.subjects import BenchError

BESIDE = ("/dev", "/proc", "/sys")
LOADER_CACHE = "/etc/ld.so.cache"


@contextlib.contextmanager
def root_for(commands: "Iterable[Sequence[str]]") -> "Iterator[str]":
    """The directory. Programs are looked up in PATH, and files among a command's words are copied. Raises BenchError."""
    files = {LOADER_CACHE}
    for command in commands:
        program = shutil.which(command[0])
        if program is None:
            raise BenchError(f"{command[0]}: no such program")
        files |= {os.path.abspath(word) for word in (program, *command[1:]) if os.path.isfile(word)}
        files |= set(_libraries(program))
    with tempfile.TemporaryDirectory(prefix="tender-bench-") as root, contextlib.ExitStack() as stack:
        _mount(stack, root, "-t", "tmpfs", "none")
        for path in filter(os.path.isfile, files):
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            shutil.copy(path, root + path)
        for path in BESIDE:
            os.makedirs(root + path)
            _mount(stack, root + path, "--bind", path)
        os.makedirs(root + "/tmp", exist_ok=True)
        yield root


def _libraries(program: str) -> "list[str]":
    """The libraries that the loader would map, and the loader. Empty for a static program."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(?:=>)?\s(/\S+)", done.stdout) if done.returncode == 0 else []


def _mount(stack: contextlib.ExitStack, where: str, *words: str) -> None:
    done = subprocess.run(["mount", *words, where], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"--in-memory: {done.stderr.strip()}", hint="it needs root, as in the test VM")
    stack.callback(subprocess.run, ["umount", where], check=False)
