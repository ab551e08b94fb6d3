"""tools/suites.py, which `make test` is: no failure hides another, and the sum tells what failed."""

import importlib.util
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def suites() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("suites", ROOT / "tools" / "suites.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["suites"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(
    suites: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """run(NAME=[COMMAND...]): the status and the lines of output, with these suites as the table."""

    def of(limit_s: float = 60.0, **table: list[tuple[str, ...]]) -> tuple[int, list[str]]:
        made = tuple(suites.Suite(name, tuple(commands), {}, limit_s) for name, commands in table.items())
        monkeypatch.setattr(suites, "SUITES", made)
        status = suites.main([])
        return status, capfd.readouterr().out.splitlines()

    return of


def says(*lines: str, status: int = 0) -> tuple[str, ...]:
    """A command that prints the lines and exits with the status."""
    return (
        sys.executable,
        "-c",
        "import sys; print(*sys.argv[2:], sep='\\n'); sys.exit(int(sys.argv[1]))",
        str(status),
        *lines,
    )


def row(lines: list[str], name: str) -> list[str]:
    """The words of the suite's row in the summary."""
    (found,) = [line.split() for line in lines[lines.index("") :] if line.split()[:1] == [name]]
    return found


def test_a_failing_suite_hides_none_that_follows(run: Callable[..., Any]) -> None:
    status, lines = run(
        first=[
            says("FAILED tests/a.py::test_a - assert 1 == 2", "= 1 failed, 2 passed in 0.10s =", status=1)
        ],
        second=[says("= 5 passed, 1 skipped in 1.00s (0:00:01) =")],
    )
    assert status == 1
    assert row(lines, "first")[:5] == ["first", "FAILED", "2", "1", "0"]
    assert row(lines, "second")[:5] == ["second", "ok", "5", "0", "1"]
    assert "    FAILED tests/a.py::test_a - assert 1 == 2" in lines
    assert lines[-1] == "7 passed, 1 failed, 1 skipped"


def test_a_failing_command_hides_none_that_follows_in_its_suite(run: Callable[..., Any]) -> None:
    status, lines = run(lint=[says("one", status=3), says("two")])
    assert status == 1
    assert "two" in lines[: lines.index("")]
    assert row(lines, "lint")[:2] == ["lint", "FAILED"]
    assert lines[-1] == "0 passed, 1 failed"


def test_all_that_succeeds_is_status_0(run: Callable[..., Any]) -> None:
    quiet, native = says("12 passed in 0.50s"), says("Ok:                 3", "Fail:               0")
    status, lines = run(unit=[quiet], native=[native], lint=[says()])
    assert status == 0
    assert row(lines, "unit")[1:3] == ["ok", "12"]
    assert row(lines, "native")[1:4] == ["ok", "3", "0"]
    assert row(lines, "lint")[1] == "ok"
    assert lines[-1] == "15 passed, 0 failed"


@pytest.mark.parametrize("word", ["Fail", "Timeout", "Unexpected Pass"])
def test_whatever_meson_counts_as_no_success_is_a_failure(run: Callable[..., Any], word: str) -> None:
    status, lines = run(native=[says("Ok:  2", f"{word}:  1", status=1)])
    assert status == 1
    assert row(lines, "native")[1:4] == ["FAILED", "2", "1"]


@pytest.mark.parametrize(
    "command",
    [(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), ("/nothing/is/here",), says(status=5)],
)
def test_a_suite_that_never_comes_to_its_sum_has_failed(
    run: Callable[..., Any], command: tuple[str, ...]
) -> None:
    status, lines = run(broken=[command], next=[says("1 passed in 0.01s")])
    assert status == 1
    assert row(lines, "broken")[:2] == ["broken", "FAILED"]
    assert row(lines, "next")[1] == "ok"
    assert lines[-1] == "1 passed, 1 failed"


def test_a_suite_that_hangs_is_ended_with_its_children_and_hides_none(run: Callable[..., Any]) -> None:
    hangs = ("sh", "-c", "echo begun; sleep 1000 & sleep 1000")
    began = time.monotonic()
    status, lines = run(limit_s=0.5, hangs=[hangs], next=[says("1 passed in 0.01s")])
    assert status == 1
    assert "begun" in lines
    assert row(lines, "hangs")[:2] == ["hangs", "FAILED"]
    assert row(lines, "next")[1] == "ok"
    assert time.monotonic() - began < 100


def test_where_a_suite_ran_is_said_in_the_summary(run: Callable[..., Any]) -> None:
    status, lines = run(kvm=[says("with_kvm: on this host's /dev/kvm", "= 1 passed in 0.01s =")])
    assert status == 0
    assert "    with_kvm: on this host's /dev/kvm" in lines[lines.index("") :]


def test_an_interrupted_run_says_what_did_not_run(
    suites: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def interrupted(command: tuple[str, ...], *_: object) -> None:
        commands.append(command)
        if len(commands) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(suites, "run_command", interrupted)
    status, lines = run(one=[says()], two=[says()], three=[says()])
    assert status == 130
    assert len(commands) == 2
    assert row(lines, "one")[1] == "ok"


def test_an_unknown_suite_is_refused_with_the_names_there_are(
    suites: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suites.main(["unit", "units"]) == 2
    said = capsys.readouterr()
    assert "no suite units; there are lint, types, unit," in said.err
    assert said.out == ""


def test_every_suite_has_a_target_of_its_own(suites: Any) -> None:
    (names,) = re.findall(r"^EACH *= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names.split() == [suite.name for suite in suites.SUITES]


def test_every_directory_of_tests_belongs_to_a_suite(suites: Any) -> None:
    words = {word for suite in suites.SUITES for command in suite.commands for word in command}
    for path in (ROOT / "tests").rglob("test_*.py"):
        mine = [p for p in [path, *path.parents] if p != ROOT and p.is_relative_to(ROOT)]
        assert words & {str(p.relative_to(ROOT)) for p in mine}, path


def test_output_is_handed_on_as_it_comes(suites: Any) -> None:
    outcome, seen = suites.Outcome(), threading.Event()

    def lines() -> Any:
        yield "first\n"
        assert seen.wait(60)
        yield "= 1 passed in 0.01s =\n"

    class Out:
        def write(self, text: str) -> None:
            if text == "first\n":
                seen.set()

        def flush(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Out())
        suites.hand_on(lines(), outcome)
    assert outcome.counts["passed"] == 1


def test_every_c_file_of_the_tree_is_laid_out(suites: Any) -> None:
    listed = {ROOT / name for name in suites.c_files()}
    skipped = {".git", ".venv", "build", "dist"}
    in_tree = {p for p in ROOT.rglob("*.[ch]") if not skipped & set(p.relative_to(ROOT).parts)}
    left = {str(p.relative_to(ROOT)) for p in in_tree - listed}
    assert "bindings/python/kvm_cdef.h" in left
    assert all(name.startswith(suites.GENERATED) for name in left), left
    assert listed <= in_tree
