"""The kernel's calls for a debugger, on a process of ours."""

import signal
import subprocess
from collections.abc import Iterator
from errno import EFAULT

import pytest

from tender.debug import ptrace
from tender.debug.target import DebugError


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits in a system call."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin
        assert cat.stdout
        cat.stdin.write(b"up\n")
        cat.stdin.flush()
        assert cat.stdout.readline() == b"up\n"
        yield cat
        cat.kill()


def stopped(process: subprocess.Popen[bytes]) -> int:
    ptrace.seize(process.pid)
    ptrace.interrupt(process.pid)
    assert ptrace.wait(process.pid) == ptrace.Status(
        process.pid, stop=signal.SIGTRAP, event=ptrace.EVENT_STOP
    )
    return process.pid


def test_a_seized_process_stops_when_asked_and_goes_on_unharmed(process: subprocess.Popen[bytes]) -> None:
    pid = stopped(process)
    assert ptrace.wait(pid, block=False) is None
    ptrace.setregs(pid, ptrace.getregs(pid))
    ptrace.detach(pid)
    output, _ = process.communicate(b"more\n", timeout=30)
    assert (output, process.returncode) == (b"more\n", 0)


def test_text_is_changed_for_that_process_and_put_back(process: subprocess.Popen[bytes]) -> None:
    pid = stopped(process)
    rip = ptrace.getregs(pid)["rip"]
    text = ptrace.read_memory(pid, rip - 16, 64)
    for first, data in ((0, b"\xcc"), (3, b"\xcc" * 9), (15, b"12345678"), (7, b"x")):
        ptrace.poke(pid, rip - 16 + first, data)
        assert ptrace.read_memory(pid, rip - 16, 64) == text[:first] + data + text[first + len(data) :]
        ptrace.poke(pid, rip - 16 + first, text[first : first + len(data)])
    assert ptrace.read_memory(pid, rip - 16, 64) == text
    with pytest.raises(DebugError, match="Bad address") as refused:
        ptrace.write_memory(pid, rip, b"x")
    assert refused.value.errno == EFAULT
    stack = ptrace.getregs(pid)["rsp"]
    ptrace.write_memory(pid, stack - 512, b"written")
    assert ptrace.read_memory(pid, stack - 512, 7) == b"written"


@pytest.mark.parametrize("address", [8, 1 << 63, (1 << 64) - 1, 1 << 64, -1])
def test_memory_that_is_not_there_has_no_bytes(process: subprocess.Popen[bytes], address: int) -> None:
    assert ptrace.read_memory(process.pid, address, 16) == b""


def test_registers_of_all_sets_can_be_read_and_written(process: subprocess.Popen[bytes]) -> None:
    pid = stopped(process)
    xsave = ptrace.getregset(pid, ptrace.NT_X86_XSTATE)
    assert len(xsave) >= 576  # the legacy area and the header: Intel SDM volume 1, 13.4
    ptrace.setregset(pid, ptrace.NT_X86_XSTATE, xsave)
    assert ptrace.getregset(pid, ptrace.NT_X86_XSTATE) == xsave
    assert len(ptrace.getregset(pid, ptrace.NT_PRSTATUS)) == 8 * len(ptrace.REGISTERS)
    ptrace.set_debug_register(pid, 1, 0x1000)
    assert ptrace.get_debug_register(pid, 1) == 0x1000


def test_a_signal_stop_tells_its_signal_and_the_end_tells_the_status(
    process: subprocess.Popen[bytes],
) -> None:
    pid = stopped(process)
    ptrace.cont(pid)
    process.send_signal(signal.SIGUSR1)
    assert ptrace.wait(pid) == ptrace.Status(pid, stop=signal.SIGUSR1)
    assert ptrace.getsiginfo(pid).signal == signal.SIGUSR1
    ptrace.cont(pid, signal.SIGUSR1)
    assert ptrace.wait(pid) == ptrace.Status(pid, killed_by=signal.SIGUSR1)
    with pytest.raises(ptrace.Gone):
        ptrace.getregs(pid)


def test_a_wait_outlives_the_handlers_of_signals(process: subprocess.Popen[bytes]) -> None:
    pid, calls = stopped(process), []

    def handler(*_: object) -> None:
        calls.append(pid)
        if len(calls) == 3:
            ptrace.interrupt(pid)

    ptrace.cont(pid)
    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        status = ptrace.wait(pid)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert status == ptrace.Status(pid, stop=signal.SIGTRAP, event=ptrace.EVENT_STOP)
    assert len(calls) >= 3


def test_a_second_tracer_is_told_of_the_first(process: subprocess.Popen[bytes]) -> None:
    stopped(process)
    with pytest.raises(DebugError, match=r"process \d+ \(\S+\) traces it already") as refused:
        ptrace.seize(process.pid)
    assert refused.value.code == "debug-denied"
    assert "only one can trace a process" in refused.value.hint
