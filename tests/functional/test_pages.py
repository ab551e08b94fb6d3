"""Every command line and code block of the pages, run as a reader runs it: on each backend, in a network namespace.

    console   each line after `$ ` is a command. What it prints is compared with the page; numbers may differ
    sh        commands without output. Each must succeed
    c         compiled by the commands that follow: the line before the block names the file
    python    test_readme.py runs these

The blocks of a section (`## `) share one directory. The unikernels and files that pages speak of are there.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from support import Guest, markdown_pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "abi/README.md",
    "docs/cli.md",
    "docs/debugging.md",
    "docs/library.md",
    "docs/observability.md",
    "docs/sandbox.md",
    "guest_kernel/README.md",
)
# Pages whose commands belong to development or measure a machine: tests of their own look at these.
OTHERS = {
    "docs/releasing.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "tools/kvmbox/README.md",
}  # tests/unit/test_page_commands.py
LANGUAGES = ("", "text", "console", "sh", "c", "python")

# Commands that are not run here, each with the reason.
NOT_RUN = {
    "make build": "tests run in the environment that it has made",
    ". .venv/bin/activate": "the environment is active in a test",
    "make wheel": "tests/package/test_wheel.py builds and installs a wheel",
    "python3 -m venv ~/tender-env": "as the line before",
    "~/tender-env/bin/pip install dist/tender-*.whl": "as the line before",
    ". ~/tender-env/bin/activate": "as the line before",
    "make run": "tests/unit/test_setup.py; it is a run of the echo example, as below",
    "make check": "it would run this test again",
    "make test": "it would run this test again",
    "mirage configure -t hvt": "it needs OCaml and the opam packages of MirageOS",
    "make": "of a MirageOS unikernel: it needs OCaml",
    "tender inspect dist/*.hvt": "the image of a reader's own MirageOS unikernel",
    "tender --net:service=tap0 dist/hello.hvt --ipv4=10.0.0.2/24": "as the line before",
    'docker run --rm -v "$PWD:/work" -w /work IMAGE tender --backend=sandbox app.elf': (
        "it needs a container engine, and an image of the reader's own"
    ),
    'docker run --rm -v "$PWD:/work" -w /work --device /dev/kvm --device /dev/net/tun --cap-add NET_ADMIN '
    "IMAGE sh -c 'ip tuntap add tap0 mode tap && ip link set tap0 up && exec tender --net tap0 --example echo'": (
        "as the line before"
    ),
}
GUESTS = ("hello", "echo", "disk", "bug_null", "bug_heap", "bug_loop")
LIMIT_S = 120
NUMBER = re.compile(r"\b(0x[0-9a-f]+|[0-9a-f]{8,}|\d+(\.\d+)?)")


class Block(NamedTuple):
    """One fenced block: the number of its section, its language, the line of text before it, and its lines."""

    section: int
    language: str
    before: str
    lines: tuple[str, ...]


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page in their order."""
    section, before, inside = 0, "", None
    language, lines = "", list[str]()
    for line in text.splitlines():
        fence = re.fullmatch(r"\s*```(.*)", line)
        if inside and fence:
            yield Block(section, language, before, tuple(lines))
            inside = None
        elif inside:
            lines.append(line)
        elif fence:
            inside, language, lines = True, fence[1].strip(), []
        elif line.startswith("## "):
            section += 1
        elif line.strip():
            before = line
    assert not inside, "a block is not closed"


def page_blocks(page: str) -> list[Block]:
    return list(blocks((ROOT / page).read_text()))


