"""The debug registers of the processor, as a debugger sets them."""

import pytest

from tender.debug.target import Watch
from tender.debug.x86 import DR7_GLOBAL, DR7_LOCAL, dr7


@pytest.mark.parametrize(
    ("number", "kind", "length", "enable", "expected"),
    [
        (0, Watch.HARDWARE, 1, DR7_LOCAL, 0x00000001),
        (1, Watch.WRITE, 8, DR7_LOCAL, 0x00900004),
        (2, Watch.ACCESS, 4, DR7_GLOBAL, 0x0F000020),
        (3, Watch.READ, 2, DR7_GLOBAL, 0x70000080),
    ],
)
def test_dr7_is_as_the_manual_has_it(
    number: int, kind: Watch, length: int, enable: int, expected: int
) -> None:
    """Intel SDM volume 3, figure 18-1."""
    assert dr7(number, kind, length, enable) == expected
