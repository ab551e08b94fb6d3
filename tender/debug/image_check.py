"""Compares an ELF file with what a guest has in memory: symbols of another build would lie."""

from tender.debug.elf_file import ElfFile
from tender.debug.target import GuestState

_PIECE = 64 << 10
_COMPARED_MAX = 16 << 20
_EXECUTE = 1  # PF_X


def first_difference(elf: ElfFile, state: GuestState) -> int | None:
    """Returns the first address at which the guest's code is not that of the file; None: it is.

    A file may say that it has any number of segments with code. All of them together are compared up to a bound.
    """
    left = _COMPARED_MAX
    for segment in elf.segments:
        if not segment.flags & _EXECUTE:
            continue
        end = segment.address + min(segment.file_bytes, left)
        left -= end - segment.address
        for at in range(segment.address, end, _PIECE):
            expected = elf.text(at, min(_PIECE, end - at))
            found = state.read(at, len(expected))
            if found != expected:
                return at + _common(expected, found)
    return None


def _common(one: bytes, other: bytes) -> int:
    """Returns how many bytes at the beginning are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
