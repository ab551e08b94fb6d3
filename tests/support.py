"""What tests share by name: the types of the fixtures in conftest.py, and how a door is made the ambient one."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tender.vm

Guest = Callable[[str], Path]


def take_door(name: str, assign: Callable[[object, str, object], None] = setattr) -> None:
    """From now on "auto" stands for this door in this process, whatever the host has."""
    vm: Any = tender.vm
    create = vm.create

    def through(backend: str, *args: Any, **kwargs: Any) -> Any:
        return create(name if backend == "auto" else backend, *args, **kwargs)

    assign(vm, "create", through)


def ip(*words: str) -> None:
    """Runs `ip WORDS`, failing the test with its message."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr}")


def with_note(path: Path, version: int, features: int) -> bytes:
    """The guest at `path`, its extension note changed: what it asks for, and in which version's words."""
    data = path.read_bytes()
    assert data.count(b"TND1Tender\0\0") == 1
    at = data.index(b"TND1Tender\0\0") + 12
    return data[:at] + struct.pack("<II", version, features) + data[at + 8 :]


class TapInterface:
    """A TAP of the test's own: `name`, `address` of the host on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def up(self) -> None:
        ip("link", "set", self.name, "up")

    def down(self) -> None:
        ip("link", "set", self.name, "down")
