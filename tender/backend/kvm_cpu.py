"""The vCPU's registers before the first instruction, on KVM: section 7 of the hvt contract as values."""

from tender.native import CData, ffi, lib

_CODE_TYPE, _DATA_TYPE, _TSS_TYPE = 9, 3, 11  # Intel SDM vol. 3, 3.4.5.1 and 3.5


def write_sregs(s: CData) -> None:
    """Long mode with paging, flat segments, no IDT; `s` is what KVM_GET_SREGS gave."""
    _segment(s.cs, lib.HVT_SELECTOR_CS, _CODE_TYPE, long=1)
    for data in (s.ds, s.es, s.fs, s.gs, s.ss):
        _segment(data, lib.HVT_SELECTOR_DS, _DATA_TYPE, long=0)
    ffi.memmove(ffi.addressof(s, "tr"), ffi.new("struct kvm_segment *"), ffi.sizeof("struct kvm_segment"))
    s.tr.type = _TSS_TYPE
    s.tr.present = 1
    ffi.memmove(ffi.addressof(s, "ldt"), ffi.new("struct kvm_segment *"), ffi.sizeof("struct kvm_segment"))
    s.ldt.unusable = 1
    s.gdt.base = lib.HVT_GDT_GPA
    s.gdt.limit = lib.HVT_GDT_LIMIT
    s.idt.base = 0
    s.idt.limit = 0
    s.cr0 = lib.HVT_CR0
    s.cr2 = 0
    s.cr3 = lib.HVT_PML4_GPA
    s.cr4 = lib.HVT_CR4
    s.cr8 = 0
    s.efer = lib.HVT_EFER
    s.apic_base = 0  # no local APIC: all of memory up to 4 GiB is memory


def _segment(s: CData, selector: int, kind: int, *, long: int) -> None:
    s.base = 0
    s.limit = 0xFFFFFFFF
    s.selector = selector
    s.type = kind
    s.present = 1
    s.dpl = 0
    s.db = 1 - long
    s.s = 1
    s.l = long
    s.g = 1
    s.avl = 0
    s.unusable = 0


def write_regs(r: CData, *, entry: int, mem_bytes: int) -> None:
    """Entry point, stack at the top of memory, boot info in RDI; `r` is zeroed."""
    r.rip = entry
    r.rsp = mem_bytes - lib.HVT_STACK_OFFSET
    r.rdi = lib.HVT_BOOT_INFO_GPA
    r.rflags = lib.HVT_RFLAGS
