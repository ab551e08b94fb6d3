"""What `tender audit --require` asks of images: NAME>=VERSION, for a component that must not be older.

An image without the component fails too: what is not seen is not known to be new. `NAME?>=VERSION` asks it only of
images that have the component.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tender.cli.audit.components import Component

FORM = "--require NAME>=VERSION, as in --require 'ocaml>=5.1'"
_FORM = re.compile(r"([A-Za-z0-9][\w.:~/+-]{0,120})(\??)>=([0-9][\w.+~-]{0,60})")
_EARLY = ("alpha", "beta", "dev", "pre", "rc")


@dataclass(frozen=True)
class Requirement:
    """One component, and the least version of it. `optional`: an image need not have it."""

    name: str
    version: str
    optional: bool

    @property
    def text(self) -> str:
        return f"{self.name}{'?' if self.optional else ''}>={self.version}"


@dataclass(frozen=True)
class Verdict:
    """Whether an image meets a requirement. `found` are the versions that it has; empty: it tells none."""

    requirement: Requirement
    met: bool
    found: tuple[str, ...]
    present: bool


def requirement(word: str) -> Requirement | None:
    """Returns what the word asks for; None if it has another form."""
    match = _FORM.fullmatch(word)
    return Requirement(match[1], match[3], bool(match[2])) if match else None


def verdict(asked: Requirement, components: Iterable[Component]) -> Verdict:
    """Returns whether each version of the component is new enough. A version that nothing tells is not."""
    own = [component for component in components if component.name == asked.name]
    new = all(c.version and order(c.version) >= order(asked.version) for c in own)
    versions = tuple(c.version for c in own if c.version)
    return Verdict(asked, met=new if own else asked.optional, found=versions, present=bool(own))


def order(version: str) -> tuple[tuple[int, ...], tuple[int, str, int]]:
    """Returns a key by which versions sort: 5.1 is 5.1.0, 1.1.1w comes after 1.1.1, and 5.2.0~rc1 before 5.2.0."""
    numbers, rest = re.fullmatch(r"([0-9.]*)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
    release = [int(number) for number in numbers.split(".") if number]
    while release and release[-1] == 0:
        release.pop()
    word, number = re.match(r"[-~+.]?([A-Za-z]*)\.?([0-9]{0,9})", rest).groups()  # type: ignore[union-attr]
    kind = 0 if word in _EARLY else 2 if word else 1
    return tuple(release), (kind, word, int(number or 0))
