"""What tests import by name: the types of the fixtures in conftest.py, the choice of the default backend, and the
resources that a process has open."""

import fcntl
import functools
import gc
import importlib.util
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import tender.assemble
import tender.backend
import tender.vm
from tender.native import CData

ROOT = Path(__file__).resolve().parents[1]

Guest = Callable[[str], Path]


BENCH = (sys.executable, str(ROOT / "bench"))
"""The words of a command that runs a benchmark of this checkout; the benchmark's name follows them."""


def ocaml_images() -> list[Path]:
    """Returns the unikernels below TENDER_HVT_DIR that have OCaml's runtime and need no device."""
    found = []
    for path in sorted(Path(os.environ.get("TENDER_HVT_DIR", "/dev/null")).rglob("*.hvt")):
        if b"\0caml_startup\0" in path.read_bytes():
            with tender.Image.open(path) as image:
                if not image.devices:
                    found.append(path)
    return found


def markdown_pages(root: Path) -> list[Path]:
    """Returns the Markdown pages of the tree, without those of an environment or of what was built.

    It does not enter such directories: they have so many entries that the test VM, whose file system is the host's, runs
    out of descriptors.
    """
    left_out = {"build", "dist", "out", "node_modules"}
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name not in left_out]
        found += [Path(directory, name) for name in files if name.endswith(".md")]
    return sorted(found)


def fences(text: str) -> list[tuple[str, str]]:
    """Returns the language and the contents of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def outside_of_fences(text: str) -> str:
    """Returns the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def tool(name: str) -> Any:
    """Returns tools/NAME.py as a new module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def take_backend(name: str, assign: Callable[[object, str, object], None] = setattr) -> None:
    """Makes "auto" stand for this backend in this process from now on, whatever the host has."""
    assemble: Any = tender.assemble
    create = assemble.create

    def through(backend: str, *args: Any, **kwargs: Any) -> Any:
        return create(name if backend == "auto" else backend, *args, **kwargs)

    assign(assemble, "create", through)


def still_runs(vm: tender.vm.Vm, seconds: float) -> bool:
    """Returns whether the guest of start() still runs after so many seconds."""
    try:
        vm.wait(seconds)
    except TimeoutError:
        return True
    return False


def find_kvm_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes "auto" try KVM first in this process from now on, whatever the host looks like."""
    choose = tender.backend._choose

    def likely(choice: CData, backend: str, refused: CData) -> str:
        if backend != "auto" or choice.tried:
            return choose(choice, backend, refused)
        choice.tried = 1
        return "kvm"

    monkeypatch.setattr(tender.backend, "_choose", likely)


def ip(*words: str) -> None:
    """Runs `ip WORDS`; if it fails, the test fails with its message."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr}")


def with_note(path: Path, version: int, features: int) -> bytes:
    """Returns the guest at `path` with its extension note changed: the features that it asks for, and the note's version."""
    data = path.read_bytes()
    assert data.count(b"TND1Tender\0\0") == 1
    at = data.index(b"TND1Tender\0\0") + 12
    return data[:at] + struct.pack("<II", version, features) + data[at + 8 :]


@functools.cache
def tap_offload() -> int:
    """Returns the TENDER_OFFLOAD_... bits that a TAP of this kernel has: 15, or 7 before Linux 6.2, where a TAP does not cut
    large UDP datagrams."""
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(
            tun, 0x400454CA, struct.pack("16sH22x", b"", 0x5002)
        )  # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
        try:
            fcntl.ioctl(
                tun, 0x400454D0, 0x67
            )  # TUNSETOFFLOAD: checksums, TCP for IPv4 and IPv6, UDP for both
        except OSError:
            return 7
    return 15


class TapInterface:
    """A TAP interface of the test's own: its `name`, and the host's `address` on it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def up(self) -> None:
        ip("link", "set", self.name, "up")

    def down(self) -> None:
        ip("link", "set", self.name, "down")

    def be_quiet(self) -> None:
        """Stops the host's own traffic on the interface: a guest would find it among the frames that it reads or counts."""
        off = Path(f"/proc/sys/net/ipv6/conf/{self.name}/disable_ipv6")
        if off.exists():
            off.write_text("1")

    def carries(self) -> None:
        """Waits until the host can send through the interface. The kernel reaches this state asynchronously, some time
        after a guest has opened it."""
        state, deadline = Path(f"/sys/class/net/{self.name}/operstate"), time.monotonic() + 120
        while state.read_text().strip() != "up":
            assert time.monotonic() < deadline, f"{self.name} stays {state.read_text().strip()}"
            time.sleep(0.001)
        self.up()  # waits for the kernel's worker that changed the state and may not have finished


def is_confined(pid: int) -> bool:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    return status["Seccomp"] == "2" and int(status["CapBnd"], 16) == 0


def sandbox_of(command: int) -> psutil.Process:
    """Returns the guest's process of a command in the sandbox: the command's own process, or its only child."""
    deadline = time.monotonic() + 120
    while True:
        found = psutil.Process(command).children(recursive=True)
        if len(found) == 1 and found[0].name() == "tender-sandbox":
            return found[0]
        if not found and is_confined(command):
            return psutil.Process(command)
        assert time.monotonic() < deadline, found
        time.sleep(0.001)


class Footprint(NamedTuple):
    """The resources that this process holds. A child that has ended and is not reaped yet counts as a child.

    Take it after a first VM: the first sandbox starts the thread that makes all sandbox processes.
    """

    descriptors: int
    threads: int
    children: int
    mappings: int


def footprint() -> Footprint:
    gc.collect()
    me = psutil.Process()
    return Footprint(me.num_fds(), me.num_threads(), len(me.children()), len(me.memory_maps(grouped=False)))


def assert_nothing_is_left(before: Footprint, *, slack_maps: int = 22) -> None:
    """Asserts that this process holds what it held before. It waits a while: the kernel unmaps the stack of a thread that
    has ended a little later."""
    deadline = time.monotonic() + 120
    # Malloc's arenas may grow a little, and up to eight threads that close VMs leave one stack each (close_later.h). The
    # memory of a VM may not stay.
    maps_max = before.mappings + slack_maps
    now = footprint()
    while (now[:3] != before[:3] or now.mappings > maps_max) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
        now = footprint()
    assert now[:3] == before[:3]
    assert now.mappings <= maps_max


def until_it_waits(pid: int) -> None:
    """The first thread is in a system call that waits, and not in one of the guest's first instructions."""
    for _ in range(100_000):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "S":
            return
    raise AssertionError("the guest does not wait")
