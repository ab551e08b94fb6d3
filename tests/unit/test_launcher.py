"""The native `tender` finds python3 and the package next to itself, from wherever it is called, for
everything that Python serves."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import tender
from tender.cli.main import COMMANDS, FRONTS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "tender"
FAKE_PYTHON = '#!/bin/sh\nprintf "%s|" "${0##*/}" "$@"\n'


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation in `a b` whose python3 prints how it was called."""
    prefix = tmp_path / "a b"
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(PROGRAM, prefix / "bin" / "tender")
    executable(prefix / "bin" / "python3", FAKE_PYTHON)
    return prefix


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def add_package(prefix: Path, packages: str = "site-packages", python: str = "python3.12") -> Path:
    cli = prefix / "lib" / python / packages / "tender" / "cli"
    cli.mkdir(parents=True)
    (cli / "launch.py").touch()
    return cli / "launch.py"


def called(
    *command: str | Path, cwd: Path | None = None, path: str | None = None, launcher: str | None = None
) -> list[str]:
    env = {
        **os.environ,
        **({"PATH": path} if path else {}),
        **({"TENDER_LAUNCHER": launcher} if launcher else {}),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=cwd, env=env)
    return done.stdout.split("|")[:-1]


@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3"])
def test_with_the_package_next_to_it_every_word_is_passed_unchanged(
    prefix: Path, packages: str, python: str
) -> None:
    add_package(prefix, packages, python)
    launch = f"{prefix}/bin/../lib/{python}/{packages}/tender/cli/launch.py"
    words = called(prefix / "bin" / "tender", "--frob", "--mem=5", "", "a b", "*")
    assert words == ["python3", "-I", "-S", "-X", "utf8", launch, "--frob", "--mem=5", "", "a b", "*"]


def test_without_the_package_next_to_it_python_searches_for_it(prefix: Path) -> None:
    words = called(prefix / "bin" / "tender", "x", "", "a b")
    assert words[:4] == ["python3", "-X", "utf8", "-c"] and words[-3:] == ["x", "", "a b"]


