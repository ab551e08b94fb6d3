"""Each command line on the pages of bench/ and tools/kvmbox is accepted by the program that it calls.

A page's command lines are in fences marked `sh`. Nothing is run: the words go through the program's own parser, and
the files that they name must exist. The reader replaces a word in capitals, such as OUT.
"""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import tcp_rounds
from harness import goal_plan
from harness.command import BENCHMARKS
from support import fences, outside_of_fences

from tender.bench import run as run_of_the_command
from tender.bench.subjects import parse_peer
from tender.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "kvmbox"))

from kvmbox_lib import cli as kvmbox  # noqa: E402
from kvmbox_lib.errors import KvmboxError  # noqa: E402

PAGES = ("bench/README.md", "tools/kvmbox/README.md")
REPLACED = re.compile(r"[A-Z][A-Z0-9_]+(?:[./].*)?")
"""A word that the reader replaces, or a path that begins with one."""
PLACES = {"tap", "disk", "sector", "args"}
WIDTH = 100


class Wrong(Exception):
    """A command line that would not work as written."""


def commands(script: str) -> Iterator[list[str]]:
    """Yields the words of each command of a fence. A quoted word may continue on further lines."""
    pending = ""
    for line in script.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # an open quotation
            pending += "\n"
            continue
        pending = ""
        if words:
            yield words
    assert not pending, f"unfinished: {pending}"


def file_of(word: str) -> None:
    path = word.partition("::")[0]
    if not REPLACED.fullmatch(path) and not (ROOT / path).exists():
        raise Wrong(f"{path}: no such file")


def program_of(word: str) -> None:
    file_of(word)
    if not (ROOT / word).stat().st_mode & 0o100:
        raise Wrong(f"{word}: not executable")


def after_dashes(words: list[str]) -> list[str]:
    if "--" not in words:
        raise Wrong(f"{shlex.join(words)}: no -- before the command")
    return words[words.index("--") + 1 :]


def check_benchmark(words: list[str]) -> None:
    name, *rest = words or [""]
    if name not in BENCHMARKS:
        raise Wrong(f"no benchmark is called {name!r}")
    parser = import_module(f"harness.{BENCHMARKS[name][0]}").parser()
    try:
        options = parser.parse_args(rest)
    except SystemExit as error:
        raise Wrong(f"python bench {shlex.join(words)}: refused") from error
    for text in getattr(options, "peer", ()):
        try:
            _, peer = parse_peer(text, "/image.hvt")
        except ConfigError as error:
            raise Wrong(str(error)) from error
        if unknown := set(re.findall(r"\{([^}]*)\}", " ".join(peer))) - PLACES:
            raise Wrong(f"--peer: no such place: {unknown}")
    if through := shlex.split(getattr(options, "through", "")):
        check([*through, "true"])
    if name == "run" and (
        unknown := set(options.skip) - {*run_of_the_command.OURS, *run_of_the_command.YARDSTICKS}
    ):
        raise Wrong(f"--skip: {unknown}")
    if name == "goals":
        plan = goal_plan.Plan(ROOT, None, "none")
        if unknown := set(options.only or ()) - {*plan.commands, *plan.absent}:
            raise Wrong(f"--only: {unknown}")
    if getattr(options, "expect", None):
        file_of(options.expect)


def check_python(words: list[str]) -> None:
    if words[:1] == ["bench"]:
        check_benchmark(words[1:])
    elif words[:1] == ["bench/tcp_rounds.py"]:
        file_of(words[0])
        try:
            tcp_rounds.parsed(words[1:])
        except (SystemExit, KeyError) as error:
            raise Wrong(f"tcp_rounds.py: refused: {error}") from error
    else:
        raise Wrong(f"python {shlex.join(words)}: not a benchmark")


def check_kvmbox(words: list[str]) -> None:
    try:
        options = kvmbox._parse(words)
    except KvmboxError as error:
        raise Wrong(str(error)) from error
    if options.verb == "run":
        check(options.command)


def check_packages(names: list[str]) -> None:
    """Raises Wrong if a package is not one that the tools name when a program is missing."""
    asking = [ROOT / "tools" / "setup", *(ROOT / "tools" / "kvmbox" / "kvmbox_lib").glob("*.py")]
    known = set(re.findall(r"[\w.+-]+", " ".join(path.read_text() for path in asking)))
    if unknown := [name for name in names if name not in known]:
        raise Wrong(f"apt-get: no tool needs {unknown}")


def check_make(targets: list[str]) -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    if not targets or set(targets) - known:
        raise Wrong(f"make {shlex.join(targets)}: no such target")


def check_pytest(words: list[str]) -> None:
    for word in words:
        if "/" in word:
            file_of(word)


def check_shell(words: list[str]) -> None:
    """Raises Wrong if the words are not one of a few commands of the shell or of the system."""
    match words:
        case [".", ".venv/bin/activate"] | ["true"] | ["ls", "-l", "/dev/kvm"]:
            return
        case ["cc", *rest]:
            for word in rest:
                if word.endswith(".c"):
                    file_of(word)
        case ["apt-get", "install", *packages]:
            check_packages(packages)
        case _:
            raise Wrong(f"{shlex.join(words)}: not a command that this test knows")


