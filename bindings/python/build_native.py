"""The cffi builder of tender/_native, in API mode: cffi-gen-src executes this and writes the C source.

It declares to cffi the marked text of the same headers that the compiler includes. So the compiler checks the
declarations. Compiler settings are in meson.build: settings given here would be ignored.
"""

from pathlib import Path

from cdef_extract import extract
from cffi import FFI

HERE = Path(__file__).resolve().parent
BINDINGS = HERE.parent
HEADERS = (
    BINDINGS.parent / "abi" / "tender_abi.h",
    BINDINGS / "arch" / "x86_64" / "cpu_state.h",
    BINDINGS / "guest_abi" / "elf_image_types.h",
    BINDINGS / "machine" / "machine_types.h",
    BINDINGS / "core" / "vm_types.h",
    BINDINGS / "devices" / "device_types.h",
    BINDINGS / "vm" / "exit_report_types.h",
    HERE / "owner_types.h",
    HERE / "native.h",
)

OPAQUE = "struct vm;\nstruct owned_vm;\nstruct owned_templates;\n"
"""Structures to which Python only has pointers."""


def kernel_cdef(name: str) -> str:
    """Returns a file of the kernel's declarations without its comment: it is written only for cffi."""
    text = (HERE / name).read_text()
    return text[text.index("*/") + 2 :]


def declared() -> str:
    """Returns all declarations for cffi except those of the kernel."""
    return OPAQUE + "".join(extract(header) for header in HEADERS)


ffibuilder = FFI()
ffibuilder.cdef(declared())
ffibuilder.cdef(kernel_cdef("kvm_cdef.h"))
ffibuilder.cdef(kernel_cdef("ptrace_cdef.h"))
ffibuilder.cdef('extern "Python" void run_started(uint64_t key);')  # vm.py: the body of Vm.start()'s thread
ffibuilder.set_source(
    "tender._native",
    """
    #include <elf.h>
    #include <linux/kvm.h>
    #include <linux/if_tun.h>
    #include <signal.h>
    #include <sys/ioctl.h>
    #include <sys/ptrace.h>
    #include <sys/user.h>
    #include <sys/wait.h>
    #include "native.h"
    """,
)