def joined(block: Block) -> list[str]:
    """The lines of a block; a line that ends in a backslash and the next are one."""
    return re.sub(r"\\\n\s*", "", "\n".join(block.lines)).splitlines()


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a block that are run, each with the lines that the page shows after it."""
    if block.language == "sh":
        found = [(line, list[str]()) for line in joined(block) if line.strip()]
    else:
        found = []
        for line in block.lines:
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
    return [
        (command, shown) for command, shown in found if command.partition("  #")[0].strip() not in NOT_RUN
    ]


def normal(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: numbers, and how columns are filled."""
    return [" ".join(NUMBER.sub("N", line).split()) for line in lines]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the page shows what was printed. `...` on the page stands for any text, as a line for any lines."""
    pattern = "".join(
        "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
        for line in normal(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in normal(printed))) is not None


def prepared(where: Path, guest: Guest, backend: str) -> dict[str, str]:
    """Fills the directory of a section, and returns the environment of its commands."""
    where.mkdir(parents=True)
    for name, of in (("app", "hello"), *((it, it) for it in GUESTS)):
        shutil.copy(guest(of), where / f"{name}.elf")
    with open(where / "disk.img", "wb") as disk:
        disk.truncate(1 << 20)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TENDER_BACKEND": backend, "LC_ALL": "C.UTF-8"}


def end_what_runs_in(where: Path) -> None:
    """Ends the guests that a page has started in the background, if a failed test has left them."""
    sessions = {int(line) for file in where.rglob("session.pids") for line in file.read_text().split()}
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) in sessions:
                os.kill(pid, signal.SIGKILL)


def run_commands(
    given: list[tuple[str, list[str]]], where: Path, environment: dict[str, str]
) -> list[tuple[int, str]]:
    """The status and the output of each command, all run by one shell."""
    given = [(command.replace("YOUR_NAME", "root"), shown) for command, shown in given]
    script = "".join(f"{command}\n__s=$?; printf '\\001%s\\002' $__s; (exit $__s)\n" for command, _ in given)
    done = subprocess.run(
        ["bash", "-c", "echo $$ >> ../session.pids\n" + script + "wait\n"],
        cwd=where, env=environment, text=True, timeout=LIMIT_S, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    found = re.findall("([^\1\2]*)\1([0-9]+)\2", done.stdout)
    assert len(found) == len(given), done.stdout
    return [(int(status), output) for output, status in found]


@pytest.mark.backends
@pytest.mark.tap
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_shows(
    page: str, guest: Guest, backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment: dict[str, str] = {}
    request.addfinalizer(
        lambda: subprocess.run(["ip", "link", "delete", "tap0"], capture_output=True, check=False)
    )
    request.addfinalizer(lambda: end_what_runs_in(tmp_path))
    for block in page_blocks(page):
        where = tmp_path / str(block.section)
        if not where.exists():
            environment = prepared(where, guest, backend)
        if block.language == "c":
            named = re.fullmatch(r"`(\w+\.c)`:", block.before)
            source = where / (named[1] if named else "block.c")
            source.write_text("\n".join(block.lines) + "\n")
            if backend == "kvm":
                continue  # the compiler says the same there, slowly
            check = f"gcc $(tender sdk --cflags) -include stdint.h -Wall -Wextra -Werror -fsyntax-only {source.name}"
            assert run_commands([(check, [])], where, environment) == [(0, "")], block
        if block.language not in ("console", "sh"):
            continue
        given = commands(block)
        results = run_commands(given, where, environment)
        for i, ((command, shown), (status, output)) in enumerate(zip(given, results, strict=True)):
            asked = i + 1 < len(given) and given[i + 1][0] == "echo $?"
            assert status == 0 or asked, (command, status, output)
            if block.language == "console":
                assert matches(shown, output.splitlines()), (command, shown, output)


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in markdown_pages(ROOT)])
def test_every_block_has_a_language_and_so_is_run(page: str) -> None:
    for block in page_blocks(page):
        assert block.language in LANGUAGES, block
        if block.language in ("console", "sh", "c"):
            assert page in PAGES or page in OTHERS, f"{page} has commands that no test runs"
        if block.language == "python":
            assert page in ("README.md", "docs/library.md", "docs/debugging.md"), (
                f"{page} has a program that test_readme.py does not run"
            )
        if block.language in ("", "text"):
            assert not any(line.startswith(("$ ", "tender -", "make ")) for line in block.lines), block


def test_each_command_that_is_not_run_stands_on_a_page() -> None:
    lines = {
        line.partition("  #")[0].strip()
        for page in PAGES
        for block in page_blocks(page)
        for line in joined(block)
    }
    assert set(NOT_RUN) <= lines


def test_what_a_page_shows_is_compared() -> None:
    """Of the comparison itself."""
    assert matches(["a 1 b", "...", "c"], ["a   22 b", "x", "y", "c"])
    assert matches(['{"a": 1, ...}'], ['{"a": 2, "b": 3}'])
    assert matches(["rip 0x1f", "up 0.1 s"], ["rip 0x3", "up 22 s"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a"], [])
    assert not matches(["value a"], ["value b"])


MAKE = re.compile(r"(?:`|^)make ((?:[a-z][a-z0-9-]*)?(?: [A-Z]+=\S+?)*)(?=`|\s|$)", re.MULTILINE)


def test_each_target_of_make_that_a_page_names_exists() -> None:
    targets = {
        words for page in markdown_pages(ROOT) for words in MAKE.findall(page.read_text()) if words.strip()
    }
    assert len(targets) > 15
    for words in sorted(targets):
        done = subprocess.run(
            ["make", "-n", *words.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
