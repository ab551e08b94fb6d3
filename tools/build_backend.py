"""meson-python, whose wheel is given the tag of the oldest Python that it runs on.

meson-python tags a wheel of the limited API with the version of the Python that builds it. The extension is compiled
for 3.11's limited API (bindings/meson.build), so a wheel that 3.13 built runs on 3.11 too.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesonpy import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)
from mesonpy import build_wheel as build_wheel_of_this_python

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]
PYTHON_TAG = "cp311"


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[Any, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """The wheel's file name; the wheel lies in `wheel_directory`."""
    name = build_wheel_of_this_python(wheel_directory, config_settings, metadata_directory)
    retag = [sys.executable, "-m", "wheel", "tags", "--remove", "--python-tag", PYTHON_TAG, name]
    done = subprocess.run(retag, cwd=wheel_directory, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.splitlines()[-1]).name
