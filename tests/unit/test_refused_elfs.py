"""Every ELF that the contract refuses, through the command: status 1, the file, the reason, and no
traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from elf_cases import REFUSED, Refused

TENDER = [str(Path(sys.executable).parent / "tender")]


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_the_command_refuses_the_file_with_its_reason(case: Refused, tmp_path: Path) -> None:
    name, data, message = case
    file = tmp_path / f"{name}.hvt"
    file.write_bytes(data)
    done = subprocess.run([*TENDER, "--mem=4096", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"tender: {file}: ") and message in first
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("make", "reason"), [("missing", "No such file"), ("dir", "Is a directory"), ("empty", "elf header")]
)
def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path, make: str, reason: str) -> None:
    path = tmp_path / make
    if make == "dir":
        path.mkdir()
    elif make == "empty":
        path.write_bytes(b"")
    done = subprocess.run([*TENDER, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and reason in done.stderr and str(path) in done.stderr