@pytest.mark.parametrize("has_package", [True, False], ids=["next to it", "elsewhere"])
def test_a_python_that_is_too_old_is_named(prefix: Path, has_package: bool) -> None:
    """PATH may begin with one, after `pip install --target` for instance. Its own messages have status 2, after
    which managers of unikernels start a guest again."""
    old = "import sys; sys.version_info = (3, 10, 13)\n"
    if has_package:
        launch = Path(tender.__path__[0]) / "cli" / "launch.py"
        add_package(prefix).write_text(old + launch.read_text())
        script = 'exec {python} "$@"'
    else:  # -X utf8 -c PROGRAM WORDS...: an old Python knows no -P
        script = '[ "$1$3" = -X-c ] || exit 2; program=$4; shift 4; exec {python} -c "{old}$program" "$@"'
    python = sys._base_executable  # type: ignore[attr-defined]
    executable(prefix / "bin" / "python3", "#!/bin/sh\n" + script.format(python=python, old=old) + "\n")
    done = subprocess.run(
        [prefix / "bin" / "tender", "--stats", "app.elf"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"tender: Python 3\.11 or later is needed, but /\S+ is Python 3\.10\n", done.stderr
    ), done.stderr


def test_the_package_is_not_imported_from_the_working_directory(prefix: Path, tmp_path: Path) -> None:
    """Python is started without -S here, with a real interpreter that does not have our package. ./tender
    must not be used."""
    executable(prefix / "bin" / "python3", f'#!/bin/sh\nexec {sys._base_executable} "$@"\n')  # type: ignore[attr-defined]
    (tmp_path / "tender").mkdir()
    (tmp_path / "tender" / "__main__.py").write_text("print('taken')")
    (tmp_path / "tender" / "__init__.py").touch()
    done = subprocess.run(
        [prefix / "bin" / "tender", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "the Python package tender cannot be found" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which runs a set-user-ID copy as another user")
def test_with_another_users_rights_no_python_is_executed(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\necho taken\n")
    (tmp_path / "python3").chmod(0o755)
    copy = tmp_path / "own" / "tender"
    copy.parent.mkdir()
    shutil.copy(PROGRAM, copy)
    copy.chmod(0o4755)
    for directory in (tmp_path, copy.parent, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    done = subprocess.run(
        [copy, "--help"], user=65534, capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "Python" in done.stderr


def test_symbolic_links_are_followed(prefix: Path, tmp_path: Path) -> None:
    add_package(prefix)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "first").symlink_to("second")
    (tmp_path / "links" / "second").symlink_to("../a b/bin/tender")
    assert called(tmp_path / "links" / "first", "x")[1:3] == ["-I", "-S"]


def test_a_link_with_a_tools_name_runs_that_subcommand(prefix: Path, tmp_path: Path) -> None:
    launch = add_package(prefix)
    (tmp_path / "solo5-elftool").symlink_to("a b/bin/tender")
    (tmp_path / "other-name").symlink_to("a b/bin/tender")
    (prefix / "bin" / "solo5-elftool").symlink_to("tender")
    found = str(prefix / "bin" / ".." / launch.relative_to(prefix))
    for tool in (tmp_path / "solo5-elftool", prefix / "bin" / "solo5-elftool"):
        assert called(tool, "query-abi", "a b")[6:] == ["solo5-elftool", "query-abi", "a b"]
    assert called("solo5-elftool", "x", path=f"{tmp_path}:/usr/bin:/bin")[5:] == [found, "solo5-elftool", "x"]
    assert called(tmp_path / "other-name", "x")[6:] == ["x"]


@pytest.mark.parametrize("name", FRONTS)
def test_a_link_with_one_of_solo5_hvts_names_passes_that_name_first(
    prefix: Path, tmp_path: Path, name: str
) -> None:
    add_package(prefix)
    (tmp_path / name).symlink_to(prefix / "bin" / "tender")
    assert called(tmp_path / name, "--mem=5x", "", "a b")[-4:] == [name, "--mem=5x", "", "a b"]
    assert called(name, "x", path=f"{tmp_path}:/usr/bin:/bin")[-2:] == [name, "x"]
    (tmp_path / "another").symlink_to(prefix / "bin" / "tender")
    assert called(tmp_path / "another", "x")[-2].endswith("launch.py")


def test_the_program_works_from_the_path_and_from_its_directory(prefix: Path) -> None:
    add_package(prefix)
    assert called("tender", "x", path=f"{prefix}/bin:/usr/bin:/bin")[1:3] == ["-I", "-S"]
    assert called("./tender", "x", cwd=prefix / "bin")[1:3] == ["-I", "-S"]


def test_without_python_next_to_it_the_one_in_the_path_is_used(prefix: Path, tmp_path: Path) -> None:
    add_package(prefix)
    (prefix / "bin" / "python3").unlink()
    (tmp_path / "other").mkdir()
    executable(tmp_path / "other" / "python3", FAKE_PYTHON.replace("printf", "printf other\\|; printf"))
    assert called(prefix / "bin" / "tender", path=f"{tmp_path}/other:/usr/bin:/bin")[0] == "other"


def test_without_any_python_the_program_reports_the_error_itself(prefix: Path, tmp_path: Path) -> None:
    (prefix / "bin" / "python3").unlink()
    done = subprocess.run(
        [prefix / "bin" / "tender", "absent"], capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tender: absent: Could not open: No such file or directory\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("run", *FRONTS)] + ["help"])
def test_every_subcommand_except_run_is_pythons(prefix: Path, tmp_path: Path, command: str) -> None:
    """This holds even if there is a file of that name, which could be an image."""
    add_package(prefix)
    shutil.copy(PROGRAM, tmp_path / command)
    assert called(prefix / "bin" / "tender", command, "x", cwd=tmp_path)[-2:] == [command, "x"]


@pytest.mark.parametrize(
    "words",
    [["--version"], ["-V", "x"], ["run", "--version"], *([front, "--version"] for front in FRONTS)],
)
def test_the_version_is_the_same_without_python(prefix: Path, words: list[str]) -> None:
    by_python = subprocess.run(
        [PROGRAM, *words], env={**os.environ, "TENDER_LAUNCHER": "python"}, capture_output=True, check=True
    )
    (prefix / "bin" / "python3").unlink()
    native = subprocess.run(
        [prefix / "bin" / "tender", *words], env={"PATH": ""}, capture_output=True, check=True
    )
    assert (native.stdout, native.stderr) == (by_python.stdout, by_python.stderr)
    assert b"ABI version 2" in native.stdout + native.stderr


def test_the_native_program_and_python_know_the_same_names(tmp_path: Path) -> None:
    """The native program gets the names from Python's table: main.c uses two lists that the build writes."""
    cli = ROOT / "tender" / "cli"
    write: list[str | Path] = [sys.executable, ROOT / "bindings" / "command" / "gen_options.py"]
    header = tmp_path / "options.h"
    subprocess.run([*write, cli / "option_table.py", cli / "main.py", header], check=True)
    lists = {
        name: tuple(re.findall(r'"([^"]+)"', words))
        for name, words in re.findall(r"#define (\w+) +(.*)", header.read_text())
    }
    assert lists["FRONTS"] == FRONTS
    assert {*lists["PYTHON_COMMANDS"], "run", "solo5-hvt"} == {*COMMANDS, "help"}
    main = (ROOT / "bindings" / "command" / "main.c").read_text()
    assert re.findall(r"const char \*const (\w+)\[\] = \{(\w+)\};", main) == [
        ("pythons", "PYTHON_COMMANDS"),
        ("fronts", "FRONTS"),
    ]


def test_the_environment_can_choose_python(prefix: Path) -> None:
    add_package(prefix)
    assert called(prefix / "bin" / "tender", "x.elf", launcher="python")[-1] == "x.elf"


def test_the_program_is_static_and_no_segment_is_writable_and_executable() -> None:
    with PROGRAM.open("rb") as file:
        elf = ELFFile(file)
        kinds = [segment["p_type"] for segment in elf.iter_segments()]
        assert elf["e_type"] == "ET_DYN" and "PT_INTERP" not in kinds
        assert not [s for s in elf.iter_segments() if s["p_flags"] & 3 == 3]


def test_the_texts_of_errors_are_equal_to_pythons(tmp_path: Path) -> None:
    """The command may be linked with a C library that has different texts, so its replacement of strerror()
    is generated."""
    source, library = tmp_path / "texts.c", tmp_path / "texts.so"
    subprocess.run([sys.executable, ROOT / "bindings" / "command" / "gen_error_texts.py", source], check=True)
    build: list[str | Path] = [
        "cc",
        "-shared",
        "-fPIC",
        "-fno-builtin",
        "-Dstrerror=text_of",
        "-o",
        library,
        source,
    ]
    subprocess.run(build, check=True, timeout=60)
    text_of = ctypes.CDLL(str(library)).text_of
    text_of.restype = ctypes.c_char_p
    for number in [*range(-1, 160), 524, 65535, 2**31 - 1]:
        assert text_of(number).decode() == os.strerror(number), number
