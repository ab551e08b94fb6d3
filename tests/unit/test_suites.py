"""tools/suites.py, which `make test` runs: no failure hides another one, and the summary says what failed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def suites() -> Any:
    """tools/suites.py as a module."""
    return tool("suites")


@pytest.fixture
def run(
    suites: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """A function: run(NAME=[COMMAND...]) runs these suites, `jobs` at a time; returns the status and the
    lines of output."""

    def of(
        limit_s: float = 60.0, jobs: int = 2, begins_first: str = "", **table: list[tuple[str, ...]]
    ) -> tuple[int, list[str]]:
        made = tuple(
            suites.Suite(name, tuple(commands), {}, limit_s, name == begins_first)
            for name, commands in table.items()
        )
        monkeypatch.setattr(suites, "SUITES", made)
        status = suites.main(["-j", str(jobs)])
        return status, capfd.readouterr().out.splitlines()

    return of


def says(*lines: str, status: int = 0) -> tuple[str, ...]:
    """Returns a command that prints the lines and exits with the status."""
    return (
        sys.executable,
        "-c",
        "import sys; print(*sys.argv[2:], sep='\\n'); sys.exit(int(sys.argv[1]))",
        str(status),
        *lines,
    )


def row(lines: list[str], name: str) -> list[str]:
    """Returns the words of the suite's row in the summary."""
    (found,) = [line.split() for line in lines[lines.index("") :] if line.split()[:1] == [name]]
    return found


def test_suites_after_a_failed_suite_still_run(run: Callable[..., Any]) -> None:
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


def test_commands_after_a_failed_command_still_run(run: Callable[..., Any]) -> None:
    status, lines = run(lint=[says("one", status=3), says("two")])
    assert status == 1
    assert "two" in lines[: lines.index("")]
    assert row(lines, "lint")[:2] == ["lint", "FAILED"]
    assert lines[-1] == "0 passed, 1 failed"


def test_success_of_all_suites_is_status_0(run: Callable[..., Any]) -> None:
    quiet, native = says("12 passed in 0.50s"), says("Ok:                 3  ", "Fail:               0  ")
    status, lines = run(unit=[quiet], native=[native], lint=[says()])
    assert status == 0
    assert row(lines, "unit")[1:3] == ["ok", "12"]
    assert row(lines, "native")[1:4] == ["ok", "3", "0"]
    assert row(lines, "lint")[1] == "ok"
    assert lines[-1] == "15 passed, 0 failed"


@pytest.mark.parametrize("word", ["Fail", "Timeout", "Unexpected Pass"])
def test_every_kind_of_failure_in_meson_counts_as_a_failure(run: Callable[..., Any], word: str) -> None:
    status, lines = run(native=[says("Ok:  2", f"{word}:  1", status=1)])
    assert status == 1
    assert row(lines, "native")[1:4] == ["FAILED", "2", "1"]


@pytest.mark.parametrize(
    "command",
    [(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), ("/nothing/is/here",), says(status=5)],
)
def test_a_suite_without_a_summary_has_failed(run: Callable[..., Any], command: tuple[str, ...]) -> None:
    status, lines = run(broken=[command], next=[says("1 passed in 0.01s")])
    assert status == 1
    assert row(lines, "broken")[:2] == ["broken", "FAILED"]
    assert row(lines, "next")[1] == "ok"
    assert lines[-1] == "1 passed, 1 failed"


def test_a_hanging_suite_is_ended_with_its_children_and_the_next_one_runs(run: Callable[..., Any]) -> None:
    hangs = ("sh", "-c", "echo begun; sleep 1000 & sleep 1000")
    began = time.monotonic()
    status, lines = run(limit_s=0.5, hangs=[hangs], next=[says("1 passed in 0.01s")])
    assert status == 1
    assert "begun" in lines
    assert row(lines, "hangs")[:2] == ["hangs", "FAILED"]
    assert row(lines, "next")[1] == "ok"
    assert time.monotonic() - began < 100


def test_the_summary_says_where_a_suite_ran(run: Callable[..., Any]) -> None:
    status, lines = run(kvm=[says("with_kvm: on this host's /dev/kvm", "= 1 passed in 0.01s =")])
    assert status == 0
    assert "    with_kvm: on this host's /dev/kvm" in lines[lines.index("") :]


WAIT = """
import os, sys, time
made, awaited, *lines = sys.argv[1:]
open(made, "w").close()
deadline = time.monotonic() + 120
while awaited and not os.path.exists(awaited) and time.monotonic() < deadline:
    time.sleep(0.01)
print(*lines, sep="\\n")
sys.exit(bool(awaited) and not os.path.exists(awaited))
"""


