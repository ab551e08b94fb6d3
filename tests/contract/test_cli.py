"""The command `tender` as a user runs it: real processes, each backend, the guests of tests/guests."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support import Guest

from tender.cli.option_table import OPTIONS

pytestmark = pytest.mark.backends

Done = subprocess.CompletedProcess[str]
Tender = Callable[..., Done]


@pytest.fixture
def tender(tender_cmd: list[str]) -> Tender:
    """A function: tender(WORDS...) runs the command to its end; the command inherits the descriptors in
    `pass_fds`."""

    def run(*words: str | Path, pass_fds: Sequence[int] = (), cwd: Path | None = None) -> Done:
        command = [*tender_cmd, *map(str, words)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            check=False,
            pass_fds=pass_fds,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """A directory with two disks, `a b=c.img` of 1 MiB and `second.img` of 64 KiB."""
    for name, size in (("a b=c.img", 1 << 20), ("second.img", 1 << 16)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    return tmp_path


# ---- the status and the output of a run


def test_stdout_has_the_console_and_nothing_else(tender: Tender, guest: Guest) -> None:
    done = tender("--mem=8", guest("args"), "a")
    assert (done.stdout, done.stderr, done.returncode) == ("<a>\n0: a\n", "", 1)


@pytest.mark.parametrize("launcher", ["native", "python"])
@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["run", "--example", "hello"], []),
        (["--example=hello", "--mem=8", "one", "--two"], ["one", "--two"]),
        (["--mem=8", "--example=hello", "--", "-x"], ["-x"]),
        (["--example=disk", "--example=hello", "x"], ["x"]),
    ],
)
def test_an_example_runs_by_its_name(
    tender: Tender, monkeypatch: pytest.MonkeyPatch, launcher: str, words: list[str], arguments: list[str]
) -> None:
    """All words after the options are passed to the guest."""
    monkeypatch.setenv("TENDER_LAUNCHER", launcher)
    done = tender("-q", *words) if words[0] != "run" else tender("run", "-q", *words[1:])
    shown = "".join(f"  argument {i}: {word}\n" for i, word in enumerate(arguments))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Hello, World\narguments: {len(arguments)}\n{shown}memory: ")


@pytest.mark.parametrize("launcher", ["native", "python"])
def test_a_report_has_the_path_of_an_example_without_links_and_dots(
    tender: Tender, monkeypatch: pytest.MonkeyPatch, launcher: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("TENDER_LAUNCHER", launcher)
    report = tmp_path / "report.json"
    done = tender("-q", f"--json={report}", "--example=hello")
    assert done.returncode == 0, done.stderr
    image = json.loads(report.read_text())["image"]
    assert image.endswith("/guests/hello.elf") and image == os.path.realpath(image)


def test_each_example_is_installed_and_no_other_guest_is(tender: Tender) -> None:
    guests = Path(tender("sdk", "--guests").stdout.strip())
    (option,) = (option for option in OPTIONS if option.name == "--example")
    assert sorted(option.choices) == sorted(path.stem for path in guests.glob("*.elf"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--example=helo"],
            "Malformed argument to --example\ntender: hint: got 'helo': did you mean hello?\n",
        ),
        (["--example=he\udcffllo"], "hint: got 'he\\xffllo': did you mean hello?"),
        (["--mem=\udcff"], "hint: got '\\xff': write MiB"),
        (
            ["--example=../x"],
            "Malformed argument to --example\ntender: hint: got '../x': write --example=hello,",
        ),
        (
            ["--example=echo", "--pings=3"],
            "hint: words for the guest go after --: tender --example=echo -- --pings=3",
        ),
        (["--example"], "Missing argument to --example\ntender: hint: write --example=hello, --example=echo"),
        (["--example", "disk"], "tender: hint: tender --example disk --block:storage=storage.img\n"),
    ],
)
def test_a_wrong_value_is_refused_with_the_way_out(
    tender: Tender, tmp_path: Path, words: list[str], said: str
) -> None:
    done = tender(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize("words", [["run"], [], ["run", "--"], ["--"]])
def test_run_and_two_dashes_may_be_left_out(tender: Tender, guest: Guest, words: list[str]) -> None:
    assert tender(*words, guest("exit_status"), "0").returncode == 0


@pytest.mark.parametrize(
    ("given", "seen"), [("0", 0), ("1", 1), ("60", 60), ("254", 254), ("255", 255), ("256", 0)]
)
def test_the_status_is_the_guests_status(tender: Tender, guest: Guest, given: str, seen: int) -> None:
    assert tender("--mem=8", guest("exit_status"), given).returncode == seen


def test_words_reach_the_guest_untouched(tender: Tender, guest: Guest) -> None:
    words = ["--mem=1", "", "a  b", "", "--", "--help", "ünï", "\udcff\udcfe", "*"]
    done = tender("--mem=8", guest("args"), *words)
    assert done.stdout.split("\n")[0] == f"<{' '.join(words)}>"


def test_the_longest_command_line_passes_and_one_more_byte_does_not(tender: Tender, guest: Guest) -> None:
    assert tender("--mem=8", guest("args"), "x" * 8191).stdout.startswith(f"<{'x' * 8191}>")
    done = tender("--mem=8", guest("args"), "x" * 8192)
    assert (done.returncode, done.stderr) == (
        1,
        "tender: Guest command line too long (max=8191 characters)\n",
    )


def test_rounding_of_memory_is_reported(tender: Tender, guest: Guest) -> None:
    done = tender("--mem=9", guest("exit_status"), "0")
    assert (done.returncode, done.stderr) == (0, "tender: adjusting memory to 8388608 bytes\n")
    assert tender("-q", "--mem=9", guest("exit_status"), "0").stderr == ""


def test_a_guest_that_writes_to_its_text_is_stopped_with_the_contracts_message(
    tender: Tender, guest: Guest, backend: str
) -> None:
    done = tender("--mem=8", guest("write_text"))
    assert done.returncode == 1
    backend_name = {"kvm": "KVM", "sandbox": "sandbox"}[backend]
    assert done.stderr.startswith(f"tender: {backend_name}: host/guest translation fault: rip=0x")


def test_a_panic_prints_the_guests_text_and_ends_with_255(tender: Tender, guest: Guest) -> None:
    done = tender("--mem=8", guest("panic"))
    assert (done.returncode, done.stderr) == (255, "")
    assert "ABORT: net: ring index 1025 past 1024" in done.stdout


def test_a_time_limit_ends_a_guest_that_spins(tender: Tender, guest: Guest) -> None:
    done = tender("--mem=8", "--timeout=4000ms", guest("spin"))
    assert (done.returncode, done.stdout) == (1, "ready\n")
    assert done.stderr == "tender: the guest was stopped: its time limit of 4 s is over\n"


# ---- signals


@pytest.mark.parametrize("limit", [[], ["--timeout=1000"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["spin", "flood"])
def test_a_signal_ends_the_guest(
    tender_cmd: list[str], guest: Guest, name: str, number: signal.Signals, limit: list[str]
) -> None:
    with subprocess.Popen(
        [*tender_cmd, "--mem=8", "--json", *limit, str(guest(name))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() in ("ready\n", "f" * 63 + "\n")
        process.send_signal(
            number
        )  # with `flood` the pipe is full by now, and the guest waits for the pipe's reader
        said = process.stderr.read().splitlines()
        assert process.wait(timeout=120) == 1
    assert said[0] == f"tender: Exiting on signal {number.value}"
    result = json.loads(said[-1])
    assert (result["reason"], result["signal"], result["status"]) == ("signal", number.value, 1)


def test_two_signals_close_together_end_it_without_a_traceback(tender_cmd: list[str], guest: Guest) -> None:
    for _ in range(5):
        with subprocess.Popen(
            [*tender_cmd, "--mem=8", str(guest("spin"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout and process.stderr
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
            assert process.wait(timeout=120) in (1, -signal.SIGINT, -signal.SIGTERM)
        assert "Traceback" not in said and "Exception" not in said, said


def test_a_reader_that_goes_away_does_not_change_the_status(tender_cmd: list[str], guest: Guest) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*tender_cmd, "--mem=8", str(guest("exit_status")), "7"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (7, b"")


# ---- console, --json, --stats


def test_the_console_goes_to_the_given_place(tender: Tender, guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "a console"
    assert tender("--mem=8", f"--console={file}", guest("args")).stdout == ""
    assert file.read_text() == "<>\n"
    assert tender("--mem=8", "--console", "none", guest("args")).stdout == ""
    done = tender("--mem=8", "--console=fd:2", guest("args"))
    assert (done.stdout, done.stderr) == ("", "<>\n")


def test_a_console_that_cannot_be_opened_is_an_error(tender: Tender, guest: Guest, tmp_path: Path) -> None:
    done = tender("--mem=8", f"--console={tmp_path}/absent/x", guest("args"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"tender: console: {tmp_path}/absent/x: No such file or directory\n"
        f"tender: hint: the directory {tmp_path}/absent does not exist\n"
    )
    done = tender("--mem=8", "--console=fd:77", guest("args"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tender: --console=fd:77: Bad file descriptor\n")


@pytest.mark.parametrize("stats", [[], ["--stats"]])
@pytest.mark.parametrize("name", ["exit_status", "triple", "bad_port", "spin"])
def test_json_is_the_last_line_of_stderr(tender: Tender, guest: Guest, name: str, stats: list[str]) -> None:
    """It comes after messages, hints and counters."""
    done = tender("--mem=8", "--json", *stats, "--timeout=2", guest(name))
    *others, last = done.stderr.splitlines()
    assert json.loads(last)["status"] == done.returncode
    assert not [line for line in others if line.startswith("{")]


def test_json_is_the_last_line_of_stderr_or_a_file(tender: Tender, guest: Guest, tmp_path: Path) -> None:
    done = tender("--mem=8", "--json", guest("exit_status"), "3")
    result = json.loads(done.stderr.splitlines()[-1])
    assert (result["schema"], result["reason"], result["status"], result["guest_status"]) == (1, "exit", 3, 3)
    assert result["counters"]["hypercalls"]["halt"] == 1
    assert (
        0
        < result["boot_ms"]["vm_created"]
        <= result["boot_ms"]["first_run"]
        <= result["boot_ms"]["guest_exit"]
    )
    assert result["error"] is None

    file = tmp_path / "result.json"
    assert tender("--mem=8", f"--json={file}", guest("exit_status"), "4").stderr == ""
    assert json.loads(file.read_text())["status"] == 4

    reader, writer = os.pipe()
    tender("--mem=8", f"--json=fd:{writer}", guest("exit_status"), "5", pass_fds=[writer])
    os.close(writer)
    with open(reader) as pipe:
        assert json.loads(pipe.read())["status"] == 5


def test_stats_and_phases_are_on_stderr(tender: Tender, guest: Guest) -> None:
    done = tender("--mem=8", "--stats", "-v", guest("args"))
    assert done.stdout == "<>\n"
    assert "guest starts\n" in done.stderr
    assert "ended      exit, status 0\n" in done.stderr
    assert "hypercalls puts 3, halt 1\n" in done.stderr


# ---- devices


def test_a_missing_device_is_answered_with_a_complete_command(
    tender: Tender, guest: Guest, disks: Path
) -> None:
    (disks / "storage1.img").touch()
    image = guest("nets_and_blocks")
    done = tender("--mem=8", "--net:service0=@0", image, "a b", cwd=disks)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[:4] == [
        "tender: Device 'storage0' of type BLOCK_BASIC declared but not attached.",
        "tender: Device 'service1' of type NET_BASIC declared but not attached.",
        "tender: Device 'storage1' of type BLOCK_BASIC declared but not attached.",
        "tender: All declared devices must be attached. See --help for syntax.",
    ]
    assert lines[4].startswith(
        "tender: hint: tender --mem=8 --net:service0=@0 --block:storage0=storage0.img --net:"
    )
    assert lines[4].endswith(f" --block:storage1=storage1.img {image} 'a b'")
    assert "tender: hint: first: truncate -s 16M storage0.img" in lines


def test_an_undeclared_device_is_answered_with_the_declared_ones(tender: Tender, guest: Guest) -> None:
    image = guest("two_nets")
    done = tender("--net:servce1=tap0", image)
    assert done.returncode == 1
    assert done.stderr == (
        "tender: Resource not declared in manifest: 'servce1'\n"
        "tender: Invalid option: `--net:servce1=tap0'\n"
        "tender: hint: did you mean --net:service1=tap0?\n"
        f"tender: hint: {image} declares: net service1, net service0\n"
    )


@pytest.mark.parametrize("form", ["--block:storage0=", "--block storage0="])
def test_disks_macs_and_sector_sizes_reach_the_guest(
    tender: Tender, guest: Guest, disks: Path, form: str
) -> None:
    ours = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    fds = [pair[1].fileno() for pair in ours]
    option, space, name = form.partition(" ")
    done = tender(
        *(
            "--net-mac:service1=02:00:00:00:00:07",
            "--net",
            f"service0=@{fds[0]}",
            f"--net:service1=@{fds[1]}",
        ),
        *("--net-mac", "service0=2:0:0:0:0:8", "--block-sector-size:storage1=4096"),
        *([option, name + "a b=c.img"] if space else [form + "a b=c.img"]),
        *("--block:storage1=other.img", "--block=storage1=second.img", "--mem", "8M"),
        guest("nets_and_blocks"),
        pass_fds=fds,
        cwd=disks,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "service0 handle 1 net mac 02:00:00:00:00:08 mtu 1500" in lines
    assert "service1 handle 3 net mac 02:00:00:00:00:07 mtu 1500" in lines
    assert "storage0 handle 2 block capacity 1048576 block_size 512" in lines
    assert "storage1 handle 4 block capacity 65536 block_size 4096" in lines
    assert (disks / "a b=c.img").read_bytes().startswith(b"storage0\0")


def test_the_only_disk_needs_no_name_and_ro_keeps_it_unchanged(
    tender: Tender, guest: Guest, disks: Path
) -> None:
    assert tender("--block", "./a b=c.img", guest("disk"), cwd=disks).returncode == 0
    before = (disks / "second.img").read_bytes()
    assert tender("--block", "second.img:ro", guest("disk"), cwd=disks).returncode != 0
    assert (disks / "second.img").read_bytes() == before


def test_an_inherited_descriptor_serves_as_disk(tender: Tender, guest: Guest, disks: Path) -> None:
    with open(disks / "second.img", "r+b") as disk:
        done = tender("--block", f"@{disk.fileno()}", guest("disk"), pass_fds=[disk.fileno()])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--block=absent.img"],
            "tender: Could not open block device: absent.img: No such file or directory\n",
        ),
        (["--block=odd.img"], "Backing storage size must be block aligned (512 bytes)\n"),
        (["--block=empty.img"], "Backing storage must be at least 1 block (512 bytes) in size\n"),
        (
            ["--block=second.img", "--block-sector-size=700"],
            "tender: Block size must be a multiple of 2 greater than or equal 512\n"
            "tender: Invalid option: `--block-sector-size=700'\n",
        ),
    ],
)
def test_an_unusable_disk_is_refused_with_the_contracts_message(
    tender: Tender, guest: Guest, disks: Path, words: list[str], message: str
) -> None:
    (disks / "odd.img").write_bytes(bytes(1000))
    (disks / "empty.img").touch()
    done = tender(*words, guest("disk"), cwd=disks)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_a_missing_tap_is_refused_with_the_command_that_makes_it(tender: Tender, guest: Guest) -> None:
    done = tender("--net:service0=nosuchtap", guest("echo"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "tender: Could not attach interface: nosuchtap: No such file or directory\n"
    )
    assert "ip tuntap add nosuchtap mode tap" in done.stderr


# ---- the rest


def test_the_sdks_recipe_gives_a_unikernel_that_runs(tender: Tender, tmp_path: Path) -> None:
    recipe = tender("sdk").stdout.partition("# 3.")[0]
    subprocess.run(["sh", "-eu"], input=recipe, cwd=tmp_path, text=True, timeout=60, check=True)
    done = tender("--mem=8", "app.elf", "world", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello from a unikernel, world\n", "")
