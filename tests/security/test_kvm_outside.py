"""A guest that the native command runs on KVM, examined from outside while it runs: what its process
may still do.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.kvm


@pytest.fixture
def running(tender_cmd: list[str], guest: Guest) -> Iterator[subprocess.Popen[bytes]]:
    """A guest that computes forever, under --backend=kvm. It has printed its first line."""
    command = [*tender_cmd, "--mem=8", "--backend=kvm", str(guest("spin"))]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert made.stdout is not None and made.stdout.read(1)
    yield made
    made.kill()
    made.communicate()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_filter_is_in_force_and_no_privilege_or_capability_is_left(
    running: subprocess.Popen[bytes],
) -> None:
    status = status_of(running.pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0


def test_it_is_not_root_and_has_no_groups_and_no_bounding_set(running: subprocess.Popen[bytes]) -> None:
    """This holds where root starts the command. Another user keeps its own ids, and cannot empty that
    set.
    """
    status = status_of(running.pid)
    assert int(status["CapAmb"], 16) == 0
    if os.geteuid() == 0:
        assert int(status["CapBnd"], 16) == 0
        for kind in ("Uid", "Gid"):
            assert len(set(status[kind].split())) == 1 and status[kind].split()[0] != "0", status[kind]
        assert status["Groups"].split() == []
    else:
        assert set(status["Uid"].split()) == {str(os.geteuid())}


def test_it_has_no_thread_except_kvms_own_and_no_descriptor_to_make_machines(
    running: subprocess.Popen[bytes],
) -> None:
    threads = [(task / "comm").read_text() for task in Path(f"/proc/{running.pid}/task").iterdir()]
    assert len([name for name in threads if not name.startswith("kvm-")]) == 1
    open_files = [os.readlink(entry) for entry in Path(f"/proc/{running.pid}/fd").iterdir()]
    assert "/dev/kvm" not in open_files
    assert not [name for name in open_files if name.endswith(".elf")]


def limit_of(pid: int, name: str) -> set[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    line = next(line for line in lines if line.startswith(name))
    return set(line.removeprefix(name).split()) - {"bytes"}


def test_without_a_disk_no_file_of_the_process_grows(running: subprocess.Popen[bytes]) -> None:
    assert limit_of(running.pid, "Max file size") == {"0"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_no_file_grows_past_the_largest_disk_unless_a_stream_is_a_file(
    tender_cmd: list[str], guest: Guest, tmp_path: Path, stream: str
) -> None:
    """The guest prints one line. Then the test examines it and stops it. In both cases its last lines
    come out.
    """
    disk, log = tmp_path / "disk.img", tmp_path / "log"
    disk.write_bytes(bytes(3 << 20))
    command = [*tender_cmd, "--mem=8", "--backend=kvm", f"--block={disk}", str(guest("block_sparse"))]
    for in_file, expected in ((False, {str(3 << 20)}), (True, limit_of(os.getpid(), "Max file size"))):
        with log.open("wb") as file:
            streams = {
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **({stream: file} if in_file else {}),
            }
            made = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
            until = time.monotonic() + 60
            while status_of(made.pid)["Seccomp"] != "2":
                assert made.poll() is None and time.monotonic() < until
            assert limit_of(made.pid, "Max file size") == expected
            made.send_signal(signal.SIGTERM)
            _, said = made.communicate(timeout=60)
        assert made.returncode == 1
        assert b"Exiting on signal 15" in (log.read_bytes() if in_file and stream == "stderr" else said)


def test_it_still_obeys_a_stop(running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (1, b"tender: Exiting on signal 15\n")
