"""The two notes, rule by rule. Notes that must be accepted are booted. Notes that must be refused because
of their bytes are in tests/elf_cases.py, which test_elf.py sends through the command. The rows here need
more than one note, or a run."""

import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bare import BLOCK_READ, L_BLOCK, L_PUTS, NET_READ, PUTS, Bare
from elf_builder import (
    MFT_RESERVED_FIRST,
    NOTE_ABI,
    NOTE_MANIFEST,
    RESERVED_ENTRY,
    MftEntry,
    Note,
    abi_note,
    build_elf,
    device_entry,
    manifest_bytes,
    manifest_note,
    raw_manifest_note,
)

from tender import BlockFile, NetFd

backends = pytest.mark.backends
Done = subprocess.CompletedProcess[str]
Solo5 = Callable[..., Done]

NO_ABI = "No Solo5 ABI information found in executable"
NO_MANIFEST = "No Solo5 manifest found in executable"
ALIEN = Note(type=1, name=b"OpenBSD\0", namesz=8, data=b"data")
MANIFEST_GPA = 0x10038


def with_notes(*notes: Note, status: int = 7) -> bytes:
    """Returns a guest that halts with `status` and has exactly these notes, each in its own PT_NOTE."""
    guest = Bare()
    guest.halt(status)
    return build_elf(segments=guest.segments(), notes=notes)


def joined(*notes: Note) -> Note:
    """Returns one PT_NOTE that contains all of these notes, one after the other."""
    first, *others = notes
    data = first.data + bytes(-len(first.data) % 4)
    for note in others:
        data += struct.pack("<III8s", note.namesz, len(note.data), note.type, note.name) + note.data
    return replace(first, descsz=len(first.data), data=data)


def runs(elf: bytes, status: int = 7) -> None:
    assert Bare().run(elf).result.status == status


@pytest.fixture
def refusal(solo5: Solo5, tmp_path: Path) -> Callable[[bytes], str]:
    """A function: refusal(ELF) is the rest of the only line of the message, after the file's name."""

    def said(elf: bytes) -> str:
        (tmp_path / "bad.hvt").write_bytes(elf)
        done = solo5("--mem=2", "bad.hvt")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("solo5-hvt: bad.hvt: ")
        return done.stderr.removeprefix("solo5-hvt: bad.hvt: ").rstrip("\n")

    return said


Refusal = Callable[[bytes], str]


# ---- the search


@backends
@pytest.mark.parametrize(
    "notes",
    [
        (abi_note(), manifest_note()),
        (manifest_note(), abi_note()),
        (ALIEN, manifest_note(), ALIEN, abi_note()),
        (replace(ALIEN, filesz=12), replace(ALIEN, filesz=19), abi_note(), manifest_note()),
        (replace(abi_note(), filesz=19), abi_note(), manifest_note()),
        (abi_note(), manifest_note(), replace(ALIEN, filesz=0)),
    ],
    ids=[
        "in order",
        "the other way",
        "among others",
        "short ones",
        "a short one of the type",
        "an empty one after them",
    ],
)
def test_notes_are_found_in_any_order(notes: tuple[Note, ...]) -> None:
    """A note of 12 to 19 bytes is skipped. What follows after both have been found is ignored."""
    runs(with_notes(*notes))


@pytest.mark.parametrize("size", [0, 1, 11])
def test_a_note_of_less_than_12_bytes_before_ours_refuses_the_file(refusal: Refusal, size: int) -> None:
    said = refusal(with_notes(replace(ALIEN, filesz=size), abi_note(), manifest_note()))
    assert said == f"invalid executable: phdr[2].p_filesz note does not fall within valid size ({size} < 12)"


def test_only_the_first_note_of_a_segment_is_read(refusal: Refusal) -> None:
    assert refusal(with_notes(joined(ALIEN, abi_note()), manifest_note())) == NO_ABI
    assert refusal(with_notes(abi_note(), joined(ALIEN, manifest_note()))) == NO_MANIFEST
    assert refusal(with_notes(joined(abi_note(), manifest_note()))) == NO_MANIFEST


