"""`tender top`: the guests of this host, live in the terminal.

What a screen shows is made by `screen()`, which knows no terminal. The rest is curses, of Python's standard library.
"""

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tender.cli import columns, say
from tender.cli.option_table import listed
from tender.cli.ps import HEAD, RIGHT, row
from tender.cli.words import Words
from tender.watch.running import GuestRates, RunningGuest, RunState, Watch
from tender.watch.trend import Growth, Trend

STATUS_FAILED = 1
DEFAULT_S = 2.0
_LEAST_WIDTH = 20
_DROPPED = [HEAD.index(name) for name in ("BACKEND", "UPTIME", "EXITS/S", "MEMORY", "STATE", "CPU %")]

USAGE = f"""\
usage: tender top [--interval=SECONDS]

Show the guests of this host, live. Keys: c m e u n p sort by CPU, memory, exits, uptime, name or PID, the same
key again turns the order round; arrows and page keys move the list; space looks at once; q ends. Status 0, or 1
without a terminal.

{listed("top")}"""


@dataclass(frozen=True)
class Seen:
    """A guest with what happened since the last look."""

    guest: RunningGuest
    rates: GuestRates | None
    growth: Growth | None


def _per_s(seen: Seen) -> float:
    return seen.rates.counters["exits"] if seen.rates else 0.0


def _cpu(seen: Seen) -> float:
    return seen.rates.cpu_percent if seen.rates else 0.0


# A key, its name in the last line, what it sorts by, and whether large numbers come first.
ORDERS: dict[str, tuple[str, Callable[[Seen], Any], bool]] = {
    "c": ("cpu", _cpu, True),
    "m": ("memory", lambda seen: seen.guest.touched_bytes or seen.guest.resident_bytes, True),
    "e": ("exits", _per_s, True),
    "u": ("uptime", lambda seen: seen.guest.uptime_s, True),
    "n": ("name", lambda seen: seen.guest.name, False),
    "p": ("pid", lambda seen: seen.guest.pid, False),
}


@dataclass
class View:
    """What the user has chosen.

    Attributes:
        order: The key of ORDERS.
        turned: Whether the order is turned round.
        first: The first guest that is shown.
    """

    order: str = "c"
    turned: bool = False
    first: int = 0

    def press(self, key: str) -> None:
        """Takes a key of ORDERS."""
        self.turned = key == self.order and not self.turned
        self.order, self.first = key, 0

    def sort(self, seen: Sequence[Seen]) -> list[Seen]:
        """Returns the guests in order; equal ones by process."""
        _, by, largest_first = ORDERS[self.order]
        known = sorted(seen, key=lambda it: it.guest.pid)
        return sorted(known, key=by, reverse=largest_first != self.turned)


@dataclass(frozen=True)
class Line:
    """A line of the screen, and how it stands out: "" or "head", "alarm", "dim"."""

    text: str
    style: str = ""


def screen(seen: Sequence[Seen], view: View, width: int, height: int) -> list[Line]:
    """Returns the lines of a screen of this size: at most `height`, none longer than `width`.

    `view.first` is moved so that the screen is full if there are enough guests.
    """
    rows = max(height - 3, 1)
    view.first = max(min(view.first, len(seen) - rows), 0)
    ordered = view.sort(seen)
    cells = [HEAD, *(_cells(it) for it in ordered)]
    head, *body = _fitting(cells, width)
    shown = [
        Line(text, _style(it.guest))
        for text, it in zip(body[view.first : view.first + rows], ordered[view.first :], strict=False)
    ]
    lines = [Line(_summary(seen)), Line(head, "head"), *shown]
    if height >= 4 and width >= _LEAST_WIDTH:
        lines += [Line("")] * (height - 1 - len(lines))
        lines.append(Line(_keys(view, len(seen), rows), "dim"))
    return [Line(line.text[:width], line.style) for line in lines[:height]]


