"""The parts of kvmbox that need no KVM, no QEMU and no root: formats, order, messages."""

import gzip
import lzma
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kvmbox"
sys.path.insert(0, str(TOOL))

from kvmbox_lib import bochs, cli, disc, initramfs, kernel, machine, tsc  # noqa: E402
from kvmbox_lib.cache import KEPT, Cache  # noqa: E402
from kvmbox_lib.channel import FRAME_MAX, HEADER, Decoder, Kind, encode, fields  # noqa: E402
from kvmbox_lib.errors import Interrupted, KvmboxError  # noqa: E402
from kvmbox_lib.signals import Signals  # noqa: E402
from kvmbox_lib.snapshot import copy_sparse  # noqa: E402

# ---------------------------------------------------------------- cpio


def archive_entries(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yields name, mode and data of each entry of a newc archive, up to its trailer."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        data_at = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert (data_at + size) == len(archive)
            return
        yield name[:-1].decode(), mode, archive[data_at : data_at + size]
        at = (data_at + size + 3) & ~3


def test_an_archive_contains_what_was_written() -> None:
    entries = [
        initramfs.Entry("dev", initramfs.DIRECTORY),
        initramfs.Entry("init", initramfs.PROGRAM, b"x" * 5),
        initramfs.Entry("modules/order", initramfs.FILE, b"kvm\n"),
    ]

    found = list(archive_entries(initramfs.cpio(entries)))

    assert found == [
        ("dev", 0o40755, b""),
        ("init", 0o100755, b"xxxxx"),
        ("modules/order", 0o100644, b"kvm\n"),
    ]


# ---------------------------------------------------------------- modules

SIGNATURE = b"s" * 71 + struct.pack(">8xI", 71) + b"~Module signature appended~\n"


def fake_module(depends: str = "") -> bytes:
    return b"\x7fELF\0.BTF\0name=x\0depends=" + depends.encode() + b"\0vermagic=6\0"


@pytest.fixture
def kernel_root(tmp_path: Path) -> Path:
    """An unpacked package: kvm-amd needs kvm and ccp, kvm needs irqbypass; overlay is built into the
    kernel."""
    modules = tmp_path / "lib/modules/6.0-test"
    (modules / "kernel/virt").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.0-test").write_bytes(b"")
    for name, depends in {
        "kvm-amd": "kvm,ccp",
        "kvm": "irqbypass",
        "irqbypass": "",
        "ccp": "",
        "tun": "",
    }.items():
        (modules / f"kernel/virt/{name}.ko").write_bytes(fake_module(depends) + SIGNATURE)
    return tmp_path


def test_modules_come_after_their_dependencies(kernel_root: Path) -> None:
    modules = kernel.Kernel(kernel_root).modules(["kvm-amd", "tun"])

    assert [name for name, _ in modules] == ["irqbypass", "kvm", "ccp", "kvm_amd", "tun"]


def test_a_built_in_module_is_left_out(kernel_root: Path) -> None:
    assert kernel.Kernel(kernel_root).modules(["overlay"]) == []


def test_a_kernel_may_be_next_to_its_modules(kernel_root: Path) -> None:
    """Debian 14 has this layout."""
    image = kernel_root / "lib/modules/6.0-test/vmlinuz"
    (kernel_root / "boot/vmlinuz-6.0-test").rename(image)
    assert kernel.Kernel(kernel_root).image == image


def test_a_kernel_may_consist_of_several_packages() -> None:
    one = "linux-image-6.12.1-cloud-amd64\n  Depends: kmod\n  Depends: linux-base\n"
    assert kernel.parts("linux-image-6.12.1-cloud-amd64", one) == ["linux-image-6.12.1-cloud-amd64"]
    more = "".join(
        f"  Depends: linux-{kind}-7.2.12+deb14-cloud-amd64\n" for kind in ("base", "binary", "modules")
    )
    assert kernel.parts("linux-image-7.2.12+deb14-cloud-amd64", more) == [
        f"linux-{kind}-7.2.12+deb14-cloud-amd64" for kind in ("image", "base", "binary", "modules")
    ]


def test_a_missing_module_is_named(kernel_root: Path) -> None:
    with pytest.raises(KvmboxError, match=r"6\.0-test has no module virtiofs"):
        kernel.Kernel(kernel_root).modules(["virtiofs"])


def test_compressed_modules_are_unpacked(kernel_root: Path) -> None:
    virt = kernel_root / "lib/modules/6.0-test/kernel/virt"
    for name, pack, suffix in (("tun", lzma.compress, "xz"), ("ccp", gzip.compress, "gz")):
        (virt / f"{name}.ko.{suffix}").write_bytes(pack((virt / f"{name}.ko").read_bytes()))
        (virt / f"{name}.ko").unlink()

    modules = dict(kernel.Kernel(kernel_root).modules(["tun", "ccp"]))

    assert modules["tun"] == modules["ccp"] == fake_module().replace(b".BTF", b".xTF")


def test_the_signature_is_removed_and_btf_is_hidden() -> None:
    assert kernel.trimmed(fake_module("kvm") + SIGNATURE) == fake_module("kvm").replace(b".BTF", b".xTF")


def test_a_directory_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvmboxError, match="not an unpacked kernel package"):
        kernel.Kernel(tmp_path)


