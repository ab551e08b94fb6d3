"""What addresses of an image mean: symbols, source lines, inlined functions, and stacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from tender.debug.registers import Registers


@dataclass(frozen=True)
class Symbol:
    """A symbol of an ELF file. `name` is as in the file, `shown` as people read it (demangled)."""

    name: str
    shown: str
    address: int
    size: int
    is_function: bool


@dataclass(frozen=True)
class Frame:
    """A frame of a stack. Functions that the compiler inlined have frames of their own with the same `pc` and `cfa`.

    Attributes:
        pc: The address of the instruction; for a caller, the address that it returns to.
        cfa: The canonical frame address; 0 if it is not known.
        function: The name as people read it, or "".
        offset: The distance of `pc` from the function's start.
        file: The source file, or "".
        line: The line in it, or 0.
        inlined: Whether the compiler inlined this function into that of the next frame.
        certain: False for a frame that was found by searching the stack, for lack of unwind tables.
    """

    pc: int
    cfa: int = 0
    function: str = ""
    offset: int = 0
    file: str = ""
    line: int = 0
    inlined: bool = False
    certain: bool = True


Read = Callable[[int, int], bytes]
"""read(address, length): the bytes there, fewer if they end."""


class Symbols:
    """An ELF file, of which the file's parts are read when they are needed. Any file is accepted; what is broken in it
    is left out."""

    @classmethod
    def open(cls, path: str) -> Self:
        """Opens a file. Raises ImageError if it is no ELF file."""
        raise NotImplementedError(path)

    def find(self, name: str) -> Symbol | None:
        """Returns the symbol with this name, by either spelling."""
        raise NotImplementedError(name)

    def at(self, address: int) -> Symbol | None:
        """Returns the symbol that the address lies in."""
        raise NotImplementedError(address)

    def frames(self, pc: int, *, is_return: bool = False) -> Sequence[Frame]:
        """Returns the functions at `pc`, the innermost first: one, and those that it was inlined into.

        For an address that a call returns to, the line is that of the call.
        """
        raise NotImplementedError(pc)

    def caller(self, registers: dict[int, int], read: Read, *, is_return: bool) -> dict[int, int] | None:
        """Returns the caller's registers by their DWARF numbers (16: rip), by the unwind tables of the file.

        None: there are none for this address, or it is the outermost frame. `is_return`: rip is an address that a
        call returns to.
        """
        raise NotImplementedError(registers)

    def backtrace(self, registers: Registers, read: Read, limit: int = 64) -> Sequence[Frame]:
        """Returns the stack, the innermost frame first, at most `limit` frames that are not inlined."""
        raise NotImplementedError(registers)
