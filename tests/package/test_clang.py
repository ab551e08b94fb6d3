"""clang builds everything that gcc builds, without a warning."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_clang_builds_everything_without_warnings(tmp_path: Path) -> None:
    environment = os.environ | {"CC": "clang"}
    for command in (
        [
            "meson",
            "setup",
            "-Dwerror=true",
            "-Dbuildtype=release",
            "-Db_ndebug=false",
            str(tmp_path),
            str(ROOT),
        ],
        ["ninja", "-k", "0", "-C", str(tmp_path)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert (tmp_path / "bindings" / "tender").exists()
