"""`tender bench NAME`: measures this machine. Each is a module of tender.bench with a main(argv)."""

import sys

from tender.cli import say

_BENCHMARKS = {
    "boot": ("tender.bench.boot", "from spawn or Vm() to first exit, first console byte, end; beside peers"),
    "run": ("tender.bench.run", "a whole run of the command: first byte, guest's end, reaped; beside peers"),
    "hypercall": (
        "tender.bench.hypercall",
        "a hypercall by trap, patched site and gate, beside a system call",
    ),
    "net": ("tender.bench.net", "frames a second, by each transport, beside a peer"),
    "block": ("tender.bench.block", "requests a second to a cached disk, beside a bare loop and a peer"),
    "ways": ("tender.bench.ways", "frames a second by our guest library's ways: calls, batches, offload"),
    "size": ("tender.bench.size", "boots of a small and of a large image; beside a peer"),
    "memory": ("tender.bench.memory", "what idle guests keep of memory, beyond their pages; beside a peer"),
    "density": (
        "tender.bench.density",
        "live VMs until a limit: boot time and memory as they grow in number",
    ),
    "count": (
        "tender.bench.counts",
        "system calls, ioctls, exits a boot, a frame, a request: exact anywhere",
    ),
    "compare": ("tender.bench.revisions", "two revisions, built and counted; status 1 if a count got worse"),
    "goals": ("tender.bench.goals", "every goal of this project on this machine: value, met or missed"),
}


def main(argv: list[str]) -> int:
    """Run one benchmark; the process's exit status."""
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in _BENCHMARKS:
        listed = "\n".join(f"  {name:<10} {text}" for name, (_, text) in _BENCHMARKS.items())
        usage = f"usage: tender bench NAME [OPTIONS]\n\n{listed}"
        if argv and argv[0] in ("-h", "--help"):
            say.out(usage)
            return 0
        if argv:
            say.error(f"bench: no benchmark is called {argv[0]!r}")
        say.plain(usage)
        return 1
    module = _BENCHMARKS[argv[0]][0]
    __import__(module)
    status: int = sys.modules[module].main(argv[1:])
    return status
