"""The registers as gdb's packets carry them, against what the target description declares."""

import random
import re
import struct
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tender.debug.gdb_registers import Layout
from tender.debug.registers import GENERAL, Registers

X87, SSE, AVX, AVX512 = 1, 2, 4, 0xE0
AREAS = {
    "none": b"",
    "sse": bytes(464) + struct.pack("<Q", X87 | SSE) + bytes(104),
    "avx": bytes(464) + struct.pack("<Q", X87 | SSE | AVX) + bytes(832 - 472),
    "avx512 of Intel": bytes(464) + struct.pack("<Q", 0xE7) + bytes(2688 - 472),
    "avx512 of AMD": bytes(464) + struct.pack("<Q", 0xE7) + bytes(2440 - 472),
    "amx": bytes(464) + struct.pack("<Q", 0x602E7) + bytes(11008 - 472),
}
WORD = st.integers(0, 2**64 - 1)


def areas() -> st.SearchStrategy[bytes]:
    """Areas with any contents, whose XCR0 is one of those above."""

    def filled(area: bytes, seed: int) -> bytes:
        contents = random.Random(seed).randbytes(len(area))
        return contents[:464] + area[464:472] + contents[472:]

    return st.builds(filled, st.sampled_from(list(AREAS.values())), st.integers(0, 2**32))


REGISTERS = st.builds(
    Registers,
    **dict.fromkeys((*GENERAL, "rip", "fs_base", "gs_base"), WORD),
    rflags=st.integers(0, 2**32 - 1),
    xsave=st.sampled_from(list(AREAS.values())),
)


@pytest.mark.parametrize("area", AREAS.values(), ids=list(AREAS))
def test_packet_has_the_bytes_that_the_description_declares(area: bytes) -> None:
    layout = Layout(area, "GenuineIntel")
    declared = [int(it.get("bitsize", "0")) for it in ElementTree.fromstring(layout.xml).iter("reg")]
    assert sum(declared) // 4 == len(layout.pack(Registers(xsave=area)))
    assert declared == [register.bits for register in layout.registers]


@pytest.mark.parametrize(
    ("area", "features"),
    [
        ("none", ["core", "sse", "segments"]),
        ("sse", ["core", "sse", "segments"]),
        ("avx", ["core", "sse", "segments", "avx"]),
        ("amx", ["core", "sse", "segments", "avx", "avx512"]),
    ],
)
def test_features_are_those_of_xcr0(area: str, features: list[str]) -> None:
    xml = Layout(AREAS[area], "GenuineIntel").xml
    assert re.findall(r"org\.gnu\.gdb\.i386\.(\w+)", xml) == features
    assert "osabi" not in xml


@given(REGISTERS, st.data())
def test_values_that_were_packed_are_the_same_after_unpacking(before: Registers, data: st.DataObject) -> None:
    layout = Layout(before.xsave, "GenuineIntel")
    size = len(before.xsave)
    other = Registers(xsave=before.xsave and before.xsave[:464] + before.xsave[464:472] + bytes(size - 472))
    packed = layout.pack(before)
    if before.xsave:
        assert layout.pack(layout.unpack(other, bytes.fromhex(packed))) == packed
    else:
        assert "xx" in packed


@given(areas(), st.sampled_from(["GenuineIntel", "AuthenticAMD"]), st.data())
def test_each_register_can_be_changed_and_no_other_changes(
    area: bytes, vendor: str, data: st.DataObject
) -> None:
    layout = Layout(area, vendor)
    registers = Registers(xsave=area)
    number = data.draw(st.integers(0, len(layout.registers) - 1))
    register = layout.registers[number]
    if (register.at < 0 and not register.field) or not area or register.name in ("ftag", "fop"):
        return
    value = data.draw(st.binary(min_size=register.size, max_size=register.size))
    if register.group == "float":
        value = value[:2] + bytes(register.size - 2)
    after = layout.change(registers, number, value)
    assert layout.value(after, number) == value
    tags = layout.number("ftag")
    for other in range(len(layout.registers)):
        if other not in (number, tags):
            assert layout.value(after, other) == layout.value(registers, other), layout.registers[other].name


@given(st.integers(0, 0xFFFF), st.binary(min_size=576, max_size=576))
def test_tags_are_empty_where_they_were_set_to_empty(tags: int, area: bytes) -> None:
    layout = Layout(area)
    number = layout.number("ftag")
    after = layout.change(Registers(xsave=area), number, tags.to_bytes(4, "little"))
    shown = int.from_bytes(layout.value(after, number) or b"", "little")
    assert [shown >> 2 * i & 3 == 3 for i in range(8)] == [tags >> 2 * i & 3 == 3 for i in range(8)]


def test_changed_part_is_marked_as_in_use() -> None:
    layout = Layout(AREAS["avx"])
    after = layout.change(Registers(xsave=AREAS["avx"]), layout.number("ymm3h"), b"\1" * 16)
    assert after.xsave[512] == AVX
    assert after.xsave[576 + 48 : 576 + 64] == b"\1" * 16


@pytest.mark.parametrize(
    ("area", "vendor", "mask"),
    [
        ("avx512 of Intel", "GenuineIntel", 1088),
        ("avx512 of AMD", "", 832),
        ("amx", "AuthenticAMD", 832),
        ("amx", "GenuineIntel", 1088),
    ],
)
def test_avx512_lies_where_the_processor_keeps_it(area: str, vendor: str, mask: int) -> None:
    layout = Layout(AREAS[area], vendor)
    assert layout.registers[layout.number("k0")].at == mask


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("cs", b"\x10\0\0\0", "cannot be changed"),
        ("rax", b"\0", "has 8 bytes"),
        ("st0", bytes(10), "not known"),
    ],
)
def test_change_that_is_impossible_is_refused(name: str, value: bytes, why: str) -> None:
    layout = Layout(b"")
    with pytest.raises(ValueError, match=why):
        layout.change(Registers(), layout.number(name), value)