def check(words: list[str]) -> None:
    """Raises Wrong if the command line would not be accepted."""
    while words and (assigned := re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", words[0])):
        sources = [*(ROOT / "bench" / "harness").glob("*.py"), ROOT / "tools" / "with_kvm"]
        if not any(assigned[1] in path.read_text() for path in sources):
            raise Wrong(f"{assigned[1]}: no program reads it")
        words = words[1:]
    if not words:
        raise Wrong("no command")
    program, *rest = words
    if REPLACED.fullmatch(program):
        return
    if program.startswith("tools/"):
        program_of(program)
    match program:
        case "python" | ".venv/bin/python":
            check_python(rest)
        case "pytest" | ".venv/bin/pytest":
            check_pytest(rest)
        case "make":
            check_make(rest)
        case "tools/kvmbox/kvmbox":
            check_kvmbox(rest)
        case "tools/with_intel":
            check_kvmbox(["run", "--cpu", "intel", *rest])
        case "tools/with_net" | "tools/with_kvm":
            if rest[:1] != ["--"]:
                raise Wrong(f"{program} {shlex.join(rest)}: the command comes after --")
            check(after_dashes(rest))
        case "bench/build_solo5_guests":
            program_of(program)
            if len(rest) not in (2, 3):
                raise Wrong(f"build_solo5_guests takes 2 or 3 directories, not {rest}")
        case _:
            check_shell(words)


@pytest.mark.parametrize("page", PAGES)
def test_each_command_line_is_accepted(page: str) -> None:
    found = [
        words
        for kind, script in fences((ROOT / page).read_text())
        if kind == "sh"
        for words in commands(script)
    ]
    assert len(found) >= 5
    for words in found:
        try:
            check(words)
        except Wrong as error:
            pytest.fail(f"{page}: {shlex.join(words)}\n{error}")


@pytest.mark.parametrize(
    "line",
    [
        "python bench nothing",
        "python bench boot --no-such-option",
        "python bench boot --peer 'solo5-hvt --mem=16'",
        "python bench net --peer 'spt=solo5-spt {wire} {elf}'",
        "python bench block --case read:often:512",
        "python bench goals --only 'sandbox nothing'",
        "python bench run --skip nothing",
        "python bench count --expect bench/no_such_counts.txt",
        "python bench compare main HEAD --through 'tools/with_nothing --'",
        "python bench/tcp_rounds.py --guest GUEST --peer PEER solo5-hvt",
        "python other.py",
        "tools/with_net python bench count",
        "tools/with_kvm -- python bench nothing",
        "tools/no_such_tool -- true",
        "tools/kvmbox/kvmbox run --no-such-option -- true",
        "tools/kvmbox/kvmbox run --icount -- python bench boot --no-such-option",
        "tools/kvmbox/kvmbox run",
        "tools/with_intel --icount -- true",
        ".venv/bin/pytest tests/no_such_directory",
        "bench/build_solo5_guests SOLO5_TREE",
        "cc -O2 bench/no_such_file.c",
        "apt-get install no-such-package",
        "make no-such-target",
        "NO_SUCH_VARIABLE=1 make bench",
        "no-such-program",
    ],
)
def test_a_wrong_command_line_is_found(line: str) -> None:
    """This shows that the test above can fail, for each kind of command on the pages."""
    (words,) = commands(line)
    with pytest.raises(Wrong), contextlib.redirect_stderr(io.StringIO()):
        check(words)


def test_a_fence_is_split_into_the_commands_that_a_shell_sees() -> None:
    script = "# first\none 'a b' \\\n    c  # why\n\ntwo 'd\n    e'\n"
    assert list(commands(script)) == [["one", "a b", "c"], ["two", "d\n    e"]]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_fences_that_name_their_language(page: str) -> None:
    text = (ROOT / page).read_text()
    assert {kind for kind, _ in fences(text)} <= {"sh", "text"}
    outside = outside_of_fences(text)
    assert "```" not in outside
    assert [line for line in outside.splitlines() if line.startswith("    ")] == []


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_a_page_names_in_its_text_exists(page: str) -> None:
    """Checks benchmarks, targets of make, and options of a benchmark, of kvmbox, or of Tender itself."""
    spans = re.findall(r"`([^`\n]+)`", outside_of_fences((ROOT / page).read_text()))
    named = {found for span in spans for found in re.findall(r"\bbench ([a-z]+)", span)} - {"bench"}
    assert named <= set(BENCHMARKS)
    for span in spans:
        if found := re.fullmatch(r"make ([a-z-]+)", span):
            check_make([found[1]])
    parsers = [import_module(f"harness.{module}").parser() for module, _ in BENCHMARKS.values()]
    known = {option for parser in parsers for option in parser._option_string_actions}
    known |= set(re.findall(r"--[a-z-]+", (ROOT / "tools/kvmbox/kvmbox_lib/cli.py").read_text()))
    known |= set(re.findall(r"--[a-z-]+", (ROOT / "docs/cli.md").read_text()))
    assert {found for span in spans for found in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)} <= known


@pytest.mark.parametrize("page", PAGES)
def test_text_and_tables_of_a_page_are_at_most_100_columns_wide(page: str) -> None:
    outside = outside_of_fences((ROOT / page).read_text())
    assert [line for line in outside.splitlines() if len(line) > WIDTH] == []
