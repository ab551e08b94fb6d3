"""kvmbox's Intel test VM as its users see it. It takes half a minute to boot, so one VM serves all rows of
a set."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

KVMBOX = Path(__file__).resolve().parents[2] / "tools" / "kvmbox" / "kvmbox"
LIMIT_S = 1200

pytestmark = [
    pytest.mark.skipif("KVMBOX" in os.environ, reason="already in the test VM: it has no nested one"),
    pytest.mark.skipif(os.geteuid() != 0, reason="kvmbox needs root"),
    pytest.mark.skipif(not shutil.which("bochs"), reason="bochs is not installed"),
]

SCRIPT = """
echo "vendor $(grep -c GenuineIntel /proc/cpuinfo)"
echo "module $(ls -d /sys/module/kvm_*)"
echo "ept $(cat /sys/module/kvm_intel/parameters/ept)"
echo "kvm $(test -w /dev/kvm && echo there)"
echo "tun $(test -w /dev/net/tun && echo there)"
echo "cwd $(pwd) $(cat below/file)"
echo "word $WORD $1"
echo "year $(date -u +%Y)"
echo written >new && echo "written $(cat new)"
echo "to stderr" >&2
exit 7
"""


@pytest.mark.parametrize(("ept", "said"), [("1", "Y"), ("0", "N")])
def test_the_command_sees_kvm_intel_and_its_files_and_returns_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ept: str, said: str
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_text("text\n")
    monkeypatch.setenv("WORD", "two words")
    command = [
        str(KVMBOX),
        "run",
        "--cpu",
        "intel",
        "--ept",
        ept,
        "--mem",
        "512",
        "--",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        "a=b",
    ]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert (done.returncode, done.stderr) == (7, "to stderr\n")
    year = subprocess.run(["date", "-u", "+%Y"], capture_output=True, text=True, check=True).stdout.strip()
    assert done.stdout.splitlines() == [
        "vendor 1",
        "module /sys/module/kvm_intel",
        f"ept {said}",
        "kvm there",
        "tun there",
        f"cwd {tmp_path} text",
        "word two words a=b",
        f"year {year}",
        "written written",
    ]
    assert not (tmp_path / "new").exists()
