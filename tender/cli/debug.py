"""`tender debug`: gdb on a guest that runs, or on one from its first instruction on.

The guest's process does nothing for it: it is traced from outside, by a process that a guard watches (tender/debug/).
This file reads the command line, finds gdb and puts both together.

Status: gdb's own. Of --stdio and --listen 0 after a session; 1: there is no such guest, or it may not be debugged, or there
is no gdb. For a guest that does not start, the status of its command.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tender.cli import say
from tender.cli.gdb import find_gdb
from tender.cli.looking import STATUS_FAILED, failed
from tender.cli.main import last_resort
from tender.cli.option_table import OPTIONS, REPORT, listed
from tender.debug.find import Guest, guests, guests_of
from tender.debug.guard import STATUS_LEFT, Journal, end_with_parent, guarded
from tender.debug.session import Left, Session, Subject, accepted, listening_at
from tender.debug.start import NotStarted
from tender.debug.target import DebugError
from tender.errors import ConfigError, TenderError
from tender.printable import printable

USAGE = f"""\
usage: tender debug [OPTIONS] PID [-- GDB'S WORDS]
       tender debug [OPTIONS] [OPTIONS OF RUN] IMAGE [ARGUMENTS]
       tender debug

Attach gdb to the guest of process PID; or start IMAGE as `tender run` does, and stop it before its first
instruction. Without words: list the guests of this host. Nothing needs to be prepared in the guest.

gdb:
{listed("debug", "--ex", "--command", "--batch")}

Another client than gdb:
{listed("debug", "--stdio", "--listen")}

Which guest:
{listed("debug", "--vm", "--image")}

Status: gdb's own; with --stdio and --listen 0 after a session, and 128 and the number of a signal that
came before a client. 1 if there is no such guest, if it may not be debugged, or without gdb; the status
of `tender run` for an IMAGE that does not start."""

_GDB_LEAVES_S = 5
_VALUED_OF_RUN = {it.name for it in OPTIONS if it.value and it.kind != REPORT}
_VALUED = ("--listen", "--vm", "--image", "--command", "-x", "--ex", "-ex")


@dataclass
class Request:
    """The command line."""

    stdio: bool = False
    listen: str = ""
    vm: int = 0
    image: str = ""
    gdb_words: list[str] = field(default_factory=list)
    pid: int = 0
    run_words: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Runs one session, and returns the exit status."""
    if argv[:1] in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    try:
        request = _read(argv)
        if not request.pid and not request.run_words:
            return _list()
        subject = _subject(request)
        if request.stdio:
            return guarded(lambda journal: _on_descriptors(journal, subject, argv))
        if request.listen:
            return guarded(lambda journal: _at_place(journal, subject, request.listen, argv))
        return _with_gdb(subject, request, argv)
    except TenderError as error:
        return failed("debug", argv, error)


# ---- the command line


def _read(argv: list[str]) -> Request:
    """Raises ConfigError."""
    words, request = list(argv), Request()
    of_run: list[str] = []
    while words and words[0] != "--" and not request.run_words:
        name, separator, value = words[0].partition("=")
        if name in _VALUED:
            if not separator and len(words) < 2:
                raise ConfigError(f"{name}: a value is needed", hint="tender debug --help")
            _take(request, name, value if separator else words.pop(1))
        elif words[0] in ("--stdio", "--batch"):
            request.stdio |= name == "--stdio"
            request.gdb_words += ["-batch"] if name == "--batch" else []
        elif request.pid:
            raise ConfigError(
                f"{printable(name)}: not an option here",
                hint="words for gdb follow `--`; tender debug --help",
            )
        elif name.startswith("-"):
            of_run.append(words[0])
            if not separator and len(words) > 1 and name.partition(":")[0] in _VALUED_OF_RUN:
                of_run.append(words.pop(1))
        elif name.isdecimal() and not of_run:
            request.pid = _number(name, "PID")
        else:
            request.run_words = of_run + words
        del words[0]
    if of_run and not request.run_words:
        request.run_words = of_run + words  # the image follows `--`, or is that of --example
    request.gdb_words += words[1:] if request.pid else []
    if request.stdio and request.listen:
        raise ConfigError("--stdio and --listen exclude each other", hint="tender debug --help")
    if argv and not request.pid and not request.run_words:
        raise ConfigError("a PID or an IMAGE is needed", hint="`tender ps` lists the guests here")
    return request


def _take(request: Request, name: str, value: str) -> None:
    if name == "--listen":
        request.listen = value
    elif name == "--image":
        request.image = value
    elif name == "--vm":
        request.vm = _number(value, name)
    else:
        request.gdb_words += ["-ex" if name.endswith("ex") else "-x", value]


def _number(word: str, name: str) -> int:
    if not (word.isdecimal() and 0 < int(word[:20]) < 1 << 31):
        raise ConfigError(
            f"{name}: `{printable(word)}' is no number of a process or a VM", hint="tender debug --help"
        )
    return int(word)


def _subject(request: Request) -> Subject:
    """Raises DebugError."""
    if request.pid:
        return Subject(guest=_chosen(guests_of(request.pid), request), image=request.image)
    program = _native_program()
    stdout = 2 if request.stdio else 1
    return Subject(
        image=request.image,
        program=program,
        words=(program, "run", *request.run_words),
        descriptors=(0, stdout, 2),
    )


def _native_program() -> str:
    """Returns the installed command, which is native."""
    for place in (Path(sys.argv[0]).parent, Path(sys.executable).parent):
        if os.access(place / "tender", os.X_OK) and not (place / "tender").is_dir():
            return str((place / "tender").absolute())
    found = shutil.which("tender")
    if not found:
        raise DebugError("the command `tender` is not found", hint="install it, or put it into PATH")
    return found


def _chosen(found: Sequence[Guest], request: Request) -> Guest:
    if request.vm:
        if request.vm > len(found):
            raise DebugError(f"process {request.pid}: it has {len(found)} guests, and no VM {request.vm}")
        return found[request.vm - 1]
    if len(found) > 1:
        rows = [f"--vm {i}: {_row(guest)}" for i, guest in enumerate(found, 1)]
        raise DebugError(
            f"process {request.pid}: it has {len(found)} guests",
            hint="\n".join(["say which one:", *rows[:50]]),
        )
    return found[0]


def _row(guest: Guest) -> str:
    name = printable(guest.image) or "(image not found)"
    return f"{guest.pid:>7}  {guest.backend:<8} {guest.mem_bytes >> 20:>6} MiB  {name}"


def _list() -> int:
    rows = [_row(guest) for guest in guests()]
    if not rows:
        say.error("debug: no guest runs here that may be debugged")
        return STATUS_FAILED
    say.out("\n".join(["    PID  BACKEND      MEMORY  IMAGE", *rows]))
    return 0


# ---- sessions. These functions run in the child of the guard


def _warn(text: str, hint: str) -> None:
    say.error(f"debug: {text}")
    say.hint(hint)


def _warn_of_others() -> None:
    _warn("a client of another user has been refused", "--listen=PATH: a unix socket is yours alone")


def _served(session: Session, serve: Callable[[], object], argv: list[str]) -> int:
    """Returns the status of a session. Whatever happens in it, the guest does not stay behind in it."""
    status = 0
    try:
        serve()
    except Left:
        status = STATUS_LEFT
    except NotStarted as error:
        status = error.status
    except TenderError as error:
        status = failed("debug", argv, error)
    except Exception as error:
        status = last_resort(error)
    session.close()
    return status


def _on_descriptors(journal: Journal, subject: Subject, argv: list[str]) -> int:
    session = Session(journal, subject, _warn)

    def serve() -> None:
        session.open()
        session.serve(0, 1)

    return _served(session, serve, argv)


def _at_place(journal: Journal, subject: Subject, place: str, argv: list[str]) -> int:
    session = Session(journal, subject, _warn)

    def serve() -> None:
        with listening_at(place) as (listening, shown):
            if subject.guest is None:
                session.open()
            say.error(f"debug: one client is waited for; in gdb: target remote {shown}")
            with accepted(listening, refused=_warn_of_others) as client:
                if subject.guest is not None:
                    session.open()
                session.serve(client.fileno(), client.fileno())

    return _served(session, serve, argv)


# ---- with gdb


def _with_gdb(subject: Subject, request: Request, argv: list[str]) -> int:
    gdb = find_gdb()
    with (
        _left_by_signals(),
        tempfile.TemporaryDirectory(prefix="tender-debug-", ignore_cleanup_errors=True) as directory,
    ):
        path = os.path.join(directory, "gdb")
        with listening_at(path) as (listening, _):
            reader, writer = os.pipe()
            guard = os.fork()
            if guard == 0:
                _guard_process(
                    lambda journal: _for_gdb(journal, subject, listening, writer, argv), reader, directory
                )
            os.close(writer)
            listening.close()  # a second client is refused, and does not wait for ever
            with (
                _ending(guard),
                open(reader, "rb") as file,
            ):  # the guard's child looks whether it is still open
                told = file.readline()
                ready: dict[str, Any] = json.loads(told) if told else {"status": STATUS_FAILED}
                if "image" not in ready:
                    return int(ready["status"])
                return _run_gdb(gdb, path, ready["image"], request.gdb_words)


@contextlib.contextmanager
def _ending(guard: int) -> Iterator[None]:
    """Ends the guard at the end. A guest that it has goes on first."""
    try:
        yield
    finally:
        os.kill(guard, signal.SIGTERM)
        os.waitpid(guard, 0)


def _guard_process(work: Callable[[Journal], int], reader: int, directory: str) -> None:
    """The guard and its child. The terminal's ^C does not reach them. The directory is theirs if this process is killed."""
    status = STATUS_FAILED
    try:
        os.close(reader)
        os.setsid()
        status = guarded(work)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os._exit(status)


def _for_gdb(
    journal: Journal, subject: Subject, listening: socket.socket, writer: int, argv: list[str]
) -> int:
    session = Session(journal, subject, _warn)

    def serve() -> None:
        session.open()
        os.write(writer, json.dumps({"image": session.image}).encode() + b"\n")
        with accepted(listening, writer) as client:
            session.serve(client.fileno(), client.fileno())

    status = _served(session, serve, argv)
    if status:
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, json.dumps({"status": status}).encode() + b"\n")
    return status


@contextlib.contextmanager
def _left_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave in an orderly way: gdb, the guard and the directory do not stay behind."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    former = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _run_gdb(gdb: str, path: str, image: str, words: list[str]) -> int:
    """Runs gdb in the foreground, and returns its status. It handles a ^C of the terminal."""
    command = [gdb, "-q", *([image] if image else []), "-ex", f"target remote {path}", *words]
    former = signal.signal(signal.SIGINT, lambda *_: None)
    # gdb quits if this process is killed, and so ends the session.
    with subprocess.Popen(command, preexec_fn=lambda: end_with_parent(signal.SIGTERM)) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # gdb leaves the terminal as it was
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GDB_LEAVES_S)
            process.kill()
            raise
        finally:
            signal.signal(signal.SIGINT, former)
    return status if status >= 0 else 128 - status
