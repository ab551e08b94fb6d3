"""The command as a process that starts no guest: texts, statuses, closed pipes, and our own mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from elf_builder import good_elf

import tender
from tender import Image, ImageError
from tender.backend import trial
from tender.cli import explain, main
from tender.cli.options import parse_args
from tender.image import kind_hint

SITE = Path(tender.__path__[0]).parent


def cli(
    *words: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SITE)!r}); {ENTER}", *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


ENTER = "from tender.cli.main import entry; entry()"


def test_version_is_two_lines_on_stdout() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"tender {tender.__version__}\nABI version 2\n",
        "",
    )


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["run", "--help"], ["help", "run"]])
def test_help_goes_to_stdout_with_status_0(words: list[str]) -> None:
    done = cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: tender [run] [OPTIONS] [--] IMAGE [ARGS...]\n")


@pytest.mark.parametrize(
    "command", ["inspect", "audit", "doctor", "debug", "report", "ps", "stats", "top", "metrics", "sdk"]
)
def test_every_subcommand_has_help(command: str) -> None:
    done = cli("help", command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: tender {command} ")


def test_solo5_elftool_is_a_subcommand() -> None:
    done = cli("solo5-elftool")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("usage: solo5-elftool COMMAND ...\n")


def test_help_for_solo5_hvt_prints_its_usage_on_stdout() -> None:
    done = cli("help", "solo5-hvt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == cli("solo5-hvt", "--help").stderr


def test_an_internal_error_is_status_1_under_solo5_hvts_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("one")

    monkeypatch.setattr("tender.cli.run.launch", broken)
    monkeypatch.setattr("tender.cli.say.PROGRAM", "tender")  # restored at the end of the test
    monkeypatch.setattr("tender.cli.say.HINTS", True)
    monkeypatch.delenv("TENDER_DEBUG", raising=False)
    assert main.guarded(["solo5-hvt", "app.elf"]) == 1
    assert capfd.readouterr().err == "solo5-hvt: internal error: ZeroDivisionError: one; please report\n"


def test_an_internal_error_during_a_run_does_not_mean_cannot_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """For `tender run` the status is always 70. solo5-hvt's launchers know only 1, after which they never
    start the guest again."""

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("one")

    image = tmp_path / "app.elf"
    image.write_bytes(trial.elf())
    monkeypatch.setattr("tender.vm.Vm.run", broken)
    monkeypatch.setattr("tender.cli.say.PROGRAM", "tender")  # restored at the end of the test
    monkeypatch.setattr("tender.cli.say.HINTS", True)
    monkeypatch.setattr("_signal.signal", lambda *_: None)  # this process keeps its signal handlers
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    said = "internal error: MemoryError: one; please report\n"
    assert main.guarded(["--mem=4", str(image)]) == 70
    assert capfd.readouterr().err.startswith(f"tender: {said}")
    assert main.guarded(["solo5-hvt", "--mem=4", str(image)]) == 2
    assert capfd.readouterr().err == f"solo5-hvt: {said}"


def test_help_of_an_unknown_command_lists_the_commands() -> None:
    done = cli("help", "frobnicate")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"tender: help: no such command: frobnicate\ntender: hint: commands: {', '.join(main.COMMANDS)}\n"
    )


def test_a_bad_tender_backend_is_refused_by_its_name() -> None:
    done = cli("app.elf", env={"TENDER_BACKEND": "xen"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "tender: Malformed value of TENDER_BACKEND\n"
        "tender: hint: got 'xen': write TENDER_BACKEND=auto, TENDER_BACKEND=kvm or TENDER_BACKEND=sandbox,"
        " or unset it\n"
    )


def test_no_words_give_a_missing_operand_and_the_usage() -> None:
    done = cli()
    assert (done.returncode, done.stdout) == (1, "")
    hint = "tender: hint: give a unikernel's ELF file, or try: tender run --example hello\n"
    assert done.stderr.startswith(f"tender: Missing KERNEL operand\n{hint}usage: tender [run] ")


def test_an_unknown_option_is_named_with_a_suggestion_and_the_usage() -> None:
    done = cli("--mme=5", "app.elf")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[:2] == ["tender: Invalid option: `--mme=5'", "tender: hint: did you mean --mem?"]
    assert lines[2].startswith("usage: ")


MISTAKES = [
    # the words, the first line, the hint
    ("--mem=8 inspect", "inspect: Could not open: No such file or directory",
     "for the subcommand, write it first: tender inspect ..."),
    ("--mem=8 inspct", "inspct: Could not open: No such file or directory", "did you mean the command inspect?"),
    ("inspet app.elf", "inspet: Could not open: No such file or directory", "did you mean the command inspect?"),
    ("--json /nowhere/x", "/nowhere/x: Could not open: No such file or directory",
     "--json takes its file after =: --json=/nowhere/x"),
    ("--json -- /nowhere/x", "/nowhere/x: Could not open: No such file or directory",
     "--json takes its file after =: --json=/nowhere/x"),
    ("--json --mem=8 /nowhere/x", "/nowhere/x: Could not open: No such file or directory",
     "the directory /nowhere does not exist"),
    ("/nowhere/x", "/nowhere/x: Could not open: No such file or directory", "the directory /nowhere does not exist"),
    ("--console=/nowhere/x --example hello", "console: /nowhere/x: No such file or directory",
     "the directory /nowhere does not exist"),
    ("--json=/nowhere/x --example hello", "--json=/nowhere/x: No such file or directory",
     "the directory /nowhere does not exist"),
    ("--mem=0 --example hello", "Malformed argument to --mem",
     "got '0': the least is 2 MiB; write MiB, or a unit: 64, 64M, 1G"),
    ("doctor extra", "doctor: Invalid option: `extra'", "doctor takes no words"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message", "hint"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_of_a_new_user_has_a_way_out(words: str, message: str, hint: str, tmp_path: Path) -> None:
    done = cli(*words.split(), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tender: {message}\ntender: hint: {hint}\n")


def test_json_contains_the_reason_why_nothing_started() -> None:
    done = cli("--json", "/nonexistent/app.elf")
    result = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (1, "")
    assert (result["schema"], result["reason"], result["status"]) == (1, "not-started", 1)
    assert (result["error"]["error"], result["error"]["code"]) == ("ImageError", "image-open")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "an empty file"),
        (b"#!/bin/sh\n", "a script, not a unikernel"),
        (b"hello", "not an ELF file"),
        (good_elf()[:10], "the file is cut off, or its headers are wrong"),
        (good_elf()[:100], "the file is cut off, or its headers are wrong"),
        (good_elf()[:600], "the file is cut off, or its headers are wrong"),
        (
            Path("/bin/ls").read_bytes(),
            "an ordinary Linux program or library, not a unikernel: 'tender sdk' shows how to build one",
        ),
    ],
    ids=[
        "empty",
        "script",
        "text",
        "cut in the header",
        "cut in the program headers",
        "cut in a note",
        "program",
    ],
)
def test_a_file_that_is_not_elf_is_described(content: bytes, hint: str, tmp_path: Path) -> None:
    image = tmp_path / "app.elf"
    image.write_bytes(content)
    done = cli(str(image))
    assert done.returncode == 1
    reads: list[Callable[[], Image]] = [lambda: Image.open(image), lambda: Image.from_bytes(content)]
    for read in reads:
        with pytest.raises(ImageError) as refused:
            read()
        assert (refused.value.hint, refused.value.command_hint) == (hint, hint)
    assert done.stderr.startswith(f"tender: {image}: ")
    assert done.stderr.splitlines()[-1] == f"tender: hint: {hint}"


def test_an_ordinary_program_is_recognised() -> None:
    done = cli(sys.executable)
    assert done.returncode == 1
    assert "an ordinary Linux program or library, not a unikernel" in done.stderr


@pytest.mark.parametrize(
    ("mode", "group", "words"),
    [
        (0o660, 1, "usermod -aG "),
        (0o600, 1, "setfacl -m u:$USER:rw "),
        (0o600, 0, "setfacl -m u:$USER:rw "),
        (0o660, 0, "setfacl -m u:$USER:rw "),
        (None, 0, "`tender doctor` shows whose it is"),
    ],
)
def test_the_hint_names_a_group_only_if_the_group_may_open_kvm(
    mode: int | None, group: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tender.backend import kvm

    real = os.stat

    def stat(path: str) -> os.stat_result:
        if path != "/dev/kvm":
            return real(path)
        if mode is None:
            raise FileNotFoundError(2, "absent")
        return os.stat_result((mode, 0, 0, 1, 0, group, 0, 0, 0, 0))

    monkeypatch.setattr(os, "stat", stat)
    hint = kvm._denied_hint("/dev/kvm")
    assert words in hint and ("usermod" in hint) == (words == "usermod -aG ")


@pytest.mark.parametrize(
    ("files", "other", "words"),
    [
        (["tun_flags"], False, ""),
        (["bridge"], True, "br0 is a bridge"),
        (["mtu"], True, "br0 is not a TAP interface"),
        ([], False, ""),
    ],
)
def test_an_interface_that_is_not_a_tap_is_recognised(
    files: list[str], other: bool, words: str, tmp_path: Path
) -> None:
    from tender.devices.net import _is_other_kind, _other_kind_hint

    for name in files:
        (tmp_path / "br0" / name).mkdir(parents=True)
    assert _is_other_kind("br0", str(tmp_path)) == other
    assert not other or _other_kind_hint("br0", str(tmp_path)).startswith(words)


def test_a_proposed_tap_has_the_first_free_name_and_no_owner_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tender.devices.net import _free_name, _making

    for name in ("tap0", "tap1", "tap3"):
        (tmp_path / name).mkdir()
    assert _free_name(str(tmp_path)) == "tap2"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert _making("tap2") == "ip tuntap add tap2 mode tap && ip link set tap2 up"
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(os, "getuid", lambda: 2**32 - 9)
    assert _making("tap2").startswith("sudo ip tuntap add tap2 mode tap user 4294967287 && sudo ip link set")


def test_a_directory_is_recognised(tmp_path: Path) -> None:
    done = cli(str(tmp_path))
    assert done.returncode == 1
    assert "hint: a directory; give the unikernel's ELF file" in done.stderr


def test_no_traceback_reaches_the_user(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(argv: list[str]) -> int:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(main, "main", broken)
    monkeypatch.delenv("TENDER_DEBUG", raising=False)
    assert main.guarded(["x"]) == 70
    assert capfd.readouterr().err == (
        "tender: internal error: ZeroDivisionError: one; please report\n"
        "tender: hint: TENDER_DEBUG=1 shows where\n"
    )


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", ENTER, "--help"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, cwd=SITE, timeout=60, check=False, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_standard_descriptors_are_tolerated() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" --version >&- 2>&-', sys.executable, ENTER]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=SITE)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


def test_a_full_disk_is_reported() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", ENTER, "--help"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False, text=True, cwd=SITE
        )
    assert (done.returncode, done.stderr) == (1, "tender: stdout: No space left on device\n")


def test_a_subcommand_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.COMMANDS, "extra", ("tender.cli.absent", "an extra"))
    assert main.guarded(["extra"]) == 1
    assert capfd.readouterr().err == "tender: extra: this subcommand is not part of this installation\n"


# ---- the complete command line in a hint


def test_missing_devices_are_inserted_into_the_command_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "storage.img").touch()
    options = parse_args(["--mem", "64", "app.elf", "a b", "", "it's"])
    hint = explain.missing_hint((("service0", "net"), ("storage", "block")), options, taps=["tap7"])
    assert hint == (
        "tender --mem 64 --net:service0=tap7 --block:storage=storage.img app.elf 'a b' '' 'it'\"'\"'s'"
    )


def test_preparations_for_the_suggested_command_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_args(["--", "-odd.elf"])
    missing = (("a", "net"), ("b", "net"), ("disk", "block"))
    assert explain.missing_hint(missing, options, taps=[]).split("\n") == [
        "tender --net:a=tap0 --net:b=tap1 --block:disk=disk.img -- -odd.elf",
        "first: sudo ip tuntap add tap0 mode tap user $USER && sudo ip link set tap0 up",
        "first: sudo ip tuntap add tap1 mode tap user $USER && sudo ip link set tap1 up",
        "first: truncate -s 16M disk.img",
    ]


def test_a_device_of_an_unknown_type_has_no_way_out() -> None:
    hint = explain.missing_hint((("odd", "type 0x3"),), parse_args(["app.elf"]), taps=[])
    assert hint == "no device can be attached as odd: hvt has no device of its type"


@pytest.mark.parametrize(
    ("machine", "kind", "target", "hint"),
    [
        (62, 2, 2, "built for spt: build the unikernel for hvt (mirage configure -t hvt)"),
        (62, 2, 9, "built for an unknown target (9): build the unikernel for hvt (mirage configure -t hvt)"),
        (183, 2, None, "an ELF file for another machine than x86_64"),
        (
            62,
            3,
            None,
            "an ordinary Linux program or library, not a unikernel: 'tender sdk' shows how to build one",
        ),
        (62, 2, 1, ""),
    ],
)
def test_an_elf_for_something_else_is_described(
    machine: int, kind: int, target: int | None, hint: str
) -> None:
    start = (
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + kind.to_bytes(2, "little") + machine.to_bytes(2, "little")
    )
    assert kind_hint(start.ljust(64, b"\0"), target) == hint


def test_tap_interfaces_are_distinguished_from_tun_and_others(tmp_path: Path) -> None:
    for name, flags in (("tap1", "0x1002\n"), ("tun0", "0x1001\n"), ("tap0", "0x5002\n"), ("odd", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tun_flags").write_text(flags)
    (tmp_path / "lo").mkdir()
    assert explain.tap_interfaces(str(tmp_path)) == ["tap0", "tap1"]
    assert explain.tap_interfaces(str(tmp_path / "absent")) == []
