"""The use of a guest's heap by the numbers that its allocator keeps, also where they make no sense."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Guest

from tender.debug.memory_use import LIBRARY, OCAML, HeapUse, Probe, heap_use, probe_of

START, END = 0x20_0000, 0x30_0000
FIRST, LAST, TAKEN, STATE = 0x10_0000, 0x10_0008, 0x10_0010, 0x10_0100
IN_OCAML = Probe(kind=OCAML, first=FIRST, last=LAST, taken=TAKEN, state=STATE)
IN_LIBRARY = Probe(kind=LIBRARY, first=FIRST, last=LAST)
FOOTPRINT, COUNTED = STATE + 856, STATE + 936  # of struct malloc_state


def reads(words: dict[int, int]) -> Callable[[int, int], bytes]:
    """Memory that has these words, and zeros else, up to its end."""

    def read(gpa: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, 0x100_0000 - gpa)))
        for address, word in words.items():
            if gpa <= address and address + 8 <= gpa + len(data):
                data[address - gpa : address - gpa + 8] = word.to_bytes(8, "little")
        return bytes(data)

    return read


OCAMLS = {
    "usual": ({TAKEN: START + 0x5000, FOOTPRINT: 0x5000, COUNTED: 0x3210}, (0x3210, 0x5000)),
    "nothing taken": ({TAKEN: START}, (0, 0)),
    "more allocated than taken": (
        {TAKEN: START + 0x5000, FOOTPRINT: 0x4000, COUNTED: 0x4010},
        (None, 0x5000),
    ),
    "another allocator": ({TAKEN: START + 0x5000, FOOTPRINT: 0x6000, COUNTED: 0x10}, (None, 0x5000)),
    "before the start": ({TAKEN: START - 8}, None),
    "behind the end": ({TAKEN: END + 8}, None),
    "not made yet": ({FIRST: 0, LAST: 0}, None),
    "turned round": ({FIRST: END, LAST: START}, None),
}


@pytest.mark.parametrize(("words", "expected"), OCAMLS.values(), ids=list(OCAMLS))
def test_the_heap_of_ocamls_runtime_is_what_its_c_library_counts(
    words: dict[int, int], expected: tuple[int | None, int] | None
) -> None:
    use = heap_use(IN_OCAML, reads({FIRST: START, LAST: END, **words}))
    assert (use and (use.used_bytes, use.taken_bytes)) == expected
    assert use is None or (use.kind, use.total_bytes, use.damaged_at) == (OCAML, END - START, None)


def test_an_older_library_that_does_not_count_has_what_was_taken() -> None:
    use = heap_use(IN_OCAML._with(state=0), reads({FIRST: START, LAST: END, TAKEN: START + 0x5000}))
    assert use == HeapUse(kind=OCAML, used_bytes=None, taken_bytes=0x5000, total_bytes=END - START)


def pieces(*sizes: tuple[int, bool]) -> dict[int, int]:
    """Returns the words of a heap of these pieces, each with whether it is used, and a free one up to the end."""
    words, at, before = {FIRST: START, LAST: END}, START, 0
    for size, used in (*sizes, (END - START - sum(size for size, _ in sizes), False)):
        words |= {at: size | used, at + 8: before}
        at, before = at + size, size
    return words


def test_the_heap_of_the_guest_library_is_the_sum_of_its_used_pieces() -> None:
    words = pieces((0x20, True), (0x1000, False), (0x9000, True), (0x30, True))
    use = heap_use(IN_LIBRARY, reads(words))
    assert use == HeapUse(kind=LIBRARY, used_bytes=0x9050, taken_bytes=None, total_bytes=END - START)


@pytest.mark.parametrize("word", [0, 0x18, END, (1 << 64) - 1], ids=hex)
def test_a_damaged_header_is_named_and_not_believed_of_a_guest_that_runs(word: int) -> None:
    words = pieces((0x20, True), (0x1000, True)) | {START + 0x20: word}
    at_rest, running = (heap_use(IN_LIBRARY, reads(words), running=it) for it in (False, True))
    assert at_rest == HeapUse(
        kind=LIBRARY, used_bytes=None, taken_bytes=None, total_bytes=END - START, damaged_at=START + 0x20
    )
    assert running == at_rest._with(damaged_at=None)


def test_a_heap_that_changes_while_it_is_read_is_read_again() -> None:
    torn, whole = pieces((0x20, True)) | {START + 0x20: 0}, pieces((0x20, True))
    turns = iter([whole, whole, torn])  # two words, then the walk

    def read(gpa: int, length: int) -> bytes:
        return reads(next(turns, whole))(gpa, length)

    use = heap_use(IN_LIBRARY, read, running=True)
    assert use is not None and (use.used_bytes, use.damaged_at) == (0x20, None)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=5, max_size=5), st.binary(max_size=200))
def test_any_numbers_are_accepted(words: Sequence[int], data: bytes) -> None:
    at = dict(zip((FIRST, LAST, TAKEN, FOOTPRINT, COUNTED), words, strict=True))
    fixed = reads(at)

    def read(gpa: int, length: int) -> bytes:
        return fixed(gpa, length) if gpa < START else data[:length]

    for probe in (IN_OCAML, IN_LIBRARY):
        use = heap_use(probe, read)
        assert use is None or use.used_bytes is None or 0 <= use.used_bytes <= use.total_bytes


def test_an_images_file_says_where_its_heap_is(guest: Guest, tmp_path: Path) -> None:
    probe = probe_of(str(guest("debug")))
    assert probe is not None and probe.kind == LIBRARY and probe.first != probe.last
    broken = tmp_path / "broken.elf"
    broken.write_bytes(guest("debug").read_bytes()[:5000])
    for path in (str(broken), str(tmp_path / "absent"), "zero\0byte", "/dev/zero"):
        assert probe_of(path) is None, path
