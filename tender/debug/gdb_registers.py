"""The registers of a guest in gdb's order: the target description, and the values as packets carry them.

The description (target.xml) names the registers that the guest has: those of x87 and SSE always, those of AVX and AVX-512
as XCR0 in `Registers.xsave` says. It names no operating system: for GNU/Linux, gdb would look for a dynamic linker.

Source: "Target Descriptions" and "i386 Features" of gdb's manual; "g packet" of its appendix E.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tender.debug.registers import GENERAL, Registers

XCR0_AVX, XCR0_AVX512 = 1 << 2, 7 << 5  # Intel SDM volume 1, 13.1
_XSTATE_BV, _XCR0 = 512, 464  # 464: as Linux writes it in NT_X86_XSTATE
_LEGACY_BYTES, _AVX = 576, 576

# Where the three parts of AVX-512 lie in the standard form, each by CPUID.0DH:EBX. Intel's keep a place for MPX in
# front, also those without it; AMD's do not. Source: Intel SDM volume 1, 13.4; i387_guess_xsave_layout() of gdb 14, and
# CPUID.0DH of a Xeon (Skylake to Sapphire Rapids) and of an EPYC (Zen 4, Zen 5).
_AVX512_INTEL = (1088, 1152, 1664)
_AVX512_AMD = (832, 896, 1408)
_AVX512_INTEL_BYTES = 2688  # Where Intel's end. AMD's area is 2432 bytes, 2440 with protection keys


@dataclass(frozen=True)
class Register:
    """A register, and where its value comes from.

    Attributes:
        field: The field of Registers; empty: none.
        at: Its place in `xsave`, -1: it is not there.
        part: The bit of XSTATE_BV that says whether this part of `xsave` holds other values than after a reset.
        constant: The value of one that is neither in a field nor in `xsave`.
    """

    name: str
    bits: int
    type: str
    field: str = ""
    at: int = -1
    part: int = 0
    constant: int = 0
    group: str = ""

    @property
    def size(self) -> int:
        """The bytes that packets carry."""
        return self.bits // 8


_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}
_SEGMENTS = {"cs": 0x33, "ss": 0x2B, "ds": 0, "es": 0, "fs": 0, "gs": 0}
"""Linux's selectors for user space: gdb takes a process with other ones for one of 32 bits."""
_FPU = {"fctrl": 0, "fstat": 2, "ftag": 4, "fiseg": 12, "fioff": 8, "foseg": 20, "fooff": 16, "fop": 6}
_FPU_BYTES = {"fioff": 4, "fooff": 4}  # the others have 2

_CORE = (
    *(Register(name, 64, _POINTERS.get(name, "int64"), field=name) for name in (*GENERAL, "rip")),
    Register("eflags", 32, "i386_eflags", field="rflags"),
    *(Register(name, 32, "int32", constant=value) for name, value in _SEGMENTS.items()),
    *(Register(f"st{i}", 80, "i387_ext", at=32 + 16 * i, part=1) for i in range(8)),
    *(Register(name, 32, "int", at=at, part=1, group="float") for name, at in _FPU.items()),
)
_SSE = (
    *(Register(f"xmm{i}", 128, "vec128", at=160 + 16 * i, part=2) for i in range(16)),
    Register("mxcsr", 32, "i386_mxcsr", at=24, part=2, group="vector"),
)
_BASES = (
    Register("fs_base", 64, "int", field="fs_base"),
    Register("gs_base", 64, "int", field="gs_base"),
)
_AVX_REGISTERS = tuple(Register(f"ymm{i}h", 128, "uint128", at=_AVX + 16 * i, part=4) for i in range(16))


def _avx512(masks: int, upper: int, more: int) -> Sequence[Register]:
    return (
        *(Register(f"xmm{16 + i}", 128, "vec128", at=more + 64 * i, part=128) for i in range(16)),
        *(Register(f"ymm{16 + i}h", 128, "uint128", at=more + 64 * i + 16, part=128) for i in range(16)),
        *(Register(f"k{i}", 64, "uint64", at=masks + 8 * i, part=32) for i in range(8)),
        *(Register(f"zmm{i}h", 256, "vec256", at=upper + 32 * i, part=64) for i in range(16)),
        *(Register(f"zmm{16 + i}h", 256, "vec256", at=more + 64 * i + 32, part=128) for i in range(16)),
    )


