"""A TAP whose interface is deleted while its guest runs. One line says so, it is counted, nothing
spins, and the guest goes on, can be stopped, and keeps its other networks. With --net-reattach it
takes the next interface of that name.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import psutil
import pytest
from support import Guest, TapInterface, ip, still_runs, with_note

from tender import ConfigError, Image, NetFd, Tap, Vm, VmConfig
from tender.annotations import NetRingLike
from tender.result import Counters, VmResult

pytestmark = [pytest.mark.backends, pytest.mark.tap]
LIMIT_S = 60.0
# The monitor looks at a network without its interface every 0.2 s (LOOK_NS).
LOOKS_S = 0.6
COMES_AND_GOES_S = 5.0
NOBODY = 65534
TUNSETIFF, TUNSETPERSIST, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x400454CB, 0x0002, 0x1000  # linux/if_tun.h
LOST = "{}: the interface was deleted; the guest goes on without this network; with --net-reattach it takes a new one"
LOST_WANTED = "{}: the interface was deleted; the guest goes on without this network until there is a new one"
LOST_GIVEN = (
    "{}: the interface was deleted; the guest goes on without this network until the owner of its descriptor attaches it"
    " to a new interface"
)
REFUSED = "{}: the new interface cannot be attached: {}; tender keeps trying"
BACK = "{}: an interface is attached again"


class Way(NamedTuple):
    """How a guest's frames travel: the features it asks for (bits of its extension note), and its
    network ring.
    """

    features: int
    net_ring: NetRingLike = "off"


WAYS = {
    "call": Way(1),
    "queue": Way(5),
    "header": Way(13),
    "worker": Way(1, "on"),
    "inline": Way(1, "inline"),
}
FRONTS = {
    "tender": ["--net={}"],
    "solo5-hvt": ["solo5-hvt", "--net:service0={}"],
    "solo5-spt": ["solo5-spt", "--net:service0={}"],
}
RINGS = {"ring": [], "no-ring": ["--no-net-ring"]}


fronts = pytest.mark.parametrize("front", FRONTS)
launchers = pytest.mark.parametrize("launcher", ["native", "python"])
rings = pytest.mark.parametrize("ring", RINGS)


class Lines:
    """Lines of text in their order, from a stream or from calls of add()."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream or (),), daemon=True)
        self._reader.start()

    def _read(self, stream: Iterable[str]) -> None:
        for line in stream:
            self.add(line.rstrip("\n"))

    def add(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()

    def are(self, *expected: str) -> None:
        """So many lines come in time, and they are these."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._lines) >= len(expected), LIMIT_S)
            assert self._lines == list(expected)

    def end(self) -> list[str]:
        """Returns all lines of a stream, which must end."""
        self._reader.join(LIMIT_S)
        assert not self._reader.is_alive()
        return self._lines


class Command(NamedTuple):
    process: subprocess.Popen[str]
    program: str
    lines: Lines

    def says(self, *texts: str) -> None:
        self.lines.are(*(f"{self.program}: {text}" for text in texts))

    def is_terminated(self) -> None:
        """SIGTERM ends the command, and the line about that end is the only new one."""
        so_far = list(self.lines._lines)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT_S) == 1
        assert self.lines.end() == [*so_far, f"{self.program}: Exiting on signal 15"]


@contextmanager
def commanded(tender_cmd: list[str], words: list[str], front: str, launcher: str) -> Iterator[Command]:
    """A command whose guest has printed its first line."""
    with subprocess.Popen(
        [*tender_cmd, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TENDER_LAUNCHER": launcher},
    ) as process:  # fmt: skip
        lines = Lines(process.stderr)
        try:
            assert process.stdout and process.stdout.readline(), lines.end()
            yield Command(process, front, lines)
        finally:
            process.kill()


def words_for(front: str, name: str, *words: str) -> list[str]:
    return [*(word.format(name) for word in FRONTS[front]), *words]


def delete(name: str) -> None:
    ip("link", "del", name)


def ip_batch(*commands: str) -> None:
    """Runs all commands in one process."""
    subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True, check=True
    )


def make(name: str) -> None:
    """Makes a TAP that is up and belongs to root: a command that has given up its user cannot open it
    by itself.
    """
    ip("tuntap", "add", name, "mode", "tap", "user", "root")
    ip("link", "set", name, "up")


def open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    attach(fd, name)
    return fd


def attach(fd: int, name: str) -> None:
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))


def answers(name: str) -> None:
    """Checks that frames pass the interface both ways: sends frames until the guest has sent one back."""
    frame = bytes(12) + b"\x88\xb5" + bytes(46)
    deadline = time.monotonic() + LIMIT_S
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as wire:
        wire.bind((name, 0x88B5))
        wire.settimeout(0.1)
        while True:
            assert time.monotonic() < deadline, "nothing comes back"
            try:
                wire.send(frame)
                while wire.recvfrom(2048)[1][2] == socket.PACKET_OUTGOING:
                    pass
                return
            except (TimeoutError, OSError):  # nothing has come yet, or the interface is not up
                continue


def is_used(name: str) -> bool:
    """Returns whether a process has the interface open."""
    return Path(f"/sys/class/net/{name}/carrier").read_text().strip() == "1"


@contextmanager
def started(
    guest: Guest, tmp_path: Path, way: Way, config: VmConfig, name: str = "net_rx_poll"
) -> Iterator[tuple[Vm, Lines]]:
    """A VM whose guest has printed its first line, and the lines about its networks."""
    path = tmp_path / "guest.elf"
    path.write_bytes(with_note(guest(name), 1, way.features))
    said, lines = threading.Event(), Lines()
    with Image.open(path) as image, Vm(image, config, console=lambda _: said.set()) as vm:
        vm._on_network = lines.add
        vm.start(timeout=4 * LIMIT_S)
        assert said.wait(LIMIT_S)
        yield vm, lines


def stopped(vm: Vm) -> Counters:
    vm.stop()
    result = vm.wait(LIMIT_S)
    assert result.reason == "stopped", result
    return result.counters


@fronts
@launchers
@rings
def test_the_command_says_one_line_and_its_guest_goes_on(
    tender_cmd: list[str], guest: Guest, tap: TapInterface, front: str, launcher: str, ring: str
) -> None:
    words = words_for(front, tap.name, "--mem=64", *RINGS[ring], str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, front, launcher) as command:
        answers(tap.name)
        delete(tap.name)
        command.says(LOST.format(tap.name))
        make(tap.name)
        with pytest.raises(subprocess.TimeoutExpired):
            command.process.wait(LOOKS_S)
        assert not is_used(tap.name), "nobody asked for that"
        command.is_terminated()


@launchers
def test_the_command_counts_a_deleted_interface_and_obeys_its_time_limit(
    tender_cmd: list[str], guest: Guest, tap: TapInterface, launcher: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    more = [f"--json={report}", *["--stats"] * (launcher == "python")]
    words = words_for("tender", tap.name, "--mem=64", "--timeout=3", *more, str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, "tender", launcher) as command:
        delete(tap.name)
        command.says(LOST.format(tap.name))
        assert command.process.wait(LIMIT_S) == 1
        assert command.lines.end()[1] == "tender: the guest was stopped: its time limit of 3 s is over"
    counters = json.loads(report.read_text())["counters"]
    assert (counters["net_detached"], counters["net_attached"]) == (1, 0)
    if launcher == "python":
        assert any("1 interface deleted" in line for line in command.lines.end())


@pytest.mark.parametrize("by", WAYS)
def test_a_deleted_interface_is_counted_and_the_guest_does_not_spin(
    guest: Guest, tap: TapInterface, tmp_path: Path, by: str
) -> None:
    config = VmConfig(mem=32, net=Tap(tap.name), net_ring=WAYS[by].net_ring)
    with started(guest, tmp_path, WAYS[by], config) as (vm, lines):
        answers(tap.name)
        delete(tap.name)
        lines.are(LOST.format(tap.name))
        me, before = psutil.Process(vm.pid), vm.counters
        cpu_s = sum(me.cpu_times()[:2])
        assert still_runs(vm, 1)
        after = vm.counters
        assert after.exits - before.exits < 500
        assert sum(me.cpu_times()[:2]) - cpu_s < 0.5, "and so does not spin whoever serves it"
        counters = stopped(vm)
        assert (counters.net_detached, counters.net_attached) == (1, 0)
        lines.are(LOST.format(tap.name))


@contextmanager
def two_networks(
    guest: Guest, tap: TapInterface, tmp_path: Path, *, again: bool
) -> Iterator[tuple[Vm, Lines, str]]:
    """A guest that waits for one frame on either network, the lines, and the name of the second
    interface.
    """
    make("tapt1")
    try:
        for name in (tap.name, "tapt1"):
            be_quiet(name)
        net = {"service0": Tap(tap.name), "service1": Tap("tapt1")}
        config = VmConfig(mem=32, args=("--wait-ms=200000",), net=net, net_reattach=again)
        with started(guest, tmp_path, WAYS["call"], config, "two_nets") as (vm, lines):
            yield vm, lines, "tapt1"
    finally:
        delete("tapt1")


def be_quiet(name: str) -> None:
    TapInterface(name, "").be_quiet()


def sends_until_its_end(vm: Vm, name: str) -> VmResult:
    """Sends frames to the guest through this interface until it ends. The first frame makes it end."""
    deadline = time.monotonic() + LIMIT_S
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((name, 0))
        while still_runs(vm, 0.1):
            assert time.monotonic() < deadline
            with suppress(OSError):  # the interface is not up yet
                wire.send(bytes(12) + b"\x88\xb5" + bytes(46))
    result = vm.wait(0)
    assert result.ok and result.counters.net_rx_packets >= 1, result
    return result


def test_the_other_network_goes_on(guest: Guest, tap: TapInterface, tmp_path: Path) -> None:
    with two_networks(guest, tap, tmp_path, again=False) as (vm, lines, other):
        delete(tap.name)
        lines.are(LOST.format(tap.name))
        assert sends_until_its_end(vm, other).counters.net_detached == 1


@pytest.mark.parametrize("by", WAYS)
def test_a_given_descriptor_serves_again_once_its_owner_has_attached_it(
    guest: Guest, tap: TapInterface, tmp_path: Path, by: str
) -> None:
    fd = open_tap(tap.name)
    try:
        config = VmConfig(mem=32, net=NetFd(fd), net_ring=WAYS[by].net_ring)
        with started(guest, tmp_path, WAYS[by], config) as (vm, lines):
            said: list[str] = []
            for _ in range(2):
                answers(tap.name)
                delete(tap.name)
                said.append(LOST_GIVEN.format(tap.name))
                lines.are(*said)
                make(tap.name)
                attach(fd, tap.name)
                said.append(BACK.format(tap.name))
                lines.are(*said)
            answers(tap.name)
            counters = stopped(vm)
            assert (counters.net_detached, counters.net_attached) == (2, 2)
    finally:
        os.close(fd)


def test_the_library_logs_a_deleted_interface(
    guest: Guest, tap: TapInterface, caplog: pytest.LogCaptureFixture
) -> None:
    with Image.open(guest("net_rx_poll")) as image:
        vm = Vm(image, VmConfig(mem=32, net=Tap(tap.name)), console="discard")
    with vm:
        vm.start(timeout=4 * LIMIT_S)
        answers(tap.name)
        delete(tap.name)
        deadline = time.monotonic() + LIMIT_S
        while not caplog.records and time.monotonic() < deadline:
            assert still_runs(vm, 0.05)
        stopped(vm)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("tender.vm", "WARNING", LOST.format(tap.name))
    ]


# ---- --net-reattach


def loses_it_twice_and_answers(name: str, says: Callable[..., None]) -> None:
    """The guest loses the interface twice and answers through the next one of that name. `says` checks
    the lines so far.
    """
    said: list[str] = []
    for _ in range(2):
        answers(name)
        delete(name)
        said.append(LOST_WANTED.format(name))
        says(*said)
        make(name)
        said.append(BACK.format(name))
        says(*said)
    answers(name)


@fronts
@launchers
@rings
def test_the_command_takes_the_next_interface_of_that_name(
    tender_cmd: list[str], guest: Guest, tap: TapInterface, front: str, launcher: str, ring: str
) -> None:
    words = words_for(front, tap.name, "--net-reattach", "--mem=64", *RINGS[ring], str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, front, launcher) as command:
        loses_it_twice_and_answers(tap.name, command.says)
        command.is_terminated()


@pytest.mark.parametrize("by", WAYS)
def test_the_library_takes_the_next_interface_of_that_name(
    guest: Guest, tap: TapInterface, tmp_path: Path, by: str
) -> None:
    config = VmConfig(mem=32, net=Tap(tap.name), net_ring=WAYS[by].net_ring, net_reattach=True)
    with started(guest, tmp_path, WAYS[by], config) as (vm, lines):
        loses_it_twice_and_answers(tap.name, lines.are)
        counters = stopped(vm)
        assert (counters.net_detached, counters.net_attached) == (2, 2)


def with_queues(name: str) -> None:
    ip("tuntap", "add", name, "mode", "tap", "multi_queue")
    ip("link", "set", name, "up")


def a_tun(name: str) -> None:
    ip("tuntap", "add", name, "mode", "tun")
    ip("link", "set", name, "up")


def one_that_is_down(name: str) -> None:
    ip("tuntap", "add", name, "mode", "tap")


WRONG = {
    "queues": (with_queues, "it is not a TAP interface with a single queue"),
    "tun": (a_tun, "it is not a TAP interface with a single queue"),
    "down": (one_that_is_down, "it is down"),
}


@launchers
@pytest.mark.parametrize("wrong", WRONG)
def test_a_new_interface_that_cannot_serve_is_reported_once_and_tried_again(
    tender_cmd: list[str], guest: Guest, tap: TapInterface, launcher: str, wrong: str
) -> None:
    words = words_for("tender", tap.name, "--net-reattach", "--mem=64", str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, "tender", launcher) as command:
        delete(tap.name)
        said = [LOST_WANTED.format(tap.name)]
        command.says(*said)
        make_wrong, why = WRONG[wrong]
        make_wrong(tap.name)
        said.append(REFUSED.format(tap.name, why))
        command.says(*said)
        with pytest.raises(subprocess.TimeoutExpired):
            command.process.wait(LOOKS_S)
        command.says(*said)
        delete(tap.name)
        make(tap.name)
        said.append(BACK.format(tap.name))
        command.says(*said)
        answers(tap.name)
        command.is_terminated()


@launchers
def test_an_interface_that_another_process_has_is_taken_once_it_is_free(
    tender_cmd: list[str], guest: Guest, tap: TapInterface, launcher: str
) -> None:
    words = words_for("tender", tap.name, "--net-reattach", "--mem=64", str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, "tender", launcher) as command:
        delete(tap.name)
        said = [LOST_WANTED.format(tap.name)]
        command.says(*said)
        other = open_tap(tap.name)  # this creates the interface, too
        try:
            fcntl.ioctl(other, TUNSETPERSIST, 1)
            ip("link", "set", tap.name, "up")
            said.append(REFUSED.format(tap.name, "another process has it open"))
            command.says(*said)
        finally:
            os.close(other)
        said.append(BACK.format(tap.name))
        command.says(*said)
        answers(tap.name)
        command.is_terminated()


def test_an_interface_of_another_user_is_taken_once_we_may(
    guest: Guest, tap: TapInterface, tmp_path: Path
) -> None:
    config = VmConfig(mem=32, net=Tap(tap.name), net_reattach=True)
    with (
        subprocess.Popen(["sh"], stdin=subprocess.PIPE, text=True) as root,
        started(guest, tmp_path, WAYS["call"], config) as (vm, lines),
    ):
        assert root.stdin is not None
        delete(tap.name)
        said = [LOST_WANTED.format(tap.name)]
        lines.are(*said)
        os.seteuid(NOBODY)
        try:
            root.stdin.write(f"ip tuntap add {tap.name} mode tap user root; ip link set {tap.name} up\n")
            root.stdin.close()
            said.append(REFUSED.format(tap.name, "it belongs to another user"))
            lines.are(*said)
        finally:
            os.seteuid(0)
        said.append(BACK.format(tap.name))
        lines.are(*said)
        answers(tap.name)
        stopped(vm)


def test_no_interface_is_made(tender_cmd: list[str], guest: Guest, tap: TapInterface) -> None:
    """The command never creates an interface: not if it may, and not if the one that it found is
    deleted at that moment.

    Otherwise `ip` would find its name in use.
    """
    words = words_for("tender", tap.name, "--net-reattach", "--mem=64", str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, "tender", "native") as command:
        delete(tap.name)
        until = time.monotonic() + COMES_AND_GOES_S
        while time.monotonic() < until:
            once = (f"tuntap add {tap.name} mode tun", f"link set {tap.name} up", f"link del {tap.name}")
            ip_batch(*once * 10)
        make(tap.name)
        answers(tap.name)
        command.process.terminate()
        assert command.process.wait(LIMIT_S) == 1


@pytest.mark.parametrize("again", [False, True], ids=["", "reattach"])
def test_a_guest_without_its_interface_obeys_its_time_limit(
    guest: Guest, tap: TapInterface, tmp_path: Path, again: bool
) -> None:
    config = VmConfig(mem=32, net=Tap(tap.name), net_reattach=again)
    path = tmp_path / "guest.elf"
    path.write_bytes(with_note(guest("net_rx_poll"), 1, 1))
    said = threading.Event()
    with Image.open(path) as image, Vm(image, config, console=lambda _: said.set()) as vm:
        vm.start(timeout=3)
        assert said.wait(LIMIT_S)
        delete(tap.name)
        result = vm.wait(LIMIT_S)
        assert result.reason == "timeout"


def test_one_of_two_networks_is_taken_again(guest: Guest, tap: TapInterface, tmp_path: Path) -> None:
    with two_networks(guest, tap, tmp_path, again=True) as (vm, lines, _):
        delete(tap.name)
        lines.are(LOST_WANTED.format(tap.name))
        make(tap.name)
        lines.are(LOST_WANTED.format(tap.name), BACK.format(tap.name))
        result = sends_until_its_end(vm, tap.name)
        assert (result.counters.net_detached, result.counters.net_attached) == (1, 1)


def test_nothing_of_a_killed_command_holds_the_interface(
    tender_cmd: list[str], guest: Guest, tap: TapInterface
) -> None:
    words = words_for("tender", tap.name, "--net-reattach", "--mem=64", str(guest("net_rx_poll")))
    with commanded(tender_cmd, words, "tender", "native") as command:
        answers(tap.name)
        command.process.kill()
        assert command.process.wait(LIMIT_S) == -signal.SIGKILL
        deadline = time.monotonic() + LIMIT_S
        while is_used(tap.name):
            assert time.monotonic() < deadline
        assert command.lines.end() == []


@launchers
@pytest.mark.parametrize("front", FRONTS)
def test_reattach_is_refused_where_no_network_is_given_by_name(
    tender_cmd: list[str], guest: Guest, front: str, launcher: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    none = [word for word in FRONTS[front] if not word.startswith("--net")]
    cases = [
        (words_for(front, f"@{theirs.fileno()}"), guest("net_rx_poll")),
        (none, guest("hello")),
    ]
    with ours, theirs:
        for words, image in cases:
            done = subprocess.run(
                [*tender_cmd, *words, "--net-reattach", image],
                capture_output=True, text=True, timeout=LIMIT_S, check=False, pass_fds=[theirs.fileno()],
                env={**os.environ, "TENDER_LAUNCHER": launcher},
            )  # fmt: skip
            assert done.returncode == 1 and done.stdout == ""
            assert done.stderr.startswith(
                f"{front}: no network is attached by an interface's name\n{front}: Invalid option: `--net-reattach'\n"
            ), done.stderr
    with pytest.raises(
        ConfigError, match=r"(?m)^net_reattach: no network is attached by an interface's name$"
    ):
        VmConfig(net_reattach=True)
    with pytest.raises(
        ConfigError, match=r"(?m)^net_reattach: no network is attached by an interface's name$"
    ):
        VmConfig(net_reattach=True, net=NetFd(0))
