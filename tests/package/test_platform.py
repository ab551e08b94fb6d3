"""A build for a machine that Tender does not run on fails immediately, with a message."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE = """
[host_machine]
system = '{system}'
cpu_family = '{family}'
cpu = '{family}'
endian = 'little'

[properties]
needs_exe_wrapper = true

[binaries]
c = '{compiler}'
"""
SAYS = "ERROR: Problem encountered: Tender runs on Linux on x86_64 only; this build is for "
OTHERS = [
    ("linux", "aarch64"), ("linux", "riscv64"), ("linux", "x86"), ("linux", "ppc64"), ("linux", "s390x"),
    ("darwin", "x86_64"), ("darwin", "aarch64"), ("freebsd", "x86_64"), ("windows", "x86_64"),
]  # fmt: skip


def setup(tmp_path: Path, system: str, family: str, compiler: str) -> "subprocess.CompletedProcess[str]":
    """Runs `meson setup` for that machine."""
    described = tmp_path / "machine.ini"
    described.write_text(MACHINE.format(system=system, family=family, compiler=compiler))
    command = [sys.executable, "-m", "mesonbuild.mesonmain", "setup", "--cross-file", str(described)]
    command += [str(tmp_path / "build"), str(ROOT)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("system", "family"), OTHERS, ids="-".join)
def test_another_machine_is_refused_before_the_compiler_is_checked(
    tmp_path: Path, system: str, family: str
) -> None:
    done = setup(tmp_path, system, family, "no-such-compiler")
    assert done.returncode == 1
    assert f"{SAYS}{system} on {family}\n" in done.stdout, done.stdout


def test_a_compiler_for_pointers_of_32_bits_is_refused(tmp_path: Path) -> None:
    """`CC="gcc -m32"` does the same on a machine that has the libraries. Without libraries it still
    compiles, which is enough here."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec cc -m32 -nostdlib -Wl,-e,main "$@"\n')
    compiler.chmod(0o755)
    done = setup(tmp_path, "linux", "x86_64", str(compiler))
    assert done.returncode == 1
    assert f"{SAYS}linux on x86_64 with pointers of 32 bits" in done.stdout, done.stdout
