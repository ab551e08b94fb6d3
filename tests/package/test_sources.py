"""The source tree without git: what a source distribution contains, that it builds, and that an edited
source is built again."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tender import __version__

ROOT = Path(__file__).resolve().parents[2]
BASE = f"tender-{__version__}"
LEFTOVERS = {
    ".git",
    ".venv",
    "build",
    "dist",
    ".cache",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}


@pytest.fixture(scope="module")
def without_git(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose PATH has every program except git."""
    directory = tmp_path_factory.mktemp("bin")
    for place in [Path(sys.executable).parent, *map(Path, ("/usr/bin", "/bin", "/usr/sbin", "/sbin"))]:
        for program in place.iterdir() if place.exists() else ():
            link = directory / program.name
            if not program.name.startswith("git") and not link.is_symlink():
                link.symlink_to(program)
    # A virtual environment's Python finds its environment by the directory of its own path.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{directory}"}
    assert shutil.which("git", path=environment["PATH"]) is None
    return environment


def copy_of_sources(place: Path) -> Path:
    """Copies the tree without the files that builds and tools leave in it."""

    def ignored(directory: str, names: list[str]) -> set[str]:
        here = Path(directory).relative_to(ROOT)
        return {"__pycache__"} | (
            LEFTOVERS if here == Path() else {"out"} if here == Path("bench") else set()
        )

    return shutil.copytree(ROOT, place, ignore=ignored, symlinks=True)


def sdist(tree: Path, environment: dict[str, str]) -> Path:
    """Builds a source distribution with the usual front end, without the network."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "-o",
        str(tree / "dist"),
        str(tree),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    return archive


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return sorted(member.name for member in opened.getmembers())


def git(tree: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True)


def test_a_source_distribution_contains_the_same_files_however_it_is_made(
    tmp_path: Path, without_git: dict[str, str]
) -> None:
    plain = copy_of_sources(tmp_path / "plain")
    (plain / "tender/cli/__pycache__").mkdir()
    (plain / "tender/cli/__pycache__/main.pyc").touch()
    archive = sdist(plain, without_git)
    expected = names_in(archive)
    on_disk = [p.relative_to(plain) for p in plain.rglob("*") if p.is_file()]
    kept = {
        f"{BASE}/{name}"
        for name in on_disk
        if name.parts[0] != "dist" and name.suffix != ".pyc" and name.name != ".git-blame-ignore-revs"
    }
    assert {f"{BASE}/tools/build", f"{BASE}/.gitignore", f"{BASE}/tests/conftest.py"} < kept
    assert set(expected) == kept | {f"{BASE}/PKG-INFO"}
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        about = opened.extractfile(f"{BASE}/PKG-INFO")
        assert about and b"](docs/" not in about.read(), "a link that is broken outside of the tree"
    # extractall() has no filter in Python 3.11.2 of Debian 12; later versions require one.
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert {m.mode for m in members} == {0o644, 0o755}

    assert names_in(sdist(tmp_path / f"{BASE}", without_git)) == expected, (
        "built from an unpacked source distribution"
    )

    with_git = dict(os.environ)
    tracked = copy_of_sources(tmp_path / "tracked")
    git(tracked, "init", "-q")
    git(tracked, "add", "-A")
    (tracked / "tender/notes.txt").write_text("of the user, unknown to git")
    assert names_in(sdist(tracked, with_git)) == expected, "built from a git checkout"
    (tracked / "tender/notes.txt").unlink()
    shutil.rmtree(tracked / "dist")
    assert names_in(sdist(tracked, without_git)) == expected, "built from a checkout without git installed"

    git(tmp_path, "init", "-q")
    shutil.rmtree(plain / "dist")
    assert names_in(sdist(plain, with_git)) == expected, "built below another project's repository"


def test_a_source_distribution_builds_where_git_is_not_installed(
    tmp_path: Path, without_git: dict[str, str]
) -> None:
    archive = sdist(copy_of_sources(tmp_path / "tree"), without_git)
    command = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), str(archive)],
        env=without_git,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"{BASE}-cp311-abi3-")


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a Python source": lambda tree: edit(tree / "tender/vm.py"),
    "a C source": lambda tree: edit(tree / "bindings/core/vm.c"),
    "a header of the ABI": lambda tree: edit(tree / "abi/tender_abi.h"),
    "a source of the guest kernel": lambda tree: edit(tree / "guest_kernel/boot_x86_64.S"),
    "a guest of the tests": lambda tree: edit(tree / "tests/guests/args/main.c"),
    "a filter's rules": lambda tree: edit(tree / "bindings/machine/sandbox/filter_rules.txt"),
    "a filter's rules for a device": lambda tree: edit(tree / "bindings/devices/net/filter_rules.txt"),
    "meson.build": lambda tree: edit(tree / "meson.build"),
    "the metadata": lambda tree: edit(tree / "pyproject.toml"),
    "the licence": lambda tree: edit(tree / "LICENSE"),
    "the build backend": lambda tree: edit(tree / "tools/build_backend.py"),
    "how pages are made": lambda tree: edit(tree / "tools/pages.py"),
    "a new file": lambda tree: (tree / "tender/cli/new.py").touch(),
    "a deleted file": lambda tree: (tree / "tender/pool.py").unlink(),
    "an older file in its place": lambda tree: os.utime(tree / "tender/vm.py", (1, 1)),
    "a new environment": lambda tree: (tree.parent / "pyvenv.cfg").touch(),
    "a renamed file": lambda tree: (tree / "tender/pool.py").rename(tree / "tender/pools.py"),
}
NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda tree: None,
    "a document": lambda tree: edit(tree / "docs/cli.md"),
    "the caches of a program that runs from the sources": lambda tree: (tree / "tender/__pycache__").mkdir(),
    "a test": lambda tree: edit(tree / "tests/unit/test_abi.py"),
}


@pytest.fixture
def built(tmp_path: Path, without_git: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A tree without git that tools/build has built. Its pip is a script that appends a line to `pip.log`."""
    tree = copy_of_sources(tmp_path / "tree")
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "pip").write_text(f'#!/bin/sh\necho "$*" >>{tree}/pip.log\n[ ! -e {tree}/broken ]\n')
    (fake / "pip").chmod(0o755)
    environment = without_git | {"PATH": f"{fake}:{without_git['PATH']}"}
    assert build(tree, environment) == (0, 1)
    return tree, environment


