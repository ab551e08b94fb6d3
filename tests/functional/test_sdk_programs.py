"""What a compiler may put into a program: each is built with the flags of `tender sdk` and with each
linker, and runs.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backends
SOURCES = Path(__file__).resolve().parents[1] / "guests" / "sdk"
TENDER = str(Path(sys.executable).parent / "tender")

PROGRAMS = [  # source, more flags, words, status, console
    ("constructors", [], [], 0, "first second main last-but-one last\n"),
    ("ifunc", [], [], 21, ""),
    ("orphans", [], [], 0, ""),
    ("orphans", ["-mcmodel=medium"], [], 0, ""),
    ("thread_local", [], [], 0, ""),
    ("stack_protector", ["-fstack-protector-all"], [], 0, ""),
    (
        "stack_protector",
        ["-fstack-protector-all"],
        ["smash"],
        255,
        "ABORT: stack smashed: a function wrote past the end of an array of its own\n",
    ),
]


def sdk(option: str) -> list[str]:
    """Returns the words that `tender sdk OPTION` prints."""
    done = subprocess.run([TENDER, "sdk", option], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("linker", ["bfd", "lld"])
@pytest.mark.parametrize(("source", "flags", "words", "status", "console"), PROGRAMS)
def test_a_program_runs_as_its_compiler_means_it(
    source: str,
    flags: list[str],
    words: list[str],
    status: int,
    console: str,
    linker: str,
    backend: str,
    tmp_path: Path,
) -> None:
    image = tmp_path / "app.elf"
    compile_it = ["gcc", *sdk("--cflags"), *flags, str(SOURCES / f"{source}.c")]
    subprocess.run(
        [*compile_it, *sdk("--ldflags"), f"-fuse-ld={linker}", "-o", str(image)], check=True, timeout=60
    )
    done = subprocess.run(
        [TENDER, "--backend", backend, "--mem", "16", str(image), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, console), done.stderr
