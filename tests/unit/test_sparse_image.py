"""A sparse file costs only the memory of its data: holes of a segment are neither copied nor searched for
call sites."""

import os
from pathlib import Path

import pytest
from elf_builder import PF_R, PF_X, Segment, abi_note, build_elf, manifest_note

from tender.errors import ImageError
from tender.image import Image

BYTES = 1 << 30
AT = 0x100000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A segment of 1 GiB of code, in which only one page in the middle and the last byte are data."""
    path = tmp_path / "big.elf"
    segment = Segment(flags=PF_R | PF_X, filesz=BYTES, memsz=BYTES, offset=AT)
    path.write_bytes(build_elf(segments=[segment], notes=[abi_note(), manifest_note([])]))
    with path.open("r+b") as file:
        file.truncate(AT + BYTES)
        file.seek(AT + BYTES // 2)
        file.write(b"\xba\x01\x05\x00\x00\xef" + b"m" * 4090)  # a call site first
        file.seek(AT + BYTES - 1)
        file.write(b"e")
    return path


@pytest.mark.parametrize("patched", [False, True])
def test_a_sparse_segment_costs_only_its_data(image: Path, *, patched: bool) -> None:
    with Image.open(image) as opened:
        template = opened.template(2 << 30, patched=patched)
        fd = template.fd
        assert os.fstat(fd).st_blocks * 512 < 4 << 20
        code = os.pread(fd, 8, AT + BYTES // 2)
        assert (code[0], code[5:]) == (0xE9 if patched else 0xBA, b"\xefmm")
        assert os.pread(fd, 1, AT + BYTES - 1) == b"e"


def test_a_file_that_ends_within_a_hole_is_still_refused(image: Path) -> None:
    os.truncate(image, AT + BYTES // 2)
    with pytest.raises(ImageError):
        Image.open(image)
