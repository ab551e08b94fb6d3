"""Lines for a person: diagnostics on stderr, answers on stdout; never a traceback for a closed pipe.

stdout belongs to the guest's console while a guest runs, so only the subcommands that run none use `out`.
Who speaks is the process's, as stderr is: `speak_as` is called once, first.
"""

import sys

PROGRAM = "tender"
HINTS = True  # whether `hint` says anything; whoever would work for one asks first


def speak_as(program: str, *, hints: bool) -> None:
    """From now on diagnostics begin with this name."""
    global PROGRAM, HINTS
    PROGRAM, HINTS = program, hints


def error(text: str) -> None:
    """`PROGRAM: text` on stderr; each line of a longer text gets the prefix."""
    _stderr(_prefixed(text))


def error_in_passing(text: str) -> None:
    """The same, unless stderr has no room for it within a second: whoever waits for our end may be its reader."""
    import select

    room = select.poll()
    room.register(2, select.POLLOUT)
    if room.poll(1000):
        _stderr(_prefixed(text))


def _prefixed(text: str) -> str:
    return "".join(f"{PROGRAM}: {line}\n" for line in text.split("\n"))


def hint(text: str) -> None:
    """`PROGRAM: hint: text` on stderr, line by line; nothing for an empty text."""
    if text and HINTS:
        _stderr("".join(f"{PROGRAM}: hint: {line}\n" for line in text.split("\n")))


def plain(text: str) -> None:
    """The text as it is, on stderr."""
    _stderr(text + "\n")


def out(text: str) -> None:
    """The text as it is, on stdout. Raises BrokenPipeError, which `entry` turns into the shell's 141."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def _stderr(text: str) -> None:
    try:
        if sys.stderr is not None:  # None: the descriptor was closed when we started
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        pass  # a reader that went away must not change how we end


def flush() -> None:
    """Write out what is buffered. Raises OSError if stdout cannot take it."""
    if sys.stdout is not None:
        sys.stdout.flush()
