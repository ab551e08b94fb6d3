"""Reports of real guests: they show the user's own code, and number frames as gdb does with a core of the same guest."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Guest

LIMIT_S = 120

pytestmark = pytest.mark.backends

GDB_FRAME = re.compile(r"^#(\d+) +(?:0x[0-9a-f]+ in )?(\w+) \(", re.M)
Run = Callable[..., Any]  # conftest.py


def cored(tender_cmd: list[str], backend: str, folder: Path, status: int, *words: str) -> Path:
    """Runs a guest that ends abnormally, and returns its core."""
    done = subprocess.run(
        [*tender_cmd, f"--backend={backend}", "--mem=16", f"--core={folder}", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    (name,) = os.listdir(folder)
    return folder / name


def report(tender_cmd: list[str], *words: str) -> str:
    done = subprocess.run(
        [*tender_cmd, "report", *words], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("name", "words", "own"),
    [
        ("bug_heap", ("one", "two", "three-is-much-too-long-for-a-line", "four"), "log_free"),
        ("bug_null", ("kitchen", "attic"), "sensor_sum"),
    ],
)
def test_the_report_of_a_core_shows_own_code_and_counts_frames_as_gdb(
    name: str,
    words: tuple[str, ...],
    own: str,
    guest: Guest,
    tender_cmd: list[str],
    backend: str,
    tmp_path: Path,
    gdb: Run,
) -> None:
    core = cored(tender_cmd, backend, tmp_path, 255, str(guest(name)), *words)

    made = json.loads(report(tender_cmd, "--json", str(core)))
    text = report(tender_cmd, str(core))

    stack = made["stack"]
    said = gdb(
        f"core-file {core}", "set backtrace past-main on", "echo \\nstack:\\n", "bt", image=guest(name)
    )
    gdbs = GDB_FRAME.findall(said.partition("\nstack:\n")[2])
    jumped = [n for n, (_, function) in enumerate(gdbs[1:]) if function == gdbs[n][1] == "guest_free"]
    assert len(jumped) == (name == "bug_heap")  # gdb has a frame for a call that is a jump
    first = jumped[0] if jumped else len(stack)
    ours = [(str(number), frame["function"]) for number, frame in enumerate(stack)]
    assert (gdbs[:first], [it for _, it in gdbs[first + len(jumped) :]]) == (
        ours[:first],
        [it for _, it in ours[first:]],
    )
    assert stack[made["own_frame"]]["function"] == own
    assert made["source"]["frame"] == made["own_frame"]
    assert made["source"]["file"].endswith(f"{name}/main.c")
    assert [it["library"] for it in stack[-2:]] == ["guest library"] * 2
    assert f"source of #{made['own_frame']}:" in text
    own_line = re.search(rf"^  in {own} at .*{name}/main.c:\d+ \(#\d+\)$", text, re.M)
    assert bool(own_line) == (made["own_frame"] > 0)
    vcpu = [it["function"] for it in made["vcpu_stack"]]
    assert not set(vcpu) & {it["function"] for it in stack}
    assert ("trap_report" in vcpu) == (made["fault"] is not None)


def test_the_report_of_a_guest_that_waits_shows_who_waits(
    start_guest: Run, tender_cmd: list[str], backend: str
) -> None:
    running = start_guest("debug", "poll", "20000", options=(f"--backend={backend}",))

    text = report(tender_cmd, str(running.pid))

    assert re.search(r"^  in (wait_once|wait|main) at .*debug/main.c:\d+ \(#\d+\)$", text, re.M), text
    assert re.search(r"^  >.*(poll_wait|wait_once|wait)\(", text, re.M), text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("divide", ": divide error (#DE)"),
        ("opcode", ": invalid opcode (#UD)"),
        ("protection", ": general protection (#GP)"),
        ("page", ", address 0x"),
        ("null", ", address 0x8 (write, not mapped): a null pointer + 8"),
    ],
)
def test_the_report_names_the_exception(
    kind: str, words: str, guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    program = ["null_write"] if kind == "null" else ["traps", f"--kind={kind}"]
    core = cored(tender_cmd, backend, tmp_path, 255, str(guest(program[0])), *program[1:])

    text = report(tender_cmd, str(core))

    line = text.split("\n")[1]
    assert re.fullmatch(rf"  at 0x[0-9a-f]+{re.escape(words)}.*", line), text
