"""The wheel, as a user gets it: built, installed into an environment of its own, used from outside the tree."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import threading
from pathlib import Path
import tender
from tender import CAPTURE, GuestFailed, Image, Vm, VmConfig

assert "site-packages" in tender.__file__, tender.__file__
guests = Path(tender.__file__).parent / "guests"
with Image.open(guests / "hello.elf") as image:
    results = [tender.run(image, VmConfig(mem="8M", args=("from", "outside")), console=CAPTURE) for _ in range(3)]
    for result in results:
        result.check()
        assert b"outside" in result.console
    failed = tender.run(image, VmConfig(mem=8, args=("--status=3",)), console=CAPTURE)
    try:
        failed.check()
    except GuestFailed as error:
        assert "status 3" in str(error) and error.result is failed
    else:
        raise AssertionError("check() let status 3 pass")
    vms = [Vm(image, VmConfig(mem=8), console=CAPTURE) for _ in range(4)]
    for vm in vms:
        vm.start(timeout=60)
    assert all(vm.wait().ok for vm in vms)
    for vm in vms:
        vm.close()
print("USED", threading.active_count())
"""


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The bin directory of an environment that holds the built wheel and nothing of this tree."""
    place = ROOT / "build" / "package"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    run = subprocess.run
    pip = [sys.executable, "-m", "pip", "-q"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(place), str(ROOT)], check=True)
    (wheel,) = place.glob("tender-*.whl")
    run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    run([str(place / "venv/bin/pip"), "-q", "install", str(wheel)], check=True)
    yield place / "venv" / "bin"
    shutil.rmtree(place, ignore_errors=True)


def test_the_wheel_is_for_every_python_from_3_11(installed: Path) -> None:
    (wheel,) = installed.parents[1].glob("tender-*.whl")
    assert "-cp311-abi3-" in wheel.name


def test_a_users_program_outside_the_tree_runs_vms(installed: Path) -> None:
    program = installed.parents[1] / "program.py"
    program.write_text(PROGRAM)
    python = str(installed / "python")
    done = subprocess.run(
        [str(ROOT / "tools/with_kvm"), "--", "env", "-C", str(program.parent), python, str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "USED 1\n"


def test_a_users_program_is_typed(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "typed.py"
    program.write_text(
        "from tender import BlockFile, Image, Tap, Vm, VmConfig, VmResult, run\n"
        "config = VmConfig(mem='64M', net={'service0': Tap('tap0')}, block=BlockFile('d'))\n"
        "with Image.open('app.elf') as image, Vm(image, config) as vm:\n"
        "    result: VmResult = vm.run(timeout=1.5)\n"
        "    status: int = result.status\n"
        "    wrong: str = result.status\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            str(installed / "python"),
            str(program),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Found 1 error" in done.stdout and "typed.py:6" in done.stdout, done.stdout


def test_the_command_says_its_version_and_abi(installed: Path) -> None:
    done = subprocess.run(
        [str(installed / "tender"), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "tender 0.1.0\nABI version 2\n"


def test_uninstalling_leaves_nothing(installed: Path) -> None:
    """Last in this file: it takes the package away."""
    subprocess.run([str(installed / "pip"), "-q", "uninstall", "-y", "tender"], check=True)
    left = [
        p for p in installed.parent.rglob("*") if p.name.startswith("tender") and "__pycache__" not in p.parts
    ]
    assert left == []
