"""Picks the subcommand, and handles the errors that nothing else caught: Python's path of the command.

The native program (bindings/command) hands over here. `tender run ...` and `tender app.elf ...` are the same. An image
that has the name of a subcommand is reached with a path: `tender ./inspect`. If the command is started by a symbolic link
with one of the names in FRONTS, the native program puts that name before the other words: `tender THAT_NAME ...`.

Status: the guest's own; 1 for a guest that could not start; 70 for a mistake in Tender.
"""

import os
import sys
from collections.abc import Callable
from errno import EMFILE, EPIPE

STATUS_INTERNAL = (
    70  # EX_SOFTWARE: managers of unikernels take 1 for "cannot start", and restart after other statuses
)
STATUS_PIPE = 141  # as a shell shows the end by SIGPIPE
STATUS_UNANSWERED = 1

# A subcommand's module, which is imported when the subcommand is picked, and its line in --help.
COMMANDS = {
    "run": ("tender.cli.run", "run a unikernel (the word may be left out)"),
    "solo5-hvt": ("tender.cli.solo5", "the same, with exactly solo5-hvt's command line and messages"),
    "inspect": ("tender.cli.inspect", "show what a unikernel is and which devices it declares"),
    "audit": ("tender.cli.audit.command", "show what unikernels are made of and can do, and check versions"),
    "doctor": ("tender.cli.doctor", "check this machine, and say how to repair what is wrong"),
    "debug": ("tender.cli.debug", "attach gdb to a guest that runs, or start one in gdb"),
    "core": ("tender.cli.core", "write a core of a running guest, or open one in gdb"),
    "capture": ("tender.cli.capture", "write the frames of a running guest into a file for Wireshark"),
    "trace": ("tender.cli.trace", "show the hypercalls of a running guest"),
    "report": (
        "tender.cli.crash_report",
        "show where a guest stands, or stood in a core: stack, registers, memory",
    ),
    "ps": ("tender.cli.ps", "list the guests that run on this host"),
    "stats": ("tender.cli.stats", "show what a running guest does: counters, rates, CPU, memory"),
    "top": ("tender.cli.top", "show the guests of this host, live in the terminal"),
    "metrics": ("tender.cli.metrics", "give metrics of all guests to a monitoring system"),
    "profile": ("tender.cli.profile", "show in which functions a running guest spends its time"),
    "sdk": ("tender.cli.sdk", "print how to build a unikernel of your own"),
    "bench": ("tender.cli.bench", "measure boot, exits and I/O on this machine"),
    "solo5-elftool": ("tender.cli.elftool", "make and show manifests, as Solo5's tool of that name"),
}

# Other names by which launchers look for solo5-hvt: Albatross adds the version of the ABI, and solo5-spt is Solo5's
# other monitor.
FRONTS = ("solo5-hvt", "solo5-hvt.2", "solo5-spt")


def main(argv: list[str]) -> int:
    """Runs one command line, without the program's name, and returns the process's exit status."""
    if argv and argv[0] == "help":
        from tender.cli import run, usage

        run.let_signals_in()
        return usage.help_command(argv[1:])
    if argv and argv[0] in FRONTS:
        from tender.cli import solo5

        return solo5.main(argv[0], argv[1:])
    from tender.cli import run

    if argv and argv[0] in COMMANDS:
        if argv[0] != "run":
            run.let_signals_in()
        return _command(argv[0])(argv[1:])
    return run.main(argv)


def _command(name: str) -> Callable[[list[str]], int]:
    module_name = COMMANDS[name][0]
    try:
        __import__(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        return _absent(name)
    found: Callable[[list[str]], int] = sys.modules[module_name].main
    return found


def _absent(name: str) -> Callable[[list[str]], int]:
    def main(argv: list[str]) -> int:
        from tender.cli import say

        say.error(f"{name}: this subcommand is not part of this installation")
        return 1

    return main


def guarded(argv: list[str]) -> int:
    """Calls main(), and turns each exception into a line and a status."""
    from tender.cli import say

    try:
        status = _status(argv)
        say.flush()
        return status
    except KeyboardInterrupt:
        say.error("Exiting on signal 2")
        return 1
    except say.OutputLost as lost:
        return _unanswered(lost.error)
    except Exception as error:
        return last_resort(error)


def _status(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:  # argparse raises it after a help or an error
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1


def _unanswered(error: OSError) -> int:
    """Says why stdout did not take an answer, unless its reader has gone, and returns the exit status."""
    from tender.cli import say

    if error.errno == EPIPE:
        return STATUS_PIPE
    say.error(f"stdout: {error.strerror}")
    return STATUS_UNANSWERED


def last_resort(error: Exception) -> int:
    """Says what nothing caught, in words that help a user, and returns the exit status."""
    from tender.cli import say
    from tender.errors import TenderError

    if "TENDER_DEBUG" in os.environ:
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, TenderError):
        say.error(error.message)
        say.hint(error.command_hint)
        return 1
    if isinstance(error, ImportError):
        from tender.cli import needs

        if needs.explain(error):
            return 1
    if isinstance(error, OSError) and error.errno == EMFILE:
        say.error(f"{error.strerror}: the limit is too low even to start")
        say.hint("raise it: ulimit -n 1024")
        return 1
    what = str(error).split("\n")[0]
    say.error(f"internal error: {type(error).__name__}: {what}; please report")
    say.hint("TENDER_DEBUG=1 shows where")
    return STATUS_INTERNAL


def entry() -> None:
    """The main function of the process: runs sys.argv and ends by _exit(), which skips the interpreter's clean-up."""
    _hold_standard_descriptors()
    _take_streams()
    os._exit(guarded(sys.argv[1:]))


def _take_streams() -> None:
    """Replaces the standard streams, so that what argparse writes is handled like what this command writes."""
    from tender.cli import say

    sys.stdout, sys.stderr = say.Stdout(), say.Stderr()


def _hold_standard_descriptors() -> None:
    """Opens 0, 1 and 2 if they are closed. Otherwise a disk may get such a number, and the console would write to it.

    A pipe without a reader holds them, because /dev/null may not exist.
    """
    closed = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    if not closed:
        return
    reader, writer = os.pipe()  # these get closed numbers, if there are two
    for fd in closed:
        if fd == writer:
            os.set_inheritable(fd, True)
        else:
            os.dup2(writer, fd)
    for fd in (reader, writer):
        if fd > 2:
            os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
