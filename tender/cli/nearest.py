"""The word that a person probably meant."""

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """Returns how many letters to add, drop, replace or swap with their neighbour to turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above_above, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, above_above[j - 2] + 1)
            row.append(cost)
    return row[-1]


def by_nearness(word: str, choices: Iterable[str]) -> list[str]:
    """Returns the choices, the nearest first; equally near ones keep their order. Only the start of long words counts."""
    return sorted(choices, key=lambda choice: distance(word.lower()[:80], choice.lower()[:80]))


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns the nearest choice if it is near enough for a typing mistake, else an empty word."""
    ordered = by_nearness(word, choices)
    if not ordered:
        return ""
    letters = word.lstrip("-")
    limit = max(1, len(letters) // 3)
    return ordered[0] if distance(word.lower()[:80], ordered[0].lower()) <= limit else ""
