"""The launchers of unikernels that run solo5-hvt by name, with the command lines that they use.

Albatross starts it through taskset, with one FIFO for all three standard descriptors. Its decision to start
the unikernel again depends on the exit status. urunc replaces itself by exec, with one string that it
splits at every single space.
"""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Guest, TapInterface, ip

pytestmark = pytest.mark.backends

Front = Callable[[str], str]


# ---- Albatross


class Console:
    """A FIFO as Albatross makes one: `writer` serves as all standard descriptors of a unikernel, and `text`
    is what arrived."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.writer = os.open(path, os.O_WRONLY)
        os.set_blocking(self._reader, True)
        self._text = b""
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Starts to read."""
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._reader, 4096):
            with self._came:
                self._text = (self._text + data)[-(1 << 20) :]
                self._came.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self._came:
            assert self._came.wait_for(lambda: text in self._text, timeout=60), self._text

    def everything(self) -> bytes:
        """Returns everything that arrived, after the last writer has closed."""
        self.close_writer()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "a process still holds the console"
        return self._text

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        os.close(self._reader)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path / "fifo")
    yield made
    made.close()


def albatross(tender: str, console: Console, *words: str | Path) -> "subprocess.Popen[bytes]":
    fd = console.writer
    command = ["taskset", "-c", "0", tender, *map(str, words)]
    return subprocess.Popen(command, stdin=fd, stdout=fd, stderr=fd, cwd="/")


