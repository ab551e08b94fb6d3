"""What /proc says of one process or thread, as values. What cannot be read is 0 or empty.

All of it is the kernel's word, except names: a process chooses its own.
"""

import os
import pwd
import re
from dataclasses import dataclass
from functools import lru_cache

TICKS: int = os.sysconf("SC_CLK_TCK")
PAGE: int = os.sysconf("SC_PAGE_SIZE")
_FILE_BYTES_MAX = 1 << 16
_SMAPS_BYTES_MAX = 32 << 20
_SANDBOX_UIDS = range(0x70000000, 0x71000000)  # unprivileged_id() of bindings/machine/layers.h
_SIZE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
_CONTAINER = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_NAMED_CONTAINER = re.compile(
    r"/(?:lxc(?:\.payload)?[./]|machine\.slice/systemd-nspawn@|machine\.slice/machine-)([^/]+?)(?:\.service|\.scope)?(?=/|$)"
)


@dataclass(frozen=True)
class Times:
    """What /proc/PID/stat says. Times are in ticks.

    Attributes:
        state: One letter: R runs, S waits, D waits without being interrupted, T stopped, t stopped by a tracer, Z ended.
        started: When the process began, since the host's boot.
        code: Where its program lies. Another one after each exec(2); 0 or 1 if we may not know.
        user: Its time in user mode, which contains `guest`.
        system: Its time in the kernel.
        guest: Its time as a vCPU.
    """

    state: str
    started: int
    code: int
    user: int
    system: int
    guest: int


def times_of(place: str) -> Times:
    """Returns the times of a process, "PID", or of a thread, "PID/task/TID". Raises OSError."""
    with open(f"/proc/{place}/stat", "rb", buffering=0) as file:
        text = file.read(_FILE_BYTES_MAX)
    words = text[text.rfind(b")") + 2 :].split()  # a name may contain anything, also ")"
    return Times(
        state=words[0].decode("latin-1"),
        started=int(words[19]),
        code=int(words[23]),
        user=int(words[11]),
        system=int(words[12]),
        guest=int(words[40]),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes that a process has in memory, and its tracer.

    Attributes:
        resident: All that is in memory.
        anonymous: Of this, what belongs to no file, and what was moved to swap.
        tracer: The process that traces it, or 0.
    """

    resident: int
    anonymous: int
    tracer: int


def memory_of(place: str) -> Memory:
    """Returns the memory of a process or thread. Raises OSError."""
    status = text_of(place, "status")
    sizes = {name: int(number) << 10 for name, number in _SIZE.findall(status)}
    tracer = re.search(r"^TracerPid:\s*(\d+)$", status, re.MULTILINE)
    return Memory(
        resident=sizes.get("VmRSS", 0),
        anonymous=sizes.get("RssAnon", 0) + sizes.get("VmSwap", 0),
        tracer=int(tracer[1]) if tracer else 0,
    )


def touched_in(pid: int, start: int, end: int) -> int:
    """Returns the bytes between two addresses of a process that belong to no file and are in memory or in swap.

    Raises OSError.
    """
    with open(f"/proc/{pid}/smaps", "rb") as file:
        text = file.read(_SMAPS_BYTES_MAX)
    found, inside = 0, False
    for line in text.split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in (b"Anonymous", b"Swap"):
            if inside:
                found += int(rest.split()[0]) << 10
        elif b"-" in name and b" " in name:
            first, _, last = name.split(b" ", 1)[0].partition(b"-")
            inside = int(first, 16) < end and int(last, 16) > start
    return found


def text_of(place: str, name: str) -> str:
    """Returns a file of /proc/PID. Raises OSError."""
    with open(f"/proc/{place}/{name}", "rb", buffering=0) as file:
        return file.read(_FILE_BYTES_MAX).decode("utf-8", "surrogateescape")


def words_of(pid: int) -> list[str]:
    """Returns the command line, or nothing if it cannot be read."""
    try:
        return text_of(str(pid), "cmdline").split("\0")[:-1]
    except OSError:
        return []


def cgroup_of(pid: int) -> str:
    """Returns the path of its cgroup: that of version 2, or the memory controller's; empty if it is in none."""
    try:
        lines = text_of(str(pid), "cgroup").splitlines()
    except OSError:
        return ""
    found = ""
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if path != "/" and (not controllers or "memory" in controllers.split(",")):
            found = path
    return found


def container_of(cgroup: str) -> str:
    """Returns the id of the container that a cgroup is named for, as docker, podman, containerd, CRI-O and LXC do.

    Empty if there is none.
    """
    ids = _CONTAINER.findall(cgroup)
    if ids:
        return str(ids[-1])
    named = _NAMED_CONTAINER.search(cgroup)
    return named[1] if named else ""


@lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """Returns the name of a user, or the number. A guest that root has sandboxed has a number of its own."""
    if uid in _SANDBOX_UIDS:
        return "sandbox"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return str(uid)