@backends
def test_bytes_after_the_first_note_of_a_segment_are_ignored() -> None:
    runs(with_notes(joined(abi_note(), ALIEN), manifest_note()))


@backends
def test_the_first_matching_note_wins() -> None:
    """This holds for two ABI notes and for two manifests. The second manifest here declares a device, which
    need not be attached."""
    runs(
        with_notes(
            abi_note(version=1), abi_note(target=2, version=9), manifest_note(), manifest_note([("a", "net")])
        )
    )


def test_the_first_matching_note_wins_even_if_it_is_bad(refusal: Refusal) -> None:
    elf = with_notes(abi_note(version=9), abi_note(), manifest_note())
    assert refusal(elf) == "Executable requests unsupported ABI version 9"
    elf = with_notes(abi_note(), raw_manifest_note(bytes(8)), manifest_note())
    assert refusal(elf) == "Solo5 manifest is invalid"


@pytest.mark.parametrize(
    "changes", [{"namesz": 5}, {"namesz": 7}, {"name": b"Solo5x\0\0"}, {"name": b"SOLO5\0\0\0"}, {"type": 1}]
)
def test_owner_and_type_must_match(refusal: Refusal, changes: dict[str, object]) -> None:
    """The name is six bytes: the letters and the NUL. The bytes that pad it to eight are ignored."""
    assert refusal(with_notes(replace(abi_note(), **changes), manifest_note())) == NO_ABI  # type: ignore[arg-type]
    wrong = replace(manifest_note(), **changes)  # type: ignore[arg-type]
    assert refusal(with_notes(abi_note(), wrong)) == NO_MANIFEST


@backends
def test_padding_of_the_name_is_ignored() -> None:
    odd = {"name": b"Solo5\0xy"}
    runs(with_notes(replace(abi_note(), **odd), replace(manifest_note(), **odd)))  # type: ignore[arg-type]


# ---- the ABI


@backends
@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_run(version: int) -> None:
    runs(with_notes(abi_note(version=version), manifest_note()))


@pytest.mark.parametrize("version", [0, 3, 0x80000001, 0xFFFFFFFF])
def test_other_versions_are_refused(refusal: Refusal, version: int) -> None:
    said = refusal(with_notes(abi_note(version=version), manifest_note()))
    assert said == f"Executable requests unsupported ABI version {version}"


TARGETS = {
    0: "unknown target 0",
    2: "spt",
    3: "virtio",
    4: "muen",
    5: "genode",
    6: "xen",
    7: "unknown target 7",
}


@pytest.mark.parametrize(("target", "name"), TARGETS.items())
def test_other_targets_are_refused_by_name_before_the_version_is_checked(
    refusal: Refusal, target: int, name: str
) -> None:
    said = refusal(with_notes(abi_note(target=target, version=9), manifest_note()))
    assert said == f"Executable is not for the solo5-hvt target (it is for {name})"


@backends
@pytest.mark.parametrize("size", [8, 12, 16, 32])
def test_abi_descriptions_of_8_to_32_bytes(size: int) -> None:
    """The bytes after target and version are ignored."""
    data = struct.pack("<II", 1, 2).ljust(size, b"\xff")
    runs(with_notes(Note(type=NOTE_ABI, data=data), manifest_note()))


@pytest.mark.parametrize("size", [0, 1, 4, 7, 33, 0x80000000, 0xFFFFFFFF])
def test_abi_descriptions_of_other_sizes_are_refused(refusal: Refusal, size: int) -> None:
    note = Note(type=NOTE_ABI, data=struct.pack("<II", 1, 2).ljust(64, b"\0"), descsz=size)
    assert "phdr[2] note does not fall within valid size (" in refusal(with_notes(note, manifest_note()))


def test_a_description_past_its_segment_is_refused(refusal: Refusal) -> None:
    said = refusal(with_notes(replace(abi_note(), filesz=35), manifest_note()))
    assert "phdr[2] note does not fall within valid size (" in said


# ---- the manifest


def manifest(*entries: MftEntry, version: int = 1, count: int | None = None, more: bytes = b"") -> bytes:
    note = raw_manifest_note(manifest_bytes(entries, version=version, count=count) + more)
    return with_notes(abi_note(), note)


