"""The crash report in the line of --json, by both ways of running a guest and on both backends."""

import json
import os
import pty
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from support import Guest

LIMIT_S = 120
BY_PYTHON = ("--verbose",)

pytestmark = pytest.mark.backends


def run(
    tender_cmd: list[str], backend: str, *words: str, status: int = 255
) -> tuple[dict[str, Any], "subprocess.CompletedProcess[str]"]:
    done = subprocess.run(
        [*tender_cmd, f"--backend={backend}", "--mem=16", "--json=-", "--console=none", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    (line,) = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result, done


@pytest.mark.parametrize("more", [(), BY_PYTHON], ids=["native", "python"])
def test_a_report_that_is_asked_for_is_in_the_line_and_names_the_core(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path, more: tuple[str, ...]
) -> None:
    result, done = run(
        tender_cmd, backend, *more, "--crash-report", f"--core={tmp_path}", str(guest("debug")), "fault"
    )
    report = result["report"]
    (name,) = os.listdir(tmp_path)
    assert (report["schema"], report["reason"], report["status"]) == ("tender.report/1", "abort", 255)
    assert (report["backend"], report["core"]) == (backend, str(tmp_path / name))
    assert any(frame["function"] == "total" for frame in report["stack"])
    assert any(str(tmp_path / name) in line for line in report["next"])
    assert str(tmp_path / name) in done.stderr.partition("next")[2]


def test_the_report_in_the_line_is_that_of_the_core(
    guest: Guest, tender_cmd: list[str], backend: str, tmp_path: Path
) -> None:
    """Registers, flags, memory, stack: the same state has been looked at twice."""
    words = ("--crash-report", f"--core={tmp_path}", str(guest("debug")), "fault")
    result, _ = run(tender_cmd, backend, *words)
    (name,) = os.listdir(tmp_path)
    done = subprocess.run(
        [*tender_cmd, "report", "--json", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == result["report"]


@pytest.mark.parametrize("more", [(), BY_PYTHON], ids=["native", "python"])
def test_a_run_without_a_terminal_and_without_the_option_has_none(
    guest: Guest, tender_cmd: list[str], backend: str, more: tuple[str, ...]
) -> None:
    assert "report" not in run(tender_cmd, backend, *more, str(guest("debug")), "fault")[0]


def test_an_ordinary_end_has_none(guest: Guest, tender_cmd: list[str], backend: str) -> None:
    words = ("--crash-report", str(guest("debug")), "spin", "10")
    assert "report" not in run(tender_cmd, backend, *words, status=0)[0]


def test_the_time_limit_is_the_reason_of_the_report(
    guest: Guest, tender_cmd: list[str], backend: str
) -> None:
    words = ("--crash-report", "--timeout=1", str(guest("debug")), "sleep")
    result, _ = run(tender_cmd, backend, *words, status=1)
    assert (result["reason"], result["report"]["reason"]) == ("timeout", "timeout")


def test_a_terminal_gets_it_in_the_line_too(guest: Guest, tender_cmd: list[str], backend: str) -> None:
    terminal, other = pty.openpty()
    reader = threading.Thread(target=lambda: _drain(terminal))
    reader.start()
    process = subprocess.Popen(
        [
            *tender_cmd,
            f"--backend={backend}",
            "--mem=16",
            "--json=-",
            "--console=none",
            str(guest("debug")),
            "fault",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=other,
    )
    os.close(other)
    said, _ = process.communicate(timeout=LIMIT_S)
    reader.join(LIMIT_S)
    os.close(terminal)
    assert process.returncode == 255
    assert json.loads(said)["report"]["reason"] == "abort"


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # the other end is closed
        pass


def test_a_signal_during_the_report_leaves_a_whole_line(
    guest: Guest, tender_cmd: list[str], backend: str
) -> None:
    """At whatever moment it comes, the line is JSON and the status that of the end, or the process is killed by it."""
    for delay_ms in (0, 20, 60, 120, 200):
        process = subprocess.Popen(
            [
                *(*tender_cmd, f"--backend={backend}", "--mem=16", "--json=-", "--console=none"),
                *("--crash-report", str(guest("debug")), "fault"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        timer = threading.Timer(delay_ms / 1000, process.send_signal, (signal.SIGTERM,))
        timer.start()
        said, err = process.communicate(timeout=LIMIT_S)
        timer.join()
        assert process.returncode in (255, 1, -signal.SIGTERM), err
        if process.returncode == 255:
            assert json.loads(said)["reason"] == "abort"
