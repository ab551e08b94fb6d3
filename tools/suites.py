"""Runs test suites, each to its end whatever becomes of the others, and sums up at the end.

usage: tools/suites.py [-j N] [SUITE...]        no SUITE: all that `make test` runs
       tools/suites.py [-j N] --also SUITE...   these beside all that
       tools/suites.py --c-files                the C sources that clang-format lays out

As many suites run side by side as there are processors, or N. What they print is shown one suite after the other: of the
first as it comes, of the others from their beginning when their turn comes.

The table below is the one list of suites; each has a target of its own name in the Makefile. The status is 0 if every
suite that was asked for succeeded, else 1, and 2 for a name that is not in the table or an N that is no number. A suite
that does not end within its limit is killed and has failed, so a hang hides no other suite either. The environment's
programs are expected first in PATH.
"""

import contextlib
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

PYTEST = ("pytest", "--color=no")
BACKENDS = ("tests/contract", "tests/conformance", "tests/functional", "tests/security")
# What tests the command; by the Python launcher too.
COMMAND = (
    "tests/contract/test_cli.py",
    "tests/contract/test_backend.py",
    "tests/conformance/test_solo5_command_line.py",
    "tests/conformance/test_launchers.py",
)
C_DIRECTORIES = ("abi", "bench", "bindings", "guest_kernel", "tests", "tools")
GENERATED = ("bindings/python/kvm_cdef.h", "bench/out/")
OUTPUT_LIMIT_S = 10.0
WAIT_S = 0.5
PROCESSORS = len(os.sched_getaffinity(0))


def c_files() -> list[str]:
    """Every C source that is laid out by clang-format."""
    found = (p for d in C_DIRECTORIES for p in (ROOT / d).rglob("*.[ch]"))
    return sorted(
        name for name in (str(p.relative_to(ROOT)) for p in found) if not name.startswith(GENERATED)
    )


@dataclass(frozen=True)
class Suite:
    """All `commands` run, in order; the suite has failed if one of them has."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)
    # For what its tests' own limits do not end. A machine that others use as well takes ten times the idle one's half hour.
    limit_s: float = 6 * 3600.0
    # It takes longer than any other, on one processor, so it begins before those that precede it in the table.
    begins_first: bool = False
    in_test: bool = True
    """Whether `make test` runs it."""
    one_of: str = ""
    """Of the suites with the same word no two run at a time."""


SUITES = (
    Suite(
        "lint",
        (
            ("ruff", "check", "."),
            ("ruff", "format", "--check", "."),
            ("clang-format", "--dry-run", "-Werror", *c_files()),
            ("codespell",),
        ),
    ),
    Suite("types", (("mypy",),)),
    Suite("unit", ((*PYTEST, "tests/unit", "tests/conformance/test_elftool.py"),)),
    Suite(
        "native",
        (("meson", "test", "-C", "build", "--no-rebuild", "--print-errorlogs", "--timeout-multiplier=20"),),
    ),
    Suite("fuzz", (("tools/fuzz", "20"),)),
    Suite("sandbox", (("tools/with_net", "--", *PYTEST, "-m", "not kvm", *BACKENDS),)),
    Suite(
        "sandbox-python",
        (("tools/with_net", "--", *PYTEST, "-m", "not kvm", *COMMAND),),
        {"TENDER_LAUNCHER": "python"},
    ),
    Suite(
        "kvm",
        (
            # The modules are compiled here, in seconds; in the test VM that takes a minute.
            (*PYTEST, "--collect-only", "-qq", "-m", "kvm", *BACKENDS),
            ("tools/with_kvm", "--", *PYTEST, "-m", "kvm", *BACKENDS),
        ),
        begins_first=True,
        one_of="kvm",  # on a host's KVM they count that host's machines
    ),
    Suite(  # no second processor, so the network ring is not offered
        "kvm-one",
        (("tools/with_kvm", "--", *PYTEST, "-m", "kvm", "tests/conformance/test_ring.py"),),
        {"TENDER_KVM_CPUS": "1"},
        one_of="kvm",
    ),
    Suite(
        "kvm-python",
        (("tools/with_kvm", "--", *PYTEST, "-m", "kvm", *COMMAND, "tests/functional/test_command_net.py"),),
        {"TENDER_LAUNCHER": "python"},
        one_of="kvm",
    ),
    Suite("package", ((*PYTEST, "tests/package"),)),
    Suite("kvmbox", ((*PYTEST, "tests/kvmbox"),)),
    Suite(  # what an Intel processor is likeliest to change, on kvm_intel in Bochs
        "intel-fast",
        (
            (
                "tools/with_intel",
                "--",
                ".venv/bin/pytest",
                "--color=no",
                "-v",
                "-m",
                "kvm",
                "@tests/kvmbox/intel_fast.txt",
            ),
        ),
        in_test=False,
    ),
)


class Outcome:
    """What a suite's commands said and how they ended; it reads their lines as they are printed."""

    # `= 3 failed, 10 passed in 4.56s (0:01:02) =`, with or without the rules at its sides
    PYTEST_END = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s")
    MESON_END = re.compile(r"^(Ok|Fail|Timeout|Unexpected Pass|Skipped): +(\d+) *$")
    FAILURE = re.compile(r"^(FAILED|ERROR) \S")
    PLACE = re.compile(r"^with_(kvm|net): ")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.begun = False
        self.ended = False  # of itself, whatever became of it, and not by an interrupt
        self.failed = False
        self.failures: list[str] = []
        self.places: list[str] = []
        self.seconds = 0.0

    def read(self, line: str) -> None:
        """One line of output, without its newline."""
        if found := self.PYTEST_END.match(line):
            for number, word in re.findall(r"(\d+) ([a-z]+)", found[1]):
                self.counts["failed" if word in ("error", "errors") else word] += int(number)
        elif found := self.MESON_END.match(line):
            self.counts[{"Ok": "passed", "Skipped": "skipped"}.get(found[1], "failed")] += int(found[2])
        elif self.FAILURE.match(line):
            self.failures.append(line)
        elif self.PLACE.match(line) and line not in self.places:
            self.places.append(line)

    def fail(self, why: str, command: Sequence[str]) -> None:
        """The suite has failed, by this command of it."""
        words = shlex.join(command)
        self.failed = True
        self.failures.append(f"{why}: {words if len(words) < 200 else words[:200] + ' ...'}")


