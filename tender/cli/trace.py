"""`tender trace`: the hypercalls of a guest, in strace's look. tender/debug/trace.py reads them.

A guest that runs already is never stopped, and is not traced as by a debugger. A guest that this command starts is traced
(ptrace(2)), so that its first and its last call are seen: it stops only at signals, and at its end.

A tracer that is killed leaves little: the recording ends by itself some million calls later, and a guest that was started
goes on.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO

from tender.cli import say
from tender.cli.looking import failed
from tender.cli.option_table import listed
from tender.errors import ConfigError, TenderError
from tender.printable import printable

if TYPE_CHECKING:
    from tender.debug.find import Guest
    from tender.debug.ptrace import Status
    from tender.debug.trace import Callers, Hypercall, Ring

USAGE = f"""\
usage: tender trace [--only=N,..] [--summary] [--times] [--json] [--format=F] [--output=F] [--for=S] [--count=N] [--vm=N] PID
       tender trace [the same options] [options of tender run] IMAGE [ARGUMENT...]

Show the hypercalls of a guest, with their time and the functions that made them: of the guest that
process PID runs or holds, from now on, or of one that is started. PID's guest is not stopped and
needs no preparation. The end is the guest's, or Ctrl-C.

{listed("trace")}

With IMAGE, the calls are written to stderr or to --output, and the status is the guest's. Else it is 0,
or 1 if there is no such guest, if it may not be looked into, or if a file cannot be written."""

SCHEMA = "tender.trace/1"
FORMATS = ("text", "json", "chrome")
_FAILED = 1
_VALUED = ("-e", "--only", "-o", "--output", "--format", "--for", "--count", "--vm")
_FLAGS = {"-c": "summary", "--summary": "summary", "-t": "times", "--times": "times"}


@dataclass
class Request:
    """What the command line asks for."""

    pid: int = 0
    run_words: list[str] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    summary: bool = False
    times: bool = False
    form: str = "text"
    output: str = ""
    seconds: float = float("inf")
    count: float = float("inf")
    vm: int = 0


def main(argv: list[str]) -> int:
    """Serves one command line, and returns the exit status."""
    if argv[:1] in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    try:
        request = _read(argv)
        return _started(request) if request.run_words else _attached(request)
    except TenderError as error:
        return failed("trace", argv, error)
    except OSError as error:
        say.error(f"trace: {printable(str(error.filename or 'output'))}: {error.strerror}")
    return _FAILED


# ---- the command line


def _read(argv: list[str]) -> Request:
    """Raises ConfigError."""
    words, request = list(argv), Request()
    while words:
        name, has_value, value = words[0].partition("=")
        if name in _FLAGS and not has_value:
            setattr(request, _FLAGS[name], True)
        elif words[0] == "--json":
            request.form = "json"
        elif name in _VALUED:
            if not has_value and len(words) < 2:
                raise ConfigError(f"{name}: a value is needed", hint="tender trace --help")
            _take(request, name, value if has_value else words.pop(1))
        elif words[0].isascii() and words[0].isdecimal() and len(words) == 1:
            request.pid = number("PID", words[0], "trace")
        else:
            request.run_words = words
            break
        del words[0]
    if not request.pid and not request.run_words:
        raise ConfigError("a PID or an IMAGE is needed", hint="`tender ps` lists the guests here")
    if request.vm and request.run_words:
        raise ConfigError("--vm: a guest that is started is the only one", hint="leave it out")
    return request


def _take(request: Request, name: str, value: str) -> None:
    if name in ("-e", "--only"):
        request.names = _names(value)
    elif name in ("-o", "--output"):
        request.output = value
    elif name == "--format":
        if value not in FORMATS:
            raise ConfigError(
                f"--format={printable(value)}: not a format", hint=f"--format={', '.join(FORMATS)}"
            )
        request.form = value
    elif name == "--for":
        request.seconds = number(name, value, "trace")
    elif name == "--count":
        request.count = number(name, value, "trace")
    else:
        request.vm = number(name, value, "trace")


def _names(value: str) -> frozenset[str]:
    from tender.debug.trace import CALLS

    wanted = value.removeprefix("trace=").split(",")
    kinds = sorted({*CALLS.values(), *CALLS})
    wrong = next((it for it in wanted if it not in kinds), None)
    if wrong is not None:
        raise ConfigError(
            f"-e {printable(wrong)}: no hypercall, and no kind of hypercalls",
            hint=f"one of {', '.join(kinds)}",
        )
    return frozenset(call for call, kind in CALLS.items() if call in wanted or kind in wanted)


def number(name: str, value: str, command: str) -> int:
    """Returns a positive number of the command line. Raises ConfigError."""
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:12]) < 1 << 31):
        raise ConfigError(f"{name}: `{printable(value)}' is not a number", hint=f"tender {command} --help")
    return int(value)


# ---- what is shown


@dataclass
class _Sums:
    calls: int = 0
    ns: int = 0
    errors: int = 0


@dataclass
class Show:
    """Writes calls as the request says, and counts them."""

    request: Request
    out: TextIO
    devices: dict[int, str]
    callers: "Callers | None"
    pid: int
    title: str
    shown: int = 0
    zero_ns: int = -1
    sums: dict[str, _Sums] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return self.shown >= self.request.count

    def begin(self) -> None:
        """Writes what comes before the first call."""
        if self.request.form == "chrome":
            named = {
                "name": "process_name",
                "ph": "M",
                "pid": self.pid,
                "tid": self.pid,
                "args": {"name": self.title},
            }
            self.out.write('{"displayTimeUnit":"ns","traceEvents":[\n' + _json(named))

    def take(self, calls: "list[Hypercall]") -> None:
        """Writes those of these calls that are wanted."""
        for call in calls:
            if self.is_full:
                break
            if self.request.names and call.name not in self.request.names:
                continue
            if self.zero_ns < 0:
                self.zero_ns = call.begin_ns
            if not call.unfinished:
                sums = self.sums.setdefault(call.name, _Sums())
                sums.calls, sums.ns, sums.errors = (
                    sums.calls + 1,
                    sums.ns + call.duration_ns,
                    sums.errors + call.is_error,
                )
            text = "" if self.request.summary else self._one(call)
            if text:
                self.out.write(text)
            self.shown += 1
        self.out.flush()

    def end(self, ring: "Ring") -> None:
        """Writes what comes after the last call, and says what is missing."""
        if self.request.summary:
            self.out.write(self._table())
        if self.request.form == "json" and not self.request.summary:
            self.out.write(
                _json({"schema": SCHEMA, "calls": self.shown, "lost": ring.lost, "gaps": ring.gaps}) + "\n"
            )
        elif self.request.form == "chrome":
            self.out.write("\n]}\n")
        self.out.flush()
        if ring.lost:
            say.error(f"trace: {ring.lost} calls are missing: they came faster than they were read")
            say.hint("" if self.request.summary else "--summary and --output=FILE are faster than a terminal")
        if ring.gaps:
            say.error(
                f"trace: the recording was switched off {ring.gaps} times meanwhile; calls may be missing"
            )

    def _one(self, call: "Hypercall") -> str:
        from tender.debug.trace import line

        callers = self.callers.of(call) if self.callers else ()
        if self.request.form == "json":
            return _json(as_data(call, self.devices, callers)) + "\n"
        if self.request.form == "chrome":
            return ",\n" + _json(self._event(call, callers))
        at = f"{(call.begin_ns - self.zero_ns) / 1e9:.6f} " if self.request.times else ""
        by = f"  {' < '.join(callers)}" if callers else ""
        return f"{at}{line(call, self.devices)}{by}\n"

    def _event(self, call: "Hypercall", callers: tuple[str, ...]) -> dict[str, object]:
        """Returns one event of the Trace Event Format."""
        about: dict[str, object] = {**call.arguments, **call.results}
        if callers:
            about["callers"] = " < ".join(callers)
        begun = {
            "name": call.name,
            "cat": "hypercall",
            "pid": self.pid,
            "tid": self.pid,
            "ts": call.begin_ns / 1000,
        }
        if call.unfinished:
            return {**begun, "ph": "B", "args": about}
        return {**begun, "ph": "X", "dur": call.duration_ns / 1000, "args": about}

    def _table(self) -> str:
        total = sum(it.ns for it in self.sums.values()) or 1
        lines = [f"{'% time':>7} {'seconds':>12} {'ns/call':>12} {'calls':>9} {'errors':>7} hypercall"]
        lines += [
            f"{it.ns * 100 / total:7.2f} {it.ns / 1e9:12.6f} {it.ns // it.calls:12} {it.calls:9} "
            f"{it.errors or '':>7} {name}"
            for name, it in sorted(self.sums.items(), key=lambda row: -row[1].ns)
        ]
        return "\n".join(lines) + "\n"


def as_data(call: "Hypercall", devices: dict[int, str], callers: tuple[str, ...]) -> dict[str, object]:
    """Returns a call as an object of docs/schemas/trace.schema.json."""
    return {
        "schema": SCHEMA,
        "index": call.index,
        "name": call.name,
        "begin_ns": call.begin_ns,
        "duration_ns": None if call.unfinished else call.duration_ns,
        "device": devices.get(call.arguments.get("handle", -1)),
        "arguments": call.arguments,
        "results": call.results,
        "text": printable(call.text.decode("latin-1")) if call.name == "puts" and call.arguments else None,
        "error": call.is_error,
        "callers": list(callers),
    }


def _json(data: dict[str, object]) -> str:
    return json.dumps(data, separators=(",", ":"))


@contextmanager
def _output(request: Request, usual: TextIO) -> Iterator[TextIO]:
    if not request.output:
        yield usual
        return
    with open(request.output, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file


@contextmanager
def _shown(request: Request, guest: "Guest", ring: "Ring", out: TextIO) -> Iterator[Show]:
    """Ends the output even if reading the ring fails."""
    from tender.debug import ptrace
    from tender.debug.facts import boot_info
    from tender.debug.trace import Callers

    rows, _ = boot_info(lambda gpa, length: ptrace.read_memory(guest.pid, guest.memory_hva + gpa, length))
    devices = {int(str(it["handle"])): str(it["name"]) for it in rows}
    callers = None if request.summary else Callers(guest.image)
    try:
        show = Show(
            request, out, devices, callers, guest.pid, printable(os.path.basename(guest.image)) or "guest"
        )
        show.begin()
        try:
            yield show
        finally:
            show.end(ring)
    finally:
        if callers:
            callers.close()


# ---- a guest that runs


def _attached(request: Request) -> int:
    from tender.debug.trace import POLL_S, Ring, lives

    guest = picked(request.pid, request.vm)
    asked: list[int] = []
    with handled(asked.append), _output(request, sys.stdout) as out:
        ring = Ring(guest)
        end = time.monotonic() + request.seconds
        ring.switch_on()
        try:
            with _shown(request, guest, ring, out) as show, suppress(TenderError):
                over = False
                while not over and not show.is_full:
                    time.sleep(POLL_S)
                    over = bool(asked) or time.monotonic() >= end or not lives(guest.pid)
                    show.take(ring.take())
                if not show.is_full:
                    show.take(ring.unfinished())
        finally:
            with suppress(TenderError):
                ring.switch_off()
    return 0


def picked(pid: int, vm: int) -> "Guest":
    """Returns the guest of a process: the only one, or the one with this number. Raises DebugError."""
    from tender.debug.find import guests_of
    from tender.debug.target import DebugError

    found = guests_of(pid)
    if len(found) > 1 and not vm:
        raise DebugError(f"process {pid}: it has {len(found)} guests", hint="say which one: --vm=1 and so on")
    if vm > len(found):
        raise DebugError(f"process {pid}: it has {len(found)} guests, and no VM {vm}")
    return found[max(vm, 1) - 1]


@contextmanager
def handled(handler: Callable[[int], object]) -> Iterator[None]:
    """Handles the signals that end this command."""
    before = {
        number: signal.signal(number, lambda number, _: handler(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


# ---- a guest that is started


def _started(request: Request) -> int:
    """Runs the command, traced by this thread; another thread reads the ring."""
    from tender.cli.debug import _native_program
    from tender.debug import ptrace
    from tender.debug.start import NotStarted, start
    from tender.debug.trace import Ring

    program = _native_program()
    with _output(request, sys.stderr) as out:
        try:
            guest = start(program, (program, "run", *request.run_words))
        except NotStarted as error:
            return error.status
        ring = Ring(guest)
        ring.switch_on()
        with (
            handled(lambda number: os.kill(guest.holder, number)),
            _shown(request, guest, ring, out) as show,
            _Follower(ring, show) as follower,
        ):
            ptrace.set_options(guest.tid, ptrace.O_TRACEEXIT)
            status = _until_end(guest.tid, follower.look)
        if guest.holder != guest.tid:  # the command waits for the guest's process, and has the status
            _, word = os.waitpid(guest.holder, 0)
            status = ptrace.status_of(guest.holder, word)
    if follower.failed:
        raise follower.failed
    return status.code if status.code is not None else 128 + status.killed_by


class _Follower:
    """The thread that reads the ring while the other one waits for the guest."""

    def __init__(self, ring: "Ring", show: Show) -> None:
        self._ring, self._show = ring, show
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tender-trace")
        self.failed: OSError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Shows what is new. Any thread may call it."""
        with self._lock, suppress(TenderError):
            if self.failed or self._show.is_full:
                return
            try:
                self._show.take(self._ring.take())
            except OSError as error:  # of the output; the guest goes on
                self.failed = error

    def _follow(self) -> None:
        from tender.debug.trace import POLL_S

        end = time.monotonic() + self._show.request.seconds
        while not self._ended.wait(POLL_S) and not self._show.is_full and time.monotonic() < end:
            self.look()
        with suppress(TenderError):
            if not self._ended.is_set():
                self._ring.switch_off()


def _until_end(tid: int, look: Callable[[], None]) -> "Status":
    """Lets the traced thread run, with its signals, to its end; looks once more where it is about to end."""
    from tender.debug import ptrace

    ptrace.cont(tid)
    while True:
        status = ptrace.wait(tid)
        assert status is not None
        if status.ended:
            return status
        if status.event == ptrace.EVENT_EXIT:
            look()
            ptrace.cont(tid)
        elif status.event == ptrace.EVENT_STOP and status.stop != signal.SIGTRAP:
            ptrace.listen(tid)
        else:
            ptrace.cont(tid, 0 if status.event else status.stop)
