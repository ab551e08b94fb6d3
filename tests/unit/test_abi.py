"""The ABI header as the compiler and as cffi read it. The tests use every name, so the two sides are
compared."""

import sys
from pathlib import Path

import pytest
from elf_builder import extension_note
from support import Guest

from tender.image import Image
from tender.native import ffi, lib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python"))
from cdef_extract import extract, names  # noqa: E402

HEADERS = ["abi/tender_abi.h", "bindings/guest_abi/elf_image_types.h", "bindings/core/vm_types.h"]


@pytest.mark.parametrize("header", HEADERS)
def test_every_constant_is_the_same_for_the_compiler_and_for_cffi(header: str) -> None:
    """cffi's API mode raises an error at the first use of a name whose compiled value differs from the
    declared one."""
    declared = names(extract(ROOT / header))
    assert len(declared) > 5
    for name in declared:
        assert isinstance(getattr(lib, name), int), name


def test_every_structure_has_the_compilers_layout() -> None:
    """When cffi creates a struct type, it compares all fields with the compiler's offsets and sizes."""
    structs = [
        name for name in ffi.list_types()[1] if name.startswith(("hvt_", "mft", "elf_", "vm_", "tender_"))
    ]
    assert {"hvt_boot_info", "vm_shared", "tender_extension", "tender_extension_info"} <= set(structs)
    for name in structs:
        if name != "vm":
            assert ffi.sizeof(f"struct {name}") > 0
            ffi.new(f"struct {name} *")


@pytest.mark.parametrize(
    ("struct", "field", "offset"),
    [
        ("hvt_boot_info", "net_ring", 48),
        ("mft_entry", "attached", 96),
        ("hvt_poll", "ret", 16),
        ("hvt_net_read", "ret", 24),
        ("hvt_block_read", "ret", 32),
        ("hvt_halt", "exit_status", 8),
        ("tender_extension_info", "features", 4),
        ("tender_extension", "features", 8),
        ("tender_extension", "gate", 16),
    ],
)
def test_offsets_are_equal_to_the_contracts(struct: str, field: str, offset: int) -> None:
    assert ffi.offsetof(f"struct {struct}", field) == offset


def test_each_number_has_a_row_and_each_row_a_number() -> None:
    """Compares abi/hypercalls.def with the numbers in the header, and the names in the page with both."""
    numbers = {
        getattr(lib, name): name.split("HYPERCALL_")[1].lower()
        for name in names(extract(ROOT / "abi/tender_abi.h"))
        if "_HYPERCALL_" in name and not name.endswith("_MAX")
    }
    rows = {i: lib.tn_hypercall_name(i) for i in range(256)}
    assert {i: ffi.string(name).decode() for i, name in rows.items() if name} == numbers
    assert max(numbers) == lib.TENDER_HYPERCALL_MAX - 1
    bits = {
        getattr(lib, name): name.split("FEATURE_")[1].lower().replace("_", "-")
        for name in names(extract(ROOT / "abi/tender_abi.h"))
        if name.startswith("TENDER_FEATURE_")
    }
    features = {1 << i: lib.tn_feature_name(1 << i) for i in range(32)}
    assert {bit: ffi.string(name).decode() for bit, name in features.items() if name} == bits
    page = (ROOT / "docs/cli.md").read_text()
    listed = page.split("- `hypercalls`, an object: ")[1].partition("\n- ")[0]
    assert listed.split() == ", ".join(f"`{name}`" for _, name in sorted(numbers.items())).split()


def test_every_declared_function_exists() -> None:
    text = extract(ROOT / "bindings/python/native.h")
    functions = {word.split("(")[0].lstrip("*") for word in text.replace("\n", " ").split() if "(" in word}
    declared = {name for name in functions if name.startswith("tn_")}
    assert declared == {name for name in dir(lib) if name.startswith("tn_")}


def test_a_line_that_cffi_cannot_read_is_refused(tmp_path: Path) -> None:
    header = tmp_path / "bad.h"
    header.write_text("/* <abi:numbers> */\n#define TWO (1U << 1)\n/* </abi:numbers> */\n")
    with pytest.raises(ValueError, match=r"bad\.h: cffi cannot read this line: #define TWO"):
        extract(header)


def test_marks_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    header = tmp_path / "bad.h"
    header.write_text("/* <abi:numbers> */\n#define TWO 2\n")
    with pytest.raises(ValueError, match="do not pair"):
        extract(header)


def test_the_elf_builders_note_agrees_with_the_header() -> None:
    note = extension_note()
    assert (note.type, note.name[: note.namesz]) == (lib.TENDER_NOTE_EXTENSION_TYPE, b"Tender\0")
    info = ffi.new("struct tender_extension_info *")
    ffi.memmove(info, note.data, len(note.data))
    assert (info.version, info.features) == (lib.TENDER_EXTENSION_VERSION, lib.TENDER_FEATURE_GATE)
    assert len(note.data) == ffi.sizeof("struct tender_extension_info")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hello", ("gate", "block-batch", "net-batch")),
        ("disk", ("gate", "block-batch", "net-batch")),
        ("hello_nogate", ()),
    ],
)
def test_unikernels_of_the_guest_library_request_our_extension_unless_they_omit_the_note(
    guest: Guest, name: str, wanted: tuple[str, ...]
) -> None:
    with Image.open(guest(name)) as image:
        assert image.extensions == wanted
