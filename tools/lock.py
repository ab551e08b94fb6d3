"""Pins the Python packages of development: tools/requirements/GROUP.txt has a version and its hashes for each.

usage: tools/lock.py [--upgrade]      `make lock` installs uv and calls it; --upgrade takes the newest version of each

It reads the dependency groups of pyproject.toml. A pin that still satisfies its group stays, unless --upgrade is
given. One lock serves every supported Python: a package that only some of them need has a marker. The files name no
package index, so pip takes the packages from the index that it is configured for.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = "tools/requirements"
OLDEST_PYTHON = "3.11"
WHOLE = "test"
"""The group that includes all others. The other groups take their pins from its file."""
GROUPS = (WHOLE, "build", "wheel")


def lock(group: str, options: list[str]) -> None:
    """Write the group's file, or raise CalledProcessError."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet"]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate"]
    command += ["--custom-compile-command", "make lock"]
    command += ["--group", f"pyproject.toml:{group}", "--output-file", f"{REQUIREMENTS}/{group}.txt"]
    subprocess.run([*command, *options], cwd=ROOT, check=True)


def main(arguments: list[str]) -> int:
    """The exit status."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__, end="")
        return 0
    if arguments not in ([], ["--upgrade"]):
        print("lock: usage: tools/lock.py [--upgrade]", file=sys.stderr)
        return 2
    os.makedirs(ROOT / REQUIREMENTS, exist_ok=True)
    try:
        for group in GROUPS:
            lock(
                group,
                arguments + ([] if group == WHOLE else ["--constraints", f"{REQUIREMENTS}/{WHOLE}.txt"]),
            )
    except subprocess.CalledProcessError as error:
        print(f"lock: uv ended with status {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
