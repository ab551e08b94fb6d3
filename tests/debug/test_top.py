"""`tender top` in a terminal of its own: what it draws, its keys, how it ends, and what it costs."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tender.cli import top
from tender.watch import running, trend

StartGuest = Callable[..., Any]  # conftest.py
FOREVER = "4000000000"
LIMIT_S = 120
_CONTROL = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78cDEM])")


class Terminal:
    """`tender top` in a terminal of this size."""

    def __init__(self, *words: str, term: str = "xterm-256color", rows: int = 24, width: int = 100) -> None:
        self._main, other = pty.openpty()
        os.set_blocking(self._main, False)
        self.resize(rows, width)
        self.before = termios.tcgetattr(other)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tender", "top", *words],
            stdin=other, stdout=other, stderr=other, cwd="/", start_new_session=True,
            env={**os.environ, "TERM": term, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        self._other = other
        self.raw = b""

    def resize(self, rows: int, width: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("4H", rows, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def until(self, pattern: str, *, after: int = 0) -> int:
        """Waits until this is drawn after that many bytes, and returns how many bytes have come."""
        limit = time.monotonic() + LIMIT_S
        while not re.search(pattern.encode(), _CONTROL.sub(b" ", self.raw[after:])):
            assert time.monotonic() < limit, self.raw
            with contextlib.suppress(BlockingIOError, OSError):
                self.raw += os.read(self._main, 1 << 16)
            time.sleep(0.01)  # between two looks at the terminal
        return len(self.raw)

    def end(self) -> int:
        """Waits for its end, and returns the exit status."""
        limit = time.monotonic() + LIMIT_S
        while (status := self.process.poll()) is None:
            assert time.monotonic() < limit, self.raw
            with contextlib.suppress(BlockingIOError, OSError):
                self.raw += os.read(self._main, 1 << 16)
            time.sleep(0.01)  # as above
        with contextlib.suppress(BlockingIOError, OSError):
            self.raw += os.read(self._main, 1 << 16)
        return status

    def is_as_before(self) -> bool:
        """Whether the terminal's settings are those from before."""
        return termios.tcgetattr(self._other) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self._other)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def open_terminal(*words: str, **options: Any) -> Terminal:
            made = Terminal(*words, **options)
            stack.callback(made.close)
            return made

        yield open_terminal


@pytest.mark.backends
@pytest.mark.parametrize("term", ["xterm-256color", "vt100"])
def test_top_shows_guests_with_colours_and_without_and_puts_the_terminal_back(
    term: str, start_guest: StartGuest, terminal: Callable[..., Terminal], backend: str
) -> None:
    run = start_guest("debug", "poll", FOREVER)
    shown = terminal("--interval=0.2", term=term, rows=40)
    shown.until(rf"{run.pid}\s+{backend}\s")
    shown.until(r"q:quit")
    assert (
        b"\x1b[31m" in shown.raw or b"\x1b[38;5" in shown.raw
    ) is False  # nothing is red, for nothing is wedged
    at = len(shown.raw)
    shown.type("n")
    shown.until(r"\[n\]", after=at)  # only what changes is drawn
    shown.type("q")
    assert shown.end() == 0
    assert shown.is_as_before()


def test_top_takes_any_size_of_the_window(start_guest: StartGuest, terminal: Callable[..., Terminal]) -> None:
    run = start_guest("debug", "sleep", options=("--backend=sandbox",))
    shown = terminal("--interval=0.2", rows=40)
    at = shown.until(rf"\b{run.pid}\b")
    for rows, width in ((1, 1), (2, 10), (3, 20), (8, 30), (60, 200)):
        shown.resize(rows, width)
        os.kill(shown.process.pid, signal.SIGWINCH)
        shown.type(" ")
    shown.until(rf"\b{run.pid}\s+sandbox\b", after=at)
    shown.type("q")
    assert shown.end() == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda it: str(it),
)
def test_top_puts_the_terminal_back_on_a_signal(
    number: int, status: int, terminal: Callable[..., Terminal]
) -> None:
    shown = terminal("--interval=0.2")
    shown.until("q:quit")
    assert not shown.is_as_before()
    os.kill(shown.process.pid, number)
    assert shown.end() == status
    assert shown.is_as_before()
    assert b"Traceback" not in shown.raw


@pytest.mark.parametrize(
    ("term", "why"), [("dumb", "cannot move its cursor"), ("no-such-terminal", "is not known here")]
)
def test_a_terminal_that_cannot_show_it_is_refused(
    term: str, why: str, terminal: Callable[..., Terminal]
) -> None:
    shown = terminal(term=term)
    assert shown.end() == 1
    assert why.encode() in shown.raw
    assert b"hint: tender ps --interval=2" in shown.raw


def test_top_without_a_terminal_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tender", "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tender: top: stdin and stdout are no terminal\ntender: hint: tender ps --interval=2\n"
    )


def test_a_look_at_20_guests_costs_at_most_2_percent_of_a_processor(start_guest: StartGuest) -> None:
    """All that top does but writing to the terminal, for each two seconds."""
    for _ in range(20):
        start_guest("debug", "poll", FOREVER, options=("--backend=sandbox",))
    watch, view = running.Watch(), top.View()
    trends: defaultdict[str, trend.Trend] = defaultdict(trend.Trend)
    last = {guest.id: guest for guest in watch.look()}
    looks = 20
    begin = time.process_time()
    for _ in range(looks):
        seen: list[top.Seen] = []
        for guest in watch.look():
            trends[guest.id].add(guest.looked_ns / 1e9, guest.touched_bytes)
            growth = trends[guest.id].growth(guest.mem_bytes)
            seen.append(top.Seen(guest, guest.since(last[guest.id]) if guest.id in last else None, growth))
        last = {it.guest.id: it.guest for it in seen}
        assert len(top.screen(seen, view, 120, 50)) == 50
    assert len(last) >= 20
    assert (time.process_time() - begin) / looks <= 0.02 * top.DEFAULT_S
