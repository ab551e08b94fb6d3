"""Isolation layers that are required: without one of them no guest runs, in the command and in the
library, however they are given.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest

import tender
from tender import CAPTURE, ConfigError, HostError, Image, Vm, VmConfig, VmPool
from tender.config import LAYERS, check_layers

SANDBOXES = ("landlock", "seccomp-filter", "uid", "capabilities")
LAUNCHERS = ["native", "python"]
REFUSING = Path(__file__).resolve().parents[1] / "inherited_filter.py"


def run(command: list[str], launcher: str = "native", **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TENDER_LAUNCHER": launcher, **variables},
    )  # fmt: skip


@pytest.fixture
def standing(guest: Guest) -> tuple[str, ...]:
    with (
        Image.open(guest("args")) as image,
        Vm(image, VmConfig(mem=8), backend="sandbox", console=CAPTURE) as vm,
    ):
        before = vm.isolation
        result = vm.run(timeout=120)
        assert result.ok
        assert before == result.isolation == tuple(name for name in LAYERS if name in before)
        return result.isolation


def test_all_isolation_layers_are_reported_while_the_guest_runs(
    guest: Guest, standing: tuple[str, ...]
) -> None:
    """All layers are reported whichever thread receives them: the one that asks, or the one that runs
    the guest.
    """
    with Image.open(guest("spin")) as image:
        for _ in range(50):
            with Vm(image, VmConfig(mem=8), backend="sandbox") as vm:
                vm.start()
                assert vm.isolation == standing
                vm.stop()
                result = vm.wait(60)
                assert result and result.isolation == standing


def test_the_sandbox_reports_its_isolation_layers_and_runs_where_they_are_required(
    guest: Guest, standing: tuple[str, ...], tender_cmd: list[str]
) -> None:
    assert {"seccomp-filter", "capabilities"} <= set(standing)
    assert "kvm" not in standing
    listed = ",".join(standing)
    for launcher in LAUNCHERS:
        words = [
            *tender_cmd,
            "--backend=sandbox",
            "--mem=8",
            f"--require={listed}",
            str(guest("exit_status")),
            "3",
        ]
        done = run(words, launcher)
        assert (done.returncode, done.stderr) == (3, "")
    for launcher in ("python", "native"):
        done = run(
            [
                *tender_cmd,
                "--backend=sandbox",
                "--json=fd:1",
                "--console=none",
                "--mem=8",
                str(guest("args")),
            ],
            launcher,
        )
        assert done.returncode == 0
        left_out = ("network-namespace", "pid-namespace") if launcher == "native" else ()
        there = tuple(layer for layer in standing if layer not in left_out)
        assert tuple(json.loads(done.stdout)["isolation"]) == there
    with Image.open(guest("args")) as image:
        config = VmConfig(mem=8, require=check_layers(standing))
        assert config.with_args(("a",)).require == standing
        with VmPool(image, config, size=1, backend="sandbox") as pool, pool.take() as vm:
            assert vm.run(timeout=120).ok


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("how", ["option", "next word", "variable", "solo5-hvt"])
def test_a_layer_that_is_missing_is_named_with_its_cure_and_the_guest_does_not_run(
    guest: Guest, tender_cmd: list[str], launcher: str, how: str
) -> None:
    image = str(guest("args"))
    words = {
        "option": ["--backend=sandbox", "--mem=8", "--require=seccomp-filter,kvm", image],
        "next word": ["--backend=sandbox", "--mem=8", "--require", "kvm", image],
        "variable": ["--backend=sandbox", "--mem=8", image],
        "solo5-hvt": ["solo5-hvt", "--mem=8", image],
    }[how]
    variables = (
        {"TENDER_REQUIRE": "kvm", "TENDER_BACKEND": "sandbox"} if how in ("variable", "solo5-hvt") else {}
    )
    done = run([*tender_cmd, *words], launcher, **variables)
    program = "solo5-hvt" if how == "solo5-hvt" else "tender"
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()
    assert said[0] == f"{program}: required isolation layers are missing: kvm"
    assert len(said) == (1 if how == "solo5-hvt" else 2)
    if how != "solo5-hvt":
        assert said[1].startswith("tender: hint: ") and "--backend=kvm" in said[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("refused", "missing"),
    [
        ("landlock_create_ruleset", "landlock"),
        ("landlock_restrict_self", "landlock"),
        ("chroot", "empty-root"),
    ],
)
def test_a_layer_that_the_host_refuses_is_reported_as_missing(
    guest: Guest, tender_cmd: list[str], standing: tuple[str, ...], launcher: str, refused: str, missing: str
) -> None:
    """An inherited seccomp filter answers ENOSYS. The run goes on without that layer, unless the layer is
    required.
    """
    if missing not in standing:
        pytest.skip(f"this host has no {missing}")
    around = [sys.executable, str(REFUSING), f"-{refused}:38", *tender_cmd, "--backend=sandbox", "--mem=8"]
    image = str(guest("exit_status"))
    done = run([*around, image, "3"], launcher)
    assert (done.returncode, done.stderr) == (3, "")
    done = run([*around, f"--require={missing}", image, "3"], launcher)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tender: required isolation layers are missing: {missing}\ntender: hint: ")
    others = ",".join(name for name in standing if name != missing)
    assert run([*around, f"--require={others}", image, "3"], launcher).returncode == 3


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("value", ["moats", "kvm,", ",kvm", "kvm,,uid", "KVM", " kvm", ""])
def test_an_unknown_layer_is_refused_and_the_layers_are_named(
    guest: Guest, tender_cmd: list[str], launcher: str, value: str
) -> None:
    if launcher == "native":
        launcher = ""  # Python reports errors in the words
    done = run([*tender_cmd, f"--require={value}", str(guest("args"))], launcher)
    assert done.returncode == 1
    assert "Malformed argument to --require" in done.stderr and ", ".join(LAYERS) in done.stderr
    if value:
        done = run([*tender_cmd, str(guest("args"))], launcher, TENDER_REQUIRE=value)
        assert done.returncode == 1
        assert "Malformed value of TENDER_REQUIRE" in done.stderr


def test_the_library_refuses_before_the_guest(guest: Guest) -> None:
    with pytest.raises(ConfigError, match=r"(?m)'moats' is none of user-namespace, .*, kvm$"):
        VmConfig(require=("moats",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a sequence of words"):
        VmConfig(require="kvm")  # type: ignore[arg-type]
    with (
        Image.open(guest("args")) as image,
        pytest.raises(HostError, match=r"(?m)are missing: kvm$") as caught,
    ):
        Vm(image, VmConfig(mem=8, require=("uid", "kvm")), backend="sandbox")
    assert caught.value.code == "isolation-missing"
    assert caught.value.hint


@pytest.mark.kvm
def test_on_kvm_the_native_command_has_its_layers_and_the_library_has_kvms_alone(
    guest: Guest, tender_cmd: list[str]
) -> None:
    words = [*tender_cmd, "--backend=kvm", "--mem=8"]
    image = str(guest("exit_status"))
    done = run([*words, "--require=kvm,seccomp-filter,uid,capabilities", image, "3"])
    assert (done.returncode, done.stderr) == (3, "")
    for launcher, missing in (("native", "empty-root"), ("python", "seccomp-filter")):
        done = run([*words, f"--require=kvm,{missing}", image, "3"], launcher)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            f"tender: required isolation layers are missing: {missing}\ntender: hint: "
        )
    with tender.Image.open(image) as opened:
        with tender.Vm(opened, tender.VmConfig(mem=8, args=("3",), require=("kvm",)), backend="kvm") as vm:
            assert vm.isolation == ("kvm",)
            assert vm.run(timeout=60).isolation == ("kvm",)
        with pytest.raises(HostError, match=r"(?m)are missing: landlock$"):
            tender.Vm(opened, tender.VmConfig(mem=8, require=("landlock",)), backend="kvm")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("verdict", ["kill", "trap"])
@pytest.mark.parametrize("call", ["chroot", "landlock_restrict_self", "close_range"])
def test_an_inherited_filter_that_ends_the_process_is_not_blamed_on_the_guest(
    guest: Guest, tender_cmd: list[str], launcher: str, call: str, verdict: str
) -> None:
    """systemd's SystemCallFilter=@system-service does the same: it ends a process that makes any other
    call.
    """
    word = f"-{call}:kill" if verdict == "kill" else f"-{call}"
    around = [sys.executable, str(REFUSING), word, *tender_cmd, "--backend=sandbox", "--mem=8"]
    done = run([*around, str(guest("exit_status")), "3"], launcher)
    if (
        done.returncode == 3
    ):  # a refusal that is an error disables the empty root, and a guest runs without it
        assert (call, verdict, launcher, done.stderr) == ("chroot", "trap", "native", "")
        return
    if launcher == "native" and verdict == "kill":  # the whole command is the process that is killed
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGSYS, "", "")
        return
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("tender: sandbox: ") and "guest made" not in first
    assert (
        "inherited seccomp filter ended the process before the guest's first instruction" in first
        or verdict == "trap"
    )
    assert second.startswith("tender: hint: ")
