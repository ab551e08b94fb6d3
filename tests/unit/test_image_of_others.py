"""Image files that a debugger or a core names, and that anybody may have made: nothing waits or reads on for ever."""

import os
import struct
from pathlib import Path
from typing import cast

import pytest

from tender.cli import core
from tender.debug.elf_file import ElfFile
from tender.debug.image_check import first_difference
from tender.debug.target import GuestState
from tender.errors import ImageError


class Counting:
    """A guest whose memory is zeros. It counts what is read."""

    read_bytes = 0

    def read(self, gpa: int, length: int) -> bytes:
        self.read_bytes += length
        return bytes(length)


def test_a_file_with_the_same_code_many_times_is_compared_up_to_a_bound(tmp_path: Path) -> None:
    path, count, size = tmp_path / "image", 250, 16 << 20
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0
    )
    row = struct.pack("<IIQQQQQQ", 1, 5, 1 << 20, 1 << 20, 1 << 20, size, size, 4096)
    with path.open("wb") as file:
        file.write(head + row * count)
        file.truncate(32 << 20)
    guest = Counting()
    assert first_difference(ElfFile.open(str(path)), cast("GuestState", guest)) is None
    assert 1 << 20 <= guest.read_bytes <= size


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "huge"])
def test_a_core_that_names_no_file_of_an_image_finds_none(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "image"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(ImageError, match="cannot be found"):
        core._image(str(path), "00" * 32, str(tmp_path))
