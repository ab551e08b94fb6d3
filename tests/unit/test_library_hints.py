"""The library's messages use the library's terms: they name arguments, and never an option of the command."""

import ast
import errno
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elf_builder import good_elf

import tender
from tender import BlockFd, BlockFile, Image, Tap, TenderError, Vm, VmConfig, VmPool
from tender.backend import kvm, sandbox, trial
from tender.config import LAYERS
from tender.devices.opening import open_device, refused
from tender.native import both_told, ffi, lib
from tender.outcome import explain

SOURCES = Path(tender.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z]|:ro\b|:raw\b|\bfd:")
"""An option, or another word that only the command accepts."""


def of_command(error: TenderError) -> str:
    return f"{error.message} {error.command_hint}"


def image(**elf: Any) -> Image:
    return Image.from_bytes(good_elf(**elf), name="app.elf")


def with_devices() -> Image:
    return image(devices=[("service0", "net"), ("service1", "net"), ("storage", "block")])


def console(path: Path) -> Vm:
    return Vm(Image.from_bytes(trial.elf()), VmConfig(mem=4), console=path, backend="sandbox")


def a_socket(where: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(where / "s"))
    return where / "s"


def disk(where: Path, data: bytes) -> Vm:
    (where / "d.img").write_bytes(data)
    return Vm(image(devices=[("storage", "block")]), VmConfig(block=BlockFile(where / "d.img")))


def open_twice(where: Path) -> None:
    (where / "d.img").write_bytes(bytes(512))
    opened = open_device(BlockFile(where / "d.img"), "storage")
    try:
        open_device(BlockFile(where / "d.img"), "storage")
    finally:
        opened.close()


def read_only_descriptor(where: Path) -> None:
    (where / "d.img").write_bytes(bytes(512))
    with open(where / "d.img", "rb") as file:
        open_device(BlockFd(file.fileno()), "storage")


PROVOKED: list[tuple[Callable[[Path], object], str, str]] = [
    # the action, a part of the library's hint, a part of the command's hint
    (lambda _: VmConfig(mem=8192), "mem=4096 or less", "--mem=4096"),
    (lambda _: VmConfig(mem=3), "the nearest below is 2 MiB", ""),
    (lambda _: VmConfig(mem="64X"), "write MiB, or a unit", ""),
    (lambda _: image(code=bytes(4 << 20)).check_fits(4 << 20), "mem=", "--mem="),
    (lambda _: VmPool(image(code=bytes(4 << 20)), VmConfig(mem=4)), "mem=", "--mem="),
    (lambda _: Vm(with_devices()), ", 'service1': Tap(...)}, block={'storage': BlockFile(...)}", "--net:service0=TAP"),
    (lambda _: Vm(with_devices(), VmConfig(net=Tap("t"))), "name one: net={'service0': Tap(...)}", "--net:service0=TAP"),
    (lambda _: Vm(with_devices(), VmConfig(net={"eth0": Tap("t")})), "declares: net service0", ""),
    (lambda _: Vm(image(), VmConfig(block=BlockFile("d"))), "", ""),
    (lambda tmp: Image.open(tmp), "", ""),
    (lambda _: Image.open("missing.elf"), "there is no missing.elf in this directory", ""),
    (lambda _: Image.from_bytes(b""), "", ""),
    (lambda tmp: console(tmp), "", ""),
    (lambda tmp: console(a_socket(tmp)), "console=FD", "fd:N"),
    (lambda tmp: disk(tmp, b"QFI\xfb" + bytes(1020)), "raw=True", ":raw"),
    (lambda tmp: disk(tmp, bytes(500)), "it has 500 bytes", ""),
    (open_twice, "read_only=True for all of them", ":ro in all of them"),
    (read_only_descriptor, "read_only=True", ":ro"),
    (lambda _: open_device(Tap("no-such-tap0")), "ip tuntap add no-such-tap0 mode tap", ""),
    (lambda _: kvm.open_kvm(lib_handle(), "/dev/null"), "", ""),
    (lambda _: kvm.open_kvm(lib_handle(), "/nowhere/kvm"), "`tender doctor`", ""),
]  # fmt: skip


def lib_handle() -> Any:
    from tender.native import vm_handle

    handle = vm_handle()
    assert lib.tn_vm_make(handle) == 0
    return handle


