"""Draws a flame graph: folded stacks as boxes, each as wide as its share of the samples, callers at the bottom."""

from collections.abc import Callable, Sequence

WIDTH = 960
_ROW = 16
_BOXES_MAX, _DEEP_MAX = 4000, 64
_LETTER, _LABEL_MIN, _BOX_MIN = 7, 20, 0.5

Stacks = Sequence[tuple[Sequence[str], int]]


def boxes_of(stacks: Stacks, text: Callable[[str], str]) -> tuple[str, int]:
    """Returns the boxes as elements of SVG, and their height; empty if there are no samples.

    The innermost row has the least y, which is minus the height; x goes from 0 to WIDTH.

    Args:
        stacks: The outermost function first, each with its number of samples.
        text: Makes text of a name that SVG shows and does not obey.
    """
    total = sum(count for _, count in stacks)
    if total <= 0:
        return "", 0
    boxes: list[str] = []
    deepest = 0
    # A list of what is left to draw in place of recursion: the stacks with a common beginning, its length, their left edge.
    left_to_draw: list[tuple[Stacks, int, float]] = [(stacks, 0, 0.0)]
    while left_to_draw and len(boxes) < _BOXES_MAX:
        part, depth, left = left_to_draw.pop()
        groups: dict[str, list[tuple[Sequence[str], int]]] = {}
        for names, count in part:
            if len(names) > depth:
                groups.setdefault(names[depth], []).append((names, count))
        for name, group in sorted(groups.items()):
            count = sum(it for _, it in group)
            width = count / total * WIDTH
            if width >= _BOX_MIN and depth < _DEEP_MAX:
                deepest = max(deepest, depth)
                boxes.append(_box(name, count, total, depth, left, width, text))
                left_to_draw.append((group, depth + 1, left))
            left += width
    return "".join(boxes), (deepest + 1) * _ROW


def _box(
    name: str, count: int, total: int, depth: int, left: float, width: float, text: Callable[[str], str]
) -> str:
    bottom = -depth * _ROW
    label = ""
    if width > _LABEL_MIN:
        shown = text(name[: int(width / _LETTER)])
        label = f'<text x="{left + 3:.1f}" y="{bottom - 4}">{shown}</text>'
    return (
        f'<g><rect class="flame" x="{left:.1f}" y="{bottom - _ROW}" width="{width:.1f}" height="{_ROW}">'
        f"<title>{text(name)}: {count} of {total} samples, {count / total:.1%}</title></rect>{label}</g>"
    )
