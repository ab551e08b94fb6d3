"""tools/setup requests the packages that a purpose needs and this machine lacks, and no others."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("id", "grep", "sed", "head", "ls", "touch")  # programs of any Debian that the script calls
BUILD = {"gcc", "binutils", "musl-tools", "python3-venv", "python3-dev"}
RUN = {"iproute2", "iputils-ping"}
CHECK = {"git"}
TEST = {
    *RUN,
    *CHECK,
    *(
        "clang",
        "libclang-rt-19-dev",
        "lld",
        "strace",
        "gdb",
        "tshark",
        "elfutils",
        "qemu-system-x86",
        "virtiofsd",
        "zstd",
        "lz4",
    ),
    *("bochs", "bochs-term", "bochsbios", "vgabios", "xorriso", "isolinux", "syslinux-common"),
}
PACKAGES = {"build": BUILD, "run": RUN, "check": CHECK, "test": TEST}
LOCKED = {"build": "build.txt", "check": "test.txt", "test": "test.txt"}
NEEDS_ALL = ("build", "run")  # the purposes for which each package is necessary
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
    tmp_path: Path,
    purpose: str,
    present: set[str],
    machine: tuple[str, str] = ("Linux", "x86_64"),
    pip: bool = True,
    python3: str = "exit 1",
) -> "subprocess.CompletedProcess[str]":
    """Runs it as a user who is not root, on a Debian 13 that has these programs. The environment may lack pip."""
    bin_directory, venv = tmp_path / "bin", tmp_path / "venv"
    for name in TOOLS:
        program(bin_directory / name, f'exec {shutil.which(name)} "$@"')
    program(bin_directory / "id", "echo 1000")
    program(bin_directory / "uname", f"case $1 in -s) echo {machine[0]} ;; -m) echo {machine[1]} ;; esac")
    program(bin_directory / "python3", python3)
    program(bin_directory / "apt-cache", DEBIAN_13)
    for name in present:
        program(bin_directory / name, "exit 0")
    program(venv / "bin" / "python", "exit 1")
    if pip:
        program(venv / "bin" / "pip", f'echo "$@" >>{tmp_path}/pip')
    command = [str(ROOT / "tools" / "setup"), str(venv), purpose]
    environment = os.environ | {"PATH": str(bin_directory)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def missing(done: "subprocess.CompletedProcess[str]") -> set[str]:
    """Returns the packages that it names."""
    found = re.search(r"apt-get install (.*)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return set(found[1].split())


def installed(tmp_path: Path) -> list[list[str]]:
    """Returns the words of each call of pip."""
    log = tmp_path / "pip"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def stamps(tmp_path: Path) -> list[str]:
    """Returns the names of the files that say what the environment is ready for."""
    return [path.name for path in (tmp_path / "venv").glob(".ready-*")]


@pytest.mark.parametrize("purpose", PACKAGES)
def test_each_purpose_names_exactly_its_packages(tmp_path: Path, purpose: str) -> None:
    # the script recognises these two by a file that is not a program
    beside_programs = {"libc6-dev", "virtiofsd"}
    done = setup(tmp_path, purpose, set())
    assert done.returncode == (1 if purpose in NEEDS_ALL else 0), done.stderr
    assert missing(done) - beside_programs == PACKAGES[purpose] - beside_programs


@pytest.mark.parametrize("purpose", NEEDS_ALL)
def test_while_a_necessary_package_is_missing_it_stops_and_leaves_no_environment(
    tmp_path: Path, purpose: str
) -> None:
    """Otherwise the build would fail later, for another reason, and the list would never be shown again."""
    makes = f"echo >>{tmp_path}/venvs; exit 1"
    runs = [setup(tmp_path, purpose, set(), pip=False, python3=makes) for _ in range(2)]
    assert runs[0].stderr.endswith("\nsetup: then run the same command again\n")
    assert [(done.returncode, done.stderr) for done in runs] == [(1, runs[0].stderr)] * 2
    assert (installed(tmp_path), stamps(tmp_path)) == ([], [])


@pytest.mark.parametrize("purpose", ["check", "test"])
def test_without_a_package_of_the_tests_it_goes_on_and_names_it_each_time(
    tmp_path: Path, purpose: str
) -> None:
    words = ["install", "-q", "--require-hashes", "-r", str(ROOT / "tools/requirements/test.txt")]
    for runs in (1, 2):
        done = setup(tmp_path, purpose, set())
        assert done.returncode == 0, done.stderr
        assert missing(done) >= CHECK
        assert (installed(tmp_path), stamps(tmp_path)) == ([words] * runs, [])


@pytest.mark.parametrize("purpose", ["build", "run", "check"])
def test_with_every_package_it_installs_the_locked_ones_and_says_so(tmp_path: Path, purpose: str) -> None:
    present = {"cc", "ld", "musl-gcc", "ip", "ping", "git"}
    done = setup(tmp_path, purpose, present, python3="exit 0")
    if not Path("/usr/include/stdio.h").exists():
        pytest.skip("the host has no libc6-dev, which tools/setup finds by a file")
    lock = LOCKED.get(purpose)
    words = ["install", "-q", "--require-hashes", "-r", str(ROOT / "tools/requirements" / str(lock))]
    said = f"setup: Python packages into {tmp_path}/venv\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said if lock else "")
    assert (installed(tmp_path), stamps(tmp_path)) == ([words] if lock else [], [f".ready-{purpose}"])


def test_an_environment_without_pip_is_made_again(tmp_path: Path) -> None:
    """Debian's python3 without python3-venv makes half an environment: a python, and no pip."""
    program(tmp_path / "pip.sh", f'echo "$@" >>{tmp_path}/pip')
    makes = f'{shutil.which("ln")} -s {tmp_path}/pip.sh "$3/bin/pip"'
    done = setup(tmp_path, "check", {"git"}, pip=False, python3=makes)
    assert done.returncode == 0, done.stderr
    assert len(installed(tmp_path)) == 1
    assert stamps(tmp_path) == [".ready-check"]