class Commands:
    """The commands that run now, so that an interrupt ends them all, and none begins after it."""

    def __init__(self, jobs: int) -> None:
        # For the one suite that fills all processors by itself.
        self._environment = {"FUZZ_JOBS": str(max(1, PROCESSORS // jobs)), **os.environ}
        # A suite reads what another compiled: of each test module, and of what pytest rewrites in its plugins.
        self._environment["PYTHONDONTWRITEBYTECODE"] = ""
        self._lock = threading.RLock()  # stop() may be a signal's, amid another
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str] | None:
        """It runs, in a process group of its own; None after stop()."""
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
            )
            self._running.add(process)
            return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """If it runs still, its process group gets SIGKILL."""
        with self._lock:
            self._running.discard(process)
            self._kill(process)
        process.wait()

    def stop(self) -> None:
        """Every process group gets SIGKILL."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def hand_on(output: IO[str], outcome: Outcome, show: Callable[[str], None]) -> None:
    """Every line of a command's output, as it comes."""
    for line in output:
        show(line)
        outcome.read(line.rstrip("\n"))


def run_command(
    command: Sequence[str],
    environment: dict[str, str],
    limit_s: float,
    outcome: Outcome,
    commands: Commands,
    show: Callable[[str], None],
) -> None:
    """Run it, hand its output on, and note how it ended."""
    process = commands.start(command, environment)
    if process is None:
        return
    outcome.begun = True
    assert process.stdout
    reader = threading.Thread(target=hand_on, args=(process.stdout, outcome, show), daemon=True)
    reader.start()
    try:
        if status := process.wait(max(0.0, limit_s)):
            outcome.fail(f"status {status}", command)
    except subprocess.TimeoutExpired:
        outcome.fail("did not end within its limit", command)
    finally:
        commands.end(process)
        reader.join(OUTPUT_LIMIT_S)  # a process that the command left behind may hold the pipe for ever


def run_suite(suite: Suite, commands: Commands, show: Callable[[str], None]) -> Outcome:
    """Every command of it, in order."""
    outcome, began = Outcome(), time.monotonic()
    for command in suite.commands:
        try:
            limit_s = began + suite.limit_s - time.monotonic()
            run_command(command, suite.environment, limit_s, outcome, commands, show)
        except OSError as error:
            outcome.fail(f"{error.strerror}", command)
    outcome.ended = not commands.stopped
    outcome.seconds = time.monotonic() - began
    return outcome


class Turn:
    """A suite that runs, or waits to, while others do: its output is kept until it is shown."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ran: Future[Outcome] = Future()

    def run(self, commands: Commands) -> None:
        """To its end, however that is."""
        if not commands.stopped:
            self._lines.put(f"--- {self.suite.name}\n")
        try:
            self._ran.set_result(run_suite(self.suite, commands, self._lines.put))
        except BaseException as error:
            self._ran.set_exception(error)
        finally:
            self._lines.put(None)

    def show(self) -> Outcome:
        """What it printed so far and all that follows, to its end."""
        while line := self._line():
            sys.stdout.write(line)
            sys.stdout.flush()
        return self._ran.result()

    def _line(self) -> str | None:
        """The next one, once it is there. A signal ends no wait if it comes just before it, or to another thread: so none
        is long, and Python's handler runs between two."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=WAIT_S)


class Plan:
    """Which turn is next."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._waiting = sorted(turns, key=lambda turn: not turn.suite.begins_first)
        self._running: set[str] = set()
        self._changed = threading.Condition()

    def _next(self) -> Turn | None:
        return next((turn for turn in self._waiting if turn.suite.one_of not in self._running), None)

    def work(self, commands: Commands) -> None:
        """One turn after the other, while there are some; several threads may."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting or self._next())
                turn = self._next()
                if turn is None:
                    return
                self._waiting.remove(turn)
                if turn.suite.one_of:
                    self._running.add(turn.suite.one_of)
                self._changed.notify_all()
            turn.run(commands)
            with self._changed:
                self._running.discard(turn.suite.one_of)
                self._changed.notify_all()


@contextlib.contextmanager
def ended_by_signals(commands: Commands) -> Iterator[None]:
    """SIGINT and SIGTERM end the commands, and we go on to the sum."""
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda *_: commands.stop()) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def run_side_by_side(suites: Sequence[Suite], jobs: int) -> dict[str, Outcome]:
    """How each ended, in this order; so many run at a time."""
    turns, commands = [Turn(suite) for suite in suites], Commands(jobs)
    with ended_by_signals(commands), ThreadPoolExecutor(jobs) as pool:
        plan = Plan(turns)
        for _ in range(jobs):
            pool.submit(plan.work, commands)
        try:
            return {turn.suite.name: turn.show() for turn in turns}
        except BaseException:  # nobody reads our output any more
            commands.stop()
            raise


