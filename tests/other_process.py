"""What a worker of multiprocessing does with the library; it is imported there by this name."""

from pathlib import Path

import support

import tender
from tender import CAPTURE, Image, VmConfig, VmResult


def runs(path: Path, config: VmConfig, backend: str) -> VmResult:
    """A guest, in this process."""
    support.take_backend(backend)
    return tender.run(path, config, console=CAPTURE, timeout=100)


def checks(path: Path, config: VmConfig, backend: str) -> VmResult:
    """The same; GuestFailed for an end that is no success."""
    return runs(path, config, backend).check()


def opens(path: Path) -> None:
    Image.open(path)


def takes(_: object) -> None:
    """Anything that can be sent here."""
