"""Numbers and tables for people: durations, sizes, rates; columns that are as wide as they need to be."""

from collections.abc import Sequence

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def duration(seconds: float) -> str:
    """Returns a duration with its two largest units: 12s, 3m05s, 2h10m, 4d03h."""
    whole = int(max(seconds, 0))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def size(count: float) -> str:
    """Returns bytes with the unit that leaves at most four digits: 512 B, 1.5 MiB."""
    number, unit = float(count), 0
    while abs(number) >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} B" if not unit else f"{number:.1f} {_UNITS[unit]}"


def rate(number: float) -> str:
    """Returns a number for each second, with as many digits as say something: 0.25, 12.5, 1340, 2.1M."""
    if not number:
        return "0"
    if number < 1:
        return f"{number:.2f}"
    if number < 100:
        return f"{number:.1f}"
    if number < 1e5:
        return f"{number:.0f}"
    return (
        f"{number / 1e3:.0f}k"
        if number < 1e6
        else f"{number / 1e6:.1f}M"
        if number < 1e12
        else f"{number:.1e}"
    )


def table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Returns the lines of a table. The first row is its head; the columns of `right` are aligned there, and two spaces
    lie between two columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
