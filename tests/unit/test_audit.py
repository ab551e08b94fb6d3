"""`tender audit`: what it finds in files that are made in memory and in built guests, and what no file can do to it."""

import hashlib
import json
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elf_builder import (
    LOAD_ADDRESS,
    PF_R,
    PF_W,
    PF_X,
    Note,
    Segment,
    abi_note,
    build_elf,
    extension_note,
    good_elf,
    good_segments,
    manifest_note,
)
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_schema import problems
from support import Guest

import tender
from tender.cli.audit import command, components, instructions, policy
from tender.cli.audit import image as images
from tender.cli.audit.components import Component, Evidence

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
SCHEMA = json.loads((SCHEMAS / "audit.schema.json").read_text())
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
PROGBITS, SYMTAB, STRTAB = 1, 2, 3
FUNC, OBJECT = 0x12, 0x11
RET = b"\xc3"
Capture = pytest.CaptureFixture[str]


def with_sections(data: bytes, sections: dict[str, bytes], symbols: list[tuple[str, int, int, int]]) -> bytes:
    """Returns the ELF with these sections; symbols are (name, kind, address, size)."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in symbols)
    places = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name, *_ in symbols]
    table = b"".join(
        SYMBOL.pack(at, kind, 0, 1, *where) for at, (_, kind, *where) in zip(places, symbols, strict=True)
    )
    bodies = {**sections, ".symtab": table, ".strtab": strings}
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*bodies, ".shstrtab"])
    bodies[".shstrtab"] = names
    kinds = {".symtab": SYMTAB, ".strtab": STRTAB, ".shstrtab": STRTAB}
    headers, file = [bytes(SECTION.size)], bytearray(data)
    for name, body in bodies.items():
        link = 1 + list(bodies).index(".strtab") if name == ".symtab" else 0
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        row = (kinds.get(name, PROGBITS), 0, 0, len(file), len(body), link, 0, 1, SYMBOL.size if link else 0)
        headers.append(SECTION.pack(place, *row))
        file += body
    struct.pack_into("<Q", file, 40, len(file))
    struct.pack_into("<HHH", file, 58, SECTION.size, len(headers), len(headers) - 1)
    return bytes(file + b"".join(headers))


def image(
    code: bytes, sections: dict[str, bytes] | None = None, *symbols: tuple[str, int, int, int]
) -> bytes:
    """Returns an image whose code is one function, unless symbols are given."""
    named = list(symbols) or [("_start", FUNC, LOAD_ADDRESS, len(code))]
    return with_sections(good_elf(code=code, devices=[("service0", "net")]), sections or {}, named)


def audit(path: Path, capsys: Capture, *options: str, status: int = 0) -> dict[str, Any]:
    assert command.main(["--json", *options, str(path)]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert problems(found, SCHEMA) == []
    return found


def audit_of(data: bytes, tmp_path: Path, capsys: Capture, *options: str, status: int = 0) -> dict[str, Any]:
    path = tmp_path / "app.elf"
    path.write_bytes(data)
    return audit(path, capsys, *options, status=status)


GOLDEN = image(
    b"\xba\x02\x05\x00\x00\xef" + b"\x0f\x31" + b"\x0f\xc7\xf0" + b"\xf4" + RET + b"\x0f\xa2",
    {".comment": b"GCC: (Debian 12.2.0-14) 12.2.0\0", ".debug_line": b"\0"},
    ("_start", FUNC, LOAD_ADDRESS, 13),
    ("__stack_chk_fail", FUNC, LOAD_ADDRESS + 12, 1),
)


def test_the_json_is_that_of_the_golden_file_and_fits_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "app.elf").write_bytes(GOLDEN)
    monkeypatch.chdir(tmp_path)
    found = audit(Path("app.elf"), capsys, "--require", "gcc>=12", "--require=openssl?>=3.0")
    assert found == json.loads((SCHEMAS / "audit.golden.json").read_text())
    assert found["sha256"] == hashlib.sha256(GOLDEN).hexdigest()
    assert problems(found | {"more": 1}, SCHEMA) and problems(found | {"size": "1"}, SCHEMA)


def test_the_text_says_the_same(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(GOLDEN)
    assert command.main([str(path)]) == 0
    text = capsys.readouterr().out
    for line in (
        f"{path}: a unikernel for hvt, ABI version 2\n",
        "devices    service0 (net)\n",
        "  puts         1 call site\n",
        "  cpuid        at most 1\n",
        f"  rdtsc        1, the first at {LOAD_ADDRESS + 6:#x}\n",
        "entropy    RDRAND or RDSEED: 1 site\n",
        "sandbox    hlt: ends a run there, if it is reached\n",
        "no segment is writable and executable; the file says nothing of the stack;",
        "on KVM all data is executable",
        "  gcc  12.2.0       by comment\n",
    ):
        assert line in text, (line, text)


# Instructions: bytes, the name, and whether it is found where no function is known.
INSTRUCTIONS = [
    ("0f31", "rdtsc", True),
    ("0f01f9", "rdtscp", True),
    ("0fc7f0", "rdrand", True),
    ("480fc7f1", "rdrand", True),
    ("0fc7f8", "rdseed", True),
    ("0fa2", "cpuid", True),
    ("0f05", "syscall", True),
    ("0f34", "sysenter", True),
    ("cd80", "int", False),
    ("f4", "hlt", False),
    ("fa", "cli", False),
    ("fb", "sti", False),
    ("ec", "in", False),
    ("e460", "in", False),
    ("f36e", "outs", False),
    ("0f30", "wrmsr", False),
    ("0f20c0", "mov-cr", False),
    ("0f2387", "mov-dr", False),
    ("0f01f8", "swapgs", False),
    ("0f0138", "invlpg", False),
    ("0f0110", "lgdt", False),
    ("0f01c1", "vmx", False),
    ("0f01d9", "svm", False),
    ("0fc72f", "xsaves", False),
    ("660f38820a", "invpcid", False),
]
ORDINARY = [
    "90",
    "f30fc7f8",
    "0fc74f08",
    "0f01d0",
    "0f00c8",
    "c5f877",
    "62f17c48100a",
    "b80f310f31",
    "48b80f310f310f310f31",
]


@pytest.mark.parametrize(
    ("code", "name", "by_bytes"), INSTRUCTIONS, ids=[f"{n} {c}" for c, n, _ in INSTRUCTIONS]
)
def test_an_instruction_is_found_by_decoding_and_some_by_bytes(
    code: str, name: str, by_bytes: bool, tmp_path: Path, capsys: Capture
) -> None:
    raw = bytes.fromhex(code)
    found = audit_of(image(b"\x90" + raw + RET), tmp_path, capsys)
    counts = found["instructions"]
    if name not in ("in", "out"):  # these are listed with their ports
        assert counts == {name: {"sites": 1, "at_most": 1, "addresses": [LOAD_ADDRESS + 1]}}
    assert (name in found["ends_sandbox"]) == (name in instructions.ENDS_SANDBOX)
    outside = audit_of(image(RET + raw + RET, {}, ("_start", FUNC, LOAD_ADDRESS, 1)), tmp_path, capsys)
    unsure = {name: {"sites": 0, "at_most": 1, "addresses": []}} if by_bytes else {}
    assert outside["instructions"] == unsure
    assert outside["ends_sandbox"] == []


@pytest.mark.parametrize("code", ORDINARY)
def test_an_ordinary_instruction_is_none_of_interest_whatever_its_bytes(
    code: str, tmp_path: Path, capsys: Capture
) -> None:
    found = audit_of(image(bytes.fromhex(code) + RET), tmp_path, capsys)
    assert found["instructions"] == {}
    assert found["entropy"] == {"sites": 0, "at_most": 0}
    assert found["code"] == {
        "bytes": len(code) // 2 + 1,
        "decoded_bytes": len(code) // 2 + 1,
        "complete": True,
    }


def test_instructions_have_the_lengths_that_binutils_finds(guest: Guest) -> None:
    """Of some thousand instructions of the C library and of a guest: an error shows as a site between two."""
    for path in (guest("echo"), Path("/usr/lib/x86_64-linux-gnu/libc.so.6")):
        told = subprocess.run(
            ["objdump", "-d", "-w", "--insn-width=16", "--section=.text", path],
            capture_output=True, text=True, check=True, timeout=100,
        ).stdout  # fmt: skip
        lines = re.findall(r"^ +([0-9a-f]+):\t([0-9a-f ]+)\t(\S+)", told, re.M)[:200_000]
        _, one = instructions._patterns()
        wrong = [
            row for row in lines
            if "bad" not in row[2] and not one.fullmatch(bytes.fromhex(row[1]))
        ]  # fmt: skip
        assert len(lines) > 1000
        assert wrong == []


def test_ports_other_than_those_of_hypercalls_are_listed(tmp_path: Path, capsys: Capture) -> None:
    code = b"\xba\xf8\x03\x00\x00\xee" + b"\xef" + b"\xe4\x60" + b"\xba\x00\x06\x00\x00\xef" + RET
    found = audit_of(image(code), tmp_path, capsys)
    assert found["ports"] == [
        {"instruction": "in", "port": 0x60, "sites": 1},
        {"instruction": "out", "port": None, "sites": 1},
        {"instruction": "out", "port": 0x3F8, "sites": 1},
        {"instruction": "out", "port": 0x600, "sites": 1},
    ]
    assert found["ends_sandbox"] == ["in", "out"]
    kick = audit_of(image(b"\xba\x00\x06\x00\x00\xef" + RET), tmp_path, capsys)
    assert kick["ends_sandbox"] == []


@pytest.mark.parametrize("extended", [True, False])
def test_calls_of_the_gate_page_count_only_with_our_note(
    extended: bool, tmp_path: Path, capsys: Capture
) -> None:
    code = b"\x48\x83\xc0\x20\xff\xe0" + b"\x48\x05\x00\x01\x00\x00\xff\xd0" + b"\x48\x83\xc0\x21\xff\xd0"
    notes = [abi_note(), manifest_note(), *([extension_note()] if extended else [])]
    found = audit_of(build_elf(segments=good_segments(code), notes=notes), tmp_path, capsys)
    wanted = {"puts": {"call_sites": 0, "gate_calls": 1}, "block_batch": {"call_sites": 0, "gate_calls": 1}}
    assert found["hypercalls"] == (wanted if extended else {})
    assert ("tender-guest" in [c["name"] for c in found["components"]]) == extended


def test_an_executable_stack_is_what_the_header_says(tmp_path: Path, capsys: Capture) -> None:
    for flags, said in ((PF_R | PF_W, False), (PF_R | PF_W | PF_X, True)):
        segments = [*good_segments(), Segment(type=0x6474E551, flags=flags, vaddr=0)]
        data = build_elf(segments=segments, notes=[abi_note(), manifest_note()])
        assert audit_of(data, tmp_path, capsys)["executable_stack"] is said
    assert audit_of(good_elf(), tmp_path, capsys)["executable_stack"] is None


STRINGS = [
    (b"OpenSSL 3.0.19 27 Jan 2026", "openssl", "3.0.19"),
    (b"OpenSSL 1.1.1w  11 Sep 2023", "openssl", "1.1.1w"),
    (b"OpenSSL 1.1.1 (compatible; BoringSSL)", "boringssl", ""),
    (b"LibreSSL 3.9.2\0", "libressl", "3.9.2"),
    (b"AWS-LC 1.30.1", "aws-lc", "1.30.1"),
    (b"Mbed TLS 3.6.2\0", "mbedtls", "3.6.2"),
    (b"mbed TLS 2.16.0\0", "mbedtls", "2.16.0"),
    (b" inflate 1.2.13 Copyright 1995-2022 Mark Adler ", "zlib", "1.2.13"),
    (b"Server: lwIP/2.1.3", "lwip", "2.1.3"),
    (b"GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n", "glibc", "2.36"),
    (b"\xff Go buildinf:\x08\x02" + bytes(16) + b"\x08go1.21.5", "go", "1.21.5"),
    (b"\ndep\tgolang.org/x/crypto\tv0.17.0\th1:", "go:golang.org/x/crypto", "0.17.0"),
    (b"/root/.cargo/registry/src/index.crates.io-6f17d22b/rustls-0.21.7/src/lib.rs", "rust:rustls", "0.21.7"),
    (b"/rustc/" + b"0" * 40 + b"/library/core/src/panic.rs", "rustc", ""),
    (b"\0v0.9.1-3-gabcdef0\0Solo5: Bindings version %s\n", "solo5", "0.9.1"),
    (b"SQLite format 3\0", "sqlite", ""),
]


@pytest.mark.parametrize(
    ("said", "name", "version"), STRINGS, ids=[name + version for _, name, version in STRINGS]
)
@pytest.mark.parametrize("place", [0, components.AFTER, (4 << 20) - 20])
def test_a_text_in_the_file_names_a_library_wherever_it_is(
    said: bytes, name: str, version: str, place: int, tmp_path: Path, capsys: Capture
) -> None:
    data = GOLDEN + bytes(max(place - len(GOLDEN), 0)) + said + b"\0"
    found = audit_of(data, tmp_path, capsys)["components"]
    assert {"name": name, "version": version, "evidence": "string"} in found


def test_each_row_of_texts_has_a_case() -> None:
    cased = {name.partition(":")[0] for _, name, _ in STRINGS}
    assert {row.name.partition(":")[0] for row in components.STRINGS} == cased
    assert all(row.anchor and row.source for row in (*components.STRINGS, *components.COMMENTS))


@pytest.mark.parametrize(
    ("comment", "name", "version"),
    [
        (b"GCC: (GNU) 13.2.1 20231205", "gcc", "13.2.1"),
        (b"Debian clang version 14.0.6", "clang", "14.0.6"),
        (b"rustc version 1.75.0 (82e1608df 2023-12-21)", "rustc", "1.75.0"),
        (b"Tender guest library 3.2.1", "tender-guest", "3.2.1"),
    ],
)
def test_compilers_are_those_of_the_comment(
    comment: bytes, name: str, version: str, tmp_path: Path, capsys: Capture
) -> None:
    found = audit_of(image(RET, {".comment": b"\0" + comment + b"\0"}), tmp_path, capsys)
    assert found["components"] == [{"name": name, "version": version, "evidence": "comment"}]


@pytest.mark.parametrize("symbol", components.SYMBOLS)
def test_a_symbol_names_a_component(symbol: str, tmp_path: Path, capsys: Capture) -> None:
    found = audit_of(image(RET, {}, (symbol, FUNC, LOAD_ADDRESS, 1)), tmp_path, capsys)
    assert found["components"] == [
        {"name": components.SYMBOLS[symbol][0], "version": "", "evidence": "symbol"}
    ]


def ocaml_string(text: bytes) -> bytes:
    """Returns the block of a string: a header, and the text filled up to whole words."""
    filled = text + bytes(7 - len(text) % 8) + bytes([7 - len(text) % 8])
    return struct.pack("<Q", len(filled) // 8 << 10 | 0x300 | 252) + filled


def ocaml_packages(start: int, packages: list[tuple[bytes, bytes | None]]) -> bytes:
    """Returns the data of the module that dune generates, at this address."""
    data = bytearray(8)
    for name, version in packages:
        some = 1
        if version is not None:
            text = start + len(data) + 8
            data += ocaml_string(version)
            some = start + len(data) + 8
            data += struct.pack("<QQ", 1 << 10 | 0x300, text)
        named = start + len(data) + 8
        data += ocaml_string(name)
        data += struct.pack("<QQQ", 2 << 10 | 0x300, named, some)
    return bytes(data)


@pytest.mark.parametrize("separator", ["__", "."])
def test_ocaml_and_its_packages_have_versions_by_the_data_of_their_modules(
    separator: str, tmp_path: Path, capsys: Capture
) -> None:
    data_at = LOAD_ADDRESS + 0x1000
    sys_data = bytes(8) + ocaml_string(b"OCaml") + ocaml_string(b"5.1.1")
    packages = ocaml_packages(
        data_at + len(sys_data), [(b"lwt", b"5.7.0"), (b"tls", b"v0.17.3"), (b"dune", None)]
    )
    segments = [
        Segment(data=RET, flags=PF_X, vaddr=LOAD_ADDRESS),
        Segment(data=sys_data + packages, flags=PF_R | PF_W, vaddr=data_at),
    ]
    symbols = [
        ("_start", FUNC, LOAD_ADDRESS, 1),
        ("caml_startup", FUNC, LOAD_ADDRESS, 1),
        (f"camlStdlib__Sys{separator}data_begin", OBJECT, data_at, 0),
        (f"camlStdlib__Sys{separator}data_end", OBJECT, data_at + len(sys_data), 0),
        (f"camlBuild_info__Build_info_data{separator}data_begin", OBJECT, data_at + len(sys_data), 0),
        (
            f"camlBuild_info__Build_info_data{separator}data_end",
            OBJECT,
            data_at + len(sys_data + packages),
            0,
        ),
    ]
    elf = with_sections(build_elf(segments=segments, notes=[abi_note(), manifest_note()]), {}, symbols)
    found = audit_of(elf, tmp_path, capsys)["components"]
    assert found == [
        {"name": "ocaml", "version": "5.1.1", "evidence": "symbol"},
        {"name": "opam:dune", "version": "", "evidence": "build"},
        {"name": "opam:lwt", "version": "5.7.0", "evidence": "build"},
        {"name": "opam:tls", "version": "0.17.3", "evidence": "build"},
    ]


def test_the_version_of_sqlite_is_at_its_symbol(tmp_path: Path, capsys: Capture) -> None:
    code = RET + b"3.40.1\0"
    found = audit_of(image(code, {}, ("sqlite3_version", OBJECT, LOAD_ADDRESS + 1, 7)), tmp_path, capsys)
    assert found["components"] == [{"name": "sqlite", "version": "3.40.1", "evidence": "symbol"}]


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ("5.1", "5.0.9"), ("5.1.1", "5.1"), ("4.14.10", "4.14.9"), ("1.1.1w", "1.1.1v"), ("1.1.1a", "1.1.1"),
        ("5.2.0", "5.2.0~rc1"), ("5.2.0-rc2", "5.2.0-rc1"), ("5.2.0-rc1", "5.1.9"), ("3.0", "3.0-dev"),
    ],
)  # fmt: skip
def test_versions_have_the_order_that_people_expect(newer: str, older: str) -> None:
    assert policy.order(newer) > policy.order(older)
    assert policy.order(newer) == policy.order(newer.replace("5.1", "5.1.0") if newer == "5.1" else newer)


REQUIREMENTS = [
    ("gcc>=12.2", True, ""),
    ("gcc>=12.2.0", True, ""),
    ("gcc>=12.3", False, "gcc>=12.3 is required, found 12.2.0"),
    ("gcc?>=12.3", False, "gcc?>=12.3 is required, found 12.2.0"),
    ("ocaml>=5.1", False, "ocaml>=5.1 is required, found nothing"),
    ("ocaml?>=5.1", True, ""),
    ("solo5>=0.9", False, "solo5>=0.9 is required, found no version"),
]


@pytest.mark.parametrize(("asked", "met", "said"), REQUIREMENTS, ids=[row[0] for row in REQUIREMENTS])
def test_a_required_version_decides_the_status(
    asked: str, met: bool, said: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "app.elf"
    comment = {".comment": b"GCC: (Debian) 12.2.0\0"}
    path.write_bytes(image(RET, comment, ("solo5_app_main", FUNC, LOAD_ADDRESS, 1)))
    for words in (["--require", asked], [f"--require={asked}"]):
        assert command.main([*words, str(path)]) == (0 if met else 1)
        printed = capsys.readouterr()
        assert f"required   {asked}: {'yes' if met else 'no'}" in printed.out
        assert printed.err == (f"tender: audit: {path}: {said}\n" if said else "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "an IMAGE or a directory is needed"),
        (["--frob", "x"], "Invalid option: `--frob'"),
        (["--require", "ocaml", "x"], "--require: `ocaml' is not NAME>=VERSION"),
        (["--require=ocaml>5", "x"], "--require: `ocaml>5' is not NAME>=VERSION"),
        (["x", "--require"], "--require: `' is not NAME>=VERSION"),
        (["--require", "a\x1b>=1", "x"], "--require: `a\\x1b>=1' is not NAME>=VERSION"),
    ],
)
def test_wrong_words_are_status_2(words: list[str], message: str, capsys: Capture) -> None:
    assert command.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"tender: audit: {message}\n")


def test_a_directory_has_a_line_for_each_image_and_other_files_are_skipped(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("a.elf", "b/deep/z.elf"):
        (tmp_path / name).write_bytes(GOLDEN)
    (tmp_path / "spt.elf").write_bytes(
        build_elf(segments=good_segments(), notes=[abi_note(target=2), manifest_note()])
    )
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "program").write_bytes(build_elf(segments=good_segments()))
    (tmp_path / "again.elf").symlink_to("a.elf")
    (tmp_path / "b" / "up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    assert command.main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path}/a.elf", f"{tmp_path}/b/deep/z.elf"]
    assert lines[0].endswith(": hvt 2; 4310 bytes; net; ends in the sandbox by hlt; gcc 12.2.0".replace(
        "4310", str(len(GOLDEN))))  # fmt: skip
    assert printed.err == ""
    assert command.main(["--verbose", "--json", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["size"] for line in printed.out.splitlines()] == [len(GOLDEN)] * 2
    for name, why in (
        ("notes.txt", "not an ELF file"),
        ("program", "not a unikernel"),
        ("spt.elf", "not a unikernel"),
    ):
        assert f"tender: audit: {tmp_path}/{name}: skipped: {why}" in printed.err


def test_a_directory_without_an_image_is_status_1(tmp_path: Path, capsys: Capture) -> None:
    assert command.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"tender: audit: {tmp_path}: no unikernel in this directory\n"


def test_a_walk_has_bounds(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ENTRIES_MAX", 3)
    monkeypatch.setattr(command, "DEPTH_MAX", 1)
    (tmp_path / "1" / "2").mkdir(parents=True)
    (tmp_path / "a.elf").write_bytes(GOLDEN)
    (tmp_path / "1" / "2" / "deep.elf").write_bytes(GOLDEN)
    assert command.main([str(tmp_path)]) == 0
    assert "deep.elf" not in capsys.readouterr().out
    for i in range(3):
        (tmp_path / f"f{i}").touch()
    assert command.main([str(tmp_path)]) == 1
    assert (
        f"tender: audit: {tmp_path}: more than 3 entries; the rest is left out\n" in capsys.readouterr().err
    )


REFUSED: dict[str, tuple[bytes, str]] = {
    "no ELF": (b"text", "not an ELF file"),
    "empty": (b"", "an empty file"),
    "a program": (build_elf(segments=good_segments()), "an ordinary Linux program or library"),
    "for spt": (
        build_elf(segments=good_segments(), notes=[abi_note(target=2), manifest_note()]),
        "built for spt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_named_file_that_is_no_image_is_status_1(case: str, tmp_path: Path, capsys: Capture) -> None:
    data, hint = REFUSED[case]
    path = tmp_path / "app.elf"
    path.write_bytes(data)
    assert command.main(["--json", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"tender: {path}: ")
    assert f"tender: hint: {hint}" in printed.err
    assert problems(json.loads(printed.out), SCHEMA) == []


def test_writable_code_is_refused_as_at_a_boot(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "app.elf"
    segments = [Segment(data=RET, flags=PF_R | PF_W | PF_X, vaddr=LOAD_ADDRESS)]
    path.write_bytes(build_elf(segments=segments, notes=[abi_note(), manifest_note()]))
    assert command.main([str(path)]) == 1
    assert "requests WRITE and EXEC permissions" in capsys.readouterr().err


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(GOLDEN)
    os.truncate(path, 2 << 30)
    assert command.main([str(path)]) == 1
    assert "tender: hint: 'tender inspect' reads files of any size" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_shown_as_an_escape(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a\x1b[31m.elf"
    path.write_bytes(good_elf(devices=[(b"\x1b]0;x\x07", "net")]))
    for words in ([str(path)], [str(tmp_path)]):
        assert command.main([*words, "--require", "gcc>=1"]) == 1
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err and "\\x1b" in printed.out
        assert "\x07" not in printed.out


HOSTILE_CODE = {
    "prefixes": b"\x66" * (1 << 22),
    "wide prefixes": b"\x48" * (1 << 22),
    "halts": b"\xf4" * (1 << 22),
    "clock": b"\x0f\x31" * (1 << 21),
    "anchors": b"OpenSSL /registry/src/\ndep\t" * (1 << 17),
    "vectors": b"\x62\xf1" * (1 << 21),
    "gate calls": b"\x48\x83\xc0\x10\xff\xe0" * (1 << 19),
    "call sites": b"\xba\x01\x05\x00\x00\xef" * (1 << 19),
}


@pytest.mark.parametrize("case", HOSTILE_CODE)
@pytest.mark.parametrize("named", [True, False])
def test_hostile_code_ends_soon(case: str, named: bool, tmp_path: Path, capsys: Capture) -> None:
    """4 MiB each; a time that grew with the square of that would pass the limit of the test."""
    code = HOSTILE_CODE[case]
    starts = range(0, len(code), 64) if named else []
    symbols = [("f", FUNC, LOAD_ADDRESS + at, 1 << 40) for at in starts] or [("x", OBJECT, 0, 0)]
    found = audit_of(image(code, {}, *symbols), tmp_path, capsys)
    assert found["code"]["bytes"] == len(code)
    assert len(found["components"]) <= components.COMPONENTS_MAX
    assert all(count["sites"] <= instructions.SITES_MAX for count in found["instructions"].values())


def test_code_beyond_the_bound_is_not_claimed_to_be_known(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CODE_MAX", 4)
    found = audit_of(GOLDEN, tmp_path, capsys)
    assert found["code"] == {"bytes": 4, "decoded_bytes": 0, "complete": False}


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(GOLDEN) - 1),
        st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=12,
)


@given(changes=MUTATIONS, cut=st.one_of(st.none(), st.integers(0, len(GOLDEN))))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_described_or_refused(
    changes: list[tuple[int, int]], cut: int | None, tmp_path: Path, capsys: Capture
) -> None:
    data = bytearray(GOLDEN)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "app.elf"
    path.write_bytes(data[:cut])
    status = command.main(["--json", str(path)])
    printed = capsys.readouterr()
    assert status in (0, 1)
    assert problems(json.loads(printed.out), SCHEMA) == []
    assert bool(printed.err) == (status == 1)
    assert command.main([str(path)]) == status
    capsys.readouterr()


@given(data=st.binary(max_size=512), start=st.integers(0, 1 << 64))
def test_any_bytes_are_read_as_an_ocaml_module(data: bytes, start: int) -> None:
    assert all(name for name, _ in components.ocaml_packages(data, start))
    assert components.ocaml_version(data) == "" or b"." in data


@given(code=st.binary(max_size=300), starts=st.lists(st.integers(0, 320), max_size=8, unique=True))
def test_any_bytes_are_decoded_or_searched(code: bytes, starts: list[int]) -> None:
    found = instructions.Findings()
    instructions.look_through(code, 0, sorted((at, 40) for at in starts), found)
    assert 0 <= found.decoded_bytes <= found.code_bytes == len(code)
    for name, count in found.counts.items():
        assert all(instructions.name_of(code[at : at + 15]) == name for at in count.sites)


@pytest.mark.parametrize("name", ["hello", "echo", "disk", "hello_nogate", "clock"])
def test_built_guests_are_described(name: str, guest: Guest, capsys: Capture) -> None:
    path = guest(name)
    found = audit(path, capsys)
    with path.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text and found["code"]["bytes"] >= text.data_size
    assert found["code"]["decoded_bytes"] > found["code"]["bytes"] * 0.9
    assert found["hardening"]["debug_lines"] and found["instructions"]["rdtsc"]["sites"]
    assert not found["ends_sandbox"] and not found["entropy"]["at_most"]
    assert found["hypercalls"]["halt"]["call_sites"] == 1
    names = {component["name"]: component["version"] for component in found["components"]}
    assert names["gcc"] and names["tender-guest"] == tender.__version__


def test_the_guest_library_calls_each_slot_of_the_gate_page(guest: Guest, capsys: Capture) -> None:
    found = audit(guest("echo"), capsys)["hypercalls"]
    assert {name for name, count in found.items() if count["gate_calls"]} >= {
        "puts", "poll", "walltime", "net_read", "net_write", "block_batch", "net_batch",
    }  # fmt: skip


def test_a_component_with_a_version_hides_the_same_without() -> None:
    bare, known = Component("lwip", "", Evidence.SYMBOL), Component("lwip", "2.1.3", Evidence.STRING)
    assert components.merged([bare, known]) == [known]
    assert components.merged([bare]) == [bare]


def test_notes_of_another_owner_are_no_guest_library(tmp_path: Path, capsys: Capture) -> None:
    notes = [
        abi_note(),
        manifest_note(),
        Note(type=0x31444E54, name=b"Other\0\0\0", namesz=6, data=bytes(16)),
    ]
    assert audit_of(build_elf(segments=good_segments(), notes=notes), tmp_path, capsys)["components"] == []