# ---------------------------------------------------------------- bzImage

ELF = b"\x7fELF" + bytes(range(256)) * 40


def bz_image(payload: bytes, setup_sectors: int = 3) -> bytes:
    """Returns a kernel image whose protected-mode part has 0x300 bytes of code before the payload."""
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0x300, len(payload))
    return bytes(image) + b"c" * 0x300 + payload + b"tail"


@pytest.mark.parametrize("payload", [gzip.compress(ELF), lzma.compress(ELF) + struct.pack("<I", len(ELF))])
def test_elf_kernel_is_found_in_the_image(payload: bytes) -> None:
    assert kernel.vmlinux(bz_image(payload)) == ELF


def test_unknown_compression_is_reported_with_its_first_bytes() -> None:
    with pytest.raises(KvmboxError, match=r"unknown way .*425a6839"):
        kernel.vmlinux(bz_image(b"BZh9" + b"x" * 40))


def test_a_file_that_is_not_a_kernel_image_is_refused() -> None:
    with pytest.raises(KvmboxError, match="not a bzImage"):
        kernel.vmlinux(bytes(4096))


# ---------------------------------------------------------------- frames


def test_frames_can_arrive_in_any_pieces() -> None:
    sent = [(Kind.STDOUT, b"a" * 300), (Kind.STDERR, b""), (Kind.EXIT, b"\7\0\0\0")]
    stream = b"".join(encode(kind, payload) for kind, payload in sent)

    decoder, received = Decoder(), []
    for at in range(0, len(stream), 7):
        decoder.feed(stream[at : at + 7])
        while (frame := decoder.take()) is not None:
            received.append(frame)

    assert received == sent


@pytest.mark.parametrize("header", [HEADER.pack(b"?", 0), HEADER.pack(b"O", FRAME_MAX + 1)])
def test_broken_frame_is_refused(header: bytes) -> None:
    decoder = Decoder()
    decoder.feed(header)

    with pytest.raises(KvmboxError, match="broken frame"):
        decoder.take()


def test_a_frame_above_the_limit_is_not_sent() -> None:
    with pytest.raises(KvmboxError, match=str(FRAME_MAX)):
        encode(Kind.JOB, bytes(FRAME_MAX + 1))


def test_a_panic_of_the_test_vms_kernel_ends_the_wait(tmp_path: Path) -> None:
    shape = bochs.BochsShape("intel", 512, ept=True)
    assert "earlyprintk=serial" in shape.kernel_arguments(), "an early panic would not reach the console"
    with (
        pytest.raises(KvmboxError, match="the test VM's kernel panicked") as caught,
        bochs.BochsMachine(shape, tmp_path) as vm,
    ):
        (tmp_path / "console").write_bytes(b"[    0.000000] Linux version\n")
        assert vm._panic() == ""
        (tmp_path / "console").write_bytes(b"\nPANIC: early exception 0x00 IP 10:ffffffff839d3388\n")
        vm.await_boot()
    assert "early exception 0x00" in "".join(caught.value.__notes__)


def test_field_with_nul_is_refused() -> None:
    with pytest.raises(KvmboxError, match="NUL"):
        fields([b"fine", b"not\0fine"])


def test_frame_kinds_and_limit_agree_with_init() -> None:
    source = (TOOL / "init.c").read_text()

    assert "#define FRAME_MAX (8u << 20)" in " ".join(source.split())
    assert FRAME_MAX == 8 << 20
    assert [kind.name for kind in Kind if f"'{kind.value.decode()}'" not in source] == []