@pytest.mark.parametrize("row", range(len(PROVOKED)))
def test_an_error_names_arguments_in_the_library_and_options_in_the_command(row: int, tmp_path: Path) -> None:
    provoke, library, command = PROVOKED[row]
    with pytest.raises(TenderError) as refused:
        provoke(tmp_path)
    error = refused.value
    said = f"{error.message}\n{error.hint}"
    assert not OPTION.search(said.replace(str(tmp_path), "")), said
    assert library in error.hint and command in error.command_hint
    assert error.to_dict()["hint"] == error.hint
    assert getattr(error, "__notes__", []) == ([f"hint: {error.hint}"] if error.hint else [])


ERRNOS = sorted(errno.errorcode)
PROBLEMS = {name: getattr(lib, name) for name in dir(lib) if name.startswith("DEVICE_") and "MAX" not in name}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_refusal_of_a_device_names_no_option_in_the_library(name: str) -> None:
    """Every errno is tried, whether it can occur or not."""
    error = ffi.new("struct device_error *", {"problem": PROBLEMS[name]})
    for error.os_error in ERRNOS:
        for told in (refused("net", error, "tap0"), refused("block", error, "disk.img")):
            assert not OPTION.search(told.hint), told.hint


@pytest.mark.parametrize("number", ERRNOS)
def test_every_refusal_of_dev_kvm_names_no_option_in_the_library(number: int) -> None:
    assert not OPTION.search(kvm._cannot_open("/dev/kvm", number).hint)


def test_every_failure_of_the_sandbox_names_no_option_in_the_library() -> None:
    differ = 0
    for step in (*range(8), lib.SETUP_SHARED):
        for number in ERRNOS:
            error = sandbox.setup_failed(step, number)
            assert not OPTION.search(f"{error.message} {error.hint}")
            differ += error.hint != error.command_hint
    assert differ


@pytest.mark.parametrize("machine", [b"kvm", b"sandbox"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_missing_layer_names_no_option_in_the_library(layer: str, machine: bytes) -> None:
    hints = both_told(lambda told: lib.tn_isolation_cure(LAYERS.index(layer), machine, told))
    assert not OPTION.search(hints["hint"])
    assert bool(hints["hint"]) == bool(hints["command_hint"])
    for word in ("sandbox", "kvm"):
        assert (f"--backend={word}" in hints["command_hint"]) == (f'backend="{word}"' in hints["hint"])


def test_every_end_of_a_run_names_no_option_in_the_library() -> None:
    kinds = {name: getattr(lib, name) for name in dir(lib) if name.startswith("EVENT_")}
    differ = set()
    for name, kind in kinds.items():
        event = ffi.new("struct vm_event *", {"kind": kind})
        for backend in ("kvm", "sandbox"):
            _, _, message = explain(event, backend)
            assert not OPTION.search(message), message
            if explain(event, backend, told=lib.TOLD_COMMAND)[2] != message:
                differ.add(name)
    assert differ == {"EVENT_UNSUPPORTED_INSTRUCTION"}


def texts(source: str) -> list[str]:
    """Returns the strings of a program without its docstrings."""
    tree = ast.parse(source)
    docs = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    loose = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [str(node.value) for node in found if node not in docs | loose]


# Texts of the command that the library's users do not see: sessions of `tender debug`, and reports with what to type next.
# access.py names an option of docker, which is the same for both.
OF_THE_COMMAND = ("debug/access.py", "debug/report.py", "debug/report_html.py", "debug/session.py")
LIBRARY = [
    path.relative_to(SOURCES).as_posix()
    for path in sorted(SOURCES.rglob("*.py"))
    if path.relative_to(SOURCES).parts[0] not in ("cli", "bench", "testing", "cures.py")
    and path.relative_to(SOURCES).as_posix() not in OF_THE_COMMAND
]


@pytest.mark.parametrize("path", LIBRARY)
def test_no_text_of_the_library_has_an_option(path: str) -> None:
    """Texts that differ between the two are in cures.py and, for the C core, in exit_report.c."""
    for text in texts((SOURCES / path).read_text()):
        assert not OPTION.search(text), text


def test_the_first_column_of_the_table_of_hints_names_no_option() -> None:
    from tender.cures import _CURES

    for library, command in _CURES.values():
        assert not OPTION.search(library), library
        assert OPTION.search(command.replace("{kind}", "net").replace("{options}", "--net=tap0")), command
        assert library != command
