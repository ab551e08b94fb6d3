"""Ways out of refusals, where the obvious one does not help: it is given already, or it is this command's own doing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from elf_builder import good_elf
from support import Guest

from tender import BlockFd, BlockFile, ConfigError, DeviceError, Image, Vm, VmConfig, VmPool, VmStateError
from tender.cli.options import UsageError, parse_args
from tender.devices.opening import open_device, refused
from tender.native import ffi, lib

PROGRAM = Path(sys.executable).parent / "tender"
TWO_DISKS = [("one", "block"), ("two", "block")]


def said(*words: str | Path) -> list[str]:
    """The lines on stderr of a command that is refused."""
    done = subprocess.run(
        [PROGRAM, *words],
        env={**os.environ, "TENDER_BACKEND": "sandbox"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


def test_a_value_of_json_in_the_next_word_is_told_where_it_stands() -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(["--json", "-", "app.elf"])
    assert caught.value.hint == "the value of --json stands behind =: --json=-"


def test_run_run_is_told_that_the_image_is_missing() -> None:
    assert said("run", "run")[-1] == "tender: hint: the image's name is missing: tender run IMAGE"


@pytest.mark.parametrize("name", ["x.img:ro", "x.img:rw", "x.img:raw"])
def test_suffixes_in_the_wrong_order_are_told_the_order(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_device(BlockFile(tmp_path / name), "storage")
    assert "read_only=True" in caught.value.hint and "PATH:raw:ro" in caught.value.command_hint
    assert "truncate" not in caught.value.hint + caught.value.command_hint


def test_a_locked_disk_may_be_waited_for_or_copied_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(512))
    held = open_device(BlockFile(path), "storage")
    fd = os.open(path, os.O_RDWR)
    try:
        for device, source in ((BlockFile(path), str(path)), (BlockFd(fd), "FILE")):
            with pytest.raises(DeviceError) as caught:
                open_device(device, "storage")
            assert "lock_wait=SECONDS" in caught.value.hint and f"cp {source} COPY" in caught.value.hint
            assert "--lock-wait=SECONDS" in caught.value.command_hint
    finally:
        os.close(fd)
        held.close()


def test_a_file_that_may_not_be_read_is_not_told_to_be_read_only() -> None:
    error = ffi.new("struct device_error *")
    error.problem, error.os_error = lib.DEVICE_BLOCK_OPEN, 13
    writable = refused("block", error, "d.img", device=BlockFile("d.img"))
    read_only = refused("block", error, "d.img", device=BlockFile("d.img", read_only=True))
    assert "read_only=True" in writable.hint and "read_only" not in read_only.hint
    assert "check its mode" in read_only.hint and ":ro" not in read_only.command_hint


@pytest.mark.parametrize("second", ["d.img", "link.img"])
def test_one_disk_given_twice_is_this_guests_own_doing(tmp_path: Path, second: str) -> None:
    (tmp_path / "d.img").write_bytes(bytes(1 << 20))
    (tmp_path / "link.img").symlink_to("d.img")
    disks = {"one": BlockFile(tmp_path / "d.img"), "two": BlockFile(tmp_path / second)}
    with Image.from_bytes(good_elf(devices=TWO_DISKS)) as image, pytest.raises(DeviceError) as caught:
        Vm(image, VmConfig(mem=8, block=disks), backend="sandbox")
    assert str(caught.value).endswith(": in use already: given to this guest twice, as one and as two")
    assert (caught.value.code, caught.value.hint) == ("block-locked", "give two another one")


def test_a_disk_that_another_has_is_not(tmp_path: Path) -> None:
    for name in ("d.img", "e.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    held = open_device(BlockFile(tmp_path / "e.img"), "storage")
    disks = {"one": BlockFile(tmp_path / "d.img"), "two": BlockFile(tmp_path / "e.img")}
    with (
        Image.from_bytes(good_elf(devices=TWO_DISKS)) as image,
        pytest.raises(DeviceError, match="has locked it"),
    ):
        Vm(image, VmConfig(mem=8, block=disks), backend="sandbox")
    held.close()


def test_a_pool_of_more_than_one_vm_shares_no_disk_to_write(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    path.write_bytes(bytes(1 << 20))
    with Image.open(guest("disk")) as image:
        with pytest.raises(ConfigError) as caught:
            VmPool(image, VmConfig(mem=8, block=BlockFile(path)), size=2, backend="sandbox")
        assert "which one VM has to itself" in str(caught.value) and "size=1" in caught.value.hint
        config = VmConfig(mem=8, block=BlockFile(path, read_only=True))
        with VmPool(image, config, size=2, backend="sandbox") as pool:
            assert pool.idle == 2


@pytest.mark.parametrize("again", [Vm.start, Vm.run])
def test_a_vm_that_runs_is_not_started_again(guest: Guest, again: Callable[[Vm], object]) -> None:
    with Image.open(guest("sleep")) as image, Vm(image, VmConfig(mem=8), backend="sandbox") as vm:
        vm.start()
        with pytest.raises(VmStateError, match=r"^the Vm runs already: a Vm runs once; make another"):
            again(vm)
        vm.stop()
        assert vm.wait() is not None


@pytest.mark.parametrize("size", ["2M", None, -1, 1.5, True, 1 << 64])
def test_a_size_of_memory_that_is_none_is_named(guest: Guest, size: object) -> None:
    with Image.open(guest("hello")) as image, pytest.raises(ConfigError, match="check_fits: mem_bytes: "):
        image.check_fits(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("launcher", ["", "python"])
def test_a_run_that_a_missing_layer_forbids_is_not_said_to_be_in_the_sandbox(
    guest: Guest, launcher: str
) -> None:
    """Where there is a KVM there is nothing to say either way."""
    done = subprocess.run(
        [PROGRAM, "--require=kvm", guest("hello")],
        env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "auto"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the guest runs in the sandbox" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith("tender: required isolation layers are missing: kvm\n")
