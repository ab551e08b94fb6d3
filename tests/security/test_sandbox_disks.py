"""Hostile guests with disks and a console, using the program's own system call: no file grows, and
none is written where it must not be.
"""

import errno
import mmap
import os
import re
import struct
from pathlib import Path

import pytest
from sandbox_rig import (
    BASE,
    FD_CONSOLE,
    FD_LARGE,
    FD_SMALL,
    LARGE,
    LIMIT,
    PWRITE64,
    PWRITEV2,
    SMALL,
    SYMBOLS,
    Rig,
    assert_killed_by_filter,
    at,
    pattern,
    text,
    wait_until,
)

from tender import CAPTURE, BlockFd, BlockFile, ExitReason, NetFd, Vm, VmConfig


def test_a_disk_that_is_read_only_to_the_guest_is_not_written(rig: Rig) -> None:
    """The descriptor is writable, as a parent may pass it. The VM opens it again for itself,
    read-only, so the kernel refuses the call: EBADF.
    """
    config = VmConfig(
        mem=16,
        args=(BASE, f"call={PWRITE64},{FD_SMALL},b,16,0"),
        net={"service0": NetFd(rig.theirs.fileno())},
        block={"small": BlockFd(rig.small_fd, read_only=True), "large": BlockFile(str(rig.large))},
    )
    with Vm(rig.image, config, console=CAPTURE, backend="sandbox") as vm:
        assert text(vm.run(timeout=LIMIT)) == f"call = {-errno.EBADF}\ndone\n"
    assert rig.small.read_bytes() == pattern(SMALL)


def test_a_disk_does_not_grow(rig: Rig) -> None:
    """Each disk ends at its own size, also the smaller one of two."""
    for fd, size in ((FD_SMALL, SMALL), (FD_LARGE, LARGE)):
        for offset, length in (
            (size, 1),
            (size - 8, 16),
            (1 << 40, 16),
            ((1 << 63) - 16, 8),
            (size - 8, 1 << 63),
        ):
            result = rig.run(f"call={PWRITE64},{fd},b,{length:#x},{offset:#x}")
            if result.reason == ExitReason.EXIT:  # refused, or cut at the end
                assert int(text(result).split()[2]) in (-27, -22, -14, 8)
            else:
                assert_killed_by_filter(result)
            assert rig.small.stat().st_size == SMALL
            assert rig.large.stat().st_size == LARGE


