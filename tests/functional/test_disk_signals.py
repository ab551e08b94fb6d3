"""SIGBUS in a process that holds a KVM VM with a disk: Tender handles the faults of its own copies.
All others have their previous effect.
"""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.kvm
HEAD = """
    import faulthandler, mmap, os, resource, sys
    from tender import *
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    image, disk = sys.argv[1:]

    def touch_past_the_end():
        fd = os.memfd_create("short")
        os.truncate(fd, 4096)
        memory = mmap.mmap(fd, 4096)
        os.truncate(fd, 0)
        return memory[0]

    def runs(cut):
        said = []
        def listen(piece):
            said.append(piece)
            if b"reads" in piece and cut:
                os.truncate(disk, 4096)
            elif b"reads" in piece:
                vm.stop()
        os.truncate(disk, 65536)
        with Vm(image, VmConfig(mem=4, block=BlockFile(disk)), console=listen, backend="kvm") as vm:
            result = vm.run(timeout=60)
        print(result.reason, b"refused 3" in b"".join(said), flush=True)
"""


def program(guest: Guest, tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(64 << 10))
    text = textwrap.dedent(HEAD).replace("Vm(image,", "Vm(Image.open(image),") + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-P", "-c", text, guest("block_trap"), disk],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("first", ["faulthandler.enable()", "runs(cut=True)"])
def test_a_fault_of_pythons_own_is_still_reported_by_faulthandler(
    guest: Guest, tmp_path: Path, first: str
) -> None:
    done = program(
        guest,
        tmp_path,
        f"{first}\nfaulthandler.enable()\nruns(cut=True)\nruns(cut=True)\ntouch_past_the_end()",
    )
    assert set(done.stdout.splitlines()) == {"exit True"}, done
    assert done.stderr.startswith("Fatal Python error: Bus error") and "touch_past_the_end" in done.stderr
    assert done.returncode == -signal.SIGBUS


def test_a_fault_of_the_process_ends_it_as_before(guest: Guest, tmp_path: Path) -> None:
    done = program(guest, tmp_path, "runs(cut=False)\ntouch_past_the_end()")
    assert (done.stdout, done.returncode) == ("stopped False\n", -signal.SIGBUS), done


def test_a_thread_that_blocks_the_signal_runs_a_guest(guest: Guest, tmp_path: Path) -> None:
    body = """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
        runs(cut=True)
        assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    """
    done = program(guest, tmp_path, body)
    assert (done.stdout, done.returncode) == ("exit True\n", 0), done
