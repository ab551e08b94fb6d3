"""The cffi builder of tender/_native, API mode: cffi-gen-src executes this and writes the C source.

It declares to cffi the marked text of the same headers that the compiler includes; the compiler then checks
one against the other. Compiler settings are in meson.build: those given here would be ignored.
"""

from pathlib import Path

from cdef_extract import extract
from cffi import FFI

HERE = Path(__file__).resolve().parent
ABI = HERE.parent / "abi"
HEADERS = (
    ABI / "tender_abi.h",
    HERE / "core" / "elf_image_types.h",
    HERE / "core" / "vm_types.h",
    HERE / "devices" / "device_types.h",
    HERE / "ends" / "end_types.h",
    HERE / "include" / "native.h",
)


def kvm_cdef() -> str:
    """kvm_cdef.h without its comments: it is written for cffi alone."""
    text = (HERE / "kvm_cdef.h").read_text()
    return text[text.index("*/") + 2 :]


def declared() -> str:
    """All that cffi is told, apart from the kernel's part."""
    return "".join(extract(header) for header in HEADERS[:-1]) + "struct vm;\n" + extract(HEADERS[-1])


ffibuilder = FFI()
ffibuilder.cdef(declared())
ffibuilder.cdef(kvm_cdef())
ffibuilder.set_source(
    "tender._native",
    """
    #include <linux/kvm.h>
    #include <linux/if_tun.h>
    #include <sys/ioctl.h>
    #include "native.h"
    """,
)