def _fitting(cells: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Returns the table with as many columns as a window has space for: PID and name are always there.

    The widths are those of all guests, so that columns stay where they are when the list is moved.
    """
    kept = list(range(len(HEAD)))
    for dropped in (*_DROPPED, None):
        rows = [[row[i] for i in kept] for row in cells]
        lines = columns.table(rows, [at for at, i in enumerate(kept) if i in RIGHT])
        if dropped is None or max(map(len, lines)) <= width:
            return lines
        kept.remove(dropped)
    raise AssertionError("the last one returns")


def _cells(seen: Seen) -> tuple[str, ...]:
    *cells, name = row(seen.guest, seen.rates)
    if seen.growth:
        name += f"  full in {columns.duration(seen.growth.full_in_s)}"
    return (*cells, name)


def _style(guest: RunningGuest) -> str:
    if guest.state == RunState.WEDGED:
        return "alarm"
    return "dim" if guest.state in (RunState.UNKNOWN, RunState.ENDED, RunState.IDLE) else ""


def _summary(seen: Sequence[Seen]) -> str:
    states: dict[str, int] = {}
    for it in seen:
        states[str(it.guest.state)] = states.get(str(it.guest.state), 0) + 1
    ordered = [f"{states[state]} {state}" for state in map(str, RunState) if state in states]
    guests = "1 guest" if len(seen) == 1 else f"{len(seen)} guests"
    parts = [guests, *([", ".join(ordered)] if ordered else [])]
    parts.append(f"CPU {sum(map(_cpu, seen)):.0f} %")
    parts.append(f"memory {columns.size(sum(it.guest.touched_bytes for it in seen))}")
    return "  ".join(parts)


def _keys(view: View, guests: int, rows: int) -> str:
    sort = " ".join(
        f"[{key}]{name[1:]}" if key == view.order else f"{key}:{name}" for key, (name, _, _) in ORDERS.items()
    )
    more = f"  {view.first + 1}-{min(view.first + rows, guests)} of {guests}" if guests > rows else ""
    return f"q:quit  {sort}{more}"


# ---- the terminal


def main(argv: list[str]) -> int:
    """Shows the guests until the user quits, and returns the exit status."""
    words = Words("top", argv, flags=(), valued=("--interval",), usage=USAGE)
    interval_s = words.seconds("--interval", DEFAULT_S, least=0.2, most=3600)
    status = words.answered()
    if status is not None:
        return status
    why = _unfit()
    if why:
        say.error(f"top: {why}")
        say.hint("tender ps --interval=2")
        return STATUS_FAILED
    import curses

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(lambda window: _Top(window, interval_s).run())
    return 0


def _end(number: int, _: object) -> None:
    """The terminal is put back on the way out."""
    raise SystemExit(128 + number)


def _unfit() -> str:
    """Returns why there can be no screen, or nothing."""
    if not (os.isatty(0) and os.isatty(1)):
        return "stdin and stdout are no terminal"
    try:
        import curses
        import locale

        locale.setlocale(locale.LC_ALL, "")
    except ImportError:
        return "this Python has no curses"
    except ValueError:
        pass  # the user's locale is not installed
    try:
        curses.setupterm(fd=1)
        if not curses.tigetstr("cup"):
            return "this terminal cannot move its cursor"
    except curses.error:
        return "the terminal of TERM is not known here"
    return ""


class _Top:
    """A window of curses, and the guests in it."""

    def __init__(self, window: Any, interval_s: float) -> None:
        import curses

        self._curses, self._window, self._interval_s = curses, window, interval_s
        self._watch, self._view = Watch(), View()
        self._trends: defaultdict[str, Trend] = defaultdict(Trend)
        self._last: dict[str, RunningGuest] = {}
        self._seen: list[Seen] = []
        self._styles = {"": 0, "head": curses.A_REVERSE, "alarm": curses.A_BOLD, "dim": curses.A_DIM}
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        if curses.has_colors() and "NO_COLOR" not in os.environ:
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
            self._styles["alarm"] |= curses.color_pair(1)

    def run(self) -> None:
        """Looks and draws until the user quits."""
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                self._look()
                due = time.monotonic() + (
                    self._interval_s if len(self._last) == 0 or self._seen_twice() else 0.3
                )
            self._draw()
            self._window.timeout(max(int((due - time.monotonic()) * 1000), 1))
            key = self._window.getch()
            if key in (ord("q"), ord("Q"), 27):
                return
            if key == ord(" "):
                due = 0.0
            elif 0 < key < 128 and chr(key) in ORDERS:
                self._view.press(chr(key))
            else:
                self._view.first += self._step(key)

    def _seen_twice(self) -> bool:
        return any(it.rates for it in self._seen)

    def _step(self, key: int) -> int:
        page = max(self._window.getmaxyx()[0] - 3, 1)
        curses = self._curses
        steps = {
            curses.KEY_DOWN: 1,
            curses.KEY_UP: -1,
            curses.KEY_NPAGE: page,
            curses.KEY_PPAGE: -page,
            curses.KEY_HOME: -len(self._seen),
            curses.KEY_END: len(self._seen),
        }
        found: int = steps.get(key, 0)
        return found

    def _look(self) -> None:
        guests = self._watch.look()
        self._seen = []
        for guest in guests:
            trend = self._trends[guest.id]
            trend.add(guest.looked_ns / 1e9, guest.touched_bytes)
            rates = guest.since(self._last[guest.id]) if guest.id in self._last else None
            self._seen.append(Seen(guest, rates, trend.growth(guest.mem_bytes) if guest.counters else None))
        self._last = {guest.id: guest for guest in guests}
        for gone in self._trends.keys() - self._last.keys():
            del self._trends[gone]

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        self._window.erase()
        for y, line in enumerate(screen(self._seen, self._view, width, height)):
            with contextlib.suppress(
                self._curses.error
            ):  # the lower right corner, or a letter that takes two columns
                self._window.addstr(y, 0, line.text, self._styles[line.style])
        self._window.refresh()
