"""Every refusal before a guest runs: where --json is given and can be written to, the report says why."""

import errno
import fcntl
import json
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from support import Guest

LIMIT = 60
LAUNCHERS = ["", "python"]
WITHOUT_DEVICES = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
by_launcher = pytest.mark.parametrize("launcher", LAUNCHERS)

# what is refused: words ({name}: a guest or a file of the test), and the error's code
REFUSALS: dict[str, tuple[list[str], str]] = {
    "option: unknown": (["--frob=1", "{hello}"], "usage"),
    "option: unknown name": (["--mem:x=4", "{hello}"], "usage"),
    "option: a value too many": (["--stats=1", "{hello}"], "usage"),
    "option: a value too few": (["--mem"], "usage"),
    "image: none": ([], "usage"),
    "image: empty": ([""], "usage"),
    "image: missing": (["/absent/app.elf"], "image-open"),
    "image: a directory": (["/"], "image-open"),
    "image: no ELF file": (["{disk}"], "image-file"),
    "image: arguments too long": (["{hello}", "x" * 8192], "config"),
    "mem: no amount": (["--mem=x", "{hello}"], "usage"),
    "mem: too much": (["--mem=8G", "{hello}"], "config"),
    "mem: too little": (["--mem=2", "{bss_big}"], "image-too-large"),
    "timeout": (["--timeout=0", "{hello}"], "usage"),
    "net: no interface": (["--net=tapnone", "{echo}"], "tap-missing"),
    "net: not declared": (["--net:other=tap0", "{hello}"], "usage"),
    "net: not attached": (["{echo}"], "device-missing"),
    "net: no number": (["--net=@x", "{echo}"], "usage"),
    "net: a descriptor that is closed": (["--net=@987", "{echo}"], "device"),
    "net: a group's address": (["--net-mac=01:00:5e:00:00:01", "{echo}"], "usage"),
    "block: missing": (["--block=/absent/disk.img", "{disk.elf}"], "device-block"),
    "block: not declared": (["--block:other={disk}", "{hello}"], "usage"),
    "block: not attached": (["{disk.elf}"], "device-missing"),
    "block: a descriptor that is closed": (["--block=@987", "{disk.elf}"], "device"),
    "block: a sector size": (["--block={disk}", "--block-sector-size=513", "{disk.elf}"], "usage"),
    "block: no whole sectors": (["--block={odd}", "{disk.elf}"], "block-misaligned"),
    "console: a descriptor that is closed": (["--console=fd:987", "{hello}"], "usage"),
    "console: no number": (["--console=fd:x", "{hello}"], "usage"),
    "console: missing directory": (["--console=/absent/console", "{hello}"], "device-console"),
    "lock": (["--block={locked}", "{disk.elf}"], "block-locked"),
    "lock: waited for": (["--lock-wait=50ms", "--block={locked}", "{disk.elf}"], "block-locked"),
    "lock: no time": (["--lock-wait=x", "{hello}"], "usage"),
    "require: no such layer": (["--require=moats", "{hello}"], "usage"),
    "require: missing": (["--require=kvm", "{hello}"], "isolation-missing"),
    "backend: no such": (["--backend=xen", "{hello}"], "usage"),
}  # fmt: skip
VARIABLES = {"TENDER_BACKEND": "xen", "TENDER_REQUIRE": "moats", "TENDER_LOCK_WAIT": "x"}


@pytest.fixture
def names(guest: Guest, tmp_path: Path) -> dict[str, str]:
    for name, size in (("disk", 1 << 20), ("odd", 1000), ("locked", 1 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
    paths = {name: str(tmp_path / name) for name in ("disk", "odd", "locked")}
    guests = {name: str(guest(name)) for name in ("hello", "echo", "bss_big", "sleep")}
    return {**paths, **guests, "disk.elf": str(guest("disk"))}


def put_in(words: list[str], names: dict[str, str]) -> list[str]:
    return [names.get(word[1:-1], word) if word[:1] == "{" else _value_put_in(word, names) for word in words]


def _value_put_in(word: str, names: dict[str, str]) -> str:
    head, brace, name = word.partition("{")
    return head + names[name[:-1]] if brace else word


def locked(path: str) -> int:
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return fd


def run(
    launcher: str, *words: str, variables: dict[str, str] | None = None, **options: object
) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "TENDER_BACKEND": "sandbox",
        "TENDER_LAUNCHER": launcher,
        **(variables or {}),
    }
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        words, capture_output=True, text=True, timeout=LIMIT, check=False, stdin=subprocess.DEVNULL,
        env=environment, **options,
    )  # fmt: skip


def assert_told(
    report: str, done: "subprocess.CompletedProcess[str]", code: str, image: str, signal: int | None = None
) -> None:
    """The report is one line of JSON, and it agrees with the status and with the first line of stderr."""
    assert report.endswith("\n") and report.count("\n") == 1
    result = json.loads(report)
    assert (done.returncode, done.stdout.replace(report, "")) == (1, "")
    reason = "not-started" if signal is None else "signal"
    assert (result["schema"], result["reason"], result["status"]) == (1, reason, done.returncode)
    assert (result["error"]["code"], result["image"]) == (code, image)
    assert (result["guest_status"], result["signal"]) == (None, signal)
    assert result["message"] == result["error"]["message"] != ""
    assert done.stderr.startswith("tender: " + result["message"].split("\n")[0])


def image_of(words: list[str]) -> str:
    return next((word for word in words if not word.startswith("-")), "")


