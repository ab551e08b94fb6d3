"""`--peer NAME=COMMAND`: other monitors, and the places for image, TAP, disk and guest arguments in their commands.

{elf}         the image; {elf:.spt} is the file next to it with that suffix: the same program for the peer's ABI
{tap} {disk}  the TAP interface, and the disk's file; they may be a part of a word
{sector}      the disk's sector size
{args}        the guest's arguments, one word each; it must be a word of its own
"""

import shutil
from collections.abc import Collection, Mapping, Sequence

from tender.bench.subjects import parse_peer
from tender.errors import ConfigError

Words = tuple[str, ...]


def parse(
    texts: Sequence[str], image: str, *, wants: Sequence[str] = (), taken: Collection[str] = ()
) -> "dict[str, Words]":
    """The commands by name. Each has all places of `wants` in its words, which are not filled in yet.

    Raises ConfigError if a place is missing, there is no such program, or a name is taken.
    """
    found: dict[str, Words] = {}
    for text in texts:
        name, words = parse_peer(text, image)
        absent = [place for place in wants if not any(f"{{{place}}}" in word for word in words)]
        if absent:
            places = " and ".join(f"{{{place}}}" for place in absent)
            raise ConfigError(f"--peer: {text!r} does not contain {places}")
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
