"""The help and the usage of the programs in tools/."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Uses that lack a required word, and the exit status.
WITH_WORDS = {
    "with_net": 2,
    "with_kvm": 2,
    "with_kvm --or-sandbox": 2,
    "with_net --": 2,
    "with_kvm --": 2,
    "with_intel --": 2,
    "with_intel": 2,
    "fuzz": 2,
    "setup": 2,
    "setup .venv": 2,
    "with_net --check true": 2,
    "with_net --no-such-option": 2,
    "with_kvm --no-such-option": 2,
}
PROGRAMS = (
    "with_net",
    "with_kvm",
    "with_intel",
    "fuzz",
    "setup",
    "suites.py",
    "chroot",
    "make_wheel.py",
    "pages.py",
    "lock.py",
)


def tool(words: str) -> "subprocess.CompletedProcess[str]":
    command = f"{ROOT}/tools/{words}".split()
    front = ["python3"] if ".py" in command[0] else []
    return subprocess.run([*front, *command], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_only_prints_the_usage(name: str, option: str) -> None:
    done = tool(f"{name} {option}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: tools/{name}" in done.stdout


@pytest.mark.parametrize("words", WITH_WORDS)
def test_without_a_required_word_a_tool_prints_its_usage_and_fails(words: str) -> None:
    done = tool(words)
    assert (done.returncode, done.stdout) == (WITH_WORDS[words], "")
    assert f"usage: tools/{words.split()[0]}" in done.stderr


def test_a_tree_that_was_copied_with_its_environment_is_not_built(tmp_path: Path) -> None:
    """Otherwise the build would use the first tree's directories, or fail because they do not exist."""
    shutil.copytree(ROOT / "tools", tmp_path / "moved/tools", ignore=shutil.ignore_patterns("__pycache__"))
    programs = tmp_path / "moved/.venv/bin"
    programs.mkdir(parents=True)
    (programs.parent / "pyvenv.cfg").touch()
    (programs / "pip").write_text("#!/first/tree/.venv/bin/python3\n")
    (programs / "pip").chmod(0o755)
    done = subprocess.run(
        [tmp_path / "moved/tools/build"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "made in another place (/first/tree/.venv/bin/python3)" in done.stderr
    assert "rm -r .venv build" in done.stderr
    assert not (tmp_path / "moved/build").exists()


@pytest.mark.parametrize("place", ["tools", "docs", "tests/package", "README.md", "CONTRIBUTING.md"])
def test_pip_gets_no_option_that_the_pip_of_debian_12_does_not_know(place: str) -> None:
    """That is 23.0.1. The short option -C came with 23.1."""
    path = ROOT / place
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert files
    for file in files:
        found = re.findall(r"-C ?[a-z]+-(?:dir|args)\b.*", file.read_text(errors="replace"))
        assert not found, file
