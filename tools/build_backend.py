"""meson-python, but for three things: the tag of a wheel, its description, and how a source distribution is made.

meson-python tags a wheel of the limited API with the version of the Python that builds it. The extension is compiled
for 3.11's limited API (bindings/meson.build), so a wheel that 3.13 built runs on 3.11 too.

The description is README.md without the links that lead nowhere outside of this repository (pages.py).

`meson dist`, which meson-python calls for a source distribution, needs git, and packs the last commit. Here the files
of the tree are packed as they are: those that git tracks, or, in a tree without git, all that .gitignore lets pass.
"""

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pages
from mesonpy import (
    build_editable,
    get_requires_for_build_editable,
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
ROOT = Path(__file__).resolve().parent.parent
PYTHON_TAG = "cp311"
LEFT_OUT = {".git", ".git-blame-ignore-revs", "PKG-INFO"}  # of the tree's top; PKG-INFO is written anew
Settings = Mapping[Any, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """The wheel's file name; the wheel lies in `wheel_directory`."""
    name = build_wheel_of_this_python(wheel_directory, config_settings, metadata_directory)
    built = Path(wheel_directory) / name
    with tempfile.TemporaryDirectory() as work:
        _wheel("unpack", "-d", work, built)
        (tree,) = Path(work).iterdir()
        (metadata,) = tree.glob("*.dist-info/METADATA")
        fields, _, _ = metadata.read_text().partition("\n\n")
        metadata.write_text(f"{fields}\n\n{pages.description()}")
        _wheel("pack", "-d", wheel_directory, tree)
    return _wheel("tags", "--remove", "--python-tag", PYTHON_TAG, built).splitlines()[-1]


def _wheel(*words: str | Path) -> str:
    """What this subcommand of `wheel` prints."""
    command = [sys.executable, "-m", "wheel", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """What build_sdist() imports beside meson-python's own requirements."""
    return ["pathspec>=0.10"]


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The archive's file name; the archive lies in `sdist_directory`."""
    from packaging.version import Version
    from pyproject_metadata import Readme, StandardMetadata

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    metadata = StandardMetadata.from_pyproject(project, ROOT)
    metadata.version = Version(version())
    metadata.readme = Readme(pages.description(), None, "text/markdown")
    base = f"{metadata.name}-{metadata.version}"
    now = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    file_name = f"{base}.tar.gz"
    with (
        open(Path(sdist_directory) / file_name, "wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=now) as packed,
        tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as archive,
    ):
        about = tarfile.TarInfo(f"{base}/PKG-INFO")
        text = bytes(metadata.as_rfc822())
        about.size, about.mtime = len(text), now
        archive.addfile(about, io.BytesIO(text))
        for name in source_files():
            archive.add(ROOT / name, f"{base}/{name}", recursive=False, filter=_of_nobody)
    return file_name


def version() -> str:
    """What meson.build takes, too."""
    (found,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "tender/_version.py").read_text(), re.MULTILINE)
    return str(found)


def _of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same whoever packs it, under whatever umask."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def source_files() -> list[str]:
    """The paths that belong to the project, from the tree's top, in order."""
    names = _tracked() if (ROOT / ".git").exists() else None
    if names is None:
        names = list(_not_ignored())
    return sorted(name for name in names if name.split("/", 1)[0] not in LEFT_OUT)


def _tracked() -> list[str] | None:
    """What git tracks and the tree has; None where git is not installed, or does not say."""
    # The tree may be another user's: what git is asked here runs nothing of it.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return None
    names = [name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)]
    return names if done.returncode == 0 and names else None


def _not_ignored() -> Iterator[str]:
    """Every file that .gitignore does not name."""
    from pathspec import GitIgnoreSpec

    ignored = GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text().splitlines())
    for place, directories, files in os.walk(ROOT):
        below = Path(place).relative_to(ROOT)
        directories[:] = [d for d in directories if not ignored.match_file(f"{below / d}/")]
        for name in files:
            path = str(below / name)
            if not ignored.match_file(path):
                yield path