NET, DISK = device_entry("service0", "net"), device_entry("storage", "block")
INVALID = {
    "version 0": manifest(RESERVED_ENTRY, version=0),
    "version 2": manifest(RESERVED_ENTRY, version=2),
    "no entry": manifest(),
    "no entry, space for one": manifest(RESERVED_ENTRY, count=0),
    "65 entries": manifest(RESERVED_ENTRY, count=65),
    "2^32 - 1 entries": manifest(RESERVED_ENTRY, count=0xFFFFFFFF),
    "fewer than said": manifest(RESERVED_ENTRY, NET, count=3),
    "more than said": manifest(RESERVED_ENTRY, NET, count=1),
    "a byte more": manifest(RESERVED_ENTRY, more=b"\0"),
    "7 bytes": with_notes(abi_note(), raw_manifest_note(bytes(7))),
    "first not reserved": manifest(NET, RESERVED_ENTRY),
    "first with another type": manifest(MftEntry(name=b"", type=MFT_RESERVED_FIRST + 1)),
    "first with a name": manifest(MftEntry(name=b"a", type=MFT_RESERVED_FIRST)),
    "first attached": manifest(MftEntry(name=b"", type=MFT_RESERVED_FIRST, attached=1)),
    "name without NUL": manifest(RESERVED_ENTRY, device_entry(b"n" * 68, "net")),
    "NUL only inside": manifest(RESERVED_ENTRY, device_entry(b"n\0" + b"n" * 66, "net")),
    "attached": manifest(RESERVED_ENTRY, MftEntry(name=b"service0", type=2, attached=1)),
    "attached 255": manifest(RESERVED_ENTRY, MftEntry(name=b"service0", type=2, attached=255)),
    "the last one attached": manifest(RESERVED_ENTRY, *[NET] * 62, MftEntry(name=b"z", type=1, attached=1)),
}


@pytest.mark.parametrize("elf", INVALID.values(), ids=INVALID)
def test_an_invalid_manifest_is_refused(refusal: Refusal, elf: bytes) -> None:
    assert refusal(elf) == "Solo5 manifest is invalid"


@pytest.mark.parametrize("padded", [0, 1, 3, 4])
def test_the_size_of_a_manifest_note_counts_its_4_bytes_of_padding(refusal: Refusal, padded: int) -> None:
    """The size of the note counts the 4 bytes, so a size of up to 4 leaves no byte for the manifest."""
    note = Note(type=NOTE_MANIFEST, data=bytes(120), descsz=padded)
    assert "phdr[3] note does not fall within valid size (" in refusal(with_notes(abi_note(), note))


@backends
def test_the_padding_before_the_manifest_is_ignored() -> None:
    data = manifest_bytes([RESERVED_ENTRY])
    runs(with_notes(abi_note(), Note(type=NOTE_MANIFEST, data=b"\xff" * 4 + data)))


@pytest.mark.parametrize("entries", [65, 1000])
def test_a_manifest_note_of_more_than_6668_bytes_is_refused(refusal: Refusal, entries: int) -> None:
    said = refusal(manifest(RESERVED_ENTRY, *[NET] * (entries - 1)))
    assert "phdr[3] note does not fall within valid size (" in said


@backends
def test_entries_of_reserved_types_need_no_device() -> None:
    """Types of 0x40000000 and above are reserved; such entries keep their handles."""
    entries = [MftEntry(name=b"future", type=kind) for kind in (MFT_RESERVED_FIRST, 0x40000001, 0xFFFFFFFF)]
    runs(manifest(RESERVED_ENTRY, *entries))


@pytest.mark.parametrize("kind", [0, 3, 99, 0x3FFFFFFF])
def test_a_device_of_an_unknown_type_can_never_be_attached(solo5: Solo5, tmp_path: Path, kind: int) -> None:
    (tmp_path / "odd.hvt").write_bytes(manifest(RESERVED_ENTRY, device_entry("gadget", kind)))
    (tmp_path / "disk.img").write_bytes(bytes(512))
    done = solo5("odd.hvt")
    assert (done.returncode, done.stderr) == (
        1,
        "solo5-hvt: Device 'gadget' of type <undefined type> declared but not attached.\n"
        "solo5-hvt: All declared devices must be attached. See --help for syntax.\n",
    )
    for word in ("--net:gadget=@0", "--block:gadget=disk.img"):
        done = solo5(word, "odd.hvt")
        said = (
            f"solo5-hvt: Resource not declared in manifest: 'gadget'\nsolo5-hvt: Invalid option: `{word}'\n"
        )
        assert done.returncode == 1 and done.stderr.startswith(said)


