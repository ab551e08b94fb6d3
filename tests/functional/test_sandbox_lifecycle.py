"""The process of a sandboxed VM: it ends with its parent whatever happens, and does not disturb other
processes.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import support
from sandbox_rig import wait_until
from support import Guest

from tender import DISCARD, ExitReason, Image, Vm, VmConfig

SMALL = VmConfig(mem=4)


def is_over(process: psutil.Process) -> bool:
    """Returns whether the process runs no more. The process that inherited it may take a while to reap
    it.
    """
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def program(text: str, *words: str | Path) -> "subprocess.Popen[str]":
    """Starts a Python program in a process of its own, with what the rest of this file imports."""
    head = "import os, signal, sys, threading, time\nfrom tender import *\nSMALL = VmConfig(mem=4)\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", head + textwrap.dedent(text), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(text: str, *words: str | Path) -> list[str]:
    """Returns the lines that such a program prints. It must end well."""
    with program(text, *words) as process:
        out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def sandbox_of(vm: Vm) -> psutil.Process:
    (child,) = [c for c in psutil.Process().children() if c.name() == "tender-sandbox"]
    return child


@pytest.mark.parametrize(
    "state",
    [
        "pass",  # made, and not run
        "vm.start(); said.wait()",  # computing, or asleep
        "vm.start(); said.wait(); vm.stop(); vm.wait()",  # ended, and not closed
    ],
)
@pytest.mark.parametrize("name", ["spin", "sleep"])
def test_no_process_is_left_of_a_parent_that_was_killed(guest: Guest, name: str, state: str) -> None:
    text = f"""
        said = threading.Event()
        with Image.open(sys.argv[1]) as image:
            vm = Vm(image, SMALL, console=lambda _: said.set(), backend="sandbox")
        {state}
        print("there", flush=True)
        time.sleep(1000)
    """
    with program(text, guest(name)) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "there\n", parent.stderr and parent.stderr.read()
        sandboxes = psutil.Process(parent.pid).children(recursive=True)
        assert [process.name() for process in sandboxes] == ["tender-sandbox"]
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 120
    while not all(is_over(process) for process in sandboxes):
        assert time.monotonic() < deadline, sandboxes
        time.sleep(0.01)


def test_no_process_is_left_of_a_command_that_was_killed(guest: Guest, tender_cmd: list[str]) -> None:
    command = [*tender_cmd, "--backend=sandbox", "--mem=8", str(guest("spin"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "ready\n"
        sandbox = support.sandbox_of(parent.pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 120
    while not is_over(sandbox):
        assert time.monotonic() < deadline, sandbox
        time.sleep(0.01)


def of_image(image: str) -> list[psutil.Process]:
    """Returns every running process that has the image among its words."""
    found = []
    for process in psutil.process_iter():
        try:
            if image in process.cmdline() and not is_over(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_command_that_is_killed_while_it_starts_leaves_nothing(
    guest: Guest, tender_cmd: list[str], tmp_path: Path
) -> None:
    """The kills come in the first three milliseconds: before the sandbox looks for its parent,
    between, and afterwards.
    """
    image = shutil.copy(guest("spin"), tmp_path / "spin.elf")
    moments = random.Random(1)
    for _ in range(150):
        moment = time.perf_counter() + moments.uniform(0, 0.003)
        command = subprocess.Popen(
            [*tender_cmd, "--backend=sandbox", "--mem=8", str(image)], stdout=subprocess.DEVNULL
        )
        while time.perf_counter() < moment:
            pass
        command.kill()
        command.wait()
    wait_until(lambda: not of_image(str(image)))


def test_a_process_that_is_killed_from_outside_is_a_result(guest: Guest) -> None:
    with Image.open(guest("sleep")) as image, Vm(image, SMALL, console=DISCARD, backend="sandbox") as vm:
        vm.start()
        os.kill(sandbox_of(vm).pid, signal.SIGKILL)
        result = vm.wait(120)
    assert (result.reason, result.status) == (ExitReason.SANDBOX_DIED, 2)
    assert "killed from outside (SIGKILL)" in result.message


IGNORED = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
REAPED = """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
"""


@pytest.mark.parametrize("sigchld", [IGNORED, REAPED], ids=["ignores SIGCHLD", "reaps every child"])
def test_a_program_that_loses_the_status_of_its_children_gets_the_right_results(
    guest: Guest, sigchld: str
) -> None:
    text = textwrap.dedent(sigchld) + textwrap.dedent("""
        for status in (0, 7, 255):
            result = run(sys.argv[1], VmConfig(mem=4, args=(str(status),)), console=DISCARD, backend="sandbox")
            print(result.reason, result.status)
        print(run(sys.argv[2], SMALL, console=DISCARD, timeout=0.3, backend="sandbox").reason)
        with Image.open(sys.argv[2]) as image, Vm(image, SMALL, console=DISCARD, backend="sandbox") as vm:
            vm.start()
            os.kill(vm.pid, signal.SIGKILL)
            print(vm.wait().reason)
    """)
    assert answers(text, guest("exit_status"), guest("spin")) == [
        *("exit 0", "exit 7", "abort 255"),
        *("timeout", "sandbox-died"),
    ]


def test_the_children_of_the_program_itself_are_left_to_it(guest: Guest) -> None:
    text = """
        children = [os.fork() or os._exit(n) for n in range(40, 45)]
        for _ in range(5):
            assert run(sys.argv[1], SMALL, console=DISCARD, backend="sandbox").ok
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no others")
    """
    assert answers(text, guest("hello")) == ["[40, 41, 42, 43, 44]", "no others"]


@pytest.mark.parametrize("front", [["run"], ["solo5-hvt"]], ids=["run", "solo5-hvt"])
@pytest.mark.parametrize("launcher", ["native", "python"])
def test_a_terminals_stop_stops_the_guest_too_and_it_goes_on(
    guest: Guest, tender_cmd: list[str], launcher: str, front: list[str]
) -> None:
    """^Z and `fg` do the same. The signal goes to the command, and its guest's process is the first of
    a pid namespace.

    The command has a process group of its own in this session, as a shell gives to a job: in an
    orphaned group the kernel drops SIGTSTP.
    """
    command = [*tender_cmd, *front, "--mem=8", str(guest("spin"))]
    env = {**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, env=env) as running:
        try:
            assert running.stdout is not None and running.stdout.readline()
            program = support.sandbox_of(running.pid)
            for stop, state in (
                (signal.SIGTSTP, psutil.STATUS_STOPPED),
                (signal.SIGCONT, psutil.STATUS_RUNNING),
            ):
                running.send_signal(stop)
                deadline = time.monotonic() + 120
                while program.status() != state:
                    assert time.monotonic() < deadline, (stop, program.status())
                    time.sleep(0.01)
            running.terminate()
            assert running.wait(120) == 1
        finally:
            running.kill()
