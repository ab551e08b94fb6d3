"""A console that takes no more bytes: each stop ends the guest, whichever process filled the console,
and no other output is lost.
"""

import contextlib
import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Guest, still_runs

from tender import Image, Vm, VmConfig

pytestmark = pytest.mark.backends
LAUNCHERS = ["native", "python"]


@pytest.fixture
def unread() -> Iterator[int]:
    """A terminal whose other side does not read, like one held by ^S. A newline takes two bytes there."""
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def wait_until_full(terminal: int) -> None:
    """Fills the terminal. poll() reports space for a single byte, so full means: no byte was taken for
    a moment.
    """
    poll = select.poll()
    poll.register(terminal, select.POLLOUT)
    while poll.poll(200):
        with contextlib.suppress(BlockingIOError):
            own = os.open(f"/proc/self/fd/{terminal}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                os.write(own, b"\n" * 64)
            finally:
                os.close(own)
            continue
        return


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("how", ["timeout", "signal"])
@pytest.mark.parametrize("with_stderr", [False, True], ids=["console", "console and stderr"])
def test_a_command_ends_although_nobody_reads_its_terminal(
    tender_cmd: list[str],
    guest: Guest,
    backend: str,
    unread: int,
    launcher: str,
    how: str,
    with_stderr: bool,
    tmp_path: Path,
) -> None:
    words = [
        f"--backend={backend}",
        *(["--timeout=1"] if how == "timeout" else []),
        str(guest("flood")),
        "newlines",
    ]
    stderr = tmp_path / "stderr"
    with (
        stderr.open("wb") as file,
        subprocess.Popen(
            [*tender_cmd, *words],
            stdin=subprocess.DEVNULL,
            stdout=unread,
            stderr=unread if with_stderr else file,
            env={**os.environ, "TENDER_LAUNCHER": launcher},
        ) as command,
    ):
        try:
            if how == "signal":
                wait_until_full(unread)
                command.send_signal(signal.SIGTERM)
            status = command.wait(60)
        finally:
            command.kill()
    assert status == 1
    if not with_stderr:
        line = (
            "the guest was stopped: its time limit of 1 s is over"
            if how == "timeout"
            else "Exiting on signal 15"
        )
        assert stderr.read_text().splitlines()[-1] == f"tender: {line}"


def test_a_vm_is_stopped_although_nobody_reads_its_terminal(guest: Guest, unread: int) -> None:
    with Image.open(guest("flood")) as image, Vm(
        image, VmConfig(mem=4, args=("newlines",)), console=unread
    ) as vm:  # fmt: skip
        vm.start()
        wait_until_full(unread)
        vm.stop()
        result = vm.wait(timeout=60)
    assert result.reason == "stopped"


def test_vms_that_share_a_pipe_are_stopped_whoever_filled_it(guest: Guest) -> None:
    """The reader takes one page at a time, so that all VMs see space for one write, and then none."""
    reader, writer = os.pipe()
    try:
        with Image.open(guest("flood")) as image, contextlib.ExitStack() as stack:
            vms = [stack.enter_context(Vm(image, VmConfig(mem=4), console=writer)) for _ in range(4)]
            for vm in vms:
                vm.start()
            for _ in range(100):
                assert os.read(reader, 4096)
            for vm in vms:
                vm.stop()
            waiting = [vm for vm in vms if still_runs(vm, 60)]
            if waiting:  # let them go, because close() waits for them
                os.set_blocking(reader, False)
                while any(still_runs(vm, 0.1) for vm in waiting):
                    with contextlib.suppress(BlockingIOError):
                        os.read(reader, 1 << 16)
                pytest.fail("a VM waits for space that another took")
            results = [vm.wait(0) for vm in vms]
    finally:
        os.close(reader)
        os.close(writer)
    assert [result.reason for result in results] == ["stopped"] * 4


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_terminal_that_is_read_loses_nothing(
    tender_cmd: list[str], guest: Guest, backend: str, launcher: str
) -> None:
    """The command opens the terminal again, so that a write never waits. What does not fit comes
    later, in order.
    """
    master, slave = pty.openpty()
    words = [f"--backend={backend}", str(guest("big_puts"))]
    environment = {**os.environ, "TENDER_LAUNCHER": launcher}
    with subprocess.Popen(
        [*tender_cmd, *words], stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.DEVNULL, env=environment
    ) as command:  # fmt: skip
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the last writer has gone
            while piece := os.read(master, 65536):
                seen += piece
        status = command.wait(60)
    os.close(master)
    done = subprocess.run(
        [*tender_cmd, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
    )
    assert (status, seen.replace(b"\r\n", b"\n")) == (done.returncode, done.stdout)
