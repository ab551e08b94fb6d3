"""tools/setup requests the packages that a purpose needs and this machine lacks, and no others."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("id", "grep", "sed", "head", "ls")  # programs of any Debian that the script calls
BUILD = {"gcc", "binutils", "git", "musl-tools", "iproute2", "iputils-ping", "python3-venv", "python3-dev"}
TEST = {
    *("clang", "libclang-rt-19-dev", "lld", "strace", "qemu-system-x86", "virtiofsd", "zstd", "lz4"),
    *("bochs", "bochs-term", "bochsbios", "vgabios", "xorriso", "isolinux", "syslinux-common"),
}
DEBIAN_13 = """\
case "$*" in
"show virtiofsd" | "show clang") ;;
"depends clang") echo "  Depends: clang-19" ;;
*) exit 1 ;;
esac
"""


def program(place: Path, script: str) -> None:
    """Writes a shell script in place of a program."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(0o755)


def setup(
    tmp_path: Path, purpose: str, present: set[str], machine: tuple[str, str] = ("Linux", "x86_64")
) -> "subprocess.CompletedProcess[str]":
    """Runs it as a user who is not root, on a Debian 13 that has these programs."""
    bin_directory, venv = tmp_path / "bin", tmp_path / "venv"
    for name in TOOLS:
        program(bin_directory / name, f'exec {shutil.which(name)} "$@"')
    program(bin_directory / "id", "echo 1000")
    program(bin_directory / "uname", f"case $1 in -s) echo {machine[0]} ;; -m) echo {machine[1]} ;; esac")
    program(bin_directory / "python3", "exit 1")
    program(bin_directory / "apt-cache", DEBIAN_13)
    for name in present:
        program(bin_directory / name, "exit 0")
    program(venv / "bin" / "python", "exit 1")
    program(venv / "bin" / "pip", f'echo "$@" >>{tmp_path}/pip')
    command = [str(ROOT / "tools" / "setup"), str(venv), purpose]
    environment = os.environ | {"PATH": str(bin_directory)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def missing(done: "subprocess.CompletedProcess[str]") -> set[str]:
    """Returns the packages that it names."""
    assert done.returncode == 0, done.stderr
    _, _, names = done.stderr.partition("apt-get install ")
    return set(names.split())


@pytest.mark.parametrize(("purpose", "packages"), [("build", BUILD), ("test", TEST)])
def test_each_purpose_names_exactly_its_packages(tmp_path: Path, purpose: str, packages: set[str]) -> None:
    # the script recognises these two by a file that is not a program
    beside_programs = {"libc6-dev", "virtiofsd"}
    done = setup(tmp_path, purpose, set())
    assert missing(done) - beside_programs == packages - beside_programs
    locked = ROOT / "tools" / "requirements" / f"{purpose}.txt"
    words = ["install", "-q", "--require-hashes", "-r", str(locked)]
    assert [line.split() for line in (tmp_path / "pip").read_text().splitlines()] == [words]


def test_an_installed_package_is_not_named(tmp_path: Path) -> None:
    present = {"ld.lld", "strace", "virtiofsd", "qemu-system-x86_64", "xorriso", "bochs"}
    done = setup(tmp_path, "test", present)
    assert missing(done) == {"clang", "libclang-rt-19-dev", "zstd", "lz4"}


def test_another_purpose_is_refused(tmp_path: Path) -> None:
    done = setup(tmp_path, "tests", set())
    assert (done.returncode, done.stderr) == (2, "setup: tests: the purpose is build or test\n")


@pytest.mark.parametrize(
    "machine", [("Linux", "aarch64"), ("Linux", "i686"), ("Darwin", "x86_64"), ("Darwin", "arm64")]
)
def test_another_machine_is_refused_before_anything_is_installed(
    tmp_path: Path, machine: tuple[str, str]
) -> None:
    done = setup(tmp_path, "build", set(), machine)
    said = f"setup: Tender runs on Linux on x86_64 only; this is {machine[0]} on {machine[1]}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert not (tmp_path / "pip").exists()
