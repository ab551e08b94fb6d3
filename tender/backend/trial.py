"""A tiny unikernel that tries what each unikernel needs from a KVM, one step after the other.

Some hosts offer a /dev/kvm that emulates each instruction in software, or that cannot deliver an exception. It opens and
answers each question well, and then no unikernel runs. So the doctor runs this one. It prints a digit after each step.
Its exit status is the number of the step whose result is wrong. This file runs nothing: it has the program, and judges
what the program printed and when.

The code lies in a segment that is not writable. What it writes lies in DATA:

    0x200000 +0x00  the digit        +0x60  two doubles          +0xa0   their products, as expected
             +0x10  struct hvt_puts  +0x70  two more             +0x100  GDT: null, code, data
             +0x20  struct hvt_halt  +0x80  what %fs:0 must read +0x200  IDT: 15 gates, the last for #PF
             +0x30  GDTR  +0x40 IDTR +0x90  their products
             +0x50  page faults seen
"""

import struct

CODE_GPA = 0x100000
DATA_GPA = 0x200000
LOOPS = 1_000_000
TIMEOUT_S = 20.0  # a guest that waits for the other programs of a busy machine is not stuck
# A limit for the process's time on a processor, which does not count the turns of other processes. The loop takes about
# 1 ms of it, and 20 ms on a processor that is emulated itself.
SLOW_NS = 250_000_000

# What has been done when a digit is printed. "0" comes first.
STEPS = {
    "0": "enter the guest and print",
    "1": f"a loop of {LOOPS:,} turns",
    "2": "SSE arithmetic",
    "3": "the FS base and a load through it",
    "4": "a GDT of the guest's own",
    "5": "a page fault through an IDT of the guest's own",
}

# Bytes, and the assembly that they come from (`as`, Intel syntax). A test assembles the right side.
LISTING = """
                             | start:
bb 00 00 20 00               | mov ebx, 0x200000
b0 30                        | mov al, '0'
e8 d4 00 00 00               | call mark
b9 40 42 0f 00               | mov ecx, 1000000
                             | turn:
ff c9                        | dec ecx
75 fc                        | jnz turn
b0 31                        | mov al, '1'
e8 c4 00 00 00               | call mark

be 02 00 00 00               | mov esi, 2                  # the status if this step goes wrong
66 0f 10 43 60               | movupd xmm0, [rbx+0x60]
66 0f 10 4b 70               | movupd xmm1, [rbx+0x70]
66 0f 59 c1                  | mulpd xmm0, xmm1
66 0f 11 83 90 00 00 00      | movupd [rbx+0x90], xmm0
48 8b 83 90 00 00 00         | mov rax, [rbx+0x90]
48 3b 83 a0 00 00 00         | cmp rax, [rbx+0xa0]
0f 85 88 00 00 00            | jne end
48 8b 83 98 00 00 00         | mov rax, [rbx+0x98]
48 3b 83 a8 00 00 00         | cmp rax, [rbx+0xa8]
75 78                        | jne end
b0 32                        | mov al, '2'
e8 7e 00 00 00               | call mark

be 03 00 00 00               | mov esi, 3
b9 00 01 00 c0               | mov ecx, 0xc0000100         # IA32_FS_BASE
8d 83 80 00 00 00            | lea eax, [rbx+0x80]
31 d2                        | xor edx, edx
0f 30                        | wrmsr
64 48 8b 04 25 00 00 00 00   | mov rax, fs:[0]
48 3b 83 80 00 00 00         | cmp rax, [rbx+0x80]
75 4b                        | jne end
b0 33                        | mov al, '3'
e8 51 00 00 00               | call mark

be 04 00 00 00               | mov esi, 4
0f 01 53 30                  | lgdt [rbx+0x30]
6a 08                        | push 0x08                   # far return: reload CS from the new GDT
48 8d 05 03 00 00 00         | lea rax, [rip+reloaded]
50                           | push rax
48 cb                        | retfq
                             | reloaded:
b8 10 00 00 00               | mov eax, 0x10
8e d0                        | mov ss, eax
8e d8                        | mov ds, eax
b0 34                        | mov al, '4'
e8 2c 00 00 00               | call mark

be 05 00 00 00               | mov esi, 5
0f 01 5b 40                  | lidt [rbx+0x40]
8a 04 25 00 08 00 00         | mov al, [0x800]             # the zero page is not present: #PF
                             | resume:
83 7b 50 01                  | cmp dword ptr [rbx+0x50], 1
75 09                        | jne end
b0 35                        | mov al, '5'
e8 0f 00 00 00               | call mark
31 f6                        | xor esi, esi

                             | end:                        # esi: the exit status
89 73 28                     | mov [rbx+0x28], esi
8d 43 20                     | lea eax, [rbx+0x20]
ba 08 05 00 00               | mov edx, 0x508              # hypercall halt
ef                           | out dx, eax
f4                           | hlt

                             | mark:                       # al: the digit to print
88 03                        | mov [rbx], al
8d 43 10                     | lea eax, [rbx+0x10]
ba 02 05 00 00               | mov edx, 0x502              # hypercall puts
ef                           | out dx, eax
c3                           | ret

                             | page_fault:
0f 20 d0                     | mov rax, cr2
48 3d 00 08 00 00            | cmp rax, 0x800
75 dc                        | jne end
ff 43 50                     | inc dword ptr [rbx+0x50]
48 83 c4 08                  | add rsp, 8                  # the error code
48 8d 05 bf ff ff ff         | lea rax, [rip+resume]
48 89 04 24                  | mov [rsp], rax
48 cf                        | iretq
"""
PAGE_FAULT_OFFSET = 0xEC  # of the label page_fault


