"""The lock files of the development environment: they pin what pyproject.toml's groups need, and this
environment has those versions."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "tools" / "requirements").glob("*.txt"))
GROUPS: dict[str, list[Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
PYTHONS = ("3.11.2", "3.11.7", "3.12.1", "3.13.5", "3.14.0")
"""The versions of Debian 12, 13 and 14, and one of each version in between."""


def asked_for(group: str) -> Iterator[Requirement]:
    """Yields a group's requirements, and those of the groups that it includes."""
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            yield from asked_for(entry["include-group"])
        else:
            yield Requirement(entry)


def pins(path: Path) -> list[tuple[Requirement, int]]:
    """Returns each pinned requirement of a lock, and the number of its hashes."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words = re.split(r"\s+--hash=sha256:", line)
        assert all(re.fullmatch(r"[0-9a-f]{64}\s*", digest) for digest in words[1:]), line
        found.append((Requirement(words[0]), len(words) - 1))
    return found


def chosen(path: Path, python: str) -> dict[str, str]:
    """Returns the version of each package that a Python on Linux gets."""
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin, _ in pins(path)
        if pin.marker is None or Marker(str(pin.marker)).evaluate(environment)
    }


def test_each_purpose_has_a_lock() -> None:
    assert {path.stem for path in LOCKS} == {"build", "test", "wheel"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.stem)
def test_each_package_has_one_version_and_hashes(path: Path) -> None:
    for pin, hashes in pins(path):
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), pin
        assert hashes >= 1, pin


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.stem)
def test_no_package_index_is_named(path: Path) -> None:
    assert not re.findall(
        r"(?im)^.*(?:\w://|^\s*-i|--(?:extra-)?index-url|--find-links).*$", path.read_text()
    )


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.stem)
def test_a_lock_satisfies_its_group_on_every_python(path: Path, python: str) -> None:
    versions = chosen(path, python)
    for requirement in asked_for(path.stem):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not pinned: make lock"
        assert versions[name] in requirement.specifier, (
            f"{requirement} is not met by {versions[name]}: make lock"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_all_locks_agree(python: str) -> None:
    """The smaller locks are parts of the complete one, so a later purpose never changes what an earlier one
    installed."""
    whole = chosen(ROOT / "tools" / "requirements" / "test.txt", python)
    for path in LOCKS:
        assert chosen(path, python).items() <= whole.items()


def test_this_environment_has_the_pinned_formatters_and_type_checker() -> None:
    versions = chosen(ROOT / "tools" / "requirements" / "test.txt", sys.version.split()[0].rstrip("+"))
    for name in ("ruff", "mypy", "clang-format", "codespell"):
        assert importlib.metadata.version(name) == versions[name], f"{name}: make setup"


def test_the_lock_tool_refuses_unknown_words() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "lock.py", "--newest"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "lock: usage: tools/lock.py [--upgrade]\n")
