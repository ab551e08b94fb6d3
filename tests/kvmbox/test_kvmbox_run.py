"""kvmbox as its users see it: each test boots real VMs, from the host.

The first VM takes some 15 s (kernel, boot, snapshot), and each later VM about 1 s.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

KVMBOX = Path(__file__).resolve().parents[2] / "tools" / "kvmbox" / "kvmbox"
# The interpreter itself: a venv may be below /tmp, which is hidden in the test VM.
PYTHON = str(Path(sys.executable).resolve())
LIMIT_S = 300

pytestmark = [
    pytest.mark.skipif("KVMBOX" in os.environ, reason="already in the test VM: it has no nested one"),
    pytest.mark.skipif(os.geteuid() != 0, reason="kvmbox needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed"),
]


def kvmbox(*arguments: str, cwd: Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [str(KVMBOX), "run", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


def python(source: str) -> list[str]:
    return ["--", PYTHON, "-S", "-c", source]


def children_of(parent: int) -> set[int]:
    """Returns the processes that `parent` started and that have not ended."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# kvmbox with a long grace period: it does not end the test VM ten seconds after the signal to the command.
PATIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from kvmbox_lib import job
from kvmbox_lib.cli import main
job.GRACE_S = 1000.0
sys.exit(main(sys.argv[2:]))
"""


def start_ready(
    tmp_path: Path, script: str, *options: str, program: tuple[str, ...] = (str(KVMBOX),)
) -> "subprocess.Popen[bytes]":
    """Starts a VM; returns when its command has printed that it is ready."""
    command = [*program, "run", *options, "--", "sh", "-c", script]
    # A shell's background job ignores SIGINT, and its children inherit that. The tests may be such a job.
    command = ["env", "--default-signal=INT", *command]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    return running


def test_the_exit_status_is_the_commands_status(tmp_path: Path) -> None:
    assert kvmbox("--", "sh", "-c", "exit 7", cwd=tmp_path).returncode == 7


@pytest.mark.parametrize("options", [(), ("--smp", "1"), ("--icount",)], ids=["two", "one", "icount"])
def test_the_test_vms_clock_counts_at_the_given_rate(tmp_path: Path, options: tuple[str, ...]) -> None:
    """It must not use the rate that the kernel measures while it boots, which is wrong by any factor on a
    busy machine."""
    done = kvmbox("--cold", *options, "--", "dmesg", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    given = re.findall(r"tsc_early_khz=(\d+)", done.stdout.decode())
    used = re.findall(
        r"tsc: Detected ([\d.]+) MHz", done.stdout.decode()
    )  # the processor's rate, and the counter's if it differs
    assert given and used, done.stdout
    assert float(used[-1]) == int(given[0]) / 1000


def test_cold_boot_needs_no_snapshot(tmp_path: Path) -> None:
    done = kvmbox("--cold", "--", "sh", "-c", "echo booted; exit 3", cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (3, b"booted\n", b"")


def test_death_by_a_signal_gives_status_128_plus_its_number(tmp_path: Path) -> None:
    done = kvmbox("--", "sh", "-c", "kill -SEGV $$", cwd=tmp_path)

    assert done.returncode == 128 + signal.SIGSEGV


def test_a_missing_command_gives_status_127(tmp_path: Path) -> None:
    done = kvmbox("--", "no-such-program", cwd=tmp_path)

    assert done.returncode == 127
    assert b"no-such-program" in done.stderr


def test_stdout_and_stderr_arrive_separately_and_complete(tmp_path: Path) -> None:
    size = 5_000_000
    source = (
        "import os\n"
        f"left = {{1: {size}, 2: {size}}}\n"
        "while any(left.values()):\n"
        "    for fd in left:\n"
        "        left[fd] -= os.write(fd, (b'o' if fd == 1 else b'e') * min(left[fd], 70001))\n"
    )

    done = kvmbox(*python(source), cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout == b"o" * size
    assert done.stderr == b"e" * size


def test_stdin_is_passed_completely_on_request(tmp_path: Path) -> None:
    text = bytes(range(256)) * 4000

    assert kvmbox("--stdin", "--", "cat", cwd=tmp_path, stdin=text).stdout == text
    assert kvmbox("--", "cat", cwd=tmp_path, stdin=text).stdout == b""


def test_input_that_is_not_read_blocks_nothing(tmp_path: Path) -> None:
    done = kvmbox("--stdin", "--", "echo", "done", cwd=tmp_path, stdin=bytes(1_000_000))

    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_files_written_below_the_cwd_reach_the_host_and_others_do_not(tmp_path: Path) -> None:
    cwd, other, outside = tmp_path / "cwd", tmp_path / "other", tmp_path / "outside"
    for path in (cwd, other, outside):
        path.mkdir()
    script = (
        f"echo 1 >in-cwd; echo 2 >{other}/in-rw; "
        f"mkdir -p {outside}; echo 3 >{outside}/hidden; echo 4 >/etc/kvmbox-test"
    )

    done = kvmbox("--rw", str(other), "--", "sh", "-c", script, cwd=cwd)

    assert (done.returncode, done.stderr) == (0, b"")
    assert (cwd / "in-cwd").read_text() == "1\n"
    assert (other / "in-rw").read_text() == "2\n"
    assert not (outside / "hidden").exists()
    assert not Path("/etc/kvmbox-test").exists()


def test_tmp_of_the_host_is_hidden(tmp_path: Path) -> None:
    marker = Path("/tmp") / f"kvmbox-test-{os.getpid()}"
    marker.touch()
    try:
        done = kvmbox("--", "test", "-e", str(marker), cwd=tmp_path)
    finally:
        marker.unlink()

    assert done.returncode == 1


def test_environment_and_cwd_are_those_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT", "two\nlines = fine")

    done = kvmbox("--", "sh", "-c", 'printf "%s|%s|%s" "$TEXT" "$KVMBOX" "$(pwd)"', cwd=tmp_path)

    assert done.stdout.decode() == f"two\nlines = fine|amd|{tmp_path}"


def test_kvm_opens_and_answers_its_api_version(tmp_path: Path) -> None:
    source = (
        "import fcntl, os\n"
        "kvm = os.open('/dev/kvm', os.O_RDWR)\n"
        "print(fcntl.ioctl(kvm, 0xAE00))\n"  # KVM_GET_API_VERSION
        "os.close(fcntl.ioctl(kvm, 0xAE01))\n"  # KVM_CREATE_VM
        "os.close(os.open('/dev/net/tun', os.O_RDWR))"
    )

    done = kvmbox(*python(source), cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"12\n", b"")


def test_clock_is_right_after_resume(tmp_path: Path) -> None:
    before = time.time()
    done = kvmbox("--", "date", "+%s.%N", cwd=tmp_path)

    assert before - 0.5 <= float(done.stdout) <= time.time() + 0.5


def test_two_test_vms_draw_different_random_numbers(tmp_path: Path) -> None:
    drawn = {kvmbox("--", "od", "-An", "-N16", "-tx1", "/dev/urandom", cwd=tmp_path).stdout for _ in range(2)}

    assert len(drawn) == 2


def test_background_processes_of_the_command_do_not_delay_the_end(tmp_path: Path) -> None:
    done = kvmbox("--", "sh", "-c", "sleep 1000 & echo started", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, b"started\n")


def test_the_time_limit_gives_status_124(tmp_path: Path) -> None:
    assert kvmbox("--timeout", "4", "--", "sleep", "1000", cwd=tmp_path).returncode == 124


def test_the_idle_limit_gives_status_124_and_output_postpones_it(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4; do echo $i; sleep 2.2; done; sleep 1000"

    done = kvmbox("--idle-timeout", "8", "--", "sh", "-c", script, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (124, b"1\n2\n3\n4\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_and_no_process_stays(tmp_path: Path, number: signal.Signals) -> None:
    script = f"trap 'echo caught >out; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.1; done"
    running = start_ready(tmp_path, script)
    started = children_of(running.pid)

    running.send_signal(number)
    running.communicate(timeout=60)

    assert running.returncode == 9
    assert (tmp_path / "out").read_text() == "caught\n"
    assert len(started) >= 2
    assert [process for process in started if is_running(process)] == []


def test_a_second_signal_ends_a_command_that_ignores_the_first(tmp_path: Path) -> None:
    script = "trap 'echo again >heard' TERM; echo ready; while :; do sleep 0.1; done"
    patient = (sys.executable, "-c", PATIENT, str(KVMBOX.parent))
    running = start_ready(tmp_path, script, program=patient)

    running.terminate()
    wait_until((tmp_path / "heard").exists)  # two pending signals of the same number would be one
    running.terminate()
    running.communicate(timeout=120)

    assert running.returncode == 128 + signal.SIGTERM


def test_a_killed_kvmbox_leaves_no_process(tmp_path: Path) -> None:
    running = start_ready(tmp_path, "echo ready; sleep 1000")
    started = children_of(running.pid)

    running.kill()
    running.communicate(timeout=60)

    assert len(started) >= 2
    wait_until(lambda: not any(map(is_running, started)))


def test_the_test_vm_ends_when_its_reader_closes_the_pipe(tmp_path: Path) -> None:
    running = start_ready(tmp_path, "echo ready; while :; do echo more; done")
    assert running.stdout is not None
    running.stdout.close()

    assert running.wait(timeout=60) == 128 + signal.SIGPIPE


def test_broken_snapshot_is_replaced_by_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    (cwd := tmp_path / "cwd").mkdir()
    kernel = subprocess.run([str(KVMBOX), "fetch"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("KVMBOX_CACHE", str(cache))
    assert kvmbox("--kernel", kernel, "--", "true", cwd=cwd).returncode == 0
    (state,) = cache.glob("warm-*/state")
    state.write_bytes(state.read_bytes()[:1000])

    done = kvmbox("--kernel", kernel, "--", "echo", "ran", cwd=cwd)

    assert (done.returncode, done.stdout) == (0, b"ran\n")
    assert done.stderr.startswith(b"kvmbox: no snapshot to resume")
    assert done.stderr.count(b"\n") == 1
    assert not state.exists()


def test_counted_cpu_time_is_repeatable(tmp_path: Path) -> None:
    source = (
        "import resource, subprocess\n"
        "def cpu():\n"
        "    used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    return used.ru_utime + used.ru_stime\n"
        "for _ in range(6):\n"
        "    before = cpu(); subprocess.run(['/bin/true']); print(cpu() - before)\n"
    )

    done = kvmbox("--icount", *python(source), cwd=tmp_path)

    counted = [float(line) for line in done.stdout.split()][1:]  # the first run reads the file
    assert max(counted) < min(counted) * 1.1
