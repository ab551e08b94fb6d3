"""Medians, percentiles, and the ratio of two medians with a bootstrap interval."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """The summary of a series of times, in the unit of the series."""

    n: int
    median: float
    min: float
    p99: float


@dataclass(frozen=True)
class Ratio:
    """median(a) / median(b) and its 95 % interval."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: always a value that was measured. Raises ValueError for no values."""
    if not values:
        raise ValueError("percentile of no values")
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]


def summarise(values: Sequence[float]) -> Summary:
    """Raises ValueError for no values."""
    return Summary(n=len(values), median=median(values), min=min(values), p99=percentile(values, 99))


def ratio_of_medians(a: Sequence[float], b: Sequence[float], *, seed: int = 1) -> Ratio:
    """The ratio with a percentile bootstrap, which is repeatable for a seed. Raises ValueError if median(b) is 0."""
    if not a or not b or not median(b):
        raise ValueError("a ratio needs two series, the second with a median above 0")
    chance = random.Random(seed)
    found = []
    for _ in range(_RESAMPLES):
        below = median(chance.choices(b, k=len(b)))
        if below:
            found.append(median(chance.choices(a, k=len(a))) / below)
    return Ratio(value=median(a) / median(b), low=percentile(found, 2.5), high=percentile(found, 97.5))
