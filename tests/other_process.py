"""Functions that a worker process of multiprocessing runs; the worker imports them from here by name."""

from pathlib import Path

import support

import tender
from tender import CAPTURE, Image, VmConfig, VmResult


def runs(path: Path, config: VmConfig, backend: str) -> VmResult:
    """Runs a guest in this process."""
    support.take_backend(backend)
    return tender.run(path, config, console=CAPTURE, timeout=100)


def checks(path: Path, config: VmConfig, backend: str) -> VmResult:
    """Runs a guest; raises GuestFailed if it does not end with success."""
    return runs(path, config, backend).check()


def opens(path: Path) -> None:
    Image.open(path)


def takes(_: object) -> None:
    """Accepts any value that can be sent to this process."""
