"""`tender sdk`: the recipe that it prints builds a unikernel in an empty directory."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tender.cli import sdk
from tender.image import Image


def test_the_recipe_builds_a_unikernel_that_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sdk.main([]) == 0
    recipe = capsys.readouterr().out.partition("# 3.")[0]
    done = subprocess.run(
        ["sh", "-eu"], input=recipe, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "app.elf") as image:
        assert (image.devices, image.abi_version, image.extensions) == (
            (),
            2,
            ("gate", "block-batch", "net-batch"),
        )


def test_flags_are_shell_words_for_a_makefile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = []
    for option in ("--cflags", "--ldflags"):
        assert sdk.main([option]) == 0
        flags.append(shlex.split(capsys.readouterr().out))
    (tmp_path / "app.c").write_text(sdk.EXAMPLE)
    command = [shutil.which("gcc") or "gcc", *flags[0], "app.c", *flags[1], "-o", "app.elf"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "app.elf") as image:
        assert image.devices == ()


def test_flags_survive_a_directory_with_a_space() -> None:
    root = Path("/opt/my tools/sdk")
    assert shlex.split(sdk.cflags(root))[-1] == "-I/opt/my tools/sdk/include"
    assert "-L/opt/my tools/sdk/lib" in shlex.split(sdk.ldflags(root))


@pytest.mark.parametrize("option", ["--include", "--lib", "--script", "--guests"])
def test_directories_exist(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sdk.main([option]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


def test_an_installation_without_the_guest_library_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sdk, "sdk_root", lambda: tmp_path / "sdk")
    assert sdk.main([]) == 1
    assert "no guest library in this installation" in capsys.readouterr().err


def test_a_wrong_option_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert sdk.main(["--frob"]) == 1
    assert capsys.readouterr().err.startswith("tender: sdk: Invalid option: `--frob'\nusage: tender sdk ")


def test_the_hint_builds_the_example_in_a_directory_with_a_space(tmp_path: Path) -> None:
    """The package is copied to such a directory, and a script named `tender` runs its module."""
    place = tmp_path / "a place"
    shutil.copytree(sdk.sdk_root().parent, place / "tender")
    program = tmp_path / "bin" / "tender"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{place}' exec '{sys.executable}' -P -m tender \"$@\"\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    (tmp_path / "app.c").write_text(sdk.EXAMPLE)
    asked = subprocess.run(
        [program, "sdk", "--cflags"], env=environment, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0 and f"'-I{place}/tender/sdk/include'" in asked.stdout
    assert asked.stderr.startswith("tender: hint: ") and asked.stderr.endswith(f": {sdk.WHOLE}\n")
    built = subprocess.run(
        ["sh", "-ec", sdk.WHOLE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    with Image.open(tmp_path / "app.elf") as image:
        assert image.devices == ()


def test_the_line_for_a_makefile_builds_the_example(tmp_path: Path) -> None:
    line = sdk.recipe(sdk.sdk_root()).rpartition("# In a Makefile: ")[2]
    (tmp_path / "app.c").write_text(sdk.EXAMPLE)
    (tmp_path / "Makefile").write_text(f"app.elf:\n\t{line}\n")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "app.elf") as image:
        assert image.devices == ()
