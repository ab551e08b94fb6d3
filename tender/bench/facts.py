"""The facts about the machine that a reader must know to judge a time measured on it."""

import gzip
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

Facts = dict[str, object]


def host_facts(checkout: "Path | None" = None) -> Facts:
    """The facts by name. A fact that is unknown on this machine is None."""
    cpu = _first_cpu()
    uname = os.uname()
    return {
        "cpu": cpu.get("model name"),
        "cpu_mhz": cpu.get("cpu MHz"),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": uname.release,
        "machine": uname.machine,
        "hz": _hz(uname.release),
        "hypervisor": "hypervisor" in cpu.get("flags", "").split(),
        "kvm_modules": sorted(p.name for p in Path("/sys/module").glob("kvm*")),
        "nested": _parameter("nested"),
        "nx_huge_pages": text_of("/sys/module/kvm/parameters/nx_huge_pages"),
        "mitigations": _mitigations(),
        "governor": text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepage": text_of("/sys/kernel/mm/transparent_hugepage/enabled"),
        "cgroup": _cgroup(),
        "debugfs": _debugfs(),
        "loadavg": [round(load, 2) for load in os.getloadavg()],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "dont_write_bytecode": bool(os.environ.get("PYTHONDONTWRITEBYTECODE")) or sys.dont_write_bytecode,
        "revision": revision(checkout) if checkout else None,
        "counts_instructions": counts_instructions(cpu),
    }


def warnings_of(facts: Facts) -> list[str]:
    """The reasons why the figures of this run should not be published. Empty if there are none."""
    found = []
    if facts["dont_write_bytecode"]:
        found.append(
            "PYTHONDONTWRITEBYTECODE is set, so each start of the command may compile its modules again"
        )
    load, cpus = facts["loadavg"], facts["cpus"]
    if isinstance(load, list) and isinstance(cpus, int) and load[0] > cpus / 2:
        found.append(
            f"the machine is busy (load {load[0]} on {cpus} CPUs): only ratios and minima are reliable"
        )
    if facts["counts_instructions"]:
        found.append("the clock counts instructions (QEMU -icount): these are not times; use --count")
    elif "QEMU TCG" in str(facts["cpu"]):
        found.append(
            "the CPU is emulated in software (QEMU TCG): times mean nothing here; use --count with -icount"
        )
    return found


def counts_instructions(cpu: "dict[str, str]") -> bool:
    """Whether one nanosecond is one instruction: QEMU's `-icount shift=0` makes the TSC run at 1 GHz."""
    try:
        return "QEMU TCG" in cpu.get("model name", "") and abs(float(cpu.get("cpu MHz", "0")) - 1000) < 1
    except ValueError:
        return False


def limit_s(seconds: float) -> "float | None":
    """A time limit in seconds. None where the clock counts instructions, because it leaps while a file is awaited."""
    return None if counts_instructions(_first_cpu()) else seconds


def text_of(path: "str | Path") -> "str | None":
    """The text of a file, without white space around it. None if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _first_cpu() -> "dict[str, str]":
    first = (text_of("/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _hz(release: str) -> "int | None":
    config = text_of(f"/boot/config-{release}") or text_of(f"/lib/modules/{release}/config")
    if config is None:
        try:
            with gzip.open("/proc/config.gz", "rt") as file:
                config = file.read()
        except OSError:
            return None
    found = re.search(r"^CONFIG_HZ=(\d+)$", config, re.MULTILINE)
    return int(found[1]) if found else None


def _parameter(name: str) -> "str | None":
    for module in ("kvm_intel", "kvm_amd"):
        value = text_of(f"/sys/module/{module}/parameters/{name}")
        if value is not None:
            return value
    return None


def _mitigations() -> "dict[str, str]":
    found = {}
    for path in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*")):
        value = text_of(path)
        if value and value != "Not affected":
            found[path.name] = value
    return found


def _mounts() -> "list[list[str]]":
    return [line.split() for line in (text_of("/proc/mounts") or "").splitlines()]


def _cgroup() -> str:
    for _, where, kind, options, *_ in _mounts():
        if kind == "cgroup2" and where == "/sys/fs/cgroup":
            return "v2" + (" favordynmods" if "favordynmods" in options.split(",") else "")
    return "v1" if any(mount[2] == "cgroup" for mount in _mounts()) else "none"


def _debugfs() -> str:
    words = (text_of("/proc/cmdline") or "").split()
    asked = [word.partition("=")[2] for word in words if word.startswith("debugfs=")]
    if asked:
        return asked[-1]
    kinds = (text_of("/proc/filesystems") or "").split()
    return "on" if "debugfs" in kinds else "absent"


def revision(checkout: Path) -> "str | None":
    """The commit of a checkout, with `+` if the tree differs from it. None if git fails."""
    git = ["git", "-c", f"safe.directory={checkout}", "-C", str(checkout)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
        )
        if head.returncode:
            return None
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
