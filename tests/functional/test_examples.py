"""The programs of examples/, run as their docstrings say, and what they print."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from support import Guest, TapInterface

pytestmark = pytest.mark.backends
TESTS = Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "examples"
LIMIT_S = 100


class Example(NamedTuple):
    guest: str
    args: tuple[str, ...]
    stdout: str
    stderr: str = ""
    status: int = 0


HELLO = r"Hello, World\n(.*\n)*"
RUNS = {
    "boot": Example(
        "hello", ("--status=3",), HELLO,
        r"ended: exit, status 3\nran on (kvm|sandbox), first output after [\d.]+ ms\n", status=3,
    ),
    "console": Example("hello", (), r"captured \d+ bytes\n1: Hello, World\n(\d+: .*\n)+"),
    "time_limit": Example("sleep", (), r"timeout\nstopped\nthe guest still runs\nstopped\n"),
    "pool": Example("hello", ("8",), "".join(rf"run {i}: status 0, \d+ bytes of console\n" for i in range(8))),
    "event_loop": Example("hello", ("4",), "".join(rf"guest {i}: exit, status 0\n" for i in range(4))),
    "disk": Example("disk", ("disk.img",), r"\['block storage'\]\n(disk: .*\n)+1048576 bytes written, 1048576 bytes read\n"),
    "errors": Example(
        "hello", (),
        r"wrong argument: mem: 'many' is not an amount of memory\n"
        r"no unikernel: .*/errors\.py: .* \(file '.*/errors\.py', byte 0\)\n"
        r"other devices are needed: .*app\.elf declares no net device \(missing: none\)\n"
        r"a device is not there: console: /nowhere/console: .* \(errno 2\)\n"
        r"the host refuses: .* \(code isolation-missing\)\n"
        r"not now: a Vm runs once; make another from the same Image\n"
        r"the guest failed: status 3\n",
    ),
}  # fmt: skip


def started(name: str, backend: str, where: Path, *args: str) -> "subprocess.Popen[str]":
    """The library does not read the environment, so the backend is set before the example runs."""
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(TESTS)!r})\n"
        f"import support; support.take_backend({backend!r})\n"
        f"sys.path[0] = {str(EXAMPLES)!r}; sys.argv = {[name, *args]!r}\n"
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_as_it_stands(guest: Guest, backend: str, tmp_path: Path, name: str) -> None:
    it = RUNS[name]
    os.symlink(guest(it.guest), tmp_path / "app.elf")
    with started(f"{name}.py", backend, tmp_path, "app.elf", *it.args) as program:
        stdout, stderr = program.communicate(timeout=LIMIT_S)
    assert program.returncode == it.status, stderr
    assert re.fullmatch(it.stdout, stdout), stdout
    assert re.fullmatch(it.stderr, stderr), stderr


@pytest.mark.tap
def test_the_network_example_answers_pings(
    guest: Guest, backend: str, tap: TapInterface, tmp_path: Path
) -> None:
    deadline = time.monotonic() + LIMIT_S
    with started("network.py", backend, tmp_path, str(guest("echo")), tap.name, "3") as program:
        while program.poll() is None and time.monotonic() < deadline:
            ping = ["ping", "-c", "1", "-W", "1", "10.0.0.2"]
            subprocess.run(ping, capture_output=True, check=False, timeout=LIMIT_S)
        stdout, stderr = program.communicate(timeout=LIMIT_S)
    assert (program.returncode, stderr) == (0, "")
    assert re.search(r"^the guest took \d+ frames and sent \d+\n\Z", stdout, re.MULTILINE), stdout


@pytest.mark.tap
def test_the_network_example_says_which_interface_is_no_tap(
    guest: Guest, backend: str, tmp_path: Path
) -> None:
    with started("network.py", backend, tmp_path, str(guest("echo")), "lo", "3") as program:
        stdout, stderr = program.communicate(timeout=LIMIT_S)
    assert (program.returncode, stdout) == (1, "")
    assert stderr == "lo cannot be opened as a TAP interface: Invalid argument\n"


WRONG: dict[str, list[tuple[str, ...]]] = {
    "boot": [()],
    "console": [(), ("app.elf", "more")],
    "disk": [(), ("app.elf",), ("app.elf", "disk.img", "more")],
    "errors": [(), ("app.elf", "more")],
    "event_loop": [(), ("app.elf",), ("app.elf", "many"), ("app.elf", "1", "more")],
    "network": [
        (),
        ("app.elf",),
        ("app.elf", "tap0"),
        ("app.elf", "tap0", "x"),
        ("app.elf", "tap0", "1", "more"),
    ],
    "pool": [(), ("app.elf",), ("app.elf", "many"), ("app.elf", "1", "more")],
    "time_limit": [(), ("app.elf", "more")],
}


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, rows in WRONG.items() for words in rows])
def test_an_example_with_wrong_words_prints_its_usage(
    backend: str, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    with started(f"{name}.py", backend, tmp_path, *words) as program:
        stdout, stderr = program.communicate(timeout=LIMIT_S)
    doc = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text()), clean=False)
    assert (program.returncode, stdout, stderr) == (2, "", f"{doc}\n")


def test_each_example_is_run_and_says_how() -> None:
    programs = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    assert set(programs) == {*RUNS, "network"} == set(WRONG)
    for name, text in programs.items():
        doc = ast.get_docstring(ast.parse(text))
        assert doc and re.search(rf"^python examples/{name}\.py .*\.elf", doc, re.MULTILINE), name
