"""Runs test suites, each to its end even if another one fails, and prints a summary.

usage: tools/suites.py [-j N] [SUITE...]        without SUITE: all suites of `make test`
       tools/suites.py [-j N] --also SUITE...   all suites of `make test`, and these
       tools/suites.py --c-files                lists the C sources that clang-format formats

N suites run at the same time, by default as many as there are processors. Their output is shown one suite after the
other: the output of the first suite as it comes, and the output of each other suite from its beginning, when its turn
comes.

The table below is the only list of suites. Each suite has a target of the same name in the Makefile. The status is 0 if
every requested suite succeeded, and 1 otherwise. It is 2 for a name that is not in the table, or an N that is not a
number. A suite that does not end within its limit is killed and has failed, so a hang does not hide the other suites.
The environment's programs must be first in PATH.
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
BACKENDS = ("tests/contract", "tests/conformance", "tests/debug", "tests/functional", "tests/security")
# The tests of the command. They also run with the Python launcher.
COMMAND = (
    "tests/contract/test_cli.py",
    "tests/contract/test_backend.py",
    "tests/conformance/test_solo5_command_line.py",
    "tests/conformance/test_launchers.py",
)
C_DIRECTORIES = ("abi", "bench", "bindings", "guest_kernel", "tests", "tools")
GENERATED = ("bindings/python/kvm_cdef.h", "bindings/python/ptrace_cdef.h", "bench/out/")
OUTPUT_LIMIT_S = 10.0
WAIT_S = 0.5
PROCESSORS = len(os.sched_getaffinity(0))


def c_files() -> list[str]:
    """Every C source that clang-format formats."""
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
    # For a hang that the limits of the tests themselves do not end. The suite takes half an hour on an idle machine, and
    # ten times that on a machine that others use as well.
    limit_s: float = 6 * 3600.0
    # It takes longer than any other suite on one processor, so it begins before those that precede it in the table.
    begins_first: bool = False
    in_test: bool = True
    """Whether `make test` runs it."""
    one_of: str = ""
    """Two suites with the same word never run at the same time."""


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
            # This compiles the test modules on this host, in seconds. In the test VM that takes a minute.
            (*PYTEST, "--collect-only", "-qq", "-m", "kvm", *BACKENDS),
            ("tools/with_kvm", "--", *PYTEST, "-m", "kvm", *BACKENDS),
        ),
        begins_first=True,
        one_of="kvm",  # with a host's KVM these tests count the VMs of that host
    ),
    Suite(  # without a second processor, the network ring is not offered
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
    Suite(  # the tests that an Intel processor most likely affects, on kvm_intel in Bochs
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
    """What a suite's commands printed and how they ended. It reads each line when it is printed."""

    # `= 3 failed, 10 passed in 4.56s (0:01:02) =`, with or without the lines of `=` at its sides
    PYTEST_END = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s")
    MESON_END = re.compile(r"^(Ok|Fail|Timeout|Unexpected Pass|Skipped): +(\d+) *$")
    FAILURE = re.compile(r"^(FAILED|ERROR) \S")
    PLACE = re.compile(r"^with_(kvm|net): ")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.begun = False
        self.ended = False  # by itself, with success or failure, and not by an interrupt
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
        """Note that the suite has failed, and which of its commands failed."""
        words = shlex.join(command)
        self.failed = True
        self.failures.append(f"{why}: {words if len(words) < 200 else words[:200] + ' ...'}")


class Commands:
    """The commands that run now. An interrupt ends them all, and no command begins after it."""

    def __init__(self, jobs: int) -> None:
        # For the fuzz suite, which would use all processors.
        self._environment = {"FUZZ_JOBS": str(max(1, PROCESSORS // jobs)), **os.environ}
        # The suites share compiled files: of the test modules, and of the plugins that pytest rewrites.
        self._environment["PYTHONDONTWRITEBYTECODE"] = ""
        self._lock = threading.RLock()  # a signal handler may call stop() while this thread holds the lock
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str] | None:
        """Start the command in a process group of its own. Returns None after stop()."""
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
        """Send SIGKILL to its process group if it still runs, and reap it."""
        with self._lock:
            self._running.discard(process)
            self._kill(process)
        process.wait()

    def stop(self) -> None:
        """Send SIGKILL to every process group."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def pass_on(output: IO[str], outcome: Outcome, show: Callable[[str], None]) -> None:
    """Pass each line of a command's output to `show` and to `outcome`, as it comes."""
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
    """Run the command, pass its output on, and note how it ended."""
    process = commands.start(command, environment)
    if process is None:
        return
    outcome.begun = True
    assert process.stdout
    reader = threading.Thread(target=pass_on, args=(process.stdout, outcome, show), daemon=True)
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
    """Run every command of the suite, in order."""
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
    """A suite that runs, or waits to run, while others run. It keeps its output until the output is shown."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ran: Future[Outcome] = Future()

    def run(self, commands: Commands) -> None:
        """Run the suite to its end, with success or failure."""
        if not commands.stopped:
            self._lines.put(f"--- {self.suite.name}\n")
        try:
            self._ran.set_result(run_suite(self.suite, commands, self._lines.put))
        except BaseException as error:
            self._ran.set_exception(error)
        finally:
            self._lines.put(None)

    def show(self) -> Outcome:
        """Print all its output, from the beginning until the suite ends."""
        while line := self._line():
            sys.stdout.write(line)
            sys.stdout.flush()
        return self._ran.result()

    def _line(self) -> str | None:
        """The next line, when there is one.

        A signal that comes just before a wait, or to another thread, does not end the wait. So each wait is short, and
        Python's handler runs between two waits.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=WAIT_S)


class Plan:
    """Decides which suite is next."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._waiting = sorted(turns, key=lambda turn: not turn.suite.begins_first)
        self._running: set[str] = set()
        self._changed = threading.Condition()

    def _next(self) -> Turn | None:
        return next((turn for turn in self._waiting if turn.suite.one_of not in self._running), None)

    def work(self, commands: Commands) -> None:
        """Run one suite after the other until none is left. Several threads may call this."""
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
    """While inside, SIGINT and SIGTERM end the commands, and this program goes on to the summary."""
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda *_: commands.stop()) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def run_side_by_side(suites: Sequence[Suite], jobs: int) -> dict[str, Outcome]:
    """How each suite ended, in this order. `jobs` suites run at the same time."""
    turns, commands = [Turn(suite) for suite in suites], Commands(jobs)
    with ended_by_signals(commands), ThreadPoolExecutor(jobs) as pool:
        plan = Plan(turns)
        for _ in range(jobs):
            pool.submit(plan.work, commands)
        try:
            return {turn.suite.name: turn.show() for turn in turns}
        except BaseException:  # for example, the reader of our output is gone
            commands.stop()
            raise


def summary(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """The lines of the summary: one row per suite, below it what failed and where it ran, and at last the sum."""
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
            total["failed"] += 1  # a suite that counts no tests, or that ended before its own sum
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
        print(f"suites: no suite {', '.join(unknown)}; the suites are {', '.join(known)}", file=sys.stderr)
        return 2
    if also or not names:
        names = [name for name, suite in known.items() if suite.in_test or name in names]
    chosen = [known[name] for name in dict.fromkeys(names)]
    try:
        outcomes = run_side_by_side(chosen, min(jobs, len(chosen)))
    except BrokenPipeError:  # the reader is gone; the interpreter's last flush must not change the status
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
