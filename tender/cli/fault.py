"""Where a guest of the launcher stood when the sandbox ended it: the launcher has said the end, and executes this.

tender --fault-hint IMAGE STATUS RIP BYTES NAME=VALUE...
"""

from tender.cli import explain, say
from tender.cli.run import only_hurry
from tender.result import GuestFault


def main(argv: list[str]) -> int:
    """Says it; the exit status is the one given."""
    only_hurry()
    image, status, rip, code, *registers = argv
    values = dict(word.split("=") for word in registers)
    fault = GuestFault(
        rip=int(rip, 0),
        instruction=code,
        registers={name: int(value, 0) for name, value in values.items()},
    )
    say.hint(explain.fault_hint(image, fault))
    return int(status)
