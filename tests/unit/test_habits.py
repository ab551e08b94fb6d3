"""The files for contributors: what they name exists, and what they run is what `make check` runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tool

import tender

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md")
MADE = re.compile(r"NAME|^build/|^dist/|^\.venv|^/dev/|^/proc/")
"""Words that look like a path but are not in the sources: placeholders, and files that are built."""


@pytest.fixture(scope="module")
def suites() -> Any:
    """tools/suites.py as a module."""
    return tool("suites")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    """test_repo.py checks the targets of links; these are names in the text."""
    text = (ROOT / page).read_text()
    paths = {word for word in re.findall(r"`([\w./-]+/[\w./-]*\w)`", text) if not MADE.search(word)}
    tests = set(re.findall(r"`(test_\w+\.py)`", text))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in tests if not list((ROOT / "tests").rglob(name))] == []


@pytest.mark.parametrize("page", PAGES)
def test_targets_that_a_page_names_exist(suites: Any, page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = set(re.findall(r"^([a-z0-9-]+):", makefile, re.M)) | {suite.name for suite in suites.SUITES}
    known |= {f"test-{debian}" for debian in re.findall(r"^DEBIANS = (.*)$", makefile, re.M)[0].split()}
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", (ROOT / page).read_text(), re.M))
    assert named <= known


def hooks() -> dict[str, dict[str, str]]:
    """Returns the hooks by the name of the program that they run."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repository["repo"] for repository in config["repos"]} == {"local"}, "a hook would be downloaded"
    return {hook["name"]: hook for repository in config["repos"] for hook in repository["hooks"]}


def test_hooks_are_the_lint_step_and_the_type_checker(suites: Any) -> None:
    lint = {suite.name: suite.commands for suite in suites.SUITES}
    programs = {words[0] for suite in ("lint", "types") for words in lint[suite]}
    assert {name.split()[0] for name in hooks()} == programs
    for hook in hooks().values():
        program = Path(hook["entry"].split()[0])
        assert program.parent == Path(".venv/bin"), "a hook does not run the pinned program"
        assert (Path(sys.executable).parent / program.name).exists()


def test_pre_commit_accepts_the_configuration() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_continuous_integration_runs_what_a_user_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    run = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert {name: commands[-1] for name, commands in run.items()} == {
        "check": "make check",
        "test": "make test",
    }


def test_the_editor_configuration_has_the_checked_widths() -> None:
    text = (ROOT / ".editorconfig").read_text()
    sections = re.findall(r"^\[(.*)\]\n((?:.+\n)*)", text, re.M)
    widths = {
        name: width for name, body in sections for width in re.findall(r"max_line_length = (\d+)", body)
    }
    clang_format = re.findall(r"^ColumnLimit: (\d+)$", (ROOT / ".clang-format").read_text(), re.M)
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    assert (widths["*.{c,h,S,def}"], widths["*.py"]) == (clang_format[0], str(ruff))


def test_the_version_is_in_one_place() -> None:
    """A release changes two files: the one with the version, and the CHANGELOG."""
    (version,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "tender/_version.py").read_text(), re.M)
    assert version == tender.__version__
    tracked = [ROOT / name for name in ("meson.build", "meson.options", "pyproject.toml", "Makefile")]
    tracked += [p for d in ("abi", "bindings", "tender", "tools", "tests") for p in (ROOT / d).rglob("*.*")]
    naming = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    found = {
        str(path.relative_to(ROOT))
        for path in tracked
        if path.suffix in (".py", ".build", ".toml", ".c", ".h", ".sh") and naming.search(path.read_text())
    }
    assert found == {"tender/_version.py"}


def test_the_changelog_has_a_section_for_each_release() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+( - \d{4}-\d\d-\d\d)?", heading) for heading in headings[1:])
    assert tender.__version__ in [heading.split()[0] for heading in headings]


def spelled(text: str) -> "subprocess.CompletedProcess[str]":
    """Runs codespell on the text, with this tree's configuration."""
    command = [sys.executable, "-m", "codespell_lib", "-"]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)


REFUSED = {
    "door": "backend",  # codespell:ignore
    "doors": "backends",  # codespell:ignore
    "road": "path",  # codespell:ignore
    "roads": "paths",  # codespell:ignore
    "wall": "isolation layer",  # codespell:ignore
    "walls": "isolation layers",  # codespell:ignore
    "stranger": "inherited filter",  # codespell:ignore
    "Room": "capacity",  # codespell:ignore
    "rooms": "folders",  # codespell:ignore
    "recieve": "receive",  # codespell:ignore
}


@pytest.mark.parametrize(("word", "instead"), REFUSED.items())
def test_a_refused_word_is_reported_with_its_replacement(word: str, instead: str) -> None:
    done = spelled(f"The {word} of the guest.\n")
    assert done.returncode == 65, "codespell accepts the word"
    assert f"{word} ==> {instead}" in re.sub(
        r"(?i)(?<===> )[a-z]", lambda found: found[0].lower(), done.stdout
    )


def test_words_in_their_ordinary_sense_are_not_refused() -> None:
    done = spelled(
        "wall clock, wall-clock time, -Wall, clock_wall(), wall %lu.%09lu s, wall 1.5 s, the IST of a TSS\n"
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_entry_of_the_changelog_is_unique() -> None:
    """Branches that add lines to it are merged by union. If two branches change an entry, both versions stay."""
    text = (ROOT / "CHANGELOG.md").read_text()
    entries = [" ".join(entry.split()) for entry in re.findall(r"^- (.*(?:\n  .*)*)", text, re.M)]
    assert len(entries) > 50
    begins = [entry[:60] for entry in entries]
    assert [begin for begin in begins if begins.count(begin) > 1] == []