# ---------------------------------------------------------------- cache, snapshot


def test_entry_is_made_once(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path / "cache"), []

    def make(place: Path) -> None:
        made.append(place)
        (place / "file").write_text("whole")

    assert cache.entry("boot-1", make) == cache.entry("boot-1", make) == tmp_path / "cache/boot-1"
    assert len(made) == 1
    assert (tmp_path / "cache/boot-1/file").read_text() == "whole"


def test_an_entry_whose_maker_fails_does_not_exist(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / "file").write_text("half")
        raise KvmboxError("no")

    with pytest.raises(KvmboxError, match="no"):
        Cache(tmp_path).entry("boot-1", fail)

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_least_recently_used_entries_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(KEPT["warm"]):
        os.utime(cache.entry(f"warm-{number}", lambda place: None), (number, number))
    cache.entry("warm-0", lambda place: None)

    cache.entry("warm-new", lambda place: None)

    assert {path.name for path in tmp_path.glob("warm-*")} == {"warm-0", "warm-2", "warm-3", "warm-new"}


def test_sparse_copy_keeps_data_and_holes(tmp_path: Path) -> None:
    size = 8 << 20
    source, target = os.memfd_create("source"), os.memfd_create("target")
    for fd in (source, target):
        os.ftruncate(fd, size)
    os.pwrite(source, b"begin", 0)
    os.pwrite(source, bytes(1 << 20), 2 << 20)
    os.pwrite(source, b"end", size - 3)

    copy_sparse(source, target)

    assert os.pread(target, size, 0) == os.pread(source, size, 0)
    assert os.fstat(target).st_blocks * 512 <= 4 << 16
    os.close(source)
    os.close(target)


# ---------------------------------------------------------------- signals


def test_signal_before_the_command_ends_kvmbox() -> None:
    with pytest.raises(Interrupted) as ended, Signals(None):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert ended.value.status == 128 + signal.SIGTERM


def test_time_limit_before_the_command_has_status_124() -> None:
    with pytest.raises(Interrupted) as ended, Signals(0.01):
        time.sleep(10)

    assert ended.value.status == 124


def test_a_signal_during_the_command_is_recorded() -> None:
    with Signals(None) as signals:
        signals.note_only()
        os.kill(os.getpid(), signal.SIGINT)

        assert signals.take() == [signal.SIGINT]
        assert signals.take() == []


# ---------------------------------------------------------------- command lines, messages


def fake_program(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def qemu_line(tmp_path: Path, icount: bool = False) -> str:
    shape = machine.Shape(fake_program(tmp_path / "qemu"), mem_mib=512, smp=2, icount=icount, tsc_mhz=2400)
    files = machine.BootFiles(tmp_path / "vmlinux", tmp_path / "initrd")
    wires = machine.Wires(ram=3, channel=4, monitor=5, console=6, share=None)
    return " ".join(machine.qemu_command(shape, files, wires, incoming=False))


def test_vcpus_take_turns_on_one_thread(tmp_path: Path) -> None:
    line = qemu_line(tmp_path)

    assert "tcg,thread=single" in line
    assert "-smp 2" in line
    assert "-icount" not in line


def test_the_kernel_gets_the_rate_of_its_clock(tmp_path: Path) -> None:
    """On a busy machine the kernel measures a wrong rate."""
    assert "tsc_early_khz=2400000" in qemu_line(tmp_path).split()


def test_the_counters_frequency_is_the_same_in_each_measurement() -> None:
    """A different rate would change the key of a saved VM, which would then not be found again."""
    measured = {tsc.frequency_mhz() for _ in range(3)}
    assert max(measured) - min(measured) <= tsc.STEP_MHZ
    assert 500 <= min(measured) <= max(measured) <= 8000


def test_a_counting_test_vm_counts_instructions(tmp_path: Path) -> None:
    line = qemu_line(tmp_path, icount=True)

    assert "-icount shift=0,sleep=off" in line
    assert "-cpu max,-smap,-erms,-fsrm" in line


# The beginning of each help text: virtiofsd of QEMU 7.2, in C, and 1.13, in Rust.
C_HELP = "usage: {} [options]\n    --fd=FDNUM\n    -o source=PATH\n"
RUST_HELP = "Launch a virtiofsd backend.\n\nOptions:\n      --shared-dir <SHARED_DIR>\n      --fd <FD>\n"


@pytest.mark.parametrize("place", range(len(machine.VIRTIOFSDS)))
@pytest.mark.parametrize(
    ("says", "option"), [(C_HELP, "no_posix_lock"), (RUST_HELP, "--no-announce-submounts")]
)
def test_virtiofsd_gets_its_own_options_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, says: str, option: str
) -> None:
    """In Debian 13 this path is a link to the version in Rust; in Debian 12 it is the version in C."""
    program = tmp_path / "virtiofsd"
    program.write_text(f"#!/bin/sh\n[ $1 = --help ] && printf '{says.format(program)}'\n")
    program.chmod(0o755)
    names = [str(tmp_path / "none"), "/none/none", "none-of-path"]
    names[place] = str(program)
    monkeypatch.setattr(machine, "VIRTIOFSDS", tuple(names))

    command = machine.virtiofsd_command(7)

    assert command[:2] == [str(program), "--fd=7"]
    assert option in " ".join(command)
    assert ("--shared-dir=/" in command) == (says == RUST_HELP)


