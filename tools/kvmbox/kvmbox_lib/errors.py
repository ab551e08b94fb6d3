"""The errors of kvmbox itself (status 125), which are not errors of the command."""

import sys


class KvmboxError(Exception):
    """The test VM could not be made, or ended too early. The message says what to do."""


class Interrupted(Exception):
    """A signal or the time limit ended kvmbox before the command ended by itself."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


def say(text: str) -> None:
    """Write one message to stderr; stdout belongs to the command."""
    sys.stderr.write(f"kvmbox: {text}\n")
    sys.stderr.flush()