@by_launcher
@pytest.mark.parametrize("refused", REFUSALS)
def test_every_refusal_is_reported(
    refused: str, launcher: str, tender_cmd: list[str], names: dict[str, str], tmp_path: Path
) -> None:
    pattern, code = REFUSALS[refused]
    words, lock, report = put_in(pattern, names), locked(names["locked"]), tmp_path / "report.json"
    done = run(launcher, *tender_cmd, f"--json={report}", *words)
    os.close(lock)
    assert_told(report.read_text(), done, code, image_of(words))


NATIVE_REFUSALS = [
    *("image: missing", "image: a directory", "image: no ELF file", "image: arguments too long"),
    *("mem: too little", "net: no interface", "net: not declared", "net: not attached", "block: missing"),
    *("net: a descriptor that is closed", "block: no whole sectors", "console: missing directory"),
    *("console: a descriptor that is closed", "lock", "lock: waited for"),
]


@pytest.mark.parametrize("refused", NATIVE_REFUSALS)
def test_where_there_is_no_python_the_native_command_reports_what_it_refuses(
    refused: str, tender_cmd: list[str], names: dict[str, str], tmp_path: Path
) -> None:
    """Not among these: words that the native command cannot read apart, because then it does not know
    the report either.
    """
    pattern, _ = REFUSALS[refused]
    words, lock, report = put_in(pattern, names), locked(names["locked"]), tmp_path / "report.json"
    report.write_text("a run before")
    done = run("native", *tender_cmd, f"--json={report}", *words)
    os.close(lock)
    assert_told(report.read_text(), done, "error", image_of(words))


@by_launcher
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_refused_variable_is_reported(
    variable: str, launcher: str, tender_cmd: list[str], names: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = run(launcher, *tender_cmd, f"--json={report}", names["hello"],
               variables={variable: VARIABLES[variable]})  # fmt: skip
    assert variable in done.stderr
    assert_told(report.read_text(), done, "usage", names["hello"])


@by_launcher
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_kvm_that_is_asked_for_and_missing_is_reported(
    by: str, launcher: str, tender_cmd: list[str], names: dict[str, str], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    words = ["--backend=kvm"] if by == "option" else []
    done = run(launcher, *WITHOUT_DEVICES, *tender_cmd, f"--json={report}", *words, names["hello"],
               variables={"TENDER_BACKEND": "kvm"})  # fmt: skip
    assert_told(report.read_text(), done, "kvm-missing", names["hello"])


@by_launcher
def test_a_signal_that_ends_the_wait_for_a_lock_is_reported(
    launcher: str, tender_cmd: list[str], names: dict[str, str], tmp_path: Path
) -> None:
    report, lock = tmp_path / "report.json", locked(names["locked"])
    command = [
        *tender_cmd,
        f"--json={report}",
        "--lock-wait=999",
        f"--block={names['locked']}",
        names["disk.elf"],
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
    ) as running:  # fmt: skip
        running.send_signal(
            signal.SIGTERM
        )  # the signal may come at any moment: it is blocked until the command can handle it
        stdout, stderr = running.communicate(timeout=LIMIT)
    os.close(lock)
    done = subprocess.CompletedProcess(command, running.returncode, stdout, stderr)
    assert_told(report.read_text(), done, "signal", names["disk.elf"], signal.SIGTERM)


@by_launcher
@pytest.mark.parametrize("target", ["", "=-", "=fd:2", "=fd:{}", "={}"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("refused", ["--frob=1", "--mem=x", "--console=fd:987", "--backend=xen"])
def test_the_report_goes_where_it_was_asked_for(
    refused: str,
    before: bool,
    target: str,
    launcher: str,
    tender_cmd: list[str],
    names: dict[str, str],
    tmp_path: Path,
) -> None:
    """This holds too if the option comes after the one that is refused."""
    path = tmp_path / "report.json"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    word = "--json" + target.format(fd if "fd:" in target else path)
    words = [word, refused] if before else [refused, "--mem", "8", word]
    done = run(launcher, *tender_cmd, *words, names["hello"], pass_fds=[fd])
    os.close(fd)
    if target == "=-":
        report = done.stdout
    elif "{" in target:
        report = path.read_text()
    else:
        report = done.stderr.splitlines(keepends=True)[-1]
    assert_told(report, done, "usage", names["hello"])


@by_launcher
def test_a_report_that_cannot_be_written_to_is_refused_before_anything_else(
    launcher: str, tender_cmd: list[str], names: dict[str, str]
) -> None:
    done = run(launcher, *tender_cmd, "--json=fd:987", "--console=fd:986", names["hello"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tender: --json=fd:987: Bad file descriptor\ntender: hint: ")
    assert "986" not in done.stderr and "{" not in done.stderr.replace("{fd}", "")


def test_the_image_may_be_unknown_if_the_words_cannot_be_read(
    tender_cmd: list[str], names: dict[str, str]
) -> None:
    """The word after an unknown option may be its value."""
    done = run("", *tender_cmd, "--json", "--cpus", "2", names["hello"])
    assert_told(done.stderr.splitlines(keepends=True)[-1], done, "usage", "")


@pytest.mark.parametrize("began", [False, True], ids=["not-started", "internal-error"])
def test_an_internal_error_is_reported(
    began: bool, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip

    from tender.cli import main

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "one")

    report = tmp_path / "report.json"
    monkeypatch.setattr("tender.vm.Vm.run" if began else "tender.image.Image.open", broken)
    monkeypatch.setattr("_signal.signal", lambda *_: None)  # the handlers of this process stay
    monkeypatch.setenv("TENDER_BACKEND", "sandbox")
    assert main.guarded([f"--json={report}", "--mem=4", names["hello"]]) == 70
    assert "internal error: OSError" in capfd.readouterr().err
    result = json.loads(report.read_text())
    assert (result["reason"], result["status"]) == ("internal-error" if began else "not-started", 70)
    assert result["error"]["code"] == "internal-error"
    assert result["image"] == names["hello"]
