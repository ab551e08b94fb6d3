"""Compares an ELF file with what a guest has in memory: symbols of another build would lie."""

from tender.debug.target import GuestState
from tender.errors import ImageError

_PIECE = 64 << 10
_COMPARED_MAX = 16 << 20
_EXECUTE = 1  # PF_X


def first_difference(path: str, state: GuestState) -> int | None:
    """Returns the first address at which the guest's code is not that of the file; None: it is.

    Raises ImageError: the file cannot be read as an ELF file.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as file:
            for segment in ELFFile(file).iter_segments("PT_LOAD"):
                if not segment["p_flags"] & _EXECUTE:
                    continue
                file.seek(segment["p_offset"])
                start = segment["p_vaddr"]
                end = start + min(segment["p_filesz"], _COMPARED_MAX)
                for at in range(start, end, _PIECE):
                    expected = file.read(min(_PIECE, end - at))
                    found = state.read(at, len(expected))
                    if found != expected:
                        return at + _common(expected, found)
    except OSError as error:
        raise ImageError(error.strerror or "it cannot be read", file=path) from None
    except (ELFError, ValueError, KeyError, OverflowError, MemoryError):
        raise ImageError("it is no ELF file", file=path) from None
    return None


def _common(one: bytes, other: bytes) -> int:
    """Returns how many bytes at the beginning are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
