"""`python bench NAME`: measures this machine, from a checkout. Each NAME is a module of harness with a main(argv)."""

import sys
from importlib import import_module

BENCHMARKS = {
    "boot": ("boot", "a boot, from spawn or Vm() to first exit, first console byte and end"),
    "run": ("run", "a whole run of the command: first byte, end of the guest, reaped"),
    "hypercall": ("hypercall", "a hypercall by trap, patched call site and gate"),
    "net": ("net", "frames per second, by each transport"),
    "block": ("block", "requests per second to a cached disk"),
    "ways": ("ways", "frames per second, by each way of our guest library"),
    "size": ("size", "boots of a small and of a large image"),
    "memory": ("memory", "the memory that idle guests keep, beyond their own pages"),
    "density": ("density", "boot time and memory while live VMs grow in number, until a limit"),
    "count": ("counts", "system calls, ioctls and exits per boot, frame and request"),
    "compare": ("revisions", "the counts of two revisions; status 1 if a count got worse"),
    "goals": ("goals", "every goal of this project on this machine: value, met or missed"),
}


def main(argv: "list[str]") -> int:
    """Run one benchmark, and return the exit status."""
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
