"""The memory that a process keeps, and that the kernel keeps for it, in KiB.

process   /proc/PID/smaps: proportional set size, private pages, and how much of them is guest memory
kernel    /proc/meminfo: memory that only the kernel allocates, of the whole machine. So a difference is only correct
          over many VMs, on a machine that does nothing else
"""

from pathlib import Path

GUEST_MIN_ADDRESS = 0x100000
KERNEL_FIELDS = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu", "VmallocUsed")


class Mapping:
    """One mapping of /proc/PID/smaps, with its fields."""

    __slots__ = ("end", "fields", "name", "start")

    def __init__(self, start: int, end: int, name: str) -> None:
        self.start = start
        self.end = end
        self.name = name
        self.fields: dict[str, int] = {}


class Footprint:
    """`pss`; `private`: pages that no other process shares; `guest`: the guest memory in `pss`, None if unknown."""

    __slots__ = ("guest", "private", "pss")

    def __init__(self, pss: float, private: float, guest: "float | None") -> None:
        self.pss = pss
        self.private = private
        self.guest = guest


def parse_smaps(text: str) -> "list[Mapping]":
    """The mappings of /proc/PID/smaps, in the order of their addresses."""
    found: list[Mapping] = []
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        if first.endswith(":"):
            words = rest.split()
            if found and len(words) == 2 and words[1] == "kB":
                found[-1].fields[first[:-1]] = int(words[0])
            continue
        start, dash, end = first.partition("-")
        if dash:
            words = rest.split(None, 4)
            found.append(Mapping(int(start, 16), int(end, 16), words[4] if len(words) > 4 else ""))
    return found


_FIRST = ("/memfd:", "/dev/zero", "")
"""The name of guest memory's first mapping: our template, a peer's shared anonymous memory, its private memory."""


def guest_mappings(mappings: "list[Mapping]", mem_bytes: int) -> "list[Mapping]":
    """The mappings of guest memory: those at the guest's own addresses, or runs of exactly its length.

    A thread's stack may have the same length. So the runs are searched by the name of their first mapping, in the order
    of _FIRST, the most certain name first.
    """
    if any(m.start <= GUEST_MIN_ADDRESS < m.end for m in mappings):
        return [m for m in mappings if m.start < mem_bytes]
    for first in _FIRST:
        found: list[Mapping] = []
        at = 0
        while at < len(mappings):
            name = mappings[at].name
            begins = name.startswith(first) if first else not name
            run = _run(mappings, at, mem_bytes) if begins else []
            found += run
            at += len(run) or 1  # after the run, because two adjacent guests contain more runs of that length
        if found:
            return found
    return []


def _run(mappings: "list[Mapping]", at: int, mem_bytes: int) -> "list[Mapping]":
    end = mappings[at].start + mem_bytes
    reached, run = mappings[at].start, []
    for mapping in mappings[at:]:
        if mapping.start != reached or mapping.end > end:
            return []
        run.append(mapping)
        reached = mapping.end
        if reached == end:
            return run
    return []


def of_mappings(mappings: "list[Mapping]", mem_bytes: int) -> Footprint:
    guest = guest_mappings(mappings, mem_bytes)
    return Footprint(
        pss=sum(m.fields.get("Pss", 0) for m in mappings),
        private=sum(m.fields.get("Private_Clean", 0) + m.fields.get("Private_Dirty", 0) for m in mappings),
        guest=sum(m.fields.get("Pss", 0) for m in guest) if guest else None,
    )


def of_process(pid: int, mem_bytes: int, *, without_files: bool = False) -> Footprint:
    """The footprint of a process. Raises OSError.

    without_files   leave out programs and libraries, whose share falls when another process maps the same file
    """
    mappings = parse_smaps(Path(f"/proc/{pid}/smaps").read_text())
    if without_files:
        mappings = [m for m in mappings if not m.name.startswith("/") or m.name.startswith(_FIRST[:2])]
    return of_mappings(mappings, mem_bytes)


def meminfo() -> "dict[str, int]":
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def kernel_kib(info: "dict[str, int]") -> int:
    return sum(info.get(field, 0) for field in KERNEL_FIELDS)
