"""`python bench NAME`: measures this machine, from a checkout. Each is a module of harness with a main(argv)."""

import sys
from importlib import import_module

BENCHMARKS = {
    "boot": ("boot", "from spawn or Vm() to first exit, first console byte, end; beside peers"),
    "run": ("run", "a whole run of the command: first byte, guest's end, reaped; beside peers"),
    "hypercall": ("hypercall", "a hypercall by trap, patched call site and gate, beside a system call"),
    "net": ("net", "frames a second, by each transport, beside a peer"),
    "block": ("block", "requests a second to a cached disk, beside a bare loop and a peer"),
    "ways": ("ways", "frames a second by our guest library's ways: calls, batches, offload"),
    "size": ("size", "boots of a small and of a large image; beside a peer"),
    "memory": ("memory", "what idle guests keep of memory, beyond their pages; beside a peer"),
    "density": ("density", "live VMs until a limit: boot time and memory as they grow in number"),
    "count": ("counts", "system calls, ioctls, exits a boot, a frame, a request: exact anywhere"),
    "compare": ("revisions", "two revisions, built and counted; status 1 if a count got worse"),
    "goals": ("goals", "every goal of this project on this machine: value, met or missed"),
}


def main(argv: "list[str]") -> int:
    """Run one benchmark; the process's exit status."""
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in BENCHMARKS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        out = sys.stdout if asked else sys.stderr
        if argv and not asked:
            out.write(f"bench: no benchmark is called {argv[0]!r}\n")
        out.write("usage: python bench NAME [OPTIONS]\n\n")
        out.writelines(f"  {name:<10} {text}\n" for name, (_, text) in BENCHMARKS.items())
        return 0 if asked else 1
    status: int = import_module(f"harness.{BENCHMARKS[argv[0]][0]}").main(argv[1:])
    return status
