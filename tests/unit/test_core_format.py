"""Cores without a guest: what is written is what is read, a failure leaves nothing behind, and no file breaks the reader."""

import errno
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_guest import MIB, FakeGuest
from hypothesis import given, settings
from hypothesis import strategies as st

from tender.debug import core_format as form
from tender.debug.core import CoreFile, check_directory, save_core
from tender.debug.cpu_parts import CONTROL, SEGMENT, TABLE, CpuParts, Unfinished
from tender.debug.registers import Registers
from tender.debug.target import DebugError, Facts, Mapping, Where
from tender.errors import ImageError
from tender.native import ffi, lib


def a_guest(**facts: object) -> FakeGuest:
    xsave = bytearray(2696)
    xsave[464:472], xsave[512:520] = (0x2E7).to_bytes(8, "little"), (0x207).to_bytes(8, "little")
    return FakeGuest(
        known=Facts(image="/nowhere/app.elf", pid=7, mem_bytes=4 * MIB, counters={"exits": 3}, **facts),  # type: ignore[arg-type]
        stands=Where.ENDED,
        state=Registers(rip=0x100000, rsp=0x3FFFF8, r15=(1 << 64) - 1, fs_base=5, xsave=bytes(xsave)),
        memory=(Mapping(0x100000, 0x101000, 5), Mapping(0x200000, 4 * MIB, 6)),
        pages={0x100000: b"\xf4" * 4096, 0x300000: b"heap", 0x301000: bytes(4096), 4 * MIB - 4096: b"stack"},
    )


def test_a_core_has_what_the_guest_had(tmp_path: Path) -> None:
    guest = a_guest(reason="abort", status=255, devices=({"name": "net0"},), hypercalls=({"name": "puts"},))
    saved = save_core(guest, directory=str(tmp_path))
    with CoreFile(saved.path) as core:
        assert core.facts() == guest.known
        assert core.where() == Where.ENDED
        assert core.registers()._with(xsave=b"") == guest.state._with(xsave=b"")
        assert core.registers().xsave[:2696] == guest.state.xsave
        assert core.mappings() == list(guest.memory)
        assert core.read(0x2FFFFC, 8) == bytes(4) + b"heap"
        assert core.read(0x100FFE, 100) == b"\xf4\xf4"
        assert core.read(0x101000, 1) == b""
        assert core.read(4 * MIB - 4096, 1 << 40) == b"stack".ljust(4096, b"\0")


def test_a_core_is_as_large_as_memory_and_takes_what_was_touched(tmp_path: Path) -> None:
    saved = save_core(a_guest(), directory=str(tmp_path))
    about = os.stat(saved.path)
    assert (saved.file_bytes, saved.disk_bytes) == (about.st_size, about.st_blocks * 512)
    assert about.st_size == 4 * MIB
    assert saved.disk_bytes <= 64 << 10
    assert stat.S_IMODE(about.st_mode) == 0o600


def test_the_guest_goes_on_before_the_file_is_complete(tmp_path: Path) -> None:
    at_resume: list[list[str]] = []
    saved = save_core(
        a_guest(), directory=str(tmp_path), resume=lambda: at_resume.append(os.listdir(tmp_path))
    )
    assert at_resume == [[]]  # a file without a name: nothing is left of it if the writer is killed
    assert os.listdir(tmp_path) == [os.path.basename(saved.path)]


