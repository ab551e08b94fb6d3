"""The progress of a long measurement: one line on stderr that is overwritten, if stderr is a terminal."""

import sys
import time
from types import TracebackType
from typing import TextIO

_CELLS = 24


class Bar:
    """A progress bar of `total` steps, which step() counts. The end of the `with` block erases the line."""

    def __init__(self, total: int, *, out: "TextIO | None" = None) -> None:
        self.total = max(1, total)
        self.done = 0
        self._out = out if out is not None else sys.stderr
        self._shown = self._out.isatty()
        self._start = time.monotonic()

    def step(self, what: str) -> None:
        """Note that one more step begins. `what` describes the step."""
        if self._shown:
            self._out.write("\r\x1b[K" + self.line(what, time.monotonic() - self._start))
            self._out.flush()
        self.done += 1

    def line(self, what: str, elapsed_s: float) -> str:
        """The line after `elapsed_s` seconds: the bar, the steps, and an estimate of the time left."""
        done = min(self.done, self.total)
        full = _CELLS * done // self.total
        left = ""
        if done:
            minutes, seconds = divmod(round(elapsed_s / done * (self.total - done)), 60)
            left = f", {minutes}:{seconds:02} left"
        return f"[{'#' * full}{'.' * (_CELLS - full)}] {done}/{self.total} {what}{left}"

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
