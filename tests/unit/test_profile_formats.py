"""A profile in the formats of other tools: read back by small readers of those formats."""

import gzip
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from tender.watch.profile import HYPERCALL, Place, Profile
from tender.watch.profile_formats import FORMATS, folded, perf, pprof, speedscope, svg

MAIN = Place("main", "/src/main.c", 10, 0x100010)
MAIN_2 = Place("main", "/src/main.c", 20, 0x100020)
WALK = Place("walk", "/src/walk.c", 5, 0x100100)
HOSTILE = Place('</svg><script>"a;b\n\udcff', "", 0, 0x100200)


def made(*stacks: tuple[tuple[Place, ...], int]) -> Profile:
    profile = Profile(
        "/guests/app.elf", 42, "sandbox", 100.0, began_ns=1_700_000_000_000_000_000, duration_s=1.5
    )
    profile.stacks = Counter(dict(stacks))
    return profile


USUAL = made(((MAIN, WALK), 6), ((MAIN_2, WALK), 3), ((MAIN,), 1), ((MAIN, Place(HYPERCALL)), 2))


def test_folded_has_a_line_for_each_stack_of_functions() -> None:
    assert folded(USUAL).decode().splitlines() == ["main 1", "main;[hypercall] 2", "main;walk 9"]


def test_a_flame_graph_is_well_formed_and_has_a_box_for_each_function() -> None:
    root = ElementTree.fromstring(svg(USUAL))
    titles = [it.text for it in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [
        "main: 12 of 12 samples, 100.0%",
        "[hypercall]: 2 of 12 samples, 16.7%",
        "walk: 9 of 12 samples, 75.0%",
    ]


def test_speedscopes_samples_name_frames_and_add_up() -> None:
    data = json.loads(speedscope(USUAL))
    frames, (profile,) = data["shared"]["frames"], data["profiles"]
    assert frames[0] == {"name": "main", "file": "/src/main.c", "line": 10}
    times: dict[str, float] = defaultdict(float)
    for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
        times[";".join(frames[it]["name"] for it in sample)] += weight
    assert times == pytest.approx({"main;walk": 0.09, "main": 0.01, "main;[hypercall]": 0.02})
    assert profile["endValue"] == pytest.approx(0.12)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message of protocol buffers."""
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(data):
        key = varint()
        number = varint()
        if key & 7 == 2:
            yield key >> 3, data[at : at + number]
            at += number
        else:
            assert key & 7 == 0
            yield key >> 3, number


def packed(data: object) -> list[int]:
    assert isinstance(data, bytes)
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    return numbers


def message(data: object) -> dict[int, int | bytes]:
    assert isinstance(data, bytes)
    return dict(fields(data))


def test_pprof_has_each_stack_with_its_count_and_time() -> None:
    top: dict[int, list[int | bytes]] = defaultdict(list)
    for number, value in fields(gzip.decompress(pprof(USUAL))):
        top[number].append(value)
    strings = [it.decode() for it in top[6] if isinstance(it, bytes)]
    assert strings[0] == ""

    def text(number: object) -> str:
        assert isinstance(number, int)
        return strings[number]

    assert [(text(m[1]), text(m[2])) for m in map(message, top[1])] == [
        ("samples", "count"),
        ("cpu", "nanoseconds"),
    ]
    functions = {m[1]: (text(m[2]), text(m.get(4, 0))) for m in map(message, top[5])}
    places = {}
    for location in map(message, top[4]):
        line = message(location[4])
        places[location[1]] = (*functions[line[1]], line.get(2, 0), location.get(3, 0))
    samples = {}
    for sample in map(message, top[2]):
        samples[tuple(places[it] for it in packed(sample[1]))] = packed(sample[2])
    assert samples == {
        (tuple(WALK), tuple(MAIN)): [6, 60_000_000],
        (tuple(WALK), tuple(MAIN_2)): [3, 30_000_000],
        (tuple(MAIN),): [1, 10_000_000],
        ((HYPERCALL, "", 0, 0), tuple(MAIN)): [2, 20_000_000],
    }
    assert top[9] == [1_700_000_000_000_000_000] and top[10] == [1_500_000_000] and top[12] == [10_000_000]


def test_perf_has_each_sample_with_the_innermost_function_first() -> None:
    samples = [it.splitlines() for it in perf(USUAL).decode().split("\n\n") if it]
    assert len(samples) == USUAL.samples
    assert samples[0][0] == "app.elf 42/42 0.010000: 10000000 cpu-clock:"
    assert [line.split()[1] for line in samples[0][1:]] == ["walk", "main"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_hostile_name_is_text_in_every_format(form: str) -> None:
    data = FORMATS[form][1](made(((MAIN, HOSTILE), 2)))
    plain = gzip.decompress(data) if form == "pprof" else data
    assert b"\xff" not in plain or form == "pprof"
    if form == "svg":
        assert b"<script" not in data
        ElementTree.fromstring(data)
    if form == "folded":
        (line,) = data.decode().splitlines()
        assert line.count(";") == 1 and line.endswith(" 2")
    if form == "perf":
        assert len(data.decode().split("\n\n")) == 3
    if form == "speedscope":
        json.loads(data.decode("ascii"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_profile_without_samples_is_a_file_of_its_format(form: str) -> None:
    data = FORMATS[form][1](made())
    if form == "svg":
        ElementTree.fromstring(data)
    if form == "speedscope":
        assert json.loads(data)["profiles"][0]["samples"] == []
