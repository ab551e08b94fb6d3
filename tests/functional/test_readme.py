"""The examples of README.md, docs/library.md and docs/debugging.md, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest, fences

pytestmark = pytest.mark.backends
ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def first_block(language: str) -> str:
    """Returns the first fenced block of README.md in this language."""
    found = [text for kind, text in fences(README.read_text()) if kind == language]
    assert found, f"README.md has no ```{language} block"
    return found[0]


def as_a_reader(command: list[str], where: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the command in `where`, with the environment's `tender` first in PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    return subprocess.run(
        command, cwd=where, env=env, capture_output=True, text=True, check=False, timeout=100
    )


def python_example(text: str, guest: Guest, backend: str, where: Path) -> str:
    """Returns the example's output. The library does not read the environment, so the backend is set
    before the example runs.
    """
    shutil.copy(guest("hello"), where / "app.elf")
    (where / "example.py").write_text(text)
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        f"import support; support.take_backend({backend!r})\n"
        "runpy.run_path('example.py', run_name='__main__')\n"
    )
    done = as_a_reader([sys.executable, "-c", program], where)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_python_example_runs_as_it_stands(guest: Guest, backend: str, tmp_path: Path) -> None:
    lines = python_example(first_block("python"), guest, backend, tmp_path).splitlines()
    assert re.fullmatch(r"\d+ exits, \d+\.\d+ ms to the first output", lines[0])
    assert lines[-1] == "exit 0 Hello, World"


SAID = [
    r"exit 0\nHello, World\n(.*\n)+",
    r"guest: b'Hello, World\\n'\n(guest: .*\n)*exit\n",
    r"(\d+ .* [a-z]+ [\dN].*\n)*",
    r"(Hello, World\n(.*\n)*){2}\['exit', 'exit'\]\n",
    r"\('one',\) \d+ bytes of console\n\('two', 'words'\) \d+ bytes of console\n",
]


@pytest.mark.parametrize("number", range(len(SAID)))
def test_the_librarys_examples_run_as_they_stand(
    guest: Guest, backend: str, tmp_path: Path, number: int
) -> None:
    page = (ROOT / "docs" / "library.md").read_text()
    examples = [text for kind, text in fences(page) if kind == "python"]
    assert len(examples) == len(SAID)
    said = python_example(examples[number], guest, backend, tmp_path)
    assert re.fullmatch(SAID[number], said), said


def test_the_debuggers_example_runs_as_it_stands(guest: Guest, backend: str, tmp_path: Path) -> None:
    (example,) = [
        text for kind, text in fences((ROOT / "docs" / "debugging.md").read_text()) if kind == "python"
    ]
    *frames, last = python_example(example, guest, backend, tmp_path).splitlines()
    assert frames[0].startswith("guest_exit ") and "Symbol(name='main'" in last, (frames, last)
    assert (tmp_path / "app.core").stat().st_mode & 0o777 == 0o600


def test_the_guest_example_builds_with_the_one_command_and_runs(tmp_path: Path) -> None:
    """A warning is a failure, because a reader should see none."""
    (tmp_path / "app.c").write_text(first_block("c"))
    found = re.search(r"^\$ (gcc \$\(tender sdk .*)$", README.read_text(), re.MULTILINE)
    assert found
    built = as_a_reader(["sh", "-e", "-c", found[1].replace("gcc ", "gcc -Wall -Wextra ", 1)], tmp_path)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    done = as_a_reader(["tender", "app.elf", "one", "two"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert re.fullmatch(r"argument 0: one\nargument 1: two\n512 MiB, up for \d+ ns\n", done.stdout), (
        done.stdout
    )
