"""The wheel that `make wheel` makes; it is built once for all tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "https://example.org/tender"


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that the test VM can see: its /tmp is not the host's."""
    directory = ROOT / "build" / "package"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def wheel(place: Path) -> Path:
    """The wheel, built with an address as its publisher gives it."""
    make = [sys.executable, str(ROOT / "tools/make_wheel.py"), str(place)]
    subprocess.run(make, env=os.environ | {"PROJECT_URL": ADDRESS}, check=True)
    (made,) = place.glob("tender-*.whl")
    return made


@pytest.fixture(scope="session")
def address() -> str:
    """The address that the wheel was built with."""
    return ADDRESS
