"""`tender solo5-elftool` compared with Solo5's elftool: formats, messages and statuses. No guest runs, and
Solo5 is not needed.

TENDER_SOLO5_ELFTOOL=/path/to/solo5-elftool, which must be in a built tree of Solo5, adds the comparison
with the original.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from elf_builder import (
    MFT_RESERVED_FIRST,
    RESERVED_ENTRY,
    MftEntry,
    Note,
    abi_note,
    build_elf,
    device_entry,
    good_elf,
    good_segments,
    manifest_bytes,
    manifest_note,
    raw_manifest_note,
)
from elf_cases import REFUSED, Refused
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tender import manifest_json
from tender.cli import elftool
from tender.errors import ManifestError
from tender.native import lib

Printed = pytest.CaptureFixture[str]
TARGETS = ["hvt", "spt", "virtio", "muen", "genode", "xen"]
NET = '{ "name": "service0", "type": "NET_BASIC" }'


def manifest(devices: str = NET, rest: str = "") -> str:
    return f'{{\n  "type": "solo5.manifest",\n  "version": 1,\n  "devices": [\n{devices}\n]{rest}\n}}\n'


def many(count: int) -> str:
    return ",\n".join(f'{{ "name": "net{i}", "type": "NET_BASIC" }}' for i in range(count))


# Lines are counted from 1; the devices of manifest() begin in line 5.
BAD_MANIFESTS = {
    "root-array": ("[]", "@:1: (root): expected OBJECT, got ARRAY"),
    "root-null": ("\n\nnull", "@:1: (root): expected OBJECT, got NULL"),
    "root-string": ('"x"', "@:1: (root): expected OBJECT, got STRING"),
    "root-integer": ("-0", "@:1: (root): expected OBJECT, got INTEGER"),
    "root-real": ("1e5", "@:1: (root): expected OBJECT, got REAL"),
    "root-true": ("true", "@:1: (root): expected OBJECT, got BOOLEAN"),
    "root-false": ("false ", "@:1: (root): expected OBJECT, got BOOLEAN"),
    "empty-object": ("\n{}", "@:1: missing .type"),
    "missing-type": ('{ "version": 1, "devices": [] }', "@:1: missing .type"),
    "missing-version": ('{\n"type": "x",\n"devices": [] }', "@:1: missing .version"),
    "missing-devices": ('{ "type": "x", "version": 9 }', "@:1: missing .devices[]"),
    "type-kind": ('{\n"type": 1 }', "@:2: .type: expected STRING, got INTEGER"),
    "version-real": ('{\n\n"version": 1.0 }', "@:3: .version: expected INTEGER, got REAL"),
    "version-string": ('{ "version": "1" }', "@:1: .version: expected INTEGER, got STRING"),
    "devices-kind": ('{ "devices": {} }', "@:1: .devices: expected ARRAY, got OBJECT"),
    "device-kind": (manifest("{},\n{},\n\n 5"), "@:8: .devices[]: expected OBJECT, got INTEGER"),
    "root-unknown-key": (manifest(rest=',\n"a\\tb":\n1'), "@:7: (root): unknown key: a\\tb"),
    "unknown-key-first": ('{ "x": 1, "type": 2 }', "@:1: (root): unknown key: x"),
    "empty-key": ('{ "": 1 }', "@:1: (root): unknown key: "),
    "type-value": (
        manifest().replace("solo5.man", "solo5.Man"),
        '@:2: .type: invalid value, expected "solo5.manifest"',
    ),
    "version-0": (manifest().replace(": 1", ": -0"), "@:3: .version: invalid version 0, expected 1"),
    "version-2": (manifest().replace(": 1", ": 2"), "@:3: .version: invalid version 2, expected 1"),
    "version-huge": (
        manifest().replace(": 1", ": " + "9" * 5000),
        "@:3: .version: invalid version 9223372036854775807, expected 1",
    ),
    "version-least": (
        manifest().replace(": 1", ": -" + "9" * 5000),
        "@:3: .version: invalid version -9223372036854775808, expected 1",
    ),
    "type-before-version": ('{ "type": "", "version": 2, "devices": [] }', "@:1: .type: invalid value"),
    "version-before-count": (
        manifest(many(64)).replace(": 1,", ": 2,"),
        "@:3: .version: invalid version 2, expected 1",
    ),
    "devices-64": (manifest(many(64)), "@:4: .devices[]: too many entries, maximum 63"),
    "count-before-devices": (manifest(",".join(["{}"] * 64)), "@:4: .devices[]: too many entries"),
    "device-unknown-key": (
        manifest('{ "name": "a",\n\n"mac": 0 }'),
        "@:7: .devices[...]: unknown key: mac",
    ),
    "device-name-kind": (manifest('{ "name": 5 }'), "@:5: .devices[...]: expected STRING, got INTEGER"),
    "device-type-kind": (manifest('{ "type": null }'), "@:5: .devices[...]: expected STRING, got NULL"),
    "device-no-name": (manifest('\n{ "type":\n"x" }'), "@:6: .devices[...]: missing .name"),
    "device-no-type": (manifest('\n{ "name":\n"x" }'), "@:6: .devices[...]: missing .type"),
    "device-empty": (manifest("{}"), "@:5: .devices[...]: missing .name"),
    "name-empty": (manifest('{ "name": "" }'), "@:5: .devices[...]: .name may not be empty"),
    "name-68": (manifest(f'{{ "name": "{"a" * 68}" }}'), "@:5: .devices[...]: name too long"),
    "name-34-umlauts": (manifest(f'{{ "name": "{"ä" * 34}" }}'), "@:5: .devices[...]: name too long"),
    "name-dash": (manifest('{ "name": "a-b" }'), "@:5: .devices[...]: name is not alphanumeric"),
    "name-newline": (manifest('{ "name": "ab\\n" }'), "@:5: .devices[...]: name is not alphanumeric"),
    "name-umlaut": (manifest('{ "name": "\\u00e4" }'), "@:5: .devices[...]: name is not alphanumeric"),
    "second-device": (manifest(f"{NET},\n{{}}"), "@:6: .devices[...]: missing .name"),
}

BAD_JSON = {
    "empty": ("", "premature EOF in JSON data"),
    "space": (" \n ", "premature EOF in JSON data"),
    "open-object": ('{ "a": 1', "premature EOF in JSON data"),
    "open-array": ("[ [1", "premature EOF in JSON data"),
    "open-string": ('{ "a', "premature EOF in JSON data"),
    "open-escape": ('["\\', "premature EOF in JSON data"),
    "open-hex": ('["\\u12', "premature EOF in JSON data"),
    "half-word": ("tru", "premature EOF in JSON data"),
    "wrong-word": ("[\nfalls]", "expected false on line 2 in JSON data"),
    "wrong-last-letter": ("nulL", "expected null on line 1 in JSON data"),
    "no-value": ("{\n\n:}", "missing quote from string on line 3 in JSON data"),
    "bare-key": ("{ a: 1}", "missing quote from string on line 1 in JSON data"),
    "no-colon": ('{ "a"\n 1}', "expected colon in object element on line 2 in JSON data"),
    "no-colon-end": ('{ "a"', "expected colon in object element on line 1 in JSON data"),
    "no-member": ('{ "a":\n}', "unexpected '}' on line 2 in JSON data"),
    "unexpected": ("[\n\n%]", "unexpected '%' on line 3 in JSON data"),
    "wrong-end": ("[1}", "unexpected '}' on line 1 in JSON data"),
    "first-comma": ("[\n,1]", "missing value before comma on line 2 in JSON data"),
    "escape": ('["\\x"]', "unknown escape code '\\x' on line 1 in JSON data"),
    "hex": ('["\\u00g0"]', "expected hex digit on line 1 in JSON data"),
    "newline-in-string": ('["a\nb"]', "unescaped whitespace on line 2 in JSON data"),
    "tab-in-string": ('["\t"]', "unescaped whitespace on line 1 in JSON data"),
    "nul-in-string": ('["\0"]', "unknown byte (0x00) on line 1 in JSON data"),
    "leading-zero": ("[01]", "unexpected '1' on line 1 in JSON data"),
    "plus": ("[+1]", "unexpected '+' on line 1 in JSON data"),
    "minus-word": ("[-a]", "unexpected 'a' on line 1 in JSON data"),
    "two-points": ("[1.2.3]", "unexpected '.' on line 1 in JSON data"),
    "number-word": ("[1x]", "unexpected 'x' on line 1 in JSON data"),
}

GOOD_MANIFESTS = {
    "none": (manifest(""), []),
    "one": (manifest(), [("service0", "NET_BASIC")]),
    "both-kinds": (
        manifest('{ "type": "BLOCK_BASIC", "name": "storage" },' + NET),
        [("storage", "BLOCK_BASIC"), ("service0", "NET_BASIC")],
    ),
    "63": (manifest(many(63)), [(f"net{i}", "NET_BASIC") for i in range(63)]),
    "name-67": (manifest(NET.replace("service0", "a" * 67)), [("a" * 67, "NET_BASIC")]),
    "name-digit": (manifest(NET.replace("service0", "0")), [("0", "NET_BASIC")]),
    "name-escaped": (manifest(NET.replace("service0", "\\u0061\\u005A")), [("aZ", "NET_BASIC")]),
    "twins": (manifest(f"{NET},{NET}"), [("service0", "NET_BASIC")] * 2),
    "trailing-commas": (manifest(f"{NET},,", rest=","), [("service0", "NET_BASIC")]),
    "missing-commas": (
        manifest(f'{NET} {{ "name": "b" "type": "NET_BASIC" }}'),
        [("service0", "NET_BASIC"), ("b", "NET_BASIC")],
    ),
    "something-after-it": (manifest() + "} garbage", [("service0", "NET_BASIC")]),
    "key-twice": (manifest('{ "name": "a", "name": "b", "type": "NET_BASIC" }'), [("b", "NET_BASIC")]),
    "crlf": (manifest().replace("\n", "\r\n"), [("service0", "NET_BASIC")]),
}


# ---- gen-manifest: what is refused ----


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_its_line(name: str, tmp_path: Path, capsys: Printed) -> None:
    text, words = BAD_MANIFESTS[name]
    source, output = tmp_path / "manifest.json", tmp_path / "manifest.c"
    source.write_text(text, newline="")
    output.write_text("before")

    assert elftool.main(["gen-manifest", str(source), str(output)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("solo5-elftool: " + words.replace("@", str(source)))
    assert printed.err.count("\n") == 1
    assert output.read_text() == "before"


@pytest.mark.parametrize("name", BAD_JSON)
def test_invalid_json_is_refused_with_its_line(name: str, tmp_path: Path, capsys: Printed) -> None:
    text, words = BAD_JSON[name]
    source = tmp_path / "manifest.json"
    source.write_text(text, newline="")

    assert elftool.main(["gen-manifest", str(source), str(tmp_path / "manifest.c")]) == 1
    assert capsys.readouterr() == ("", f"solo5-elftool: {words}\n")
    assert not (tmp_path / "manifest.c").exists()


def test_nesting_is_bounded() -> None:
    deepest = manifest_json.NESTING_MAX
    with pytest.raises(ManifestError, match="expected OBJECT, got ARRAY"):
        manifest_json.parse(b"[" * (deepest + 1) + b"]" * (deepest + 1), "x")
    with pytest.raises(ManifestError, match="nested deeper than 64 on line 1 in JSON data"):
        manifest_json.parse(b"[" * (deepest + 2), "x")
    with pytest.raises(ManifestError, match="nested deeper than 64"):
        manifest_json.parse(b'{"":' * 100_000, "x")


def test_size_is_bounded(tmp_path: Path, capsys: Printed) -> None:
    source = tmp_path / "manifest.json"
    text = manifest()
    source.write_text(text + " " * ((1 << 20) - len(text)))
    assert elftool.main(["gen-manifest", str(source), "-"]) == 0
    capsys.readouterr()
    source.write_text(text + " " * ((1 << 20) - len(text) + 1))
    assert elftool.main(["gen-manifest", str(source), "-"]) == 1
    assert capsys.readouterr().err == (
        f"solo5-elftool: {source}: larger than 1048576 bytes: this is not a manifest\n"
    )


def test_bytes_that_could_move_a_cursor_are_shown_escaped() -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_json.parse(b'{ "\\u001b[2J\xff": 1 }', "x")
    assert str(caught.value) == "x:1: (root): unknown key: \\x1b[2J\\xff"


@pytest.mark.parametrize("kind", ["NET_BASIC }, {", "NET BASIC", 'NET\\"', "NET\\n#error", "NET\\u00e4"])
def test_a_device_type_cannot_bring_code_into_the_c_file(kind: str) -> None:
    text = manifest(f'{{ "name": "a", "type": "{kind}" }}')
    with pytest.raises(ManifestError, match=r":5: \.devices\[\.\.\.\]: \.type: invalid value, expected"):
        manifest_json.parse(text.encode(), "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (manifest(NET.replace("vice", "\\u0000")), "name is not alphanumeric"),
        (manifest().replace("manifest", "manifest\\u0000"), "type: invalid value"),
        (manifest().replace('"devices"', '"devices\\u0000"'), "unknown key: devices"),
    ],
)
def test_an_escaped_nul_does_not_end_a_string(text: str, words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        manifest_json.parse(text.encode(), "x")


def test_the_last_of_two_devices_keys_counts() -> None:
    text = manifest(many(40), rest=f', "devices": [{NET}, {many(39)}]')
    assert [device.name for device in manifest_json.parse(text.encode(), "x")][:2] == ["service0", "net0"]


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0 \n1.e-tnfalsy', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_printable_line(data: bytes) -> None:
    try:
        manifest_json.parse(data, "x")
    except ManifestError as error:
        assert str(error).isprintable()


def test_limits_are_equal_to_those_of_the_abi() -> None:
    assert lib.MFT_MAX_ENTRIES - 1 == manifest_json.DEVICES_MAX
    assert lib.MFT_NAME_BYTES - 1 == manifest_json.NAME_BYTES_MAX
    assert lib.MFT_VERSION == manifest_json.VERSION


# ---- gen-manifest: what comes out ----

# The part of Solo5's mft_abi.h that a generated file uses, in the layout of the contract.
MFT_ABI_H = """\
#include <stdint.h>
#define MFT_VERSION 1
enum { MFT_DEV_BLOCK_BASIC = 1, MFT_DEV_NET_BASIC = 2, MFT_RESERVED_FIRST = 1 << 30 };
struct mft_entry { char name[68]; uint32_t type; uint64_t u[2]; void *b; _Bool attached; };
struct mft { uint32_t version; uint32_t entries; struct mft_entry e[MFT_ENTRIES]; };
struct mft1_note { uint32_t namesz, descsz, type; char name[8]; struct mft m; };
#define MFT1_NOTE_DECLARE_BEGIN \\
    const struct mft1_note note __attribute__((section(".note.solo5.manifest"), aligned(4))) = { \\
        6, sizeof(struct mft1_note) - 20, 0x3154464d, "Solo5", .m =
#define MFT1_NOTE_DECLARE_END };
"""


def compiled(source: Path, include: Path, *, check: bool = True) -> bytes:
    """Returns the bytes of the manifest note in gcc's object file; with `check` false, empty bytes if gcc
    refuses the file."""
    made = source.with_suffix(".o")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-nostdlib", f"-I{include}"]
    done = subprocess.run(
        ["cc", *flags, "-c", str(source), "-o", str(made)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode and not check:
        return b""
    assert done.returncode == 0, done.stderr
    with open(made, "rb") as file:
        section = ELFFile(file).get_section_by_name(".note.solo5.manifest")
        assert section is not None
        data: bytes = section.data()
    return data


@pytest.mark.parametrize("name", ["none", "both-kinds", "63", "name-67", "twins"])
def test_the_c_file_compiles_to_the_note(name: str, tmp_path: Path) -> None:
    text, devices = GOOD_MANIFESTS[name]
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "mft_abi.h").write_text(MFT_ABI_H)

    assert elftool.main(["gen-manifest", str(tmp_path / "manifest.json"), str(tmp_path / "manifest.c")]) == 0

    note = manifest_note([(name, 2 if kind == "NET_BASIC" else 1) for name, kind in devices])
    expected = b"".join(
        [(6).to_bytes(4, "little"), len(note.data).to_bytes(4, "little"), b"MFT1Solo5\0\0\0", note.data]
    )
    assert compiled(tmp_path / "manifest.c", tmp_path) == expected


def test_a_device_type_that_does_not_exist_is_left_to_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest(NET.replace("NET_BASIC", "FLOPPY")))
    (tmp_path / "mft_abi.h").write_text(MFT_ABI_H)
    assert elftool.main(["gen-manifest", str(tmp_path / "manifest.json"), str(tmp_path / "manifest.c")]) == 0
    assert compiled(tmp_path / "manifest.c", tmp_path, check=False) == b""


@pytest.mark.parametrize("name", GOOD_MANIFESTS)
def test_a_good_manifest_gives_its_devices_in_order(name: str) -> None:
    text, devices = GOOD_MANIFESTS[name]
    assert [(d.name, d.type) for d in manifest_json.parse(text.encode(), "x")] == devices


def test_an_existing_output_is_replaced_completely(tmp_path: Path) -> None:
    source, output = tmp_path / "manifest.json", tmp_path / "manifest.c"
    source.write_text(manifest())
    output.write_text("x" * 10_000)
    assert elftool.main(["gen-manifest", str(source), str(output)]) == 0
    assert output.read_text().startswith("/*")
    assert output.read_text().endswith("MFT1_NOTE_DECLARE_END\n")


def test_a_source_is_never_its_own_output(tmp_path: Path, capsys: Printed) -> None:
    source, link = tmp_path / "manifest.json", tmp_path / "link"
    source.write_text(manifest())
    link.symlink_to(source)
    assert elftool.main(["gen-manifest", str(source), str(link)]) == 1
    assert capsys.readouterr().err == f"solo5-elftool: {link}: is SOURCE itself; name another OUTPUT\n"
    assert source.read_text() == manifest()


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("absent", "out.c", "@/absent: Could not open for reading: No such file or directory"),
        ("", "out.c", "@: Could not read: Is a directory"),
        ("manifest.json", "", "@: Could not open for writing: Is a directory"),
        ("manifest.json", "a/b", "@/a/b: Could not open for writing: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    source: str, output: str, words: str, tmp_path: Path, capsys: Printed
) -> None:
    (tmp_path / "manifest.json").write_text(manifest())
    assert elftool.main(["gen-manifest", str(tmp_path / source), str(tmp_path / output)]) == 1
    assert capsys.readouterr() == ("", f"solo5-elftool: {words.replace('@', str(tmp_path))}\n")


def test_a_disk_that_is_full_is_an_error(tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "manifest.json").write_text(manifest())
    assert elftool.main(["gen-manifest", str(tmp_path / "manifest.json"), "/dev/full"]) == 1
    assert capsys.readouterr().err == "solo5-elftool: /dev/full: Could not write: No space left on device\n"


# ---- query-abi, query-manifest ----


def elf(tmp_path: Path, *notes: Note, **header: int) -> str:
    path = tmp_path / "app.elf"
    path.write_bytes(build_elf(segments=good_segments(), notes=notes, **header))  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize(
    ("target", "name"),
    [*enumerate(TARGETS, start=1), (0, "unknown"), (7, "unknown"), (0xFFFFFFFF, "unknown")],
)
def test_query_abi_names_the_target(target: int, name: str, tmp_path: Path, capsys: Printed) -> None:
    assert elftool.main(["query-abi", elf(tmp_path, abi_note(target=target))]) == 0
    assert capsys.readouterr() == (
        f'{{\n  "type": "solo5.abi",\n  "target": "{name}",\n  "version": 2\n}}\n',
        "",
    )


@pytest.mark.parametrize("version", [0, 1, 3, 0xFFFFFFFF])
def test_query_abi_prints_any_version(version: int, tmp_path: Path, capsys: Printed) -> None:
    assert elftool.main(["query-abi", elf(tmp_path, abi_note(version=version))]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == version


def listing(*devices: str) -> str:
    lines = "".join(f"    {device}\n" for device in devices)
    return f'{{\n  "type": "solo5.manifest",\n  "version": 1,\n  "devices": [\n{lines}  ]\n}}\n'


@pytest.mark.parametrize("target", range(7))
def test_query_manifest_lists_the_devices_of_any_target(target: int, tmp_path: Path, capsys: Printed) -> None:
    devices: list[tuple[str | bytes, str | int]] = [("service0", "net"), ("storage", "block"), ("odd", 7)]
    assert (
        elftool.main(["query-manifest", elf(tmp_path, abi_note(target=target), manifest_note(devices))]) == 0
    )
    assert capsys.readouterr() == (
        listing(
            '{ "name": "service0", "type": "NET_BASIC" },',
            '{ "name": "storage", "type": "BLOCK_BASIC" },',
            '{ "name": "odd", "type": "<undefined type>" }',
        ),
        "",
    )


@pytest.mark.parametrize("count", [0, 1, 2, 63])
def test_query_manifest_is_json_of_every_device(count: int, tmp_path: Path, capsys: Printed) -> None:
    names = [f"net{i}" for i in range(count)]
    assert (
        elftool.main(["query-manifest", elf(tmp_path, manifest_note([(name, "net") for name in names]))]) == 0
    )
    text = capsys.readouterr().out
    assert json.loads(text) == {
        "type": "solo5.manifest",
        "version": 1,
        "devices": [{"name": name, "type": "NET_BASIC"} for name in names],
    }
    if not names:
        assert text == listing()


def test_reserved_entries_are_not_listed(tmp_path: Path, capsys: Printed) -> None:
    entries = [RESERVED_ENTRY, device_entry("a", "net"), device_entry("b", MFT_RESERVED_FIRST)]
    assert elftool.main(["query-manifest", elf(tmp_path, raw_manifest_note(manifest_bytes(entries)))]) == 0
    assert capsys.readouterr().out == listing('{ "name": "a", "type": "NET_BASIC" }')


@pytest.mark.parametrize(
    ("name", "decoded"),
    [(b'"\\\n\x1b', '"\\\n\x1b'), ("ä".encode(), "ä"), (b"\xe4", "ä"), (b"\x7f\xc2\x9b", "\x7f\x9b")],
)
def test_a_hostile_name_is_still_a_json_string(
    name: bytes, decoded: str, tmp_path: Path, capsys: Printed
) -> None:
    assert elftool.main(["query-manifest", elf(tmp_path, manifest_note([(name, "net")]))]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["devices"][0]["name"] == decoded
    assert text.isascii()
    assert "\x1b" not in text


NO_NOTE = {
    "query-abi": "No Solo5 ABI information found in executable",
    "query-manifest": "No Solo5 manifest found in executable",
}


@pytest.mark.parametrize("query", NO_NOTE)
def test_a_missing_note_is_named(query: str, tmp_path: Path, capsys: Printed) -> None:
    path = elf(tmp_path, manifest_note() if query == "query-abi" else abi_note())
    assert elftool.main([query, path]) == 1
    assert capsys.readouterr() == ("", f"solo5-elftool: {path}: {NO_NOTE[query]}\n")


BAD_ENTRIES = {
    "version": manifest_bytes([RESERVED_ENTRY], version=2),
    "no-entries": manifest_bytes([]),
    "first-not-reserved": manifest_bytes([device_entry("a", "net")]),
    "first-has-a-name": manifest_bytes([MftEntry(name=b"x", type=MFT_RESERVED_FIRST)]),
    "count-too-small": manifest_bytes([RESERVED_ENTRY, device_entry("a", "net")], count=1),
    "count-65": manifest_bytes([RESERVED_ENTRY], count=65),
    "name-without-end": manifest_bytes([RESERVED_ENTRY, device_entry("a" * 68, "net")]),
    "attached": manifest_bytes([RESERVED_ENTRY, MftEntry(name=b"a", type=2, attached=1)]),
    "seven-bytes": manifest_bytes([])[:7],
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_manifest_that_breaks_a_rule_fails_validation(name: str, tmp_path: Path, capsys: Printed) -> None:
    path = elf(tmp_path, raw_manifest_note(BAD_ENTRIES[name]))
    assert elftool.main(["query-manifest", path]) == 1
    assert capsys.readouterr() == ("", f"solo5-elftool: {path}: Manifest validation failed\n")


BEFORE_THE_NOTES = [case for case in REFUSED if case.name.startswith(("header-", "phdr-"))]


@pytest.mark.parametrize("query", NO_NOTE)
@pytest.mark.parametrize("case", BEFORE_THE_NOTES, ids=lambda case: case.name)
def test_a_file_that_is_not_a_unikernel_for_this_machine_is_refused(
    case: Refused, query: str, tmp_path: Path, capsys: Printed
) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(case.data)
    assert elftool.main([query, str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"solo5-elftool: {path}: invalid executable: ")
    assert case.message in printed.err


@pytest.mark.parametrize("query", NO_NOTE)
def test_a_truncated_file_is_refused_in_one_line(query: str, tmp_path: Path, capsys: Printed) -> None:
    whole = build_elf(notes=[abi_note(), manifest_note([("service0", "net")])])
    needed = len(whole) if query == "query-manifest" else whole.index(b"ABI1Solo5") + 12 + 16
    path = tmp_path / "app.elf"
    path.write_bytes(whole[:needed])
    assert elftool.main([query, str(path)]) == 0
    capsys.readouterr()
    for size in range(needed):
        path.write_bytes(whole[:size])
        assert elftool.main([query, str(path)]) == 1
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("query", NO_NOTE)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "Could not open: No such file or directory"),
        ("", "Could not open: Is a directory"),
        ("fifo", "Not a file: it is a pipe or FIFO"),
    ],
)
def test_a_path_that_is_not_a_file_is_refused_without_waiting(
    name: str, words: str, query: str, tmp_path: Path, capsys: Printed
) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / name
    assert elftool.main([query, str(path)]) == 1
    assert capsys.readouterr() == ("", f"solo5-elftool: {path}: {words}\n")


# ---- The command ----


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["--version"],
        ["gen-manifest"],
        ["gen-manifest", "a"],
        ["gen-manifest", "a", "b", "c"],
        ["query-abi"],
        ["query-abi", "a", "b"],
        ["query-manifest"],
        ["query-manifest", "a", "b"],
    ],
)
def test_wrong_words_print_the_usage(words: list[str], capsys: Printed) -> None:
    assert elftool.main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: solo5-elftool COMMAND ...\nsolo5-elftool version ")
    for command in ("gen-manifest SOURCE OUTPUT", "query-abi BINARY", "query-manifest BINARY"):
        assert f"\n    {command}\n" in printed.err


def test_the_subcommand_and_the_link_named_solo5_elftool_do_the_same(
    tender_cmd: list[str], tmp_path: Path
) -> None:
    link = tmp_path / "solo5-elftool"
    link.symlink_to(tender_cmd[0])
    for command in ([*tender_cmd, "solo5-elftool"], [str(link)]):
        done = run([*command, "query-abi", "/nonexistent"])
        words = "solo5-elftool: /nonexistent: Could not open: No such file or directory\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", words)
        done = run([*command, "gen-manifest", "-", "-"], manifest())
        assert (done.returncode, done.stderr) == (0, "")
        assert '[1] = { .type = MFT_DEV_NET_BASIC, .name = "service0" }' in done.stdout
        done = run([*command, "gen-manifest", "-", "-"], "\n[]")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "solo5-elftool: -:1: (root): expected OBJECT, got ARRAY\n"


def test_help_goes_to_stdout(tender_cmd: list[str]) -> None:
    done = run([*tender_cmd, "help", "solo5-elftool"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: solo5-elftool COMMAND ...\n")


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False,
        encoding="utf-8", errors="surrogateescape",
    )  # fmt: skip


# ---- Comparison with the original ----


@pytest.fixture
def pair(tender_cmd: list[str], tmp_path: Path) -> tuple[list[str], list[str]]:
    """Solo5's command and ours, under the same name. Without the variable conftest.py deselects these
    tests."""
    original = os.environ["TENDER_SOLO5_ELFTOOL"]
    link = tmp_path / "solo5-elftool"
    link.symlink_to(tender_cmd[0])
    return [original], [str(link)]


# Cases where status and stdout are equal to the original's, and the message is not.
OWN_WORDS = {
    "root-unknown-key": "the original prints the key's control characters to the terminal",
    "wrong-last-letter": "the original accepts any last letter of true, false and null",
    "phdr-past-end": "the original prints -1 as an unsigned number",
    "abi-offset-past-end": "the original prints -1 as an unsigned number",
    "mft-descsz-1": "the original prints -3 as an unsigned number",
    "mft-descsz-4": "the original compares sizes without the padding, ours includes the padding",
}
# The original reads past the end of a note that is too short, and prints what it finds there.
NOT_COMPARED = {"abi-descsz-7"}


def same(pair: tuple[list[str], list[str]], *words: str, case: str = "") -> None:
    theirs, ours = (run([*command, *words]) for command in pair)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    if case not in OWN_WORDS:
        assert ours.stderr == theirs.stderr


@pytest.mark.parametrize("name", [*BAD_MANIFESTS, *BAD_JSON])
def test_the_original_refuses_with_the_same_message(
    name: str, pair: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    text, _ = {**BAD_MANIFESTS, **BAD_JSON}[name]
    (tmp_path / "manifest.json").write_text(text, newline="")
    same(pair, "gen-manifest", str(tmp_path / "manifest.json"), str(tmp_path / "out.c"), case=name)


@pytest.mark.parametrize("name", GOOD_MANIFESTS)
def test_the_original_declares_the_same_note(
    name: str, pair: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(GOOD_MANIFESTS[name][0], newline="")
    include = Path(pair[0][0]).resolve().parent.parent / "include"
    notes = []
    for number, command in enumerate(pair):
        output = tmp_path / f"{number}.c"
        done = run([*command, "gen-manifest", str(tmp_path / "manifest.json"), str(output)])
        assert (done.returncode, done.stderr) == (0, "")
        notes.append(compiled(output, include))
    assert notes[0] == notes[1]


QUERIED = {
    **{target: [abi_note(target=i), manifest_note([("a", "net"), ("b", "block")])]
       for i, target in enumerate([*TARGETS, "unknown"], start=1)},
    "version-9": [abi_note(version=9), manifest_note()],
    "63": [manifest_note([(f"net{i}", "net") for i in range(63)]), abi_note()],
    "odd-type": [abi_note(), manifest_note([("a", 9), ("b", 0)])],
    "no-notes": [],
    **{name: [abi_note(), raw_manifest_note(data)] for name, data in BAD_ENTRIES.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", QUERIED)
def test_the_original_answers_the_same(name: str, pair: tuple[list[str], list[str]], tmp_path: Path) -> None:
    path = elf(tmp_path, *QUERIED[name])
    same(pair, "query-abi", path)
    same(pair, "query-manifest", path)
    same(pair, "query-abi", str(tmp_path / "absent"))


COMPARED = [case for case in REFUSED if case.name not in NOT_COMPARED]


@pytest.mark.parametrize("case", COMPARED, ids=lambda case: case.name)
def test_the_original_answers_the_same_for_refused_files(
    case: Refused, pair: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(case.data)
    same(pair, "query-abi", str(path), case=case.name)
    same(pair, "query-manifest", str(path), case=case.name)


def test_the_original_answers_the_same_for_truncated_files(
    pair: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    whole = good_elf(devices=[("service0", "net")])
    path = tmp_path / "app.elf"
    for size in (0, 1, 63, 64, 65, 200, 455, 456, 457, 4096, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:size])
        same(pair, "query-abi", str(path))
        same(pair, "query-manifest", str(path))
