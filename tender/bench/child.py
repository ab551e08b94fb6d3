"""How a process that a benchmark starts reports an error: as a message on its standard error, and status 1."""

import sys
from collections.abc import Callable

from tender.errors import TenderError


def reported(main: "Callable[[list[str]], int]", argv: "list[str]") -> int:
    """The status of main(argv), or 1 after the message of an error that a user can cause."""
    try:
        return main(argv)
    except (TenderError, RuntimeError, OSError) as error:
        hint = getattr(error, "hint", "")
        sys.stderr.write(f"tender bench: {error}\n" + (f"  {hint}\n" if hint else ""))
        return 1


def error_line(text: str) -> str:
    """The last line of what a command printed that is not a hint; empty if there is none."""
    lines = [line for line in text.strip().splitlines() if ": hint: " not in line]
    return lines[-1] if lines else ""
