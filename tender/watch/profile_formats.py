"""Writes a profile in the formats of other tools. Each function returns the whole file.

    folded      a line for each stack: flamegraph.pl, inferno, and most others
    svg         a flame graph for a browser
    speedscope  JSON for speedscope
    pprof       a gzipped protocol buffer, for pprof and Grafana Pyroscope
    perf        the text of `perf script`, for Firefox Profiler and others

Names come from the guest's ELF file, so each format quotes what would mean something else in it.
"""

import gzip
import html
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable

from tender._version import __version__
from tender.debug.flame_graph import WIDTH, boxes_of
from tender.printable import printable, unicode_text
from tender.watch.profile import Place, Profile, Stack

_NS_PER_S = 1_000_000_000


def folded(profile: Profile) -> bytes:
    """Returns a line `main;walk;mix 12` for each stack of functions, sorted."""
    lines = (
        ";".join(_folded_name(it) for it in names) + f" {count}\n"
        for names, count in sorted(_by_function(profile.stacks).items())
    )
    return "".join(lines).encode()


def _folded_name(name: str) -> str:
    return _text(name).replace(";", ":") or "?"


def _by_function(stacks: Counter[Stack]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for stack, count in stacks.items():
        found[tuple(it.function for it in stack)] += count
    return found


def _text(name: str) -> str:
    """A name as text that any reader takes: no control characters, no lone surrogates."""
    return unicode_text(printable(name))


def svg(profile: Profile) -> bytes:
    """Returns a flame graph, callers at the bottom. A box tells its name and share when the pointer rests on it."""
    boxes, height = boxes_of(sorted(_by_function(profile.stacks).items()), lambda it: html.escape(_text(it)))
    title = html.escape(
        _text(f"{os.path.basename(profile.image)}: {profile.samples} samples in {profile.duration_s:.1f} s")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-height - 24} {WIDTH} {height + 32}" width="{WIDTH}">'
        "<style>svg{background:#fff;font:11px monospace}.flame{fill:#f0a45d;stroke:#fff}"
        f"g:hover .flame{{fill:#e0702c}}</style><text x='4' y='{-height - 8}'>{title}</text>{boxes}</svg>\n"
    ).encode()


def speedscope(profile: Profile) -> bytes:
    """Returns a file of speedscope's format: one profile of samples, each as long as the time between two.

    Source: the format's JSON schema, version 0.0.1.
    """
    frames: dict[Place, int] = {}
    samples = [
        [frames.setdefault(it._replace(address=0), len(frames)) for it in stack] for stack in profile.stacks
    ]
    weights = [count / profile.rate_hz for count in profile.stacks.values()]
    shown = [
        {"name": _text(it.function), **({"file": _text(it.file), "line": it.line} if it.file else {})}
        for it in frames
    ]
    name = _text(f"{os.path.basename(profile.image)} (process {profile.pid})")
    made = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": f"tender {__version__}",
        "activeProfileIndex": 0,
        "shared": {"frames": shown},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "seconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
    return json.dumps(made).encode()


def perf(profile: Profile) -> bytes:
    """Returns the text of `perf script`. The samples have times as if each stack had been seen in one go."""
    command = _text(os.path.basename(profile.image)).replace(" ", "_")[:15] or "guest"
    image = _text(profile.image) or "guest"
    period_ns = round(_NS_PER_S / profile.rate_hz)
    at_ns, lines = 0, []
    for stack, count in profile.stacks.items():
        frames = "".join(
            f"\t{it.address:16x} {_text(it.function)} ({'[kernel.kallsyms]' if not it.address else image})\n"
            for it in reversed(stack)
        )
        for _ in range(count):
            at_ns += period_ns
            when = f"{at_ns // _NS_PER_S}.{at_ns % _NS_PER_S // 1000:06}"
            lines.append(f"{command} {profile.pid}/{profile.pid} {when}: {period_ns} cpu-clock:\n{frames}\n")
    return "".join(lines).encode()


# ---- pprof. Source: the comments of profile.proto of pprof; wire types 0 (number) and 2 (bytes) of protocol buffers.


def pprof(profile: Profile) -> bytes:
    """Returns pprof's format: samples and CPU time by stack, with functions and lines."""
    strings: dict[str, int] = {"": 0}
    functions: dict[tuple[str, str], int] = {}
    locations: dict[Place, int] = {}

    def string(text: str) -> int:
        return strings.setdefault(text, len(strings))

    period_ns = round(_NS_PER_S / profile.rate_hz)
    samples = []
    for stack, count in profile.stacks.items():
        places = [locations.setdefault(it, len(locations) + 1) for it in reversed(stack)]
        samples.append(_packed(1, places) + _packed(2, (count, count * period_ns)))
    places_made, functions_made = [], []
    for place, number in locations.items():
        key = (_text(place.function), _text(place.file))
        known = key in functions
        function = functions.setdefault(key, len(functions) + 1)
        if not known:
            name = string(key[0])
            functions_made.append(
                _number(1, function) + _number(2, name) + _number(3, name) + _number(4, string(key[1]))
            )
        line = _number(1, function) + _number(2, place.line)
        places_made.append(_number(1, number) + _number(2, 1) + _number(3, place.address) + _message(4, line))
    cpu = _number(1, string("cpu")) + _number(2, string("nanoseconds"))
    mapping = _number(1, 1) + _number(3, 1 << 32) + _number(5, string(_text(profile.image)))
    mapping += b"".join(
        _number(field, 1) for field in (7, 8, 9, 10)
    )  # functions, files, lines and inlining are known
    made = [
        _message(1, _number(1, string("samples")) + _number(2, string("count"))),
        _message(1, cpu),
        *(_message(2, it) for it in samples),
        _message(3, mapping),
        *(_message(4, it) for it in places_made),
        *(_message(5, it) for it in functions_made),
        *(_message(6, text.encode()) for text in strings),
        _number(9, profile.began_ns),
        _number(10, round(profile.duration_s * _NS_PER_S)),
        _message(11, cpu),
        _number(12, period_ns),
    ]
    return gzip.compress(b"".join(made), mtime=0)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number) if number else b""


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _packed(field: int, numbers: Iterable[int]) -> bytes:
    return _message(field, b"".join(_varint(it) for it in numbers))


FORMATS: dict[str, tuple[str, Callable[[Profile], bytes]]] = {
    "svg": (".svg", svg),
    "folded": (".folded", folded),
    "speedscope": (".json", speedscope),
    "pprof": (".pb.gz", pprof),
    "perf": (".perf", perf),
}
"""The formats by name: the ending of a file that has it if none is named, and who makes it."""