def waits(made: Path, awaited: Path | str, *lines: str) -> tuple[str, ...]:
    """Returns a command that makes a file, waits for another one, and prints the lines."""
    return (sys.executable, "-c", WAIT, str(made), str(awaited), *lines)


def test_suites_run_in_parallel_and_their_output_is_shown_in_order(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    status, lines = run(
        one=[says("= 1 passed in 0.01s =", "one's"), waits(one, two, "one's end")],
        two=[says("two's"), waits(two, one, "two's end", "= 2 passed in 0.01s =")],
    )
    assert status == 0, lines
    shown = ["--- one", "= 1 passed in 0.01s =", "one's", "one's end"]
    shown += ["--- two", "two's", "two's end", "= 2 passed in 0.01s ="]
    assert lines[: lines.index("")] == shown
    assert lines[-1] == "3 passed, 0 failed"


def test_no_more_suites_run_at_a_time_than_requested(run: Callable[..., Any], tmp_path: Path) -> None:
    """The mkdir succeeds only while no other command runs."""
    script = 'mkdir "$1" && "$2" -c "" && rmdir "$1"'
    alone = ("sh", "-c", script, "sh", str(tmp_path / "alone"), sys.executable)
    status, lines = run(jobs=1, one=[alone, alone], two=[alone], three=[alone])
    assert status == 0, lines


def test_suites_that_share_a_resource_do_not_run_at_the_same_time(
    suites: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`a` holds a directory until `c` runs, which comes last; `b` makes the same directory."""
    directory = str(tmp_path / "alone")
    made, awaited = tmp_path / "a", tmp_path / "c"
    table = (
        suites.Suite("a", (("mkdir", directory), waits(made, awaited), ("rmdir", directory)), one_of="x"),
        suites.Suite("b", (("mkdir", directory), ("rmdir", directory)), one_of="x"),
        suites.Suite("c", (waits(awaited, made),)),
    )
    monkeypatch.setattr(suites, "SUITES", table)
    assert suites.main(["-j", "2"]) == 0, capfd.readouterr().out


def test_the_longest_suite_begins_first_and_is_shown_in_its_place(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    note = ("sh", "-c", 'echo "$2" >>"$1"; echo "$2"', "sh", str(notes))
    status, lines = run(
        jobs=1, begins_first="long", a=[(*note, "a")], long=[(*note, "long")], b=[(*note, "b")]
    )
    assert status == 0
    assert notes.read_text().split() == ["long", "a", "b"]
    assert lines[: lines.index("")] == ["--- a", "a", "--- long", "long", "--- b", "b"]


MAIN = """
import importlib.util, json, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("suites", sys.argv[1])
suites = sys.modules["suites"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suites)
suites.SUITES = tuple(suites.Suite(name, (tuple(command),)) for name, command in json.loads(sys.argv[2]).items())
if sys.argv[3:] == ["elsewhere"]:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
sys.exit(suites.main(["-j", "2"]))
"""


@pytest.mark.parametrize("thread", ["first", "elsewhere"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_command_and_names_the_suites_that_did_not_run(
    tmp_path: Path, number: signal.Signals, thread: str
) -> None:
    """This holds whichever thread the kernel gives the signal to.

    Each command and each of its children holds the FIFO that the test reads. The FIFO ends when all of them
    have ended.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    hangs = ("sh", "-c", 'echo said; exec 3>"$1"; echo began >&3; sleep 1000 & sleep 1000', "sh", str(fifo))
    table = {"quick": says("4 passed in 0.01s"), "one": hangs, "two": hangs, "three": hangs}
    command = [sys.executable, "-c", MAIN, str(ROOT / "tools" / "suites.py"), json.dumps(table), thread]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        with open(fifo) as reader:
            assert [reader.readline() for _ in range(2)] == ["began\n"] * 2
            running.send_signal(number)
            assert reader.read() == ""
        out, err = running.communicate(timeout=120)
    lines = out.splitlines()
    assert running.returncode == 130
    assert row(lines, "quick")[1:3] == ["ok", "4"]
    assert lines[: lines.index("")] == [
        "--- quick",
        "4 passed in 0.01s",
        "--- one",
        "said",
        "--- two",
        "said",
    ]
    assert lines[-1] == "4 passed, 0 failed"
    assert err == "suites: interrupted: one, two; did not run: three\n"


def test_commands_end_when_their_output_is_not_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    hangs = ("sh", "-c", 'exec 3>"$1"; echo began >&3; sleep 1000', "sh", str(fifo))
    prints = ("sh", "-c", 'exec 3>"$1"; echo began >&3; while :; do echo said; done', "sh", str(fifo))
    table = {"prints": prints, "hangs": hangs, "next": hangs}
    command = [sys.executable, "-c", MAIN, str(ROOT / "tools" / "suites.py"), json.dumps(table)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        with open(fifo) as reader:
            assert [reader.readline() for _ in range(2)] == ["began\n"] * 2
            assert running.stdout
            running.stdout.close()
            assert reader.read() == ""
        assert running.wait(120) == 1


@pytest.mark.parametrize("number", ["", "0", "two", "-1", "1000"])
def test_an_invalid_number_of_suites_is_refused(
    suites: Any, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    assert suites.main(["-j", number, "lint"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"suites: -j {number}: not a number of suites from 1 to 999\n")


@pytest.mark.parametrize(
    ("jobs", "processors", "given"), [(1, 4, "4"), (2, 4, "2"), (2, 1, "1"), (4, 2, "1")]
)
def test_the_fuzzers_use_the_processors_that_no_other_suite_uses(
    suites: Any,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    processors: int,
    given: str,
) -> None:
    monkeypatch.delenv("FUZZ_JOBS", raising=False)
    monkeypatch.setattr(suites, "PROCESSORS", processors)
    tell = ("sh", "-c", 'echo "jobs $FUZZ_JOBS"')
    status, lines = run(jobs=jobs, **{name: [tell] for name in ("one", "two", "three", "four")})
    assert status == 0
    assert lines[: lines.index("")].count(f"jobs {given}") == 4


def test_an_unknown_suite_is_refused_with_the_known_names(
    suites: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suites.main(["unit", "units"]) == 2
    said = capsys.readouterr()
    assert "no suite units; the suites are lint, types, unit," in said.err
    assert said.out == ""


def test_compiled_python_files_are_kept_for_the_next_suite(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    status, lines = run(
        one=[(sys.executable, "-c", "import sys; print('keeps', not sys.dont_write_bytecode)")]
    )
    assert (status, lines[1]) == (0, "keeps True")


@pytest.mark.parametrize(
    ("words", "shown"),
    [([], ["a", "c"]), (["--also", "b"], ["a", "b", "c"]), (["b"], ["b"]), (["c", "a"], ["c", "a"])],
)
def test_a_suite_outside_of_make_test_runs_if_it_is_named(
    suites: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    shown: list[str],
) -> None:
    table = [suites.Suite(name, (says(),), in_test=name != "b") for name in ("a", "b", "c")]
    monkeypatch.setattr(suites, "SUITES", tuple(table))
    assert suites.main(words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line[4:] for line in lines if line.startswith("--- ")] == shown


def test_every_suite_has_its_own_target(suites: Any) -> None:
    (names,) = re.findall(r"^EACH *= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names.split() == [suite.name for suite in suites.SUITES]


def test_every_directory_of_tests_belongs_to_a_suite(suites: Any) -> None:
    words = {word for suite in suites.SUITES for command in suite.commands for word in command}
    for path in (ROOT / "tests").rglob("test_*.py"):
        mine = [p for p in [path, *path.parents] if p != ROOT and p.is_relative_to(ROOT)]
        assert words & {str(p.relative_to(ROOT)) for p in mine}, path


def test_output_is_passed_on_immediately(run: Callable[..., Any], tmp_path: Path) -> None:
    """The command continues after its first line was written."""
    seen = tmp_path / "seen"

    class Out:
        def write(self, text: str) -> None:
            if text == "first\n":
                seen.touch()

        def flush(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Out())
        status, _ = run(one=[says("first"), waits(tmp_path / "made", seen)])
    assert status == 0


def test_every_c_file_of_the_tree_is_formatted(suites: Any) -> None:
    listed = {ROOT / name for name in suites.c_files()}
    skipped = {".git", ".venv", "build", "dist"}
    in_tree = set()
    for place, directories, names in os.walk(ROOT):
        directories[:] = [name for name in directories if name not in skipped]
        in_tree |= {Path(place, name) for name in names if name.endswith((".c", ".h"))}
    left = {str(p.relative_to(ROOT)) for p in in_tree - listed}
    assert "bindings/python/kvm_cdef.h" in left
    assert all(name.startswith(suites.GENERATED) for name in left), left
    assert listed <= in_tree