def test_a_missing_virtiofsd_is_reported_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "VIRTIOFSDS", ("/none/none",))

    with pytest.raises(KvmboxError, match=r"apt-get install virtiofsd \(Debian 12: qemu-system-common\)"):
        machine.virtiofsd_command(7)


@pytest.mark.parametrize(
    ("words", "cpus"),
    [
        ([], 2),
        (["--smp", "1"], 1),
        (["--smp", "4"], 4),
        (["--icount"], 1),
        (["--icount", "--smp", "2"], 2),
        (["--cpu", "amd"], 2),
        (["--cpu", "intel"], 1),
    ],
)
def test_the_test_vm_has_two_processors_by_default(words: list[str], cpus: int) -> None:
    assert cli._parse(["run", *words, "--", "true"]).smp == cpus


# ---------------------------------------------------------------- the Intel test VM


@pytest.mark.parametrize("ept", [True, False])
def test_the_intel_test_vm_gets_its_channel_its_disc_and_its_paging(tmp_path: Path, ept: bool) -> None:
    shape = bochs.BochsShape(cpu="intel", mem_mib=512, ept=ept)
    source = (TOOL / "init.c").read_text()

    variables = dict(word.split("=", 1) for word in shape.kernel_arguments().split() if "KVMBOX_" in word)
    written = bochs.configuration(shape, tmp_path / "disc", tmp_path, "/dev/pts/77")

    assert variables["KVMBOX_KVM_INTEL"] == f"ept={int(ept)}"
    assert [name for name in variables if f'getenv("{name}")' not in source] == []
    assert "cpu: model=corei7_skylake_x, count=1" in written
    assert "memory: guest=512, host=512" in written
    assert "com2: enabled=1, mode=term, dev=/dev/pts/77" in written
    assert f"path={tmp_path}/disc, status=inserted" in written


def test_the_disc_contains_each_link_on_the_path_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "real/lib").mkdir(parents=True)
    (tmp_path / "real/lib/file").write_text("x")
    (tmp_path / "place").symlink_to("real")
    (tmp_path / "real/alias").symlink_to("lib/file")

    found = disc.with_links(tmp_path / "place/alias")

    assert found == [tmp_path / "place", tmp_path / "real/alias", tmp_path / "real/lib/file"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(KvmboxError, match="too many symbolic links"):
        disc.with_links(tmp_path / "a")


def test_the_disc_contains_libraries_and_targets_of_links_out_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "dir/out").symlink_to("../elsewhere")
    (tmp_path / "dir/program").symlink_to(os.path.realpath("/bin/sh"))

    found = disc.contents([tmp_path / "dir", Path("/bin/sh")])

    assert tmp_path / "dir" in found
    assert tmp_path / "elsewhere" in found
    assert tmp_path / "dir/out" not in found  # it is part of the directory
    assert Path(os.path.realpath("/bin/sh")) in found
    assert [path.name for path in found if path.name.startswith("libc.so")]


def test_a_missing_file_for_the_disc_is_named(tmp_path: Path) -> None:
    with pytest.raises(KvmboxError, match=f"{tmp_path}/none: no such file or directory"):
        disc.contents([tmp_path / "none"])


