"""Other clients than `tender debug`'s own gdb: lldb, and gdb by its machine interface as VS Code drives it.

Both connect to `tender debug --listen`. lldb is driven by its library, which takes the commands of its prompt.
"""

import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 120
POLL = ("poll", "20000")
LISTENS = "127.0.0.1:0"

StartGuest = Callable[..., Any]  # conftest.py
Listening = Callable[..., Any]
Lldb = Callable[..., str]

PROMPT = """
import sys, lldb
debugger = lldb.SBDebugger.Create()
debugger.SetAsync(False)
for command in sys.argv[1:]:
    result = lldb.SBCommandReturnObject()
    debugger.GetCommandInterpreter().HandleCommand(command, result)
    print("(lldb)", command, result.GetOutput() or "", result.GetError() or "", sep="\\n", flush=True)
"""


@pytest.fixture
def lldb(tmp_path: Path) -> Lldb:
    """A function: lldb(image, place, "bt", "detach") connects to a place, executes commands and returns the output.

    Debian's package python3-lldb has the module, and not the link from its name to lldb's library.
    """
    modules = sorted(Path("/usr/lib").glob("llvm-*/lib/python3*/*-packages/lldb/__init__.py"))
    assert modules, "python3-lldb is missing: make setup"
    version = modules[-1].parts[3].removeprefix("llvm-")
    library = next(Path("/usr/lib").glob(f"*-linux-gnu/liblldb-{version}*.so.*"))
    (tmp_path / "_lldb.so").symlink_to(library)

    def run(image: Path, place: str, *commands: str) -> str:
        patience = "settings set plugin.process.gdb-remote.packet-timeout 60"  # for an emulated machine
        first = ("settings set auto-confirm true", patience, f"target create {image}", f"gdb-remote {place}")
        done = subprocess.run(
            ["/usr/bin/python3", "-c", PROMPT, *first, *commands],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{modules[-1].parents[1]}"},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


WAITS = "breakpoint set --name wait_once"
LLDB = {
    WAITS: r"Breakpoint 1: where = debug\.elf`wait_once",
    "continue": r"stop reason = breakpoint 1\.1\n.*`wait_once at main\.c:\d+",
    "bt": r"#0: .*`wait_once at main\.c.*\n.*#1: .*`main at main\.c.*\n(.*\n)*.*`_start at boot_x86_64\.S",
    "register read rip rsp xmm0 st0": r"rip = 0x0*10[0-9a-f]{4}  debug\.elf`wait_once.*\n *rsp = 0x.*\n *xmm0 = \{",
    "memory region $rsp": r"\[0x[0-9a-f]+-0x[0-9a-f]+\) rw-",
    "expression ticks = 77": r"= 77\n",
    "memory read --format u --size 8 --count 1 &ticks": r"0x[0-9a-f]+: 77\n",
    "thread step-in": r"stop reason = step in\n",
    "thread step-over": r"stop reason = step over\n.*`wait_once at main\.c",
    "thread step-inst": r"stop reason = instruction step into",
    "breakpoint delete --force 1": r"1 breakpoints? deleted",
    "thread step-out": r"stop reason = step out\n.*`main at main\.c",
    "register write rbp 7": r"",
    "register read rbp": r"rbp = 0x0*7\n",
    "memory read 0x7000000": r"error: memory read failed for 0x7000000",
}
"""What is typed, one after the other, and what has to be in the answer."""


@pytest.mark.backends
def test_lldb_debugs_a_guest_and_leaves_it(lldb: Lldb, start_guest: StartGuest, listening: Listening) -> None:
    running = start_guest("debug", *POLL)
    with listening(LISTENS, str(running.pid)) as (process, place):
        told = lldb(running.path, place, *LLDB, "detach")
        assert process.wait(LIMIT_S) == 0
    answers = dict(it.split("\n", 1) for it in told.split("(lldb)\n")[1:])
    for command, shown in LLDB.items():
        assert re.search(shown, answers[command]), (command, told)
        assert shown.startswith("error") or "error" not in answers[command], (command, told)
    running.check_went_on()


@pytest.mark.parametrize("word", ["watch", "read"])
def test_lldb_watches_a_variable(
    word: str, lldb: Lldb, start_guest: StartGuest, listening: Listening
) -> None:
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    kind = {"watch": "write", "read": "read"}[word]
    with listening(LISTENS, str(running.pid)) as (process, place):
        told = lldb(
            running.path, place, f"watchpoint set variable --watch {kind} ticks", "continue", "bt", "detach"
        )
        assert process.wait(LIMIT_S) == 0
    assert re.search(r"stop reason = watchpoint 1\n", told), told
    assert re.search(r"#0: .*`wait_once at main\.c:6\d", told), told
    running.check_went_on()


def test_a_guest_that_ran_before_survives_lldbs_quit_and_kill(
    lldb: Lldb, start_guest: StartGuest, listening: Listening
) -> None:
    """lldb's `quit` kills what it debugs unless it has attached by a process's number, which `gdb-remote` does not."""
    running = start_guest("debug", *POLL, options=("--backend=sandbox",))
    with listening(LISTENS, str(running.pid)) as (process, place):
        lldb(running.path, place, WAITS, "continue", "process kill")
        assert process.wait(LIMIT_S) == 0
    running.check_went_on()


def test_lldb_has_a_guest_from_its_first_instruction_to_its_end(
    lldb: Lldb, guest: Callable[[str], Path], listening: Listening
) -> None:
    with listening(LISTENS, "--backend=sandbox", "--mem=16", str(guest("exit_status")), "3") as (
        process,
        place,
    ):
        told = lldb(guest("exit_status"), place, "breakpoint set --name main", *("continue",) * 3)
        assert process.wait(LIMIT_S) == 0
    assert re.search(r"stop reason = signal SIGTRAP\n.*`_start", told), told
    assert re.search(r"stop reason = breakpoint 1\.1\n.*`main", told), told
    assert "exited with status = 3" in told, told


class MachineInterface:
    """gdb by its machine interface, version 2. Source: "The gdb/mi Interface" of gdb's manual."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            ["gdb", "--interpreter=mi2", "-nx", "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={**os.environ, "HOME": str(home), "DEBUGINFOD_URLS": ""},
        )
        self.said: list[str] = []
        self.rest = b""

    def until(self, pattern: str) -> str:
        """Returns the first line that has come since the last call and that begins with this."""
        assert self.process.stdout
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            line, newline, rest = self.rest.partition(b"\n")
            if newline:
                self.rest = rest
                self.said.append(line.decode(errors="replace").rstrip("\r"))
                if re.match(pattern, self.said[-1]):
                    return self.said[-1]
            elif select.select([self.process.stdout], [], [], 1)[0]:
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                assert data, self.said
                self.rest += data
        raise AssertionError((pattern, self.said))

    def ask(self, command: str, answer: str = "done") -> str:
        """Sends a command. Returns its result, which has to be of this class."""
        assert self.process.stdin
        self.process.stdin.write(f"7{command}\n".encode())
        line = self.until(r"7\^")
        assert line.startswith(f"7^{answer}"), (command, self.said)
        return line


@pytest.fixture
def mi(tmp_path: Path) -> Iterator[MachineInterface]:
    gdb = MachineInterface(tmp_path)
    with gdb.process:
        yield gdb
        gdb.process.kill()


STATE = {
    "-thread-info": r'threads=\[\{id="1"',
    "-stack-list-frames 0 100": r'level="0",addr="0x[0-9a-f]+",func="wait_once",file="[^"]*main\.c",.*func="main"',
    "-stack-list-arguments 0 0 0": r"stack-args=",
    "-stack-list-variables --thread 1 --frame 0 0": r"variables=",
    '-var-create - * "ticks"': r'value="\d+",type="volatile uint64_t"',
    "-data-list-register-names": r'"rip"',
    "-data-list-register-values x 16": r'number="16",value="0x10[0-9a-f]{4}"',
    "-data-read-memory-bytes $rsp 16": r'contents="[0-9a-f]{32}"',
    "-data-disassemble -s $pc -e $pc+8 -- 2": r'func-name="wait_once"',
}
"""What VS Code asks for at a stop, and what has to be in the answer."""


@pytest.mark.backends
def test_vs_code_attaches_by_gdbs_machine_interface_and_leaves(
    mi: MachineInterface, start_guest: StartGuest, listening: Listening
) -> None:
    """The commands of its extension for C and C++ for "request": "attach". Source: DebuggedProcess.cs of MIEngine."""
    running = start_guest("debug", *POLL)
    with listening(LISTENS, str(running.pid)) as (process, place):
        for command in (
            "-gdb-set remotetimeout 60",  # on an emulated machine 2 seconds are too short
            "-gdb-set mi-async on",
            '-interpreter-exec console "set pagination off"',
            "-gdb-set auto-solib-add on",
            f"-file-exec-and-symbols {running.path}",
            '-interpreter-exec console "show architecture"',
        ):
            mi.ask(command)
        mi.ask(f"-target-select remote {place}", "connected")
        mi.ask("-break-insert -f wait_once")
        mi.ask("-exec-continue", "running")
        assert 'reason="breakpoint-hit"' in mi.until(r"\*stopped")
        for command, shown in STATE.items():
            assert re.search(shown, mi.ask(command)), (command, mi.said)
        for command in ("-exec-next", "-exec-step-instruction", "-exec-finish"):
            mi.ask(command, "running")
            mi.until(r"\*stopped")
        mi.ask("-break-delete 1")
        mi.ask("-exec-continue", "running")
        mi.ask("-exec-interrupt")
        assert 'signal-name="SIGINT"' in mi.until(r"\*stopped")
        mi.ask("-target-detach")
        assert process.wait(LIMIT_S) == 0
    running.check_went_on()
