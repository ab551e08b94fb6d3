"""`tender inspect` on files that are made in memory, and on a unikernel with symbols."""

import json
from pathlib import Path

import pytest
from elf_builder import (
    Note,
    abi_note,
    build_elf,
    extension_note,
    good_elf,
    good_segments,
    manifest_note,
)

from tender.backend import trial
from tender.cli import inspect


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.elf"
    path.write_bytes(good_elf(devices=[("service0", "net"), ("storage", "block"), ("odd", 7)]))
    return path


def test_the_text_output_shows_devices_and_segments(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(app)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{app}: a unikernel for hvt, ABI version 2\n\nentry     0x100000\n")
    assert "   1  NET_BASIC     service0\n   2  BLOCK_BASIC   storage\n   3  type 0x7      odd\n" in text
    assert "  0x00100000  0x00101000  --x     1         1\n" in text
    assert "functions" not in text


def test_the_json_output_is_one_object(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--json", str(app)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        *(
            "schema",
            "file",
            "abi",
            "extensions",
            "sites",
            "entry",
            "entry_symbol",
            "build_id",
            "memory",
            "devices",
        ),
        *("segments", "symbol_count", "symbols_complete", "error"),
    ]
    assert (found["schema"], found["abi"]) == (1, {"target": "hvt", "version": 2})
    assert found["devices"][0] == {"handle": 1, "name": "service0", "kind": "net", "type": "NET_BASIC"}
    assert [segment["rights"] for segment in found["segments"]] == ["--x", "r--", "rw-"]
    assert found["memory"]["least_bytes"] == 2 << 20
    assert found["error"] is None


@pytest.mark.parametrize(
    ("notes", "listed", "line"),
    [([], [], "extension none\n"), ([extension_note()], ["gate"], "extension gate\n")],
)
def test_the_extensions_that_an_image_requests_are_shown(
    notes: list[Note], listed: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(build_elf(segments=good_segments(), notes=[abi_note(), manifest_note(), *notes]))
    assert inspect.main([str(path)]) == 0
    assert line in capsys.readouterr().out
    assert inspect.main(["--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["extensions"] == listed


def test_the_call_sites_that_the_sandbox_patches_are_counted(
    tmp_path: Path, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trial.elf"
    path.write_bytes(trial.elf())
    assert inspect.main([str(path)]) == 0
    assert "sites     2 call sites in its text" in capsys.readouterr().out
    assert inspect.main(["--json", str(app)]) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == 0


def test_symbols_are_listed_by_address(guest: "object", capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(guest)
    assert inspect.main(["--json", "--symbols", str(guest("hello"))]) == 0
    found = json.loads(capsys.readouterr().out)
    addresses = [function["address"] for function in found["functions"]]
    assert "main" in [function["name"] for function in found["functions"]]
    assert addresses == sorted(addresses)
    assert found["entry_symbol"] == "_start"
    assert len(found["build_id"]) == 40


@pytest.mark.parametrize(
    ("notes", "hint"),
    [
        ([abi_note(target=2), manifest_note()], "built for spt: build the unikernel for hvt"),
        ([abi_note(target=3), manifest_note()], "built for virtio: build the unikernel for hvt"),
        ([abi_note(target=6), manifest_note()], "built for xen: build the unikernel for hvt"),
        ([], "an ordinary Linux program or library, not a unikernel"),
    ],
)
def test_a_refused_file_is_described(
    notes: list[object], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "app.elf"
    path.write_bytes(build_elf(segments=good_segments(), notes=notes))  # type: ignore[arg-type]
    assert inspect.main(["--json", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"tender: {path}: ")
    assert f"tender: hint: {hint}" in printed.err
    assert json.loads(printed.out)["error"]["hint"].startswith(hint)


@pytest.mark.parametrize("cut", [0, 10, 63, 64, 200, 4096, 5000])
def test_a_truncated_file_is_refused_in_one_line(
    cut: int, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.write_bytes(app.read_bytes()[:cut])
    assert inspect.main([str(app)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"tender: {app}: ")


def test_broken_section_headers_cost_only_the_symbols(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "app.elf"
    notes = [abi_note(), manifest_note()]
    path.write_bytes(
        build_elf(
            segments=good_segments(), notes=notes, e_shoff=9999999, e_shnum=5, e_shentsize=64, e_shstrndx=4
        )
    )
    assert inspect.main([str(path)]) == 0
    assert "symbols   none\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frob", "x"], "inspect: Invalid option: `--frob'"),
        ([], "inspect: one IMAGE is needed"),
        (["a", "b"], "inspect: one IMAGE is needed"),
    ],
)
def test_wrong_words_print_the_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main(words) == 1
    assert capsys.readouterr().err.startswith(f"tender: {message}\nusage: tender inspect ")


@pytest.mark.parametrize(("flags", "text"), [(0, "---"), (1, "--x"), (5, "r-x"), (6, "rw-"), (7, "rwx")])
def test_rights(flags: int, text: str) -> None:
    assert inspect.rights(flags) == text