def build(tree: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Returns the status of tools/build, and how many times a package has been built so far."""
    done = subprocess.run([tree / "tools/build"], env=environment, check=False, timeout=60)
    return done.returncode, len((tree / "pip.log").read_text().splitlines())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_of_the_package_is_built_again(
    built: tuple[Path, dict[str, str]], change: str
) -> None:
    tree, environment = built
    CHANGES[change](tree)
    assert build(tree, environment) == (0, 2)
    assert build(tree, environment) == (0, 2), "built once"


@pytest.mark.parametrize("change", NO_CHANGES)
def test_a_change_outside_of_the_package_builds_nothing(
    built: tuple[Path, dict[str, str]], change: str
) -> None:
    tree, environment = built
    NO_CHANGES[change](tree)
    assert build(tree, environment) == (0, 1)


def test_the_first_build_says_what_it_does_and_what_comes_next(built: tuple[Path, dict[str, str]]) -> None:
    tree, environment = built
    said = []
    programs = tree / ".venv/bin"
    programs.mkdir(parents=True)
    shutil.copy(tree.parent / "fake/pip", programs)
    (programs / "activate").touch()
    shutil.rmtree(tree / "build")
    environment |= {"PATH": f"{programs}:{environment['PATH']}"}
    for change in ("nothing", "nothing", "a C source"):
        (NO_CHANGES | CHANGES)[change](tree)
        done = subprocess.run(
            [tree / "tools/build"], env=environment, check=True, timeout=60, capture_output=True, text=True
        )
        said.append((done.stdout, done.stderr))
    first = "build: compiling, about a minute\nbuild: done. Next: . .venv/bin/activate\n"
    assert said == [("", first), ("", ""), ("", "build: compiling\n")]


def test_a_failed_build_is_tried_again(built: tuple[Path, dict[str, str]]) -> None:
    tree, environment = built
    edit(tree / "tender/vm.py")
    (tree / "broken").touch()
    assert build(tree, environment) == (1, 2)
    (tree / "broken").unlink()
    assert build(tree, environment) == (0, 3)
