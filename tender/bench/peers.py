"""`--peer NAME=COMMAND`: other monitors, and where image, TAP, disk and the guest's arguments stand in their words.

{elf}         the image; {elf:.spt} the file beside it with that suffix: the same program for the peer's ABI
{tap} {disk}  the TAP interface, the file behind the disk; anywhere in a word
{sector}      the disk's sector size
{args}        a word of its own: the guest's arguments, as many words as they are
"""

import shutil
from collections.abc import Collection, Mapping, Sequence

from tender.bench.subjects import parse_peer
from tender.errors import ConfigError

Words = tuple[str, ...]


def parse(
    texts: Sequence[str], image: str, *, wants: Sequence[str] = (), taken: Collection[str] = ()
) -> "dict[str, Words]":
    """Commands by name; the places in `wants` are still in their words, and each is somewhere.

    Raises ConfigError: no place, no such program, or a name that is taken.
    """
    found: dict[str, Words] = {}
    for text in texts:
        name, words = parse_peer(text, image)
        absent = [place for place in wants if not any(f"{{{place}}}" in word for word in words)]
        if absent:
            places = " and ".join(f"{{{place}}}" for place in absent)
            raise ConfigError(f"--peer: {text!r} does not say where {places} goes")
        if name in taken or name in found:
            raise ConfigError(f"--peer: the name {name} is taken", hint=f"--peer 'OTHER={' '.join(words)}'")
        if shutil.which(words[0]) is None:
            raise ConfigError(f"--peer: {name}: {words[0]}: no such program")
        found[name] = words
    return found


def fill(words: Sequence[str], places: "Mapping[str, str]", args: Sequence[str] = ()) -> Words:
    """The command with its places filled in."""
    found: list[str] = []
    for word in words:
        if word == "{args}":
            found += args
            continue
        for place, value in places.items():
            word = word.replace(f"{{{place}}}", value)
        found.append(word)
    return tuple(found)
