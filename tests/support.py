"""What tests share by name: the types of the fixtures in conftest.py."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Guest = Callable[[str], Path]


def ip(*words: str) -> None:
    """Runs `ip WORDS`, failing the test with its message."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr}")


class TapInterface:
    """A TAP of the test's own: `name`, `address` of the host on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def up(self) -> None:
        ip("link", "set", self.name, "up")

    def down(self) -> None:
        ip("link", "set", self.name, "down")
