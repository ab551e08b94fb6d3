"""tools/with_net says what prevents a TAP interface, before anything is built or run."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_NET = f"{ROOT}/tools/with_net"
pytestmark = pytest.mark.tap  # run where namespaces and mounts can be made

# What /dev/net on the host contains, and what the tool says about it.
TUN = {
    "no device file": ("mount -t tmpfs none /dev/net", "no such device file", "modprobe tun"),
    "a file that is not a device": (
        "mount -t tmpfs none /dev/net; : >/dev/net/tun",
        "no such device file",
        "modprobe tun",
    ),
}


def in_own_mounts(change: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'{change}; exec "$@"', "sh", *words],
        cwd=ROOT,
        env={**os.environ, "TENDER_KVM": "auto"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("case", TUN)
def test_an_unusable_tun_device_is_named_with_the_way_out(case: str) -> None:
    change, why, cure = TUN[case]
    done = in_own_mounts(change, WITH_NET, "--check")
    assert (done.returncode, done.stdout) == (1, "")
    said, hint = done.stderr.splitlines()
    assert said == f"with_net: no TAP interface can be made: /dev/net/tun: {why}"
    assert hint.startswith("with_net: hint: ") and cure in hint
    done = in_own_mounts(change, WITH_NET, "--", "ls", "/dev/net")
    assert done.returncode == 0, "what needs no TAP runs"
    assert done.stdout == ("tun\n" if ">" in change else ""), "the check makes no file"


def test_a_user_who_may_not_open_it_is_told_the_mode() -> None:
    if int(Path("/proc/self/uid_map").read_text().split()[2]) == 1:
        pytest.skip("tools/with_net was not started as root: its user namespace has no other user")
    drop = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all")
    change = "mount -t tmpfs none /dev/net; mknod -m 0600 /dev/net/tun c 10 200"
    done = in_own_mounts(change, *drop, WITH_NET, "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/dev/net/tun: Permission denied\n" in done.stderr and "chmod 0666 /dev/net/tun" in done.stderr


def test_make_run_asks_before_it_builds() -> None:
    done = in_own_mounts("mount -t tmpfs none /dev/net", "make", "run", "VENV=/nonexistent/venv")
    assert done.returncode == 2
    assert "/dev/net/tun" in done.stderr and "TENDER_KVM=kvmbox make run" in done.stderr
    assert "setup" not in done.stdout, "nothing was begun"


def test_a_missing_right_to_make_namespaces_is_reported() -> None:
    done = in_own_mounts(":", "setpriv", "--bounding-set=-sys_admin", WITH_NET, "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    said, hint = done.stderr.splitlines()
    assert said.startswith("with_net: no namespaces: unshare: ") and "Operation not permitted" in said
    assert hint.startswith("with_net: hint: ") and "CAP_SYS_ADMIN" in hint


def test_with_everything_present_it_prints_nothing() -> None:
    done = in_own_mounts(":", WITH_NET, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