# Types that a feature declares in front of its registers: vectors (id, element, count), flags (id, names by bit).
_VECTORS = (
    ("v4f", "ieee_single", 4),
    ("v2d", "ieee_double", 2),
    ("v16i8", "int8", 16),
    ("v8i16", "int16", 8),
    ("v4i32", "int32", 4),
    ("v2i64", "int64", 2),
)
_UNION = (
    ("v4_float", "v4f"),
    ("v2_double", "v2d"),
    ("v16_int8", "v16i8"),
    ("v8_int16", "v8i16"),
    ("v4_int32", "v4i32"),
    ("v2_int64", "v2i64"),
    ("uint128", "uint128"),
)
_EFLAGS = {
    0: "CF",
    2: "PF",
    4: "AF",
    6: "ZF",
    7: "SF",
    8: "TF",
    9: "IF",
    10: "DF",
    11: "OF",
    14: "NT",
    16: "RF",
}
_EFLAGS |= {17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID"}
_MXCSR = {0: "IE", 1: "DE", 2: "ZE", 3: "OE", 4: "UE", 5: "PE", 6: "DAZ", 7: "IM", 8: "DM", 9: "ZM", 10: "OM"}
_MXCSR |= {11: "UM", 12: "PM", 15: "FZ"}


def _flags(name: str, bits: dict[int, str]) -> str:
    fields = "".join(f'<field name="{flag}" start="{bit}" end="{bit}"/>' for bit, flag in bits.items())
    return f'<flags id="{name}" size="4">{fields}</flags>'


def _vec128() -> str:
    vectors = "".join(f'<vector id="{name}" type="{kind}" count="{n}"/>' for name, kind, n in _VECTORS)
    fields = "".join(f'<field name="{name}" type="{kind}"/>' for name, kind in _UNION)
    return f'{vectors}<union id="vec128">{fields}</union>'


_VEC256 = '<vector id="vec256" type="uint128" count="2"/>'
_TYPES = {
    "core": _flags("i386_eflags", _EFLAGS),
    "sse": _vec128() + _flags("i386_mxcsr", _MXCSR),
    "segments": "",
    "avx": "",
    "avx512": _vec128() + _VEC256,
}


class Layout:
    """The registers of one guest, in the order of their numbers."""

    def __init__(self, xsave: bytes, vendor: str = "") -> None:
        """Lays them out for a guest with this `xsave`.

        Args:
            xsave: That of the guest's Registers. The registers of AVX-512 have no place in it that is the same everywhere:
                its length tells, or else the processor's vendor.
            vendor: CPUID's word for it; empty: that of /proc/cpuinfo.
        """
        features: dict[str, Sequence[Register]] = {"core": _CORE, "sse": _SSE, "segments": _BASES}
        xcr0 = int.from_bytes(xsave[_XCR0 : _XCR0 + 8], "little") if len(xsave) > _LEGACY_BYTES else 0
        if xcr0 & XCR0_AVX:
            features["avx"] = _AVX_REGISTERS
        if xcr0 & XCR0_AVX and xcr0 & XCR0_AVX512 == XCR0_AVX512:
            features["avx512"] = _avx512(*_avx512_places(len(xsave), vendor))
        self.features = features
        self.registers = tuple(register for group in features.values() for register in group)

    @cached_property
    def xml(self) -> str:
        """The target description."""
        parts = (
            f'<feature name="org.gnu.gdb.i386.{name}">{_TYPES[name]}{"".join(map(_declared, registers))}</feature>'
            for name, registers in self.features.items()
        )
        return (
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
            f"<architecture>i386:x86-64</architecture>{''.join(parts)}</target>"
        )

    def number(self, name: str) -> int:
        """Returns a register's number."""
        return next(i for i, register in enumerate(self.registers) if register.name == name)

    def value(self, registers: Registers, number: int) -> bytes | None:
        """Returns the bytes of one register, the lowest first; None: it is not known. IndexError: there is none."""
        register = self.registers[_checked(number)]
        if register.field:
            return int(getattr(registers, register.field)).to_bytes(8, "little")[: register.size]
        if register.at < 0:
            return register.constant.to_bytes(register.size, "little")
        if len(registers.xsave) < register.at + _stored(register):
            return None
        if register.name == "ftag":
            return _full_tags(registers.xsave).to_bytes(4, "little")
        stored = registers.xsave[register.at : register.at + _stored(register)]
        if register.name == "fop":
            stored = bytes([stored[0], stored[1] & 7])
        return stored.ljust(register.size, b"\0")

    def pack(self, registers: Registers) -> str:
        """Returns all registers in hexadecimal, as the packet `g` carries them: "xx" for a byte that is not known."""
        return "".join(self.shown(registers, number) for number in range(len(self.registers)))

    def shown(self, registers: Registers, number: int) -> str:
        """Returns one register in hexadecimal, as the packet `p` carries it."""
        value = self.value(registers, number)
        return "xx" * self.registers[number].size if value is None else value.hex()

    def change(self, registers: Registers, number: int, value: bytes) -> Registers:
        """Returns the registers with another value of one of them.

        Raises ValueError: the value has a wrong length, or nothing can change this register. IndexError: there is none.
        """
        register = self.registers[_checked(number)]
        if len(value) != register.size:
            raise ValueError(f"{register.name} has {register.size} bytes, not {len(value)}")
        if self.value(registers, number) == value:
            return registers
        if register.field:
            return registers._with(**{register.field: int.from_bytes(value, "little")})
        if register.at < 0:
            raise ValueError(f"{register.name} of a guest cannot be changed")
        if len(registers.xsave) < register.at + _stored(register):
            raise ValueError(f"{register.name} is not known")
        xsave = bytearray(registers.xsave)
        if register.name == "ftag":
            xsave[register.at] = _short_tags(int.from_bytes(value, "little"))
        else:
            xsave[register.at : register.at + _stored(register)] = value[: _stored(register)]
        if len(xsave) > _XSTATE_BV:
            xsave[_XSTATE_BV] |= register.part
        return registers._with(xsave=bytes(xsave))

    def unpack(self, registers: Registers, data: bytes) -> Registers:
        """Returns the registers with the values of a packet `G`. It may be shorter: the rest stays.

        Raises ValueError: as change() does.
        """
        at = 0
        for number, register in enumerate(self.registers):
            value = data[at : at + register.size]
            if len(value) < register.size:
                break
            at += register.size
            if self.value(registers, number) is not None:
                registers = self.change(registers, number, value)
        return registers


def _checked(number: int) -> int:
    if number < 0:
        raise IndexError(number)
    return number


def _stored(register: Register) -> int:
    """The bytes that a register has in `xsave`."""
    if register.name in _FPU:
        return _FPU_BYTES.get(register.name, 1 if register.name == "ftag" else 2)
    return register.size


def _declared(register: Register) -> str:
    group = f' group="{register.group}"' if register.group else ""
    return f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>'


def _avx512_places(xsave_bytes: int, vendor: str) -> tuple[int, int, int]:
    if xsave_bytes < _AVX512_INTEL_BYTES:
        return _AVX512_AMD
    return _AVX512_AMD if (vendor or _vendor()) in ("AuthenticAMD", "HygonGenuine") else _AVX512_INTEL


def _vendor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="latin-1") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return ""


# FXSAVE keeps a bit for each x87 register: whether it is in use. gdb, like FSAVE, has two: valid, zero, special, empty.
# Source: Intel SDM volume 1, 8.1.7 and 10.5.1.1.


def _full_tags(xsave: bytes) -> int:
    top, used = xsave[3] >> 3 & 7, xsave[4]
    return sum((_tag(xsave, i, top) if used >> i & 1 else 3) << 2 * i for i in range(8))


def _tag(xsave: bytes, physical: int, top: int) -> int:
    at = 32 + 16 * ((physical - top) & 7)
    mantissa, exponent = struct.unpack_from("<QH", xsave, at)
    exponent &= 0x7FFF
    if exponent == 0:
        return 1 if mantissa == 0 else 2
    return 0 if exponent != 0x7FFF and mantissa >> 63 else 2


def _short_tags(full: int) -> int:
    return sum((full >> 2 * i & 3 != 3) << i for i in range(8))
