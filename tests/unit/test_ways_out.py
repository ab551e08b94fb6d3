"""Hints of refusals where the obvious hint does not help: the option is given already, or the command
itself caused the refusal."""

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
    """Returns the lines on stderr of a command that is refused."""
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


def test_a_value_of_json_in_the_next_word_gets_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(["--json", "-", "app.elf"])
    assert caught.value.hint == "write the value of --json after =: --json=-"


def test_run_run_gets_the_hint_that_the_image_is_missing() -> None:
    assert said("run", "run")[-1] == "tender: hint: the image's name is missing: tender run IMAGE"


@pytest.mark.parametrize("name", ["x.img:ro", "x.img:rw", "x.img:raw"])
def test_suffixes_in_the_wrong_order_get_a_hint(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_device(BlockFile(tmp_path / name), "storage")
    assert "read_only=True" in caught.value.hint and "PATH:raw:ro" in caught.value.command_hint
    assert "truncate" not in caught.value.hint + caught.value.command_hint


def test_a_locked_disk_gets_a_hint_to_wait_or_to_copy(tmp_path: Path) -> None:
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


def test_an_unreadable_file_gets_no_hint_to_open_it_read_only() -> None:
    error = ffi.new("struct device_error *")
    error.problem, error.os_error = lib.DEVICE_BLOCK_OPEN, 13
    writable = refused("block", error, "d.img", device=BlockFile("d.img"))
    read_only = refused("block", error, "d.img", device=BlockFile("d.img", read_only=True))
    assert "read_only=True" in writable.hint and "read_only" not in read_only.hint
    assert "check its mode" in read_only.hint and ":ro" not in read_only.command_hint


@pytest.mark.parametrize("second", ["d.img", "link.img"])
def test_a_disk_given_twice_to_one_guest_is_recognised(tmp_path: Path, second: str) -> None:
    (tmp_path / "d.img").write_bytes(bytes(1 << 20))
    (tmp_path / "link.img").symlink_to("d.img")
    disks = {"one": BlockFile(tmp_path / "d.img"), "two": BlockFile(tmp_path / second)}
    with Image.from_bytes(good_elf(devices=TWO_DISKS)) as image, pytest.raises(DeviceError) as caught:
        Vm(image, VmConfig(mem=8, block=disks), backend="sandbox")
    assert str(caught.value).endswith(": in use already: given to this guest twice, as one and as two")
    assert (caught.value.code, caught.value.hint) == ("block-locked", "give two another one")


def test_a_disk_that_another_vm_holds_is_not_reported_as_given_twice(tmp_path: Path) -> None:
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


def test_a_pool_of_several_vms_cannot_share_a_writable_disk(guest: Guest, tmp_path: Path) -> None:
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
def test_a_running_vm_cannot_be_started_again(guest: Guest, again: Callable[[Vm], object]) -> None:
    with Image.open(guest("sleep")) as image, Vm(image, VmConfig(mem=8), backend="sandbox") as vm:
        vm.start()
        with pytest.raises(VmStateError, match=r"^the Vm runs already: a Vm runs once; make another"):
            again(vm)
        vm.stop()
        assert vm.wait() is not None


@pytest.mark.parametrize("size", ["2M", None, -1, 1.5, True, 1 << 64])
def test_an_invalid_size_of_memory_is_named(guest: Guest, size: object) -> None:
    with Image.open(guest("hello")) as image, pytest.raises(ConfigError, match="check_fits: mem_bytes: "):
        image.check_fits(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("launcher", ["", "python"])
def test_a_run_that_a_missing_layer_forbids_does_not_report_the_fallback(guest: Guest, launcher: str) -> None:
    """With a KVM neither message is printed."""
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
