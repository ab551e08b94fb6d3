"""Saves a booted VM to disk and resumes it. A boot of 5 s becomes 0.2 s.

    ram      the test VM's memory, a sparse file with only the pages that are not zero (about 85 MB)
    state    QEMU's migration stream without the memory (x-ignore-shared), about 170 kB

The test VM is saved before the host's / is plugged in, so a snapshot contains nothing of the host.
"""

import os
import shlex
import time
from pathlib import Path

from .errors import KvmboxError
from .machine import BootFiles, Machine, Shape

BLOCK = 1 << 16
STATE_LIMIT_S = 300.0


def boot(machine: Machine) -> None:
    """Start the VM without a snapshot, and wait for it. Raises KvmboxError if it does not boot."""
    machine.start(shared=True)
    machine.await_boot()


def save(shape: Shape, files: BootFiles, place: Path) -> None:
    """Boot a VM and write it to `place`. Raises KvmboxError if it does not boot."""
    with Machine(shape, files) as machine:
        machine.start(shared=False)
        machine.await_boot()
        machine.monitor.call("stop")
        _leave_memory_out(machine)
        machine.monitor.call("migrate", uri=f"exec:cat >{shlex.quote(str(place / 'state'))}")
        _await_saved(machine)
        with open(place / "ram", "wb") as file:
            os.truncate(file.fileno(), os.fstat(machine.ram).st_size)
            copy_sparse(machine.ram, file.fileno())


def resume(machine: Machine, place: Path) -> None:
    """Let the machine continue where the saved one stopped. Raises KvmboxError if it cannot."""
    try:
        with open(place / "ram", "rb") as file:
            if os.fstat(file.fileno()).st_size != os.fstat(machine.ram).st_size:
                raise KvmboxError(f"{place}/ram is cut short")
            copy_sparse(file.fileno(), machine.ram)
    except OSError as error:
        raise KvmboxError(f"cannot read the snapshot: {error}") from error
    machine.start(shared=True, incoming=True)
    _leave_memory_out(machine)
    machine.monitor.call("migrate-incoming", uri=f"exec:cat {shlex.quote(str(place / 'state'))}")
    deadline = time.monotonic() + STATE_LIMIT_S
    while machine.monitor.call("query-status")["status"] == "inmigrate":
        if time.monotonic() > deadline:
            raise KvmboxError("QEMU does not finish reading the snapshot")
        time.sleep(0.005)
    machine.monitor.call("cont")


def _leave_memory_out(machine: Machine) -> None:
    ignore = {"capability": "x-ignore-shared", "state": True}
    machine.monitor.call("migrate-set-capabilities", capabilities=[ignore])


def _await_saved(machine: Machine) -> None:
    deadline = time.monotonic() + STATE_LIMIT_S
    while (status := machine.monitor.call("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() > deadline:
            raise KvmboxError(f"QEMU did not save the test VM (migration {status})")
        time.sleep(0.01)


def copy_sparse(source: int, target: int) -> None:
    """Copy the blocks that are not all zero. The target is as long as the source, and consists of holes only."""
    at, end, zeros = 0, os.fstat(source).st_size, bytes(BLOCK)
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data up to the end
            return
        hole = os.lseek(source, at, os.SEEK_HOLE)
        while at < hole:
            block = os.pread(source, min(BLOCK, hole - at), at)
            if block != zeros[: len(block)]:
                _write_at(target, block, at)
            at += len(block)


def _write_at(target: int, block: bytes, at: int) -> None:
    written = os.pwrite(target, block, at)
    if written != len(block):
        raise KvmboxError(f"only {written} of {len(block)} bytes written: is the disk full?")
