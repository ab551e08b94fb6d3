"""Builds and runs bench/minimal_kvm.c, the C program that makes one boot's KVM calls and nothing else."""

import os
import subprocess
from pathlib import Path

from harness import compile
from tender.annotations import DISCARD
from tender.bench.subjects import BenchError
from tender.config import VmConfig
from tender.image import Image
from tender.native import lib
from tender.vm import Vm

POINTS = (
    "mapped",
    "create_vm",
    "memory_region",
    "create_vcpu",
    "run_page",
    "cpuid",
    "registers",
    "ready",
    "first_exit",
    "closed",
)
"""The points of enum point in minimal_kvm.c. The library calls `ready` first_run."""


def build() -> Path:
    """The program, compiled if it is older than its source. Raises BenchError with the compiler's messages."""
    return compile.program("minimal_kvm")


def command(program: Path, image: Image, config: VmConfig, boots: int) -> "tuple[list[str], list[int]]":
    """The command line, and the descriptors it inherits (template and boot info), which the caller closes."""
    with Vm(image, config, console=DISCARD, backend="kvm") as vm:
        start = lib.HVT_BOOT_INFO_GPA
        info = vm.memory(start, lib.TENDER_TRAMPOLINES_GPA - start).rstrip(b"\0") + b"\0"
    owner = image.template(config.mem_bytes)  # closes its descriptor when it is garbage-collected
    template = os.dup(owner.fd)
    info_fd = os.memfd_create("boot-info")
    os.write(info_fd, info)
    numbers = (
        boots,
        config.mem_bytes,
        image.entry,
        template,
        lib.tn_template_bytes(image.elf.c),
        info_fd,
        len(info),
    )
    return [str(program), *map(str, numbers)], [template, info_fd]


def run(program: Path, image: Image, config: VmConfig, boots: int) -> "list[dict[str, int]]":
    """For each boot: nanoseconds to each of POINTS, and `cpu`. Raises BenchError."""
    words, fds = command(program, image, config, boots)
    try:
        done = subprocess.run(words, pass_fds=fds, capture_output=True, text=True, check=False)
    finally:
        for fd in fds:
            os.close(fd)
    if done.returncode:
        raise BenchError(f"minimal C: {done.stderr.strip() or done.returncode}")
    return [
        dict(zip((*POINTS, "cpu"), map(int, line.split()), strict=True)) for line in done.stdout.splitlines()
    ]