def summary(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """A row a suite, below it what failed and where it ran; and the sum, which closes the output."""
    total: Counter[str] = Counter()
    yield f"{'suite':16}{'':8}{'passed':>8}{'failed':>8}{'skipped':>8}{'time':>10}"
    for name, outcome in outcomes.items():
        verdict = "FAILED" if outcome.failed else "ok"
        shown = [
            str(outcome.counts[word]) if outcome.counts else "" for word in ("passed", "failed", "skipped")
        ]
        minutes, seconds = divmod(round(outcome.seconds), 60)
        yield f"{name:16}{verdict:8}{shown[0]:>8}{shown[1]:>8}{shown[2]:>8}{f'{minutes}:{seconds:02}':>10}"
        yield from (f"    {line}" for line in (*outcome.places, *outcome.failures))
        total += outcome.counts
        if outcome.failed and not outcome.counts["failed"]:
            total["failed"] += 1  # a suite that counts no tests, or that ended before its sum
    yield f"{total['passed']} passed, {total['failed']} failed" + (
        f", {total['skipped']} skipped" if total["skipped"] else ""
    )


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    names = list(arguments)
    if names in (["-h"], ["--help"]):
        print(__doc__, end="")
        return 0
    if names == ["--c-files"]:
        print(*c_files(), sep="\n")
        return 0
    jobs = PROCESSORS
    if names[:1] == ["-j"]:
        number = "".join(names[1:2])
        if not re.fullmatch("[1-9][0-9]{0,2}", number):
            print(f"suites: -j {number}: not a number of suites from 1 to 999", file=sys.stderr)
            return 2
        jobs, names = int(number), names[2:]
    also = names[:1] == ["--also"]
    names = names[also:]
    known = {suite.name: suite for suite in SUITES}
    if unknown := [name for name in names if name not in known]:
        print(f"suites: no suite {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if also or not names:
        names = [name for name, suite in known.items() if suite.in_test or name in names]
    chosen = [known[name] for name in dict.fromkeys(names)]
    try:
        outcomes = run_side_by_side(chosen, min(jobs, len(chosen)))
    except BrokenPipeError:  # nobody reads: the interpreter's own last flush is not to end it otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    ended = {name: outcome for name, outcome in outcomes.items() if outcome.ended}
    print("", *summary(ended), sep="\n", flush=True)
    if len(ended) < len(outcomes):
        interrupted = [name for name, outcome in outcomes.items() if outcome.begun and not outcome.ended]
        rest = [name for name, outcome in outcomes.items() if not outcome.begun and not outcome.ended]
        said = [
            f"{what}: {', '.join(of)}"
            for what, of in (("interrupted", interrupted), ("did not run", rest))
            if of
        ]
        print(f"suites: {'; '.join(said)}", file=sys.stderr)
        return 130
    return 1 if any(outcome.failed for outcome in ended.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
