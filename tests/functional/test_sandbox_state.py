"""All registers of a guest survive a million hypercalls: by patched call sites, by the gate, by
signals, and while another process stops and continues the guest's process.
"""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from support import Guest

from tender import CAPTURE, Image, Vm, VmConfig
from tender.backend.sandbox import SandboxVm

CALLS, TRAPPED_EVERY = 1_000_000, 50


def flags_of_cpu() -> set[str]:
    found = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert found
    return set(found[1].split())


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_million_hypercalls_keep_every_register(guest: Guest, disturbed: bool) -> None:
    flags = flags_of_cpu()
    level = "AVX-512" if "avx512f" in flags else "AVX" if "avx" in flags else "SSE"
    args = (f"--calls={CALLS}", f"--trapped-every={TRAPPED_EVERY}")
    stops = 0
    with (
        Image.open(guest("sandbox_state")) as image,
        Vm(image, VmConfig(mem=16, args=args), console=CAPTURE, backend="sandbox") as vm,
    ):
        assert isinstance(vm._machine, SandboxVm)
        pid = vm.pid
        draw = random.Random(7)
        vm.start(timeout=100)
        while disturbed and vm.counters.hypercalls["halt"] == 0:
            os.kill(pid, signal.SIGSTOP)
            if draw.random() < 0.5:
                time.sleep(draw.random() / 1000)
            os.kill(pid, signal.SIGCONT)
            stops += 1
            time.sleep(draw.random() / 500)
        result = vm.wait(110)
    assert result.console is not None
    expected = f"state: OK {level} calls={CALLS} trapped={CALLS // TRAPPED_EVERY}"
    assert result.ok and expected in result.console.decode(), (result.message, result.console)
    assert result.counters.hypercalls["walltime"] == CALLS
    assert result.counters.trapped_hypercalls == CALLS // TRAPPED_EVERY
    assert not disturbed or stops > 50
