"""The build backend: meson-python, except for the tag of a wheel, its description, and source distributions.

meson-python tags a wheel of the limited API with the version of the Python that builds it. The extension is compiled
for 3.11's limited API (bindings/meson.build), so a wheel that 3.13 built runs on 3.11 too. This backend corrects the
tag.

The description is README.md without the links that lead nowhere outside of this repository (pages.py).

For a source distribution meson-python calls `meson dist`, which needs git and packs the last commit. This backend packs
the files of the tree as they are: the files that git tracks, or, in a tree without git, all files that .gitignore does
not exclude.
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
LEFT_OUT = {".git", ".git-blame-ignore-revs", "PKG-INFO"}  # in the top directory; PKG-INFO is written again
Settings = Mapping[Any, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel in `wheel_directory`, and return its file name."""
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
    """What build_sdist() imports in addition to meson-python's own requirements."""
    return ["pathspec>=0.10"]


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Make the archive in `sdist_directory`, and return its file name."""
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
            archive.add(ROOT / name, f"{base}/{name}", recursive=False, filter=_without_owner)
    return file_name


def version() -> str:
    """The version, from the file that meson.build reads too."""
    (found,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "tender/_version.py").read_text(), re.MULTILINE)
    return str(found)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same member for every user and every umask."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def source_files() -> list[str]:
    """The paths of the project's files, relative to the top of the tree, sorted."""
    names = _tracked() if (ROOT / ".git").exists() else None
    if names is None:
        names = list(_not_ignored())
    return sorted(name for name in names if name.split("/", 1)[0] not in LEFT_OUT)


def _tracked() -> list[str] | None:
    """The files that git tracks and that exist in the tree. None if git is not installed or fails."""
    # The tree may belong to another user, so git refuses it without safe.directory. This command runs nothing from it.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return None
    names = [name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)]
    return names if done.returncode == 0 and names else None


def _not_ignored() -> Iterator[str]:
    """Every file that .gitignore does not exclude."""
    from pathspec import GitIgnoreSpec

    ignored = GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text().splitlines())
    for place, directories, files in os.walk(ROOT):
        below = Path(place).relative_to(ROOT)
        directories[:] = [d for d in directories if not ignored.match_file(f"{below / d}/")]
        for name in files:
            path = str(below / name)
            if not ignored.match_file(path):
                yield path
