"""One wheel serves every Python from 3.11 on, whichever Python built it. The tests try each Python of this
machine."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK = "import sys, ensurepip, venv; print(sys.version_info[1], sys.version_info.releaselevel)"
LIBRARY = """
from tender import CAPTURE, Image, Vm, VmConfig

with Image.open("hello.elf") as image, Vm(image, VmConfig(mem="8M"), backend="sandbox", console=CAPTURE) as vm:
    result = vm.run(timeout=60)
print(result.status, (result.console or b"").decode().splitlines()[0])
"""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "console": ("hello",),
    "disk": ("disk", "disk.img"),
    "errors": ("hello",),
    "event_loop": ("hello", "2"),
    "pool": ("hello", "4"),
}
"""The examples that need no network and end with status 0: the image of each, and the words after it."""


@cache
def pythons() -> dict[int, str]:
    """Returns programs by minor version: the Pythons in PATH and those of pyenv that can make an
    environment, and this one."""
    kept = sorted(
        (Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("3.*/bin/python3")
    )
    named = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    found = {}
    for program in [*map(str, kept), *filter(None, named)]:
        done = subprocess.run([program, "-c", ASK], capture_output=True, text=True, check=False)
        if done.returncode == 0 and int(done.stdout.split()[0]) >= 11 and done.stdout.split()[1] == "final":
            found[int(done.stdout.split()[0])] = program
    return {**found, sys.version_info[1]: sys.executable}


def run(*command: str | Path, **options: str | Path) -> str:
    """Runs a command that must succeed and print nothing on stderr; returns its stdout."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)  # type: ignore[call-overload]
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return str(done.stdout)


def pip(python: Path, *words: str | Path, **variables: str) -> None:
    """Runs pip, which must succeed; warnings are ignored."""
    command = [python, "-m", "pip", "-q", "--disable-pip-version-check", *words]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment_with(wheel: Path, python: str, place: Path) -> Path:
    """Installs the wheel in a new environment; returns its bin directory."""
    run(python, "-m", "venv", place)
    pip(place / "bin/python", "install", wheel)
    return place / "bin"


def check_that_it_serves(programs: Path, where: Path) -> None:
    """Checks the command on both its paths, and the library."""
    guests = Path(run(programs / "tender", "sdk", "--guests", cwd=where).strip())
    shutil.copy(guests / "hello.elf", where)
    assert run(programs / "python", "-c", "from tender import Vm; print(Vm.__name__)", cwd=where) == "Vm\n"
    for words in (("run", "--backend=sandbox", "--example", "hello"), ("--backend=sandbox", "hello.elf")):
        assert run(programs / "tender", *words, cwd=where).startswith("Hello, World")
    inspected = run(programs / "tender", "inspect", "hello.elf", cwd=where)
    assert "hvt" in inspected
    (where / "program.py").write_text(LIBRARY)
    assert run(programs / "python", "program.py", cwd=where) == "0 Hello, World\n"
    for example, (guest, *arguments) in EXAMPLES.items():
        said = run(
            programs / "python",
            ROOT / f"examples/{example}.py",
            guests / f"{guest}.elf",
            *arguments,
            cwd=where,
        )
        assert len(said.splitlines()) > 1, example


@pytest.mark.parametrize("minor", pythons(), ids=lambda minor: f"3.{minor}")
def test_the_wheel_serves_this_python(wheel: Path, tmp_path: Path, minor: int) -> None:
    programs = environment_with(wheel, pythons()[minor], tmp_path / "venv")
    said = run(programs / "python", "-c", "import sys; print(sys.version_info[1])")
    assert int(said) == minor
    check_that_it_serves(programs, tmp_path)


def python_symbols(wheel: Path, place: Path) -> set[str]:
    """Returns the symbols of Python that the extension imports."""
    with zipfile.ZipFile(wheel) as archive:
        extension = archive.extract("tender/_native.abi3.so", place)
    said = run("readelf", "--dyn-syms", "-W", extension)
    return set(re.findall(r" UND (_?Py\w+)", said))


def test_a_wheel_of_the_newest_python_is_the_same_and_serves_the_oldest(wheel: Path, tmp_path: Path) -> None:
    """This uses the newest and the oldest Python of this machine. They are the same where there is only
    one."""
    builder = environment_with(wheel, pythons()[max(pythons())], tmp_path / "builder")
    locked = ROOT / "tools/requirements/build.txt"
    pip(builder / "python", "install", "--require-hashes", "-r", locked)
    build = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        f"--config-settings=build-dir={tmp_path / 'build'}",
    ]
    path = f"{builder}:{os.environ['PATH']}"
    pip(builder / "python", *build, "-w", tmp_path / "made", ROOT, PATH=path)
    (made,) = (tmp_path / "made").glob("*.whl")
    assert made.name == wheel.name.partition("-cp311")[0] + "-cp311-abi3-linux_x86_64.whl"
    (tmp_path / "one").mkdir()
    assert python_symbols(made, tmp_path / "one") == python_symbols(wheel, tmp_path)
    programs = environment_with(made, pythons()[min(pythons())], tmp_path / "venv")
    check_that_it_serves(programs, tmp_path)
