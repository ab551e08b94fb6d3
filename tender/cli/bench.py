"""`tender bench NAME`: measures this machine. Each benchmark is a module of tender.bench with a main(argv)."""

import sys

from tender.cli import say

_BENCHMARKS = {
    "boot": ("tender.bench.boot", "from spawn or Vm() to first exit, first console byte, end; beside peers"),
    "run": ("tender.bench.run", "a whole run of the command: first byte, guest's end, reaped; beside peers"),
}
_MORE = "The project's sources have more benchmarks: `python bench --help` there."


def main(argv: list[str]) -> int:
    """Runs one benchmark, and returns the process's exit status."""
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in _BENCHMARKS:
        listed = "\n".join(f"  {name:<10} {text}" for name, (_, text) in _BENCHMARKS.items())
        usage = f"usage: tender bench NAME [OPTIONS]\n\n{listed}\n\n{_MORE}"
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
