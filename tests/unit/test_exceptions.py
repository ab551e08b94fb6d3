"""The exception that a handler was called for, from what the processor and the handler have pushed."""

import pytest

from tender.debug.exceptions import exception_named, vector_of
from tender.debug.symbols import Frame

HANDLER = Frame(pc=1, cfa=0x9000, function="trap_common")
INNER = Frame(pc=2, cfa=0x8000, function="trap_report")


@pytest.mark.parametrize(
    ("frames", "word", "expected"),
    [
        ([INNER, HANDLER], 13, 13),
        ([HANDLER], 0, 0),
        ([HANDLER], 32, None),
        ([HANDLER], (1 << 64) - 1, None),
        ([INNER], 13, None),
        ([HANDLER._with(cfa=0)], 13, None),
        ([], 13, None),
    ],
)
def test_the_vector_lies_below_what_the_processor_pushed(
    frames: list[Frame], word: int, expected: int | None
) -> None:
    def read(address: int, length: int) -> bytes:
        return word.to_bytes(8, "little")[:length] if address == 0x9000 - 56 else bytes(length)

    assert vector_of(frames, read) == expected


def test_memory_that_is_not_there_has_no_vector() -> None:
    assert vector_of([HANDLER], lambda address, length: b"") is None


@pytest.mark.parametrize(
    ("vector", "expected"),
    [(None, ""), (0, "divide error (#DE)"), (14, "page fault (#PF)"), (31, "exception 31")],
)
def test_exceptions_have_names(vector: int | None, expected: str) -> None:
    assert exception_named(vector) == expected
