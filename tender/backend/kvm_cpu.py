"""The vCPU's registers before the first instruction, on KVM: section 7 of the hvt contract as values."""

from tender.native import CData, ffi, lib

_CODE_TYPE, _DATA_TYPE, _TSS_TYPE = 9, 3, 11  # Intel SDM vol. 3, 3.4.5.1 and 3.5


_MADE: "dict[str, CData]" = {}
"""The start state's system registers, made by the first VM: they are the same for every VM, and setting their
hundred fields one by one through cffi costs more than any ioctl of a boot but CREATE_VM and CREATE_VCPU."""


def write_sregs(s: CData) -> None:
    """Long mode with paging, flat segments, no IDT; `s` is what KVM_GET_SREGS gave.

    What lies behind the control registers (the APIC's base, pending interrupts) stays KVM's.
    """
    start = _MADE.get("sregs") or _MADE.setdefault("sregs", _start_sregs())
    ffi.memmove(s, start, ffi.offsetof("struct kvm_sregs", "apic_base"))


def _start_sregs() -> CData:
    s = ffi.new("struct kvm_sregs *")
    _segment(s.cs, lib.HVT_SELECTOR_CS, _CODE_TYPE, long=1)
    for data in (s.ds, s.es, s.fs, s.gs, s.ss):
        _segment(data, lib.HVT_SELECTOR_DS, _DATA_TYPE, long=0)
    s.tr.type = _TSS_TYPE
    s.tr.present = 1
    s.ldt.unusable = 1
    s.gdt.base = lib.HVT_GDT_GPA
    s.gdt.limit = lib.HVT_GDT_LIMIT
    s.cr0 = lib.HVT_CR0
    s.cr3 = lib.HVT_PML4_GPA
    s.cr4 = lib.HVT_CR4
    s.efer = lib.HVT_EFER
    return s


def _segment(s: CData, selector: int, kind: int, *, long: int) -> None:
    s.limit = 0xFFFFFFFF
    s.selector = selector
    s.type = kind
    s.present = 1
    s.db = 1 - long
    s.s = 1
    s.l = long
    s.g = 1


def write_regs(r: CData, *, entry: int, mem_bytes: int) -> None:
    """Entry point, stack at the top of memory, boot info in RDI; `r` is zeroed."""
    r.rip = entry
    r.rsp = mem_bytes - lib.HVT_STACK_OFFSET
    r.rdi = lib.HVT_BOOT_INFO_GPA
    r.rflags = lib.HVT_RFLAGS