def test_programs_that_are_left_out_add_no_libraries(tmp_path: Path) -> None:
    (tmp_path / "dir/large").mkdir(parents=True)
    shell = Path(os.path.realpath("/bin/sh"))
    for place in ("dir", "dir/large"):
        (tmp_path / place / "program").write_bytes(shell.read_bytes())
        (tmp_path / place / "program").chmod(0o755)

    with_it = disc.contents([tmp_path / "dir/large"])
    without = disc.contents([tmp_path / "dir"], [tmp_path / "dir/large", tmp_path / "dir/program"])

    assert len(with_it) > 1
    assert without == [tmp_path / "dir"]


def test_missing_programs_of_the_intel_test_vm_are_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bochs, "FILES", {tmp_path / "bios": "bochsbios", tmp_path / "vga": "vgabios"})

    with pytest.raises(KvmboxError) as refused:
        bochs.require_programs()

    assert str(refused.value) == (
        "programs are missing: apt-get install bochs xorriso gcc libc6-dev zstd bochsbios vgabios"
    )


def run_tool(*arguments: str, path: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": path, "KVMBOX_CACHE": str(cache), "HOME": str(cache)}
    command = [sys.executable, str(TOOL / "kvmbox"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_missing_programs_are_named_as_packages_in_one_message(tmp_path: Path) -> None:
    done = run_tool("run", "--", "true", path=str(tmp_path), cache=tmp_path)

    assert done.returncode == 125
    assert done.stderr == (
        "kvmbox: programs are missing: apt-get install qemu-system-x86 gcc libc6-dev zstd\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "no command: kvmbox run [options] -- CMD..."),
        (["run", "true"], "unrecognized arguments: true"),
        (["run", "--no-such-option", "--", "true"], "unrecognized arguments: --no-such-option"),
        (["run", "--mem", "20", "--", "true"], "--mem 20: the test VM does not boot with less than 256 MiB"),
        (["run", "--smp", "0", "--", "true"], "--smp 0: the test VM has at least one CPU"),
        (["run", "--cpu", "via", "--", "true"], "invalid choice: 'via'"),
        (["run", "--cpu", "intel", "--smp", "2", "--", "true"], "--smp 2: the Intel test VM has one CPU"),
        (
            ["run", "--cpu", "intel", "--icount", "--", "true"],
            "--icount: not possible with --cpu intel",
        ),
        (["run", "--cpu", "intel", "--rw", "/", "--", "true"], "--rw: not possible with --cpu intel"),
        (["run", "--with", "/etc", "--", "true"], "--with: only with --cpu intel"),
        (["run", "--without", "/etc", "--", "true"], "--without: only with --cpu intel"),
        (["run", "--ept", "0", "--", "true"], "--ept 0: only with --cpu intel"),
    ],
)
def test_wrong_use_is_a_failure_of_kvmbox(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_tool(*arguments, path=str(tmp_path), cache=tmp_path)

    assert done.returncode == 125
    assert message in done.stderr


def test_a_package_that_apt_does_not_know_is_reported(tmp_path: Path) -> None:
    for program in ("apt-cache", "apt-get"):
        fake_program(tmp_path / program)

    done = run_tool("fetch", "linux-image-none", path=f"{tmp_path}:/bin", cache=tmp_path / "cache")

    assert done.returncode == 125
    assert "apt knows no package linux-image-none" in done.stderr
    assert "apt-get update" in done.stderr


def test_a_metapackage_is_resolved_and_unpacked(tmp_path: Path) -> None:
    programs = {
        "apt-cache": 'echo "linux-image-meta"; echo "  Depends: linux-image-6.0-9-test"',
        "apt-get": 'for last; do :; done; echo "$last" >"$last.deb"',
        "dpkg-deb": 'mkdir "$3/boot"; cp "$2" "$3/boot/package"',
    }
    for name, script in programs.items():
        fake_program(tmp_path / name)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")

    done = run_tool("fetch", "linux-image-meta", path=f"{tmp_path}:/bin", cache=tmp_path / "cache")

    assert done.stdout == f"{tmp_path}/cache/kernel-6.0-9-test\n"
    assert (tmp_path / "cache/kernel-6.0-9-test/boot/package").read_text() == "linux-image-6.0-9-test\n"


def test_init_compiles_without_a_warning(tmp_path: Path) -> None:
    flags = ["-std=c11", "-Os", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only"]

    done = subprocess.run(["cc", *flags, str(TOOL / "init.c")], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
