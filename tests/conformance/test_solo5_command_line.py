"""solo5-hvt's command line: one test for each row of what it accepts, of what it refuses with which
message, and of how it ends.

Messages are compared as a whole, because launchers and scripts compare them. differential.py shows that
they are solo5-hvt's.
"""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Guest, TapInterface

pytestmark = pytest.mark.backends

Done = subprocess.CompletedProcess[str]
Solo5 = Callable[..., Done]
Front = Callable[[str], str]

USAGE = "usage: solo5-hvt [ CORE OPTIONS ] [ MODULE OPTIONS ] [ -- ] KERNEL [ ARGS ]"


@pytest.fixture
def sockets() -> Iterator[list[int]]:
    """Two descriptors that carry frames; the command inherits them."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    yield [pair[1].fileno() for pair in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def refused(done: Done, *said: str, usage: bool = False) -> None:
    """Asserts that the command could not start: status 1, these lines, each with the name before it, and
    then the usage or nothing."""
    lines = done.stderr.splitlines()
    assert lines[: len(said)] == [f"solo5-hvt: {line}" for line in said]
    assert lines[len(said) : len(said) + 1] == ([USAGE] if usage else [])
    assert (done.returncode, done.stdout) == (1, "")


def invalid(done: Done, option: str, *before: str) -> None:
    refused(done, *before, f"Invalid option: `{option}'", usage=True)


# ---- the name


@pytest.mark.parametrize("name", ["solo5-hvt", "solo5-hvt.2", "solo5-spt"])
def test_diagnostics_begin_with_the_commands_name(front: Front, name: str) -> None:
    done = subprocess.run([front(name), "absent"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"{name}: absent: Could not open: No such file or directory\n",
    )


@pytest.mark.parametrize("name", ["solo5-hvt", "solo5-hvt.2", "solo5-spt"])
def test_tender_takes_the_name_as_its_first_word(tender_cmd: list[str], name: str) -> None:
    done = subprocess.run(
        [*tender_cmd, name, "absent"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"{name}: absent: Could not open: No such file or directory\n",
    )


# ---- the options that it accepts


@pytest.mark.parametrize(
    ("text", "mib"),
    [("8", 8), ("32M", 32), (" 8", 8), ("+8", 8), ("8.9", 8), ("8 16", 8), ("16MB", 16), ("0010", 10)],
)
def test_mem_is_a_decimal_prefix_in_mebibytes(solo5: Solo5, guest: Guest, text: str, mib: int) -> None:
    assert f"memory: {mib} MiB" in solo5(f"--mem={text}", guest("hello")).stdout


def test_mem_is_512_by_default(solo5: Solo5, guest: Guest) -> None:
    assert "memory: 512 MiB" in solo5(guest("hello")).stdout


@pytest.mark.parametrize("text", ["", "0", "-0", "x", "M8", "0x10", "- 8", "17592186044416"])
def test_mem_without_a_positive_number_is_malformed(solo5: Solo5, guest: Guest, text: str) -> None:
    refused(solo5(f"--mem={text}", guest("hello")), "Malformed argument to --mem")


def test_the_last_mem_counts(solo5: Solo5, guest: Guest) -> None:
    assert "memory: 8 MiB" in solo5("--mem=64", "--mem=8", guest("hello")).stdout


@pytest.mark.parametrize("words", [["--help"], ["--frob", "--help"], ["--mem=0", "--help", "--version"]])
def test_help_prints_the_usage_on_stderr_with_status_1(solo5: Solo5, words: list[str]) -> None:
    done = solo5(*words, "absent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == USAGE
    for option in ("--mem", "--net:", "--net-mac:", "--block:", "--block-sector-size:", "--version"):
        assert option in done.stderr


@pytest.mark.parametrize(
    "words", [["--version"], ["--frob", "--version"], ["--mem=0", "--version", "--help"]]
)
def test_version_prints_two_lines_on_stderr_with_status_0(solo5: Solo5, words: list[str]) -> None:
    done = solo5(*words)
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"solo5-hvt tender, version \d+\.\d+\.\d+\nABI version 2\n", done.stderr)


@pytest.mark.parametrize("word", ["--help", "--version", "--mem=1", "--frob", "--", "-x"])
def test_words_after_the_kernel_are_passed_to_the_guest(solo5: Solo5, guest: Guest, word: str) -> None:
    assert solo5("--mem=8", guest("args"), word, "", word).stdout.split("\n")[0] == f"<{word}  {word}>"


def test_two_dashes_end_the_options(solo5: Solo5, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "-odd.elf").symlink_to(guest("args"))
    done = solo5("--mem=8", "--", "-odd.elf", "--", "a")
    assert (done.returncode, done.stdout.split("\n")[0]) == (2, "<-- a>")
    refused(solo5("--mem=8", "--", "--version"), "--version: Could not open: No such file or directory")


@pytest.mark.tap
def test_net_attaches_an_interface(solo5: Solo5, guest: Guest, tap: TapInterface) -> None:
    done = solo5(f"--net:service0={tap.name}", "--net-mac:service0=02:00:00:00:00:09", guest("net_tx"))
    assert done.returncode == 0, done.stderr


def test_net_attaches_a_descriptor_with_an_mtu_of_1500(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int]
) -> None:
    done = solo5(*every_device(sockets), guest("nets_and_blocks"), pass_fds=sockets)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^service0 handle 1 net mac \S+ mtu 1500$", done.stdout, re.M)


def every_device(fds: list[int]) -> list[str]:
    """Returns the words that attach the four devices of the guest nets_and_blocks."""
    nets = [f"--net:service{number}=@{fd}" for number, fd in enumerate(fds)]
    return ["--mem=8", *nets, "--block:storage0=disk.img", "--block:storage1=disk1.img"]


def test_net_mac_may_precede_or_follow_its_net(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int]
) -> None:
    done = solo5(
        "--net-mac:service1=2:0:0:0:0:A",
        *every_device(sockets),
        "--net-mac:service0=02:00:00:00:00:0bx",
        guest("nets_and_blocks"),
        pass_fds=sockets,
    )
    assert "service0 handle 1 net mac 02:00:00:00:00:0b mtu" in done.stdout
    assert "service1 handle 3 net mac 02:00:00:00:00:0a mtu" in done.stdout


def test_a_mac_of_zeros_means_a_random_local_mac(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int]
) -> None:
    words = [*every_device(sockets), "--net-mac:service0=0:0:0:0:0:0", guest("nets_and_blocks")]
    seen = [re.findall(r"net mac (\S+)", solo5(*words, pass_fds=sockets).stdout) for _ in range(2)]
    assert all(int(mac[:2], 16) & 3 == 2 for macs in seen for mac in macs)
    assert len({mac for macs in seen for mac in macs}) == 4


def test_block_opens_a_file_for_reading_and_writing(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int]
) -> None:
    done = solo5(*every_device(sockets), guest("nets_and_blocks"), pass_fds=sockets)
    written = [path.read_bytes()[:8] for path in (disk, disk.with_name("disk1.img"))]
    assert (done.returncode, written) == (0, [b"storage0", b"storage1"])


def test_block_uses_the_whole_value_as_the_path(solo5: Solo5, guest: Guest, disk: Path) -> None:
    for name in ("a disk.img", "disk.img:ro", "a=b"):
        (disk.parent / name).symlink_to(disk)
        assert solo5("--mem=8", f"--block:storage={name}", guest("disk")).returncode == 0, name


def test_block_attaches_a_descriptor(solo5: Solo5, guest: Guest, disk: Path) -> None:
    with open(disk, "r+b") as file:
        done = solo5("--mem=8", f"--block:storage=@{file.fileno()}", guest("disk"), pass_fds=[file.fileno()])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("4096", 4096), ("32768", 32768), ("1024k", 1024)])
def test_the_guest_sees_the_block_sector_size(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int], text: str, size: int
) -> None:
    words = [f"--block-sector-size:storage0={text}", *every_device(sockets)]
    done = solo5(*words, guest("nets_and_blocks"), pass_fds=sockets)
    assert f"storage0 handle 2 block capacity 65536 block_size {size}\n" in done.stdout
    assert "storage1 handle 4 block capacity 65536 block_size 512\n" in done.stdout


def test_the_last_attachment_of_a_device_counts(solo5: Solo5, guest: Guest, disk: Path) -> None:
    (disk.parent / "first.img").write_bytes(bytes(512))
    done = solo5("--mem=8", "--block:storage=first.img", "--block:storage=disk.img", guest("disk"))
    assert done.returncode == 0, done.stderr
    assert (disk.parent / "first.img").read_bytes() == bytes(512)


def test_no_net_ring_is_accepted(solo5: Solo5, guest: Guest) -> None:
    assert solo5("--no-net-ring", "--mem=8", guest("exit_status"), "5").returncode == 5


@pytest.mark.parametrize(
    "word",
    [
        *(
            "-",
            "-h",
            "-q",
            "--mem",
            "--help=1",
            "--no-net-ring=1",
            "--net-reattach=1",
            "--frob",
            "--gdb",
            "--json",
        ),
        *("--net=tap0", "--block", "--block=disk.img", "--timeout=1", "--mem:a=1", "--net:service0"),
    ],
)
def test_an_unknown_option_is_invalid(solo5: Solo5, guest: Guest, word: str) -> None:
    invalid(solo5("--mem=8", word, guest("args")), word)


@pytest.mark.parametrize("name", ["", "a-b", "a b", "ä", "n" * 68])
@pytest.mark.parametrize("option", ["--net", "--net-mac", "--block", "--block-sector-size"])
def test_a_device_name_has_1_to_67_letters_and_digits(
    solo5: Solo5, guest: Guest, option: str, name: str
) -> None:
    word = f"{option}:{name}=512"
    invalid(solo5(word, guest("args")), word)


@pytest.mark.parametrize(
    "word",
    [
        *(
            "--net:service0=",
            "--block:storage0=",
            "--block-sector-size:storage0=",
            "--block-sector-size:storage0=k",
        ),
        *("--net-mac:service0=", "--net-mac:service0=1:2:3:4:5", "--net-mac:service0=1:2:3:4:5:"),
        *("--net-mac:service0=001:2:3:4:5:6", "--net-mac:service0=g:2:3:4:5:6"),
    ],
)
def test_a_value_that_cannot_be_read_is_an_invalid_option(solo5: Solo5, guest: Guest, word: str) -> None:
    invalid(solo5(word, guest("nets_and_blocks")), word)


# ---- what it refuses, and with which message


@pytest.mark.parametrize("words", [[], ["--"], ["--mem=8"], ["--frob", "--mem=0"]])
def test_no_kernel(solo5: Solo5, words: list[str]) -> None:
    refused(solo5(*words), "Missing KERNEL operand", usage=True)


def test_cannot_open_kernel(solo5: Solo5) -> None:
    refused(solo5("no/such"), "no/such: Could not open: No such file or directory")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("--net:nosuch=nosuchtap", "nosuch"),
        ("--net:storage0=nosuchtap", "storage0"),
        ("--net-mac:storage0=2:0:0:0:0:1", "storage0"),
        ("--block:service0=nosuch.img", "service0"),
        ("--block-sector-size:service0=512", "service0"),
        (f"--net:{'n' * 67}=nosuchtap", "n" * 67),
    ],
)
def test_name_not_in_manifest_or_wrong_type(solo5: Solo5, guest: Guest, word: str, name: str) -> None:
    done = solo5(word, guest("nets_and_blocks"))
    invalid(done, word, f"Resource not declared in manifest: '{name}'")


@pytest.mark.parametrize(
    ("iface", "shown", "reason"),
    [
        ("nosuchtap", "nosuchtap", "No such file or directory"),
        ("nosuch tap", "nosuch", "No such file or directory"),
        ("abcdefghijklmno", "abcdefghijklmno", "No such file or directory"),
        ("abcdefghijklmnop", "abcdefghijklmnop", "File name too long"),
        ("abcdefghijklmnopqrstuvw", "abcdefghijklmnopqrs", "File name too long"),
        ("@", "@", "Invalid argument"),
        ("@x", "@x", "Invalid argument"),
        ("@-1", "@-1", "Numerical result out of range"),
        ("@4294967296", "@4294967296", "Numerical result out of range"),
        ("@777", "@777", "Bad file descriptor"),
    ],
)
def test_tap_failure(solo5: Solo5, guest: Guest, iface: str, shown: str, reason: str) -> None:
    word = f"--net:service0={iface}"
    invalid(solo5(word, guest("echo")), word, f"Could not attach interface: {shown}: {reason}")


@pytest.mark.tap
def test_tap_that_is_down(solo5: Solo5, guest: Guest, tap: TapInterface) -> None:
    tap.down()
    word = f"--net:service0={tap.name}"
    invalid(solo5(word, guest("echo")), word, f"Could not attach interface: {tap.name}: Network is down")


@pytest.mark.tap
def test_tap_attached_twice_is_busy(solo5: Solo5, guest: Guest, tap: TapInterface) -> None:
    word = f"--net:service0={tap.name}"
    reason = f"Could not attach interface: {tap.name}: Device or resource busy"
    invalid(solo5(word, word, guest("echo")), word, reason)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/such", "No such file or directory"), (".", "Is a directory"), ("@777", "Bad file descriptor")],
)
def test_block_open_failure(solo5: Solo5, guest: Guest, path: str, reason: str) -> None:
    done = solo5(f"--block:storage={path}", guest("disk"))
    refused(done, f"Could not open block device: {path}: {reason}")


@pytest.mark.parametrize("size", ["0", "256", "511", "700", "-512", "65536", "66048", "9" * 5000])
def test_bad_sector_size(solo5: Solo5, guest: Guest, size: str) -> None:
    word = f"--block-sector-size:storage={size}"
    reason = "Block size must be a multiple of 2 greater than or equal 512"
    invalid(solo5(word, guest("disk")), word, reason)


def test_device_declared_not_attached(solo5: Solo5, guest: Guest, disk: Path) -> None:
    refused(
        solo5("--block:storage0=disk.img", "--net-mac:service1=2:0:0:0:0:1", guest("nets_and_blocks")),
        "Device 'service0' of type NET_BASIC declared but not attached.",
        "Device 'service1' of type NET_BASIC declared but not attached.",
        "Device 'storage1' of type BLOCK_BASIC declared but not attached.",
        "All declared devices must be attached. See --help for syntax.",
    )


@pytest.mark.parametrize(("length", "sector"), [(1000, 512), (100, 512), (6144, 4096)])
def test_capacity_not_multiple_of_block_size(
    solo5: Solo5, guest: Guest, tmp_path: Path, length: int, sector: int
) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(length))
    done = solo5("--block:storage=odd.img", f"--block-sector-size:storage={sector}", guest("disk"))
    refused(done, f"storage: Backing storage size must be block aligned ({sector} bytes)")


def test_capacity_smaller_than_one_block(solo5: Solo5, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    done = solo5("--block:storage=empty.img", guest("disk"))
    refused(done, "storage: Backing storage must be at least 1 block (512 bytes) in size")


def test_guest_arguments_too_long(solo5: Solo5, guest: Guest) -> None:
    assert solo5("--mem=8", guest("args"), "x" * 8190, "").stdout.startswith(f"<{'x' * 8190} >")
    refused(
        solo5("--mem=8", guest("args"), "x" * 8190, "", ""),
        "Guest command line too long (max=8191 characters)",
    )


def test_a_wrong_backend_in_the_environment(solo5: Solo5, guest: Guest) -> None:
    done = solo5(guest("args"), env={**os.environ, "TENDER_BACKEND": "xen"})
    refused(done, "Malformed value of TENDER_BACKEND")


# ---- which of two errors is reported


def test_image_errors_come_before_option_errors(solo5: Solo5, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no ELF at all")
    for words in (["--frob"], ["--mem=0"], ["--block:storage=absent.img"]):
        assert solo5(*words, "absent").stderr.startswith("solo5-hvt: absent: Could not open")
        assert solo5(*words, "text").stderr.startswith("solo5-hvt: text: ")


def test_options_are_processed_in_order_and_devices_opened_in_that_order(
    solo5: Solo5, guest: Guest, disk: Path
) -> None:
    image = guest("nets_and_blocks")
    invalid(solo5("--frob", "--mem=0", "--block:storage0=absent.img", image), "--frob")
    refused(solo5("--mem=0", "--frob", image), "Malformed argument to --mem")
    refused(
        solo5("--block:storage0=absent.img", "--frob", "--net:service0=nosuchtap", image),
        "Could not open block device: absent.img: No such file or directory",
    )
    done = solo5("--block:storage0=disk.img", "--net:service0=nosuchtap", "--mem=0", image)
    reason = "Could not attach interface: nosuchtap: No such file or directory"
    invalid(done, "--net:service0=nosuchtap", reason)


def test_disk_sizes_are_checked_before_missing_devices_and_those_before_arguments(
    solo5: Solo5, guest: Guest, tmp_path: Path, disk: Path
) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(1000))
    long, image = "x" * 8192, guest("nets_and_blocks")
    refused(
        solo5("--mem=9", "--block:storage0=odd.img", image, long),
        "adjusting memory to 8388608 bytes",
        "storage0: Backing storage size must be block aligned (512 bytes)",
    )
    done = solo5("--mem=8", "--block:storage0=disk.img", image, long)
    assert "declared but not attached" in done.stderr and "too long" not in done.stderr


# ---- memory


@pytest.mark.parametrize(
    ("asked", "mib"), [("1", 2), ("2", 2), ("3", 2), ("8", 8), ("9", 8), ("4096", 4096), ("4097", 4096)]
)
def test_memory_is_rounded_down_to_2_mebibytes(solo5: Solo5, guest: Guest, asked: str, mib: int) -> None:
    done = solo5(f"--mem={asked}", guest("hello"))
    assert (done.returncode, f"memory: {mib} MiB" in done.stdout) == (0, True)
    said = f"solo5-hvt: adjusting memory to {mib << 20} bytes\n"
    assert done.stderr == ("" if int(asked) == mib else said)


@pytest.mark.parametrize(
    ("asked", "said"), [("4098", 4098 << 20), ("9998", 9998 << 20), ("99999999999999", 99999999999999 << 20)]
)
def test_more_than_4_gibibytes_are_refused(solo5: Solo5, guest: Guest, asked: str, said: int) -> None:
    mem_bytes = (said % (1 << 64)) // (2 << 20) * (2 << 20)
    rounded = [] if mem_bytes == said % (1 << 64) else [f"adjusting memory to {mem_bytes} bytes"]
    refused(
        solo5(f"--mem={asked}", guest("hello")),
        *rounded,
        f"guest memory size {mem_bytes} bytes exceeds the max size 4294967296 bytes",
    )


def test_negative_memory_is_a_huge_amount(solo5: Solo5, guest: Guest) -> None:
    refused(
        solo5("--mem=-1", guest("hello")),
        "adjusting memory to 18446744073707454464 bytes",
        "guest memory size 18446744073707454464 bytes exceeds the max size 4294967296 bytes",
    )


def test_memory_with_a_network_has_the_requested_size(
    solo5: Solo5, guest: Guest, disk: Path, sockets: list[int]
) -> None:
    words = [*every_device(sockets), "--mem=4097", guest("nets_and_blocks")]
    done = solo5(*words, pass_fds=sockets)
    assert (done.returncode, done.stderr) == (0, "solo5-hvt: adjusting memory to 4294967296 bytes\n")


# ---- how a run ends


@pytest.mark.parametrize(
    ("given", "seen"), [("0", 0), ("1", 1), ("2", 2), ("64", 64), ("254", 254), ("255", 255), ("256", 0)]
)
def test_guest_exit(solo5: Solo5, guest: Guest, given: str, seen: int) -> None:
    done = solo5("--mem=8", guest("exit_status"), given)
    assert (done.returncode, done.stderr) == (seen, "")


def test_guest_abort(solo5: Solo5, guest: Guest) -> None:
    done = solo5("--mem=8", guest("panic"))
    assert (done.returncode, done.stderr, "ABORT: " in done.stdout) == (255, "", True)


def test_host_guest_translation_fault(solo5: Solo5, guest: Guest, backend: str) -> None:
    done = solo5("--mem=8", guest("write_text"))
    backend_name = {"kvm": "KVM", "sandbox": "sandbox"}[backend]
    said = rf"solo5-hvt: {backend_name}: host/guest translation fault: rip=0x[0-9a-f]+\n"
    assert re.fullmatch(said, done.stderr), done.stderr
    assert done.returncode == 1


def test_bad_port_and_bad_hypercall(solo5: Solo5, guest: Guest) -> None:
    done = solo5("--mem=8", guest("bad_port"))
    assert done.returncode == 1
    assert re.fullmatch(r"solo5-hvt: Invalid guest port access: port=0x[0-9a-f]+\n", done.stderr)
    done = solo5("--mem=8", guest("bad_hypercall"))
    assert done.returncode == 1
    assert re.fullmatch(r"solo5-hvt: Invalid guest hypercall: num=\d+\n", done.stderr)


def test_unhandled_exit(solo5: Solo5, guest: Guest) -> None:
    done = solo5("--mem=8", guest("triple"))
    assert (done.returncode, "unhandled exit: exit_reason=0x8, rip=0x" in done.stderr) == (1, True)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["spin", "sleep", "flood"])
def test_sigint_and_sigterm(front: Front, guest: Guest, name: str, number: signal.Signals) -> None:
    command = [front("solo5-hvt"), "--mem=8", str(guest(name))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() in ("ready\n", "f" * 63 + "\n")
        process.send_signal(number)
        assert process.stderr.read() == f"solo5-hvt: Exiting on signal {number.value}\n"
        assert process.wait(timeout=120) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL])
def test_other_signals_keep_their_default_action(front: Front, guest: Guest, number: signal.Signals) -> None:
    command = [front("solo5-hvt"), "--mem=8", str(guest("spin"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=120) == -number
        assert process.stdout.read() == ""  # and no process holds the console any more


def test_stdout_has_the_console_and_nothing_else(solo5: Solo5, guest: Guest) -> None:
    done = solo5("--mem=9", guest("args"), "a")
    assert (done.stdout, done.stderr) == ("<a>\n0: a\n", "solo5-hvt: adjusting memory to 8388608 bytes\n")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_descriptors_harm_neither_the_guest_nor_a_disk(
    solo5: Solo5, front: Front, guest: Guest, disk: Path, closed: str
) -> None:
    """If descriptor 1 is free, the next file that is opened gets its number, and console output would be
    written into that file."""
    words = ["--mem=8", f"--block:storage={disk}", str(guest("disk"))]
    assert solo5(*words).returncode == 0
    before = disk.read_bytes()
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', front("solo5-hvt"), *words, "--verify"]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True)
    assert done.returncode == 0
    assert (b"disk: " in done.stdout) == ("1>&-" not in closed)
    assert disk.read_bytes() == before
