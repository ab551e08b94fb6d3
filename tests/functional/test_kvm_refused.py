"""KVM that does not run a guest any more: the run ends with the kernel's error, and does not retry
forever.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.kvm
FILTER = str(Path(__file__).resolve().parents[1] / "inherited_filter.py")
KVM_RUN = 0xAE80


@pytest.mark.parametrize("launcher", ["native", "python"])
@pytest.mark.parametrize("name", ["EAGAIN", "ENOMEM", "EIO", "EINVAL"])
def test_a_refused_run_is_the_hosts_failure(
    tender_cmd: list[str], guest: Guest, name: str, launcher: str, tmp_path: Path
) -> None:
    """EAGAIN: Linux creates a thread at a VM's first run, and a limit on processes refuses it each time."""
    number = getattr(errno, name)
    report = tmp_path / "report"
    words = [f"--json={report}"]
    done = subprocess.run(
        [sys.executable, FILTER, f"-ioctl:{number}@1={KVM_RUN}", *tender_cmd, "--backend=kvm", *words, guest("hello")],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "TENDER_LAUNCHER": launcher},
    )  # fmt: skip
    line = f"tender: KVM: ioctl (RUN) failed: {os.strerror(number)}"
    cure = ": no more processes or threads may be made here; see ulimit -u, and pids.max of the cgroup"
    assert (done.returncode, done.stderr) == (2, line + (cure if name == "EAGAIN" else "") + "\n")
    told = json.loads(report.read_text())
    assert (told["reason"], told["status"]) == ("host-error", 2)