def test_a_disk_does_not_grow_while_the_console_is_a_file(rig: Rig, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for offset in (SMALL, LARGE, 1 << 40):
        for fd in (FD_SMALL, FD_LARGE):
            rig.run(f"call={PWRITE64},{fd},b,16,{offset}", console=log)
    assert rig.small.stat().st_size == SMALL
    assert rig.large.stat().st_size == LARGE


def test_a_disk_beyond_4_gib_is_guarded_to_the_byte(rig: Rig) -> None:
    """The filter compares a number in two halves, with a borrow between them."""
    size = (4 << 30) + 4096
    with rig.large.open("r+b") as file:
        file.truncate(size)
    allowed = [(size - 8192, 8192), (size - 1, 1), ((4 << 30) - 1, 4097), (size, 0)]
    killed = [
        (size - 8191, 8192),
        (size, 1),
        (size - 4096, 8192),
        (4 << 30, 4097),
        (0, size + 1),
        (1 << 32 | size, 1),
    ]
    for offset, length in allowed:
        result = rig.run(f"call={PWRITE64},{FD_LARGE},b,{length},{offset}")
        assert text(result) == f"call = {length}\ndone\n", (offset, length, result.message)
    for offset, length in killed:
        assert_killed_by_filter(rig.run(f"call={PWRITE64},{FD_LARGE},b,{length},{offset}"))
    assert rig.large.stat().st_size == size
    os.truncate(rig.large, LARGE)  # what the rig expects


def test_the_content_of_a_consoles_file_cannot_be_overwritten(rig: Rig, tmp_path: Path) -> None:
    """A console only grows, at its end. This file is not opened for appending, as with a shell's `>`."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"before the guest\n")
        file.flush()
        iovec = struct.pack("<Q", 0x200000).hex()
        for offset in (0, 3, 1 << 32, 1 << 40, 0xFFFFFFFF, 0xFFFFFFFF00000000):
            result = rig.run(
                "poke=b,58585858", f"poke=b+64,{iovec}", f"call={PWRITEV2},{FD_CONSOLE},b+64,1,{offset:#x},0,8",
                console=file.fileno(),
            )  # fmt: skip
            assert_killed_by_filter(result)
    assert log.read_bytes() == b"before the guest\n"


@pytest.mark.parametrize("given", ["path", "descriptor"])
def test_a_consoles_file_that_is_appended_to_keeps_its_content(rig: Rig, tmp_path: Path, given: str) -> None:
    """RWF_NOAPPEND of Linux 6.9 and all flags near it: 0x20 would write the bytes at the file's
    offset, 0.
    """
    log = tmp_path / "log"
    log.write_bytes(b"before the guest\n")
    iovec = struct.pack("<QQ", 0x200000, 8).hex()
    with log.open("ab", buffering=0) as file:
        file.seek(0)
        for flags in (0x20, 0x28, 0x60, 0x3F & ~8):
            result = rig.run(
                "poke=b,5858585858585858", f"poke=b+64,{iovec}",
                f"call={PWRITEV2},{FD_CONSOLE},b+64,1,0xffffffffffffffff,0,{flags}",
                console=log if given == "path" else file.fileno(),
            )  # fmt: skip
            assert_killed_by_filter(result)
    assert log.read_bytes() == b"before the guest\n"


def mapping_of(rig: Rig, path: Path, config: VmConfig) -> tuple[str, str]:
    """Returns where the program keeps the address of this disk's mapping, in the attacker's language,
    and the mapping's rights.
    """
    with Vm(rig.image, config, console=CAPTURE, backend="sandbox") as vm:
        vm.start()
        maps = Path(f"/proc/{vm.pid}/maps")
        wait_until(lambda: vm.boot.first_run != 0)
        found = re.search(rf"^([0-9a-f]+)-[0-9a-f]+ (\S+) .* {path}$", maps.read_text(), re.MULTILINE)
        assert found, maps.read_text()
        program = re.search(r"^([0-9a-f]+)-.* 00000000 .*tender-sandbox$", maps.read_text(), re.MULTILINE)
        assert program, maps.read_text()
        with Path(f"/proc/{vm.pid}/mem").open("rb") as memory:
            memory.seek(int(program[1], 16) + SYMBOLS["the_vm"].start)
            words = memory.read(len(SYMBOLS["the_vm"]))
        vm.stop()
    place = words.index(struct.pack("<Q", int(found[1], 16)))
    return f"[{at('the_vm', place)}]", found[2]


def spinning(rig: Rig, *script: str, small: BlockFile | BlockFd | None = None) -> VmConfig:
    return VmConfig(
        mem=16,
        args=(BASE, *script),
        net={"service0": NetFd(rig.theirs.fileno())},
        block={"small": small or BlockFile(str(rig.small)), "large": BlockFile(str(rig.large))},
    )


def test_the_memory_of_a_read_only_disk_is_not_written(rig: Rig) -> None:
    """This holds however the disk was opened: a mapping has its own rights, and no call that the
    filter allows changes them.
    """
    for small in (BlockFile(str(rig.small), read_only=True), BlockFd(rig.small_fd, read_only=True)):
        mapped, rights = mapping_of(rig, rig.small, spinning(rig, "spin", small=small))
        assert rights == "r--s"
        config = spinning(rig, f"peek={mapped}", f"poke={mapped},58585858", small=small)
        with Vm(rig.image, config, console=CAPTURE, backend="sandbox") as vm:
            result = vm.run(timeout=LIMIT)
        first = int.from_bytes(pattern(SMALL)[:8], "little")
        assert f"peek = {first}" in text(result)
        assert result.reason == ExitReason.ABORT and "#PF" in text(result), text(result)
        assert rig.small.read_bytes() == pattern(SMALL)


def test_a_disks_mapping_is_its_whole_pages_and_no_more(rig: Rig) -> None:
    """Whole pages of the size at the start are mapped. What was written is in the file, and the file
    keeps its size.
    """
    size = SMALL - mmap.PAGESIZE + 512
    os.truncate(rig.small, size)
    mapped, rights = mapping_of(rig, rig.small, spinning(rig, "spin"))
    assert rights == "rw-s"
    whole = size - 512
    result = rig.run(f"poke={mapped},58585858", f"poke={mapped}+{whole - 4},59595959")
    assert result.ok, text(result)
    rig.run(f"poke={mapped}+{whole},5a5a5a5a")  # whatever memory is there, it is not the disk
    content = rig.small.read_bytes()
    assert content == b"XXXX" + pattern(SMALL)[4 : whole - 4] + b"YYYY" + pattern(SMALL)[whole:size]
    os.truncate(rig.small, SMALL)  # what the rig expects


def test_a_truncated_disk_is_a_fault_of_a_guest_that_bypasses_the_handlers(rig: Rig) -> None:
    mapped, _ = mapping_of(rig, rig.small, spinning(rig, "spin"))
    with rig.vm(f"peek={mapped}+{SMALL - 8}") as vm:
        os.truncate(rig.small, 4096)
        result = vm.run(timeout=LIMIT)
    assert result.reason == ExitReason.ABORT and "#PF" in text(result), text(result)
    os.truncate(rig.small, SMALL)
