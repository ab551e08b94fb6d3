"""Asserts of the C core are compiled into what users get, and there are none in code that a guest can
reach."""

import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import tender

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = ROOT / "bindings"
ASSERT = re.compile(r"(?<![\w])assert\((.*?)\);", re.DOTALL)


def asserts_of(path: Path) -> list[str]:
    """Returns each condition as the preprocessor writes it: each run of white space is one space."""
    return [" ".join(found.split()) for found in ASSERT.findall(path.read_text())]


ASSERTS = [
    pytest.param(condition, id=f"{path.name}-{i}")
    for path in sorted(BINDINGS.rglob("*.c"))
    for i, condition in enumerate(asserts_of(path))
]


def command() -> Path:
    found = shutil.which("tender", path=sysconfig.get_path("scripts"))
    assert found, "the environment has no `tender`; run `make build`"
    return Path(found)


@pytest.mark.parametrize("condition", ASSERTS)
def test_each_assert_is_compiled_into_the_command_and_the_library(condition: str) -> None:
    (extension,) = Path(tender.__file__).parent.glob("_native*.so")
    for built in (command(), extension):
        assert condition.encode() in built.read_bytes(), built.name


def test_there_are_asserts() -> None:
    assert len(ASSERTS) >= 7


def handler_sources() -> list[Path]:
    """Returns the sources that meson.build also links into the sandbox's program."""
    text = (BINDINGS / "meson.build").read_text()
    (listed,) = re.findall(r"^handler_sources = files\((.*?)^\)", text, re.DOTALL | re.MULTILINE)
    return [BINDINGS / name for name in re.findall(r"'([^']+)'", listed)]


REACHED_BY_A_GUEST = [
    *handler_sources(),
    *sorted((BINDINGS / "machine" / "sandbox" / "program").glob("*.c")),
    *(BINDINGS / "devices" / name for name in ("net/ring.c", "net/ring_worker.c", "console/console.c")),
    *sorted((BINDINGS / "machine" / "kvm").glob("run_*.c")),
    BINDINGS / "machine" / "sandbox" / "watch.c",
]


@pytest.mark.parametrize("path", REACHED_BY_A_GUEST, ids=lambda p: p.name)
def test_code_that_a_guest_can_reach_has_no_asserts(path: Path) -> None:
    """A wrong value there is an answer or an end with a reason: a guest must not be able to abort the
    process that holds it."""
    assert asserts_of(path) == [] and "assert.h" not in path.read_text()


WRONG_MEMORY = """
from tender.backend import trial
from tender.image import Image
from tender.native import descriptor, ffi, lib
image = Image.from_bytes(trial.elf())
lib.tn_image_template(image._handle, image.elf.c, 4097, False, descriptor(), ffi.new("int *"))
"""


def test_a_failed_assert_ends_with_sigabrt_and_names_its_condition(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRONG_MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert "page_tables.c" in done.stderr and "HVT_MEM_GRANULE" in done.stderr