def test_an_environment_that_gets_no_pip_is_named_with_the_way_out(tmp_path: Path) -> None:
    done = setup(tmp_path, "check", {"git"}, pip=False, python3="exit 0")
    venv = tmp_path / "venv"
    said = f"setup: the environment {venv} has no pip\nsetup: hint: rm -r {venv}, then run the same command again\n"
    assert (done.returncode, done.stderr, stamps(tmp_path)) == (1, said, [])


def test_an_installed_package_is_not_named(tmp_path: Path) -> None:
    present = {
        "ld.lld",
        "strace",
        "gdb",
        "tshark",
        "eu-stack",
        "virtiofsd",
        "qemu-system-x86_64",
        "xorriso",
        "bochs",
        "ip",
        "ping",
        "git",
    }
    done = setup(tmp_path, "test", present)
    assert done.returncode == 0, done.stderr
    assert missing(done) == {"clang", "libclang-rt-19-dev", "zstd", "lz4"}


def make_plan(*targets: str) -> list[str]:
    """Returns the purposes for which make would call tools/setup in a new tree."""
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "VENV=build/none", *targets],
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^tools/setup build/none (\w+)$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("purposes", "targets"),
    [
        (["build"], ["build", "wheel"]),
        (["build", "run"], ["run"]),
        (["build", "check"], ["check", "lint", "types", "unit", "native", "docs", "format"]),
        (["build", "check", "test"], ["setup", "test", "sandbox", "kvm", "fuzz", "package", "bench"]),
    ],
)
def test_each_target_of_make_requests_what_it_needs(purposes: list[str], targets: list[str]) -> None:
    for target in targets:
        assert sorted(make_plan(target)) == sorted(purposes), target


def test_another_purpose_is_refused(tmp_path: Path) -> None:
    done = setup(tmp_path, "tests", set())
    assert (done.returncode, done.stderr) == (2, "setup: tests: the purpose is build, run, check or test\n")


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
