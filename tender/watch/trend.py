"""How the memory of a guest grows, and when it is full: said only if it is sure.

The slope is the median of the slopes between all pairs of samples (Theil and Sen), which single jumps do not move. Its
interval is that of Kendall's rank correlation for 95 %. A guest that is just starting, or that fills a cache, grows too,
for a while. So the slope of the newer half of the samples has to agree.

Source: P. K. Sen, Estimates of the Regression Coefficient Based on Kendall's Tau, J. Am. Stat. Assoc. 63 (1968).
"""

import math
from collections.abc import Sequence

from tender.values import Value, value

SAMPLES_MAX = 120
"""More are thinned out: each pair of samples is looked at."""
SAMPLES_MIN = 16
SPAN_MIN_S = 30.0
"""Nothing is said about less."""
WINDOW_S = 3600.0
_NEW_MIN = 8  # samples until the slopes are computed again: they cost milliseconds
_TIGHT = 2.0
"""The most that the ends of an interval, and the slopes of the two spans, may differ by, as a factor."""
_SIGMAS = 1.96


@value
class Growth(Value):
    """How touched memory grows: bytes for each second, and the time until it is full, each with its interval.

    Attributes:
        bytes_per_s: The slope.
        least: The lower end of its interval.
        most: The upper end.
        full_in_s: Seconds until all memory is touched.
        full_in_least_s: The lower end.
        full_in_most_s: The upper end.
    """

    bytes_per_s: float
    least: float
    most: float
    full_in_s: float
    full_in_least_s: float
    full_in_most_s: float


class Trend:
    """The samples of one guest."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._apart_s = 0.0
        self._new = 0
        self._slope: tuple[float, float, float] | None = None

    def add(self, at_s: float, touched: int) -> None:
        """Takes a sample. Those that come too fast, or are too old, are left out."""
        samples = self._samples
        if samples and at_s - samples[-1][0] < self._apart_s:
            return
        samples.append((at_s, touched))
        self._new += 1
        while samples[0][0] < at_s - WINDOW_S:
            samples.pop(0)
        if len(samples) > SAMPLES_MAX:
            self._apart_s = 2 * (samples[-1][0] - samples[0][0]) / len(samples)
            del samples[1::2]

    def growth(self, limit: int) -> Growth | None:
        """Returns how memory of `limit` bytes fills, or None if that is not sure."""
        samples = self._samples
        if len(samples) < SAMPLES_MIN or samples[-1][0] - samples[0][0] < SPAN_MIN_S:
            return None
        if self._new >= _NEW_MIN:
            self._new, self._slope = 0, _agreed(samples)
        if self._slope is None:
            return None
        least, middle, most = self._slope
        left = max(limit - samples[-1][1], 0)
        return Growth(
            bytes_per_s=middle,
            least=least,
            most=most,
            full_in_s=left / middle,
            full_in_least_s=left / most,
            full_in_most_s=left / least,
        )


def _agreed(samples: Sequence[tuple[float, int]]) -> tuple[float, float, float] | None:
    """Returns the slope of the newer half of the samples if that of all agrees."""
    newer = samples[len(samples) // 2 :]
    if newer[-1][1] <= newer[0][1]:
        return None
    whole, late = slope(samples), slope(newer)
    if whole is None or late is None or not 1 / _TIGHT <= late[1] / whole[1] <= _TIGHT:
        return None
    return late


def slope(samples: Sequence[tuple[float, int]]) -> tuple[float, float, float] | None:
    """Returns the slope with its interval: least, median, most. None: it is not surely positive, or not known well."""
    slopes = sorted(
        (then[1] - now[1]) / (then[0] - now[0])
        for i, now in enumerate(samples)
        for then in samples[i + 1 :]
        if then[0] > now[0]
    )
    count, pairs = len(samples), len(slopes)
    if count < 4 or not pairs:
        return None
    spread = _SIGMAS * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    least = slopes[max(int((pairs - spread) / 2), 0)]
    most = slopes[min(math.ceil((pairs + spread) / 2), pairs - 1)]
    middle = slopes[pairs // 2]
    return (least, middle, most) if least > 0 and most <= _TIGHT * least else None