def code() -> bytes:
    """Returns the machine code. It lies at CODE_GPA, and is entered there."""
    return b"".join(bytes.fromhex(line.partition("|")[0]) for line in LISTING.splitlines())


def data() -> bytes:
    """Returns what lies at DATA_GPA."""
    page = bytearray(0x1000)
    struct.pack_into("<QQ", page, 0x10, DATA_GPA, 1)  # puts: one byte
    struct.pack_into("<HQ", page, 0x30, 3 * 8 - 1, DATA_GPA + 0x100)
    struct.pack_into("<HQ", page, 0x40, 15 * 16 - 1, DATA_GPA + 0x200)
    struct.pack_into("<dd", page, 0x60, 1.5, 2.25)
    struct.pack_into("<dd", page, 0x70, 2.0, 4.0)
    struct.pack_into("<dd", page, 0xA0, 3.0, 9.0)
    struct.pack_into("<Q", page, 0x80, 0x1122334455667788)
    # Flat 64-bit code and data. "Accessed" is set, so the processor does not write them.
    struct.pack_into("<QQQ", page, 0x100, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    handler = CODE_GPA + PAGE_FAULT_OFFSET
    # An interrupt gate: offset 15..0, selector, IST 0, present and type 14, offset 31..16, offset 63..32.
    low, middle, high = handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32
    struct.pack_into("<HHBBHII", page, 0x200 + 14 * 16, low, 8, 0, 0x8E, middle, high, 0)
    return bytes(page)


def elf() -> bytes:
    """Returns the unikernel as the bytes of a file. It declares no devices."""
    abi = struct.pack("<3I8s4I", 6, 16, 0x31494241, b"Solo5", 1, 2, 0, 0)  # for hvt, version 2
    reserved = struct.pack("<68sI32x", b"", 0x40000000)  # the manifest's first entry, which is no device
    manifest = struct.pack("<3I8s4x2I", 6, 12 + len(reserved), 0x3154464D, b"Solo5", 1, 1) + reserved
    pieces = (  # a page each: type and flags of the program header, address, bytes
        (1, 5, CODE_GPA, code()),
        (1, 6, DATA_GPA, data()),
        (4, 4, 0, abi),
        (4, 4, 0, manifest),
    )
    ident = b"\x7fELF\x02\x01\x01"
    head = struct.pack("<16sHHI3QI6H", ident, 2, 62, 1, CODE_GPA, 64, 0, 0, 64, 56, len(pieces), 0, 0, 0)
    body = b""
    for page, (kind, flags, gpa, piece) in enumerate(pieces, start=1):
        size, align = len(piece), 0x1000 if kind == 1 else 8
        head += struct.pack("<2I6Q", kind, flags, page * 0x1000, gpa, gpa, size, size, align)
        body += piece.ljust(0x1000, b"\0")
    return head.ljust(0x1000, b"\0") + body


def verdict(cpu_ns: dict[str, int], status: int | None, message: str) -> str:
    """Returns why this KVM is unfit, or an empty text.

    Args:
        cpu_ns: The process's time on a processor when each digit was printed.
        status: The guest's own exit status; None if it did not get so far.
        message: What the monitor said at the end.
    """
    for digit, step in STEPS.items():
        if digit in cpu_ns:
            continue
        if status:
            return f"wrong result: {step}"
        ending = f": {message}" if message else f": not done after {TIMEOUT_S:g} s"
        if digit == "1" and not message:
            return f"it emulates every instruction in software: {step} was not done after {TIMEOUT_S:g} s"
        return f"it cannot do this: {step}{ending}"
    if status != 0:
        return f"the trial ended with status {status}" + (f": {message}" if message else "")
    loop_ns = cpu_ns["1"] - cpu_ns["0"]
    if loop_ns > SLOW_NS:
        return f"it emulates every instruction in software: {STEPS['1']} took {loop_ns / 1e6:.0f} ms"
    return ""
