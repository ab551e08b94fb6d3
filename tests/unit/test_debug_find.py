"""Finding guests in processes that lie, or change meanwhile: their memory is faked."""

import os
from pathlib import Path

import pytest

from tender.debug import find
from tender.debug.note import VERSION
from tender.debug.target import DebugError
from tender.native import ffi

NOTE = {"vms": 8, "vm_link": 0, "vm_next": 8}
HEAD = 0x1008  # of a process that is loaded at 0x1000


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Words by address; all others are 0."""
    words: dict[int, int] = {}
    monkeypatch.setattr(find, "_word", lambda pid, address, length=8: words.get(address, 0))
    return words


def test_the_vms_of_a_list_are_found_in_its_order(memory: dict[int, int]) -> None:
    assert find._vms(1, NOTE, 0x1000) == []
    memory |= {HEAD: 0x5000, 0x5000: HEAD, 0x5008: 0x6000, 0x6000: 0x5008}
    assert find._vms(1, NOTE, 0x1000) == [0x5000, 0x6000]


def test_a_list_that_changes_is_read_again(memory: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second VM is removed while it is read: its memory is something else's by now."""
    memory |= {HEAD: 0x5000, 0x5000: HEAD, 0x5008: 0x6000, 0x6000: 77}

    def word(pid: int, address: int, length: int = 8) -> int:
        found = memory.get(address, 0)
        if address == 0x6000:
            memory[0x5008] = 0
        return found

    monkeypatch.setattr(find, "_word", word)
    assert find._vms(1, NOTE, 0x1000) == [0x5000]


def test_a_list_without_an_end_is_given_up(memory: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_STEPS_MAX", 1000)
    memory |= {HEAD: 0x5000, 0x5000: HEAD, 0x5008: 0x5000}  # it is behind itself
    assert len(find._vms(1, NOTE, 0x1000)) <= 1
    monkeypatch.setattr(find, "_VMS_MAX", 100)
    link = HEAD
    for vm in range(0x5000, 0x5000 + 16 * 200, 16):
        memory |= {link: vm, vm: link}
        link = vm + 8
    assert len(find._vms(1, NOTE, 0x1000)) == 100


@pytest.mark.parametrize(
    "note",
    [
        {},
        {"version": VERSION + 1, "shared_bytes": ffi.sizeof("struct vm_shared")},
        {"version": VERSION, "shared_bytes": 8},
        {"version": VERSION, "shared_bytes": ffi.sizeof("struct vm_shared")},
        {"version": VERSION, "shared_bytes": ffi.sizeof("struct vm_shared"), "the_vm": 1},
    ],
)
def test_another_version_is_refused_with_the_way_out(note: dict[str, int]) -> None:
    with pytest.raises(DebugError, match="is of another version of Tender") as refused:
        find._check_version(os.getpid(), note)
    assert (refused.value.code, "start the guest again" in refused.value.hint) == ("debug-version", True)


def test_a_name_in_maps_is_read_as_the_kernel_writes_it() -> None:
    line = "7f12-7f13 rw-s 00001000 00:01 5    /memfd:tender-vm:/a b\\012c.elf (deleted)"
    assert find._map(line) == find.Map(
        0x7F12, 0x7F13, "rw-s", 0x1000, "/memfd:tender-vm:/a b\nc.elf (deleted)"
    )
    assert find._map("0-1000 ---p 00000000 00:00 0").name == ""


def test_a_path_that_cannot_be_opened_is_no_image(tmp_path: Path) -> None:
    image = tmp_path / "app.elf"
    assert find._image(os.getpid(), str(image)) == ""
    image.touch()
    assert find._image(os.getpid(), str(image)) == str(image)
    assert find._image(os.getpid(), str(tmp_path)) == ""
    assert find._image(os.getpid(), "") == ""
