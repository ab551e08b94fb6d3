"""How many page tables, which no limit counts, a guest may cost the host by reading a large sparse
disk in scattered places.
"""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.backends
ROOT = Path(__file__).resolve().parents[2]
GIB, KIB = 1 << 30, 1 << 10
DISK_BYTES = 32 * GIB
TABLE_COVERS, TABLE_BYTES = 2 << 20, 4 * KIB
LIMIT_S = 240


def mapped_bytes_max() -> int:
    header = (ROOT / "bindings" / "devices" / "block" / "disk_map.h").read_text()
    found = re.search(r"^#define DISK_MAPPED_BYTES_MAX \(\(uint64_t\)(\d+) << 30\)$", header, re.M)
    assert found
    return int(found[1]) * GIB


def runs_the_guest(pid: int) -> int:
    """Returns the process that runs the guest: this process, or in the sandbox its child."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    named = [int(child) for child in children if "sandbox" in Path(f"/proc/{child}/comm").read_text()]
    return named[0] if named else pid


def mapped_of(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if line.endswith(name)]
    return sum(int(end, 16) - int(start, 16) for start, end in ends)


@pytest.mark.parametrize("launcher", ["native", "python"])
def test_a_sparse_disk_costs_bounded_page_tables(
    tender_cmd: list[str],
    guest: Guest,
    tmp_path: Path,
    backend: str,
    launcher: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENDER_LAUNCHER", launcher)
    disk = tmp_path / "sparse.img"
    with disk.open("wb") as made:
        made.truncate(DISK_BYTES)
    words = [*tender_cmd, f"--backend={backend}", "--mem=4", f"--block={disk}", str(guest("block_sparse"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == b"read %d\n" % (2 * DISK_BYTES // TABLE_COVERS)
            pid = runs_the_guest(command.pid)
            status = Path(f"/proc/{pid}/status").read_text()
            tables = int(re.findall(r"^VmPTE:\s+(\d+) kB$", status, re.M)[0]) * KIB
            mapped = mapped_of(pid, "sparse.img")
            command.send_signal(signal.SIGTERM)
            command.communicate(timeout=LIMIT_S)
        finally:
            command.kill()
    assert command.returncode == 1
    assert mapped == mapped_bytes_max()
    of_disk = mapped // TABLE_COVERS * TABLE_BYTES
    assert of_disk <= tables <= of_disk + 2 * KIB * KIB


def test_the_threat_model_states_the_bound() -> None:
    text = " ".join((ROOT / "docs" / "threat-model.md").read_text().split())
    tables = mapped_bytes_max() // TABLE_COVERS * TABLE_BYTES
    assert f"at most {mapped_bytes_max() // GIB} GiB of a VM's disks are mapped" in text
    assert f"{tables >> 20} MiB of page tables" in text