@pytest.mark.parametrize("name", ["solo5-hvt.2", "solo5-hvt"])
def test_albatross_finds_its_abi_version(front: Front, name: str) -> None:
    done = subprocess.run([front(name), "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert "ABI version 2" in (done.stdout + done.stderr).splitlines()


def test_albatross_finds_the_abi_version_of_tender_too(tender_cmd: list[str]) -> None:
    done = subprocess.run([*tender_cmd, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert "ABI version 2" in (done.stdout + done.stderr).splitlines()


@pytest.fixture
def second_tap() -> Iterator[TapInterface]:
    made = TapInterface("tapt1", "")
    ip("tuntap", "add", made.name, "mode", "tap")
    made.up()
    yield made
    subprocess.run(["ip", "link", "del", made.name], capture_output=True, check=False)


@pytest.mark.tap
def test_albatross_starts_a_unikernel_with_nets_and_blocks(
    front: Front, guest: Guest, console: Console, tmp_path: Path, tap: TapInterface, second_tap: TapInterface
) -> None:
    for block in ("first", "second"):
        with open(tmp_path / block, "wb") as file:
            file.truncate(1 << 20)
    image = tmp_path / "vm.img"
    image.write_bytes(guest("nets_and_blocks").read_bytes())
    console.start()
    process = albatross(
        front("solo5-hvt.2"),
        console,
        "--mem=32",
        *(f"--net:service0={tap.name}", f"--net:service1={second_tap.name}"),
        *("--net-mac:service0=02:00:00:00:00:0a", "--net-mac:service1=02:00:00:00:00:0b"),
        *(f"--block:storage0={tmp_path}/first", f"--block:storage1={tmp_path}/second"),
        "--block-sector-size:storage1=4096",
        *("--", image, "--name=vm", "--ipv4=10.0.0.2/24"),
    )
    assert process.wait(timeout=60) == 0
    lines = console.everything().decode().splitlines()
    assert "service0 handle 1 net mac 02:00:00:00:00:0a mtu 1500" in lines
    assert "service1 handle 3 net mac 02:00:00:00:00:0b mtu 1500" in lines
    assert "storage0 handle 2 block capacity 1048576 block_size 512" in lines
    assert "storage1 handle 4 block capacity 1048576 block_size 4096" in lines


def test_albatross_passes_arguments_after_the_image(front: Front, guest: Guest, console: Console) -> None:
    console.start()
    words = ("--mem=32", "--", guest("args"), "--name=label", "--ipv4=10.0.0.2/24")
    assert albatross(front("solo5-hvt.2"), console, *words).wait(timeout=60) == 2
    assert console.everything().startswith(b"<--name=label --ipv4=10.0.0.2/24>\n")


@pytest.mark.parametrize("name", ["spin", "sleep", "flood"])
def test_albatross_stops_a_unikernel_with_sigterm_and_waits(
    front: Front, guest: Guest, console: Console, name: str
) -> None:
    console.start()
    process = albatross(front("solo5-hvt.2"), console, "--mem=32", "--", guest(name), "--name=vm")
    console.wait_for(b"ffff\n" if name == "flood" else b"ready\n")
    process.terminate()
    assert process.wait(timeout=120) == 1
    assert console.everything().endswith(b"solo5-hvt.2: Exiting on signal 15\n")


def test_albatross_stops_a_unikernel_whose_console_is_not_read(
    front: Front, guest: Guest, console: Console
) -> None:
    process = albatross(front("solo5-hvt.2"), console, "--mem=32", "--", guest("flood"))
    while os.get_blocking(console.writer) and not _is_full(console.writer):
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=120) == 1
    console.start()


def _is_full(fd: int) -> bool:
    import select

    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    return not writable.poll(0) and not writable.poll(200)


@pytest.mark.parametrize("status", [0, 1, 2, 60, 61, 62, 63, 64, 255])
def test_albatross_gets_the_statuses_that_decide_about_a_restart(
    front: Front, guest: Guest, console: Console, status: int
) -> None:
    console.start()
    process = albatross(front("solo5-hvt.2"), console, "--mem=32", "--", guest("exit_status"), str(status))
    assert process.wait(timeout=60) == status


def test_albatross_does_not_restart_a_unikernel_that_cannot_start(
    front: Front, guest: Guest, console: Console
) -> None:
    console.start()
    words = ("--mem=32", "--net:service0=nosuchtap", "--", guest("echo"))
    assert albatross(front("solo5-hvt.2"), console, *words).wait(timeout=60) == 1
    said = b"solo5-hvt.2: Could not attach interface: nosuchtap: No such file or directory\n"
    assert console.everything().startswith(said)


# ---- urunc


def urunc(front: Front, command: str) -> "subprocess.Popen[bytes]":
    """`solo5-hvt REST`: found in PATH by name, with the words split at every single space. urunc's process
    becomes the tender's."""
    folder = str(Path(front("solo5-hvt")).parent)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(
        f"solo5-hvt {command}".split(" "),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


RUMPRUN = {
    "cmdline": "redis-server  /data/conf/redis.conf --maxmemory 10mb",
    "net": {"if": "ukvmif0", "cloner": "True", "type": "inet", "method": "static", "addr": "10.0.0.2"},
    "blk": {"source": "etfs", "path": "/dev/ld0a", "fstype": "blk", "mountpoint": "/data"},
}


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_json_that_urunc_splits_at_spaces_reaches_the_guest_complete(
    front: Front, guest: Guest, separators: tuple[str, str]
) -> None:
    text = json.dumps(RUMPRUN, separators=separators)
    out, err = urunc(front, f"--mem=268 {guest('args')} {text}").communicate(timeout=60)
    assert (out.decode().split("\n")[0], err) == (f"<{text}>", b"")


def test_empty_words_from_urunc_reach_the_guest_as_spaces(front: Front, guest: Guest) -> None:
    out, err = urunc(front, f"--mem=268 {guest('args')}   hello  ").communicate(timeout=60)
    assert (out.decode().split("\n")[0], err) == ("<  hello  >", b"")


def test_urunc_gives_memory_in_decimal_megabytes(front: Front, guest: Guest) -> None:
    process = urunc(front, f"--mem={(256 << 20) // 1000000} {guest('hello')}")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, b"memory: 268 MiB" in out, err) == (0, True, b"")
    out, err = urunc(front, f"--mem=255 {guest('hello')}").communicate(timeout=60)
    assert b"memory: 254 MiB" in out
    assert err == b"solo5-hvt: adjusting memory to 266338304 bytes\n"


@pytest.mark.tap
def test_urunc_starts_a_unikernel_with_a_tap(front: Front, guest: Guest, tap: TapInterface) -> None:
    words = f"--mem=268 --net:service0={tap.name} {guest('echo')} --ipv4=10.0.0.2/24 --ipv4-gateway=10.0.0.1 "
    with urunc(front, words) as process:
        assert process.stdout and process.stdout.readline()
        answered = subprocess.run(["ping", "-c1", "-W20", "10.0.0.2"], capture_output=True, check=False)
        process.terminate()
        assert process.wait(timeout=120) == 1
    assert answered.returncode == 0, answered.stdout


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 1), (signal.SIGKILL, -9)], ids=["SIGTERM", "SIGKILL"]
)
def test_a_signal_to_uruncs_process_ends_the_guest(
    front: Front, guest: Guest, number: signal.Signals, status: int
) -> None:
    with urunc(front, f"--mem=268 {guest('spin')}") as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert command[-4:-2] == [b"solo5-hvt", b"--mem=268"] and command[-2].endswith(b"spin.elf")
        os.kill(process.pid, number)
        assert process.wait(timeout=120) == status
        assert process.stdout.read() == b""  # no process holds the console any more


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_guests_status_is_the_status_of_uruncs_container(front: Front, guest: Guest, status: int) -> None:
    process = urunc(front, f"--mem=268 {guest('exit_status')} {status}")
    process.communicate(timeout=60)
    assert process.returncode == status
