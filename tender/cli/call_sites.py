"""The hypercalls' call sites in an image's text, as the sandbox finds and patches them (bindings/machine/sandbox/patch.c).

The template that the sandbox boots says where they are: each has a trampoline, which names the address behind the call
site and the hypercall. So there is one search for call sites, in C.
"""

import os
import struct
from typing import NamedTuple

from tender.image import Image
from tender.native import lib

_GRANULE = 2 << 20
_TRAMPOLINE = struct.Struct(
    "<B11xII12x"
)  # mov $...,%edx; jmp; the address behind the call site; the hypercall
_MOV_EDX = 0xBA
_CALL_SITE_BYTES = 6
_TRAMPOLINES_BYTES = lib.TENDER_EXTENSION_GPA - lib.TENDER_TRAMPOLINES_GPA


class CallSite(NamedTuple):
    """A `mov $0x50N,%edx; out %eax,(%dx)`: its address, and N."""

    address: int
    number: int


def least_bytes(image: Image) -> int:
    """Returns the least size of guest memory that the image fits in."""
    return -(-max(image.kernel_end, image.bss_end) // _GRANULE) * _GRANULE


def patched(image: Image) -> list[CallSite]:
    """Returns the call sites that the sandbox turns into jumps."""
    template = image.template(least_bytes(image), patched=True)
    trampolines = os.pread(template.fd, _TRAMPOLINES_BYTES, lib.TENDER_TRAMPOLINES_GPA)
    whole = len(trampolines) - len(trampolines) % _TRAMPOLINE.size
    return [
        CallSite(behind - _CALL_SITE_BYTES, number)
        for first, behind, number in _TRAMPOLINE.iter_unpack(trampolines[:whole])
        if first == _MOV_EDX
    ]
