"""What can go wrong on kvmbox's own account (status 125), apart from whatever the command does."""

import sys


class KvmboxError(Exception):
    """The test VM could not be made, or went away: the message says what to do about it."""


class Interrupted(Exception):
    """A signal or the time limit ended kvmbox before, or instead of, the command's own end."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


def say(text: str) -> None:
    """Write one message to stderr; stdout belongs to the command."""
    sys.stderr.write(f"kvmbox: {text}\n")
    sys.stderr.flush()