# ---- handles, and what the guest finds


@backends
def test_a_handle_is_the_index_of_its_entry(tmp_path: Path) -> None:
    """This holds among 63 devices, and with an entry of a reserved type between them."""
    guest = Bare([(f"disk{number}", "block") for number in range(1, 64)])
    guest.entries[7] = MftEntry(name=b"future", type=0x40000005)
    answers = {}
    for handle in range(64):
        buffer = guest.place(bytes(512))
        answers[handle] = (guest.call(BLOCK_READ, L_BLOCK, handle, 0, buffer, 512, 77), buffer)
    guest.halt()
    disks = {}
    for number in set(range(1, 64)) - {7}:
        (tmp_path / f"{number}.img").write_bytes(bytes([number]) * 512)
        disks[f"disk{number}"] = BlockFile(str(tmp_path / f"{number}.img"), read_only=True)
    ran = guest.run(block=disks)
    for handle, (call, buffer) in answers.items():
        is_disk = handle not in (0, 7)
        assert ran.at(call)[4] == (0 if is_disk else 2)
        assert ran.raw(buffer, 512) == (bytes([handle]) * 512 if is_disk else bytes(512))


@backends
def test_parameters_in_the_file_are_not_used(tmp_path: Path) -> None:
    """The file has a MAC, an MTU, a capacity, a block size and a descriptor. None of them is visible or
    used."""
    (tmp_path / "disk.img").write_bytes(bytes(1024))
    baked = [
        RESERVED_ENTRY,
        replace(
            NET, params=bytes.fromhex("02fefefefefe 2823") + b"\xff" * 8, host_private=1, padding=b"\xff" * 7
        ),
        replace(DISK, params=struct.pack("<QH", 1 << 40, 4096) + b"\xff" * 6, host_private=2),
    ]
    guest = Bare()
    guest.entries = baked
    guest.call(PUTS, L_PUTS, MANIFEST_GPA + 8, 3 * 104)
    buffer = guest.place(bytes(512))
    outside = guest.call(BLOCK_READ, L_BLOCK, 2, 1024, buffer, 512, 77)
    empty = guest.call(NET_READ, "<QQQi4x", 1, buffer, 512, 77)
    guest.halt()
    seen = []
    for _ in range(2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ran = guest.run(net=NetFd(theirs.fileno()), block=BlockFile(str(tmp_path / "disk.img")))
        _, net, disk = (ran.console[at : at + 104] for at in (0, 104, 208))
        mac = net[72:78]
        assert mac[0] & 3 == 2 and mac != bytes.fromhex("02fefefefefe")
        assert net[78:] == struct.pack("<H", 1500) + bytes(16) + b"\1" + bytes(7)
        assert disk[72:] == struct.pack("<QH", 1024, 512) + bytes(14) + b"\1" + bytes(7)
        assert (ran.at(outside)[4], ran.at(empty)[3]) == (2, 1)
        seen.append(mac)
    assert seen[0] != seen[1]


@backends
def test_the_guest_can_read_the_whole_name() -> None:
    """The name is 67 bytes and a NUL, as in the file. Bytes after a NUL are kept too."""
    name = b"n" * 60 + b"\xff\x01ABCDE"
    guest = Bare()
    guest.entries = [
        RESERVED_ENTRY,
        MftEntry(name=name, type=0x40000001),
        MftEntry(name=b"a\0b", type=0x40000001),
    ]
    guest.call(PUTS, L_PUTS, MANIFEST_GPA + 8, 3 * 104)
    guest.halt()
    console = guest.run().console
    assert console[104 : 104 + 68] == name + b"\0"
    assert console[208 : 208 + 68] == b"a\0b".ljust(68, b"\0")