@pytest.fixture
def named_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without files that have no name."""
    monkeypatch.setattr("tender.debug.core._Part._open_unnamed", lambda _: -1)


@pytest.mark.usefixtures("named_parts")
def test_without_unnamed_files_a_killed_writer_leaves_a_file_that_the_next_one_removes(
    tmp_path: Path,
) -> None:
    child = os.fork()
    if not child:
        save_core(a_guest(), directory=str(tmp_path), resume=lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".part")
    seen: list[str] = []
    inner: list[str] = []

    def while_it_is_written() -> None:
        seen.extend(os.listdir(tmp_path))
        inner.append(os.path.basename(save_core(a_guest(), directory=str(tmp_path)).path))
        assert seen[0] in os.listdir(tmp_path)  # the file of a live writer stays

    saved = save_core(a_guest(), directory=str(tmp_path), resume=while_it_is_written)
    assert len(seen) == 1 and seen != [left]
    assert sorted(os.listdir(tmp_path)) == sorted([*inner, os.path.basename(saved.path)])


@pytest.mark.usefixtures("named_parts")
@pytest.mark.parametrize("links", [True, False])
def test_a_file_with_a_temporary_name_is_published_under_a_free_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    save_core(a_guest(), path=str(tmp_path / "core"))
    with pytest.raises(DebugError) as refused:
        save_core(a_guest(), path=str(tmp_path / "core"))
    assert refused.value.errno == errno.EEXIST
    assert os.listdir(tmp_path) == ["core"]


@pytest.mark.parametrize(
    ("place", "number", "hint"),
    [
        ("absent", errno.ENOENT, "make the directory first: mkdir -p "),
        ("file", errno.ENOTDIR, "a directory is needed there"),
    ],
)
def test_a_directory_that_is_none_is_refused_with_a_way_out(
    tmp_path: Path, place: str, number: int, hint: str
) -> None:
    (tmp_path / "file").touch()
    for refuse in (check_directory, lambda it: save_core(a_guest(), directory=it)):
        with pytest.raises(DebugError) as refused:
            refuse(str(tmp_path / place))
        assert refused.value.errno == number
        assert refused.value.hint.startswith(hint)
    assert os.listdir(tmp_path) == ["file"]


def test_a_fault_that_the_guest_handled_is_thread_1(tmp_path: Path) -> None:
    fault = {"rip": 0x100800, "rsp": 0x3FFF00, "rflags": 0x202, "cr2": 8}
    saved = save_core(a_guest(reason="abort", fault=fault), directory=str(tmp_path))
    with CoreFile(saved.path) as core:
        assert (core.fault_registers().rip, core.fault_registers().rsp) == (0x100800, 0x3FFF00)
        assert core.registers().rip == 0x100000
        assert core.signal == 11


def test_tns1_is_the_native_cores_structure() -> None:
    state = ffi.new("struct cpu_state *")
    segments = [SEGMENT.pack(i, 2, 3 + i, 4, 5, 6, 7, 8, 9, 10, 11, 12) for i in range(8)]
    tables = [TABLE.pack(21, 22), TABLE.pack(23, 24)]
    parts = CpuParts(
        system=b"".join((*segments, *tables, CONTROL.pack(*range(31, 38)))),
        msrs=struct.pack("<9Q", *range(41, 50)),
        debug=struct.pack("<6Q", *range(51, 57)),
    )
    note = form.cpu_note(
        Registers(rax=1, rcx=2, r15=3, rip=4, rflags=0x202, xsave=b"\x7f\x03".ljust(2696, b"\1")), parts
    )
    assert struct.unpack_from("<II", note) == (1, ffi.sizeof("struct cpu_state"))
    ffi.buffer(state)[:] = note[8:]
    assert state.known == lib.CPU_ALL
    assert list(state.general.gpr) == [1, 2, *[0] * 13, 3]
    assert (state.general.rip, state.general.rflags) == (4, 0x202)
    assert bytes(state.fpu.xsave)[:3] == b"\x7f\x03\1"
    last = state.system.ldtr
    assert (last.base, last.limit, last.selector, last.type, last.unusable) == (7, 2, 10, 4, 12)
    assert (state.system.gdtr.base, state.system.idtr.limit) == (21, 24)
    assert (state.system.cr0, state.system.cr3, state.system.apic_base) == (31, 33, 37)
    assert (state.msrs.sysenter_cs, state.msrs.kernel_gs_base, state.msrs.tsc_aux) == (41, 48, 49)
    assert (list(state.debug.dr), state.debug.dr7) == ([51, 52, 53, 54], 56)
    assert form.unpack_cpu_note(note)[1] == parts
    assert parts.control()["cr8"] == 35
    assert parts.selectors() == tuple(range(3, 11))


def test_an_unfinished_hypercall_is_read_back(tmp_path: Path) -> None:
    guest = a_guest()
    guest.call = Unfinished(3, "poll", 0x3FFF00, b"\1" * 48, 5, 6, 1_000_000, exact=True)
    saved = save_core(guest, directory=str(tmp_path))
    with CoreFile(saved.path) as core:
        assert core.unfinished() == guest.call


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"number": -1},
        {"gpa": 1 << 64},
        {"gpa": True},
        {"time_left_ns": "soon"},
        {"name": 7},
        {"structure": "zz"},
        {"structure": "00" * 49},
    ],
    ids=str,
)
def test_a_forged_unfinished_hypercall_is_none(changed: dict[str, object]) -> None:
    whole = form.resume_note(Unfinished(3, "poll", 0x3FFF00, bytes(48)))
    assert form.unfinished_of_note(whole) is not None
    assert form.unfinished_of_note(whole | changed) is None


@pytest.mark.parametrize(
    ("xcr0", "size", "amd", "cut_to", "mask"),
    [
        (0x3, 576, False, 576, 3),
        (0x7, 832, False, 832, 7),
        (0x2E7, 2696, False, 2688, 0xE7),
        (0x602E7, 11008, False, 2688, 0xE7),
        (0x2E7, 2440, True, 2688, 0xE7),
        (0x7, 4096, True, 832, 7),
        (0xE7, 900, False, 832, 7),
    ],
)
def test_xstate_has_a_size_that_gdb_knows(xcr0: int, size: int, amd: bool, cut_to: int, mask: int) -> None:
    xsave = bytearray(size)
    xsave[464:472] = xsave[512:520] = xcr0.to_bytes(8, "little")
    state = form.xstate_for_gdb(bytes(xsave), amd=amd)
    assert len(state) == cut_to
    assert int.from_bytes(state[464:472], "little") == int.from_bytes(state[512:520], "little") == mask


def test_amds_places_of_avx512_become_intels() -> None:
    xsave = bytearray(2440)
    xsave[464:472] = (0x2E7).to_bytes(8, "little")
    xsave[832:840], xsave[896:904], xsave[1408:1416] = b"opmask..", b"upper...", b"zmm16..."
    state = form.xstate_for_gdb(bytes(xsave), amd=True)
    assert (state[1088:1096], state[1152:1160], state[1664:1672]) == (b"opmask..", b"upper...", b"zmm16...")


# ---- the directory


def test_only_the_newest_cores_are_kept(tmp_path: Path) -> None:
    others = ["core.1234", "core.app.elf.1.20200101T000000.zst", "notes"]
    for name in others:
        (tmp_path / name).touch()
    for i in range(5):
        (tmp_path / f"core.app.elf.{i}.2020010{i + 1}T000000").touch()
    saved = save_core(a_guest(), directory=str(tmp_path), keep=3)
    kept = {
        *others,
        "core.app.elf.4.20200105T000000",
        "core.app.elf.3.20200104T000000",
        os.path.basename(saved.path),
    }
    assert set(os.listdir(tmp_path)) == kept


def test_two_cores_of_one_second_have_two_names(tmp_path: Path) -> None:
    paths = {save_core(a_guest(), directory=str(tmp_path)).path for _ in range(3)}
    assert len(paths) == 3
    assert set(os.listdir(tmp_path)) == {os.path.basename(path) for path in paths}


def test_a_hostile_image_name_stays_in_the_directory(tmp_path: Path) -> None:
    guest = a_guest()
    guest.known = Facts(image="/tmp/../x\n\udcff;rm", pid=-5)
    saved = save_core(guest, directory=str(tmp_path))
    assert os.path.basename(saved.path).startswith("core.x___rm.0.")


def taken(folder: Path) -> str:
    (folder / "core").write_text("precious")
    return str(folder / "core")


def link(folder: Path) -> str:
    (folder / "core").symlink_to(folder / "victim")
    return str(folder / "core")


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (taken, errno.EEXIST),
        (link, errno.EEXIST),
        (lambda folder: str(folder / "gone" / "core"), errno.ENOENT),
        (lambda folder: str(folder / "a\0b"), errno.EINVAL),
        (lambda folder: str(folder / ("x" * 300)), errno.ENAMETOOLONG),
    ],
    ids=["taken", "symlink", "no-directory", "zero-byte", "long"],
)
def test_a_name_that_cannot_be_had_leaves_no_file(
    tmp_path: Path, make: Callable[[Path], str], number: int
) -> None:
    path = make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DebugError) as refused:
        save_core(a_guest(), path=path)
    assert refused.value.errno == number
    assert sorted(os.listdir(tmp_path)) == before
    assert not (tmp_path / "victim").exists()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    with file_size_limit(1 << 20), pytest.raises(DebugError, match="File too large") as refused:
        save_core(a_guest(), directory=str(tmp_path))
    assert refused.value.hint
    assert os.listdir(tmp_path) == []


def test_a_directory_that_vanishes_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "cores"
    folder.mkdir()

    def remove() -> None:
        for name in os.listdir(folder):
            (folder / name).unlink()
        folder.rmdir()

    with pytest.raises(DebugError, match="No such file"):
        save_core(a_guest(), directory=str(folder), resume=remove)


def test_a_directory_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    check_directory(str(tmp_path))
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(DebugError, match="Not a directory"):
        check_directory(str(tmp_path / "file"))


# ---- the reader


def test_other_files_are_refused_with_their_name(tmp_path: Path) -> None:
    whole = Path(save_core(a_guest(), directory=str(tmp_path)).path)
    files = {
        "empty": (b"", "too short"),
        "text": (b"hello" * 100, "not an ELF file"),
        "cut": (whole.read_bytes()[:-5000], "cut short"),
        "short": (whole.read_bytes()[:5000], "notes"),
    }
    (tmp_path / "fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "fifo")
    refused = {"fifo": "not a regular file", "missing": "No such file"}
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        refused[name] = reason
    for name, reason in refused.items():
        with pytest.raises(ImageError) as error:
            CoreFile(str(tmp_path / name))
        assert name in error.value.message and reason in error.value.message


def test_an_executable_and_a_core_of_another_program_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a core"):
        CoreFile(sys.executable)
    alien = tmp_path / "alien"
    notes = form.pack_notes([form.Note("CORE", 1, bytes(336))])
    alien.write_bytes(form.pack_head(notes, []))
    with pytest.raises(ImageError, match="another program"):
        CoreFile(str(alien))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("core")
    guest = a_guest()
    guest.memory = (Mapping(0x10000, 0x12000, 6),)
    guest.pages = {0x11000: b"data"}
    return Path(save_core(guest, directory=str(folder)).path).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "core"


changes = st.lists(
    st.tuples(st.one_of(st.integers(0, 0x200), st.integers(0, 0x4000)), st.binary(min_size=1, max_size=8)),
    max_size=6,
)


@given(changes=changes, length=st.one_of(st.none(), st.integers(0, 0x12000)))
@settings(max_examples=400, deadline=None)
def test_a_changed_core_is_read_or_refused(
    whole: bytes, scratch: Path, changes: list[tuple[int, bytes]], length: int | None
) -> None:
    data = bytearray(whole)
    for at, new in changes:
        data[at : at + len(new)] = new
    scratch.write_bytes(data[:length])
    try:
        with CoreFile(str(scratch)) as core:
            core.facts()
            for start, end in core.touched():
                core.read(start, min(end - start, 4096))
            assert len(core.read(0x10000, 1 << 50)) <= len(data)
    except ImageError as error:
        assert "core" in error.message


@pytest.mark.parametrize("data", [b"[" * 40000, b"{", b"9" * 10000, b'"\xff"', b"null", b"[1,2]"])
def test_a_hostile_note_is_refused_or_left_out(whole: bytes, tmp_path: Path, data: bytes) -> None:
    headers = form.unpack_headers(whole[:0x10000])
    notes = list(form.unpack_notes(whole[headers[0].offset :][: headers[0].file_bytes]))
    changed = [form.Note(it.owner, it.kind, data) if it.kind == form.TNSF else it for it in notes]
    path = tmp_path / "core"
    path.write_bytes(
        form.pack_head(form.pack_notes(changed), [Mapping(0x10000, 0x12000, 6)]).ljust(0x12000, b"\0")
    )
    try:
        assert CoreFile(str(path)).facts().reason == "live"
    except ImageError as error:
        assert str(path) in error.message


def test_readelf_reads_a_core_without_a_warning(tmp_path: Path) -> None:
    saved = save_core(a_guest(), directory=str(tmp_path))
    done = subprocess.run(["readelf", "-hlnW", saved.path], capture_output=True, text=True, check=True)
    assert "CORE (Core file)" in done.stdout
    assert done.stdout.count("NT_PRSTATUS") == 1
    assert done.stderr == ""
