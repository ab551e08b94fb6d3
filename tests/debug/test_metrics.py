"""`tender metrics` with real guests, as text, as a file and over HTTP."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_classic

pytestmark = pytest.mark.backends

StartGuest = Callable[..., Any]  # conftest.py
FOREVER = "4000000000"
LIMIT_S = 120
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
COMMAND = (sys.executable, "-P", "-m", "tender", "metrics")


def hypercalls(families: Any, pid: int, call: str) -> float:
    """The number of hypercalls of the guest in a process."""
    samples = [sample for family in families for sample in family.samples]
    (own,) = (
        it.labels["id"] for it in samples if it.name == "tender_vm_info" and it.labels["pid"] == str(pid)
    )
    wanted = {"id": own, "vm": "debug", "call": call}
    (found,) = (it.value for it in samples if it.name == "tender_vm_hypercalls_total" and it.labels == wanted)
    return float(found)


def test_metrics_are_printed_and_written_to_a_file(
    start_guest: StartGuest, tmp_path: Path, backend: str
) -> None:
    run = start_guest("debug", "poll", FOREVER)
    done = subprocess.run(
        [*COMMAND, "--once"], capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "")
    first = hypercalls(parse_openmetrics(done.stdout), run.pid, "poll")
    assert f'backend="{backend}"' in done.stdout
    file = tmp_path / "tender.prom"
    done = subprocess.run(
        [*COMMAND, f"--textfile={file}"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd="/",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hypercalls(parse_classic(file.read_text()), run.pid, "poll") > first


def test_a_file_is_written_again_and_again_until_a_signal(start_guest: StartGuest, tmp_path: Path) -> None:
    run = start_guest("debug", "poll", FOREVER)
    file = tmp_path / "tender.prom"
    with subprocess.Popen(
        [*COMMAND, f"--textfile={file}", "--interval=1"], stderr=subprocess.PIPE, cwd="/"
    ) as writer:
        seen: set[float] = set()
        limit = time.monotonic() + LIMIT_S
        while len(seen) < 3:
            assert time.monotonic() < limit and writer.poll() is None
            if file.exists():
                seen.add(hypercalls(parse_classic(file.read_text()), run.pid, "poll"))
        writer.send_signal(signal.SIGTERM)
        assert writer.communicate(timeout=LIMIT_S)[1] == b""
    assert writer.returncode == 0


def test_metrics_are_served_over_http_until_a_signal(start_guest: StartGuest) -> None:
    run = start_guest("debug", "poll", FOREVER)
    with subprocess.Popen(
        [*COMMAND, "--listen=127.0.0.1:0"], stderr=subprocess.PIPE, text=True, cwd="/"
    ) as server:
        assert server.stderr
        said = server.stderr.readline()
        place = re.fullmatch(r"tender: metrics: serving http://(127\.0\.0\.1:\d+)/metrics\n", said)
        assert place, said
        numbers: list[float] = []
        limit = time.monotonic() + LIMIT_S
        while len(set(numbers)) < 2:
            assert time.monotonic() < limit
            client = http.client.HTTPConnection(place[1], timeout=LIMIT_S)
            client.request(
                "GET", "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
            )
            got = client.getresponse()
            assert (got.status, got.getheader("Content-Type")) == (
                200,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )
            text = got.read().decode()
            numbers.append(hypercalls(parse_openmetrics(text), run.pid, "poll"))
            client.close()
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=LIMIT_S)[1] == ""
    assert server.returncode == 0
    assert os.path.exists(f"/proc/{run.pid}"), "the guest goes on"


def test_metrics_are_served_at_a_socket_of_this_user(start_guest: StartGuest, tmp_path: Path) -> None:
    run = start_guest("debug", "sleep")
    path = tmp_path / "tender.sock"
    with subprocess.Popen(
        [*COMMAND, f"--listen={path}"], stderr=subprocess.PIPE, text=True, cwd="/"
    ) as server:
        assert server.stderr
        assert server.stderr.readline() == f"tender: metrics: serving {path} (HTTP)\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT_S)
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            got = b""
            while more := client.recv(1 << 16):
                got += more
        assert hypercalls(parse_classic(got.partition(b"\r\n\r\n")[2].decode()), run.pid, "puts") == 1
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=LIMIT_S)
    assert (server.returncode, path.exists()) == (0, False)
