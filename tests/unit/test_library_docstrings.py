"""Each public name of the library has a docstring in one form: a sentence, then sections that are true of the code.

Arguments are those of the signature, attributes are those that an object has, and each error of a `Raises:` section is
raised by a row of RAISED. An error that a row raises and the docstring lacks fails as well.
"""

import ast
import builtins
import errno
import inspect
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tender
from tender import (
    BlockFd,
    BlockFile,
    ConfigError,
    DeviceError,
    GuestFailed,
    HostError,
    Image,
    ImageError,
    KvmUnavailable,
    ManifestError,
    NetFd,
    Tap,
    Vm,
    VmConfig,
    VmPool,
    VmResult,
    VmStateError,
)
from tender.backend import kvm, trial
from tender.config import OtherDevice
from tender.native import lib
from tender.values import Value

ROOT = Path(__file__).parents[2]
SECTIONS = ("Args", "Returns", "Raises", "Attributes")
CLASSES = {name: it for name in tender.__all__ if inspect.isclass(it := getattr(tender, name))}
CLASSES["OtherDevice"] = OtherDevice
WORDS = {name: it for name, it in CLASSES.items() if issubclass(it, StrEnum)}


def members() -> Iterator[tuple[str, Any]]:
    """Yields every public callable and property by its dotted name, with those that a class inherits from our classes."""
    for name, kind in CLASSES.items():
        for member in () if name in WORDS else dir(kind):
            it = inspect.getattr_static(kind, member)
            is_ours = not member.startswith("_") and not hasattr(BaseException, member)
            if is_ours and (callable(it) or isinstance(it, (property, classmethod))):
                yield f"{name}.{member}", getattr(kind, member)
    yield "run", tender.run


MEMBERS = dict(members())
DOCUMENTED = {**CLASSES, **MEMBERS}


def sections(it: object) -> dict[str, dict[str, str]]:
    """Returns the sections of a docstring, and in each section the text of each entry by its name."""
    doc = inspect.getdoc(it)
    assert doc
    found: dict[str, dict[str, str]] = {}
    for title, body in re.findall(r"^(\w+):\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE):
        entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", body, re.MULTILINE)
        found[title] = dict(entries) if title != "Returns" else {"": body}
    return found


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_begins_with_one_sentence(name: str) -> None:
    doc = inspect.getdoc(DOCUMENTED[name])
    assert doc, "no docstring"
    first, _, rest = doc.partition("\n")
    assert re.fullmatch(r"[A-Z][^\n]*[^.\s]\.", first), first
    assert not rest or rest.startswith("\n"), "no empty line follows the first sentence"
    assert not re.search(r"\.\s+[A-Z]", first), "the first line has more than one sentence"
    assert set(re.findall(r"^(\w+):$", doc, re.MULTILINE)) <= set(SECTIONS)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_entry_of_a_section_is_a_sentence(name: str) -> None:
    for title, entries in sections(DOCUMENTED[name]).items():
        assert entries, f"{title} is empty"
        for entry, text in entries.items():
            assert text.rstrip().endswith("."), (title, entry, text)


def parameters(it: Any) -> set[str]:
    return {name for name in inspect.signature(it).parameters if name not in ("self", "cls")}


@pytest.mark.parametrize("name", [n for n, it in MEMBERS.items() if not isinstance(it, property)])
def test_the_arguments_in_a_docstring_are_the_real_ones(name: str) -> None:
    assert set(sections(MEMBERS[name]).get("Args", ())) == parameters(MEMBERS[name])


MADE = {"Vm": Vm, "VmPool": VmPool, "VmConfig": VmConfig, "BlockFile": BlockFile, "OtherDevice": OtherDevice}


@pytest.mark.parametrize("name", MADE)
def test_the_arguments_of_a_constructor_are_in_its_docstring(name: str) -> None:
    assert set(sections(MADE[name]).get("Args", ())) == parameters(MADE[name])


def attributes_of(name: str) -> set[str]:
    kind: Any = CLASSES[name]
    if issubclass(kind, Value):
        return set(kind.__slots__)
    if issubclass(kind, BaseException):  # only the attributes that it adds to its base
        made: Any = kind("m", RESULT) if kind is GuestFailed else kind("m")
        base = kind.__base__
        return set(vars(made)) - set(vars(base("m")) if base and issubclass(base, tender.TenderError) else ())
    with Image.from_bytes(trial.elf()) as image:
        if kind is Image:
            return {it for it in vars(image) if not it.startswith("_")} - {"elf"}  # for the library's own use
        with kind(image, SMALL, backend="sandbox") as owner:
            return {it for it in vars(owner) if not it.startswith("_")}


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in WORDS])
def test_the_attributes_in_a_docstring_are_the_real_ones(name: str) -> None:
    assert set(sections(CLASSES[name]).get("Attributes", ())) == attributes_of(name)


def documented_names(module: str) -> dict[str, bool]:
    """Returns each name that a module or an enumeration assigns, and whether a docstring follows it."""
    tree = ast.parse((Path(tender.__file__).parent / f"{module}.py").read_text())
    bodies = [("", tree.body)] + [
        (f"{it.name}.", it.body) for it in tree.body if isinstance(it, ast.ClassDef)
    ]
    found = {}
    for prefix, body in bodies:
        for line, following in zip(body, [*body[1:], None], strict=True):
            target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
            if isinstance(target, ast.Name):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                found[prefix + target.id] = is_text
    return found


def test_every_member_of_an_enumeration_and_every_annotation_type_has_a_docstring() -> None:
    found = documented_names("annotations") | documented_names("result") | documented_names("watch/running")
    words = {f"{name}.{member.name}" for name, kind in WORDS.items() for member in kind}
    values = {
        name
        for name in tender.__all__
        if not inspect.isclass(getattr(tender, name)) and not name.startswith("_")
    }
    wanted = words | values - {"run", "running"}
    assert wanted <= set(found)
    assert [name for name in sorted(wanted) if not found[name]] == []


# ---- errors

SMALL = VmConfig(mem=4)
NO_TEXT: Any = 5
ZERO: Any = dict.fromkeys(tender.Counters.__slots__, 0)
RESULT = VmResult(
    reason=tender.ExitReason.STOPPED, status=1, guest_status=None, message="", trap=None, console=None,
    counters=tender.Counters(**ZERO),
    boot=tender.BootTimeline(**dict.fromkeys(tender.BootTimeline.__slots__, 0)), backend=tender.Backend.KVM,
)  # fmt: skip


ELF = Path(tempfile.gettempdir(), f"tender-docstrings-{os.getpid()}.elf")


@pytest.fixture(autouse=True, scope="module")
def _elf() -> Iterator[None]:
    ELF.write_bytes(trial.elf())
    yield
    ELF.unlink()


def image() -> Image:
    return Image.from_bytes(trial.elf())


def closed_image() -> Image:
    made = image()
    made.close()
    return made


def new(**arguments: Any) -> Vm:
    return Vm(image(), SMALL, backend="sandbox", **arguments)


def closed() -> Vm:
    vm = new(console=tender.DISCARD)
    vm.close()
    return vm


def killed() -> Vm:
    vm = new(console=tender.DISCARD)
    os.kill(vm.pid, signal.SIGKILL)
    assert vm.run().reason == "sandbox-died"
    return vm


def raises(*_: object) -> None:
    raise ZeroDivisionError


def failing() -> Vm:
    vm = new(console=raises)
    vm.start()
    return vm


def endless() -> Vm:
    """Returns a VM whose guest waits, because its console callable does not return."""
    vm = new(console=lambda _: HELD.append(os.read(PIPE[0], 1)))
    vm.start()
    return vm


HELD: list[bytes] = []
PIPE = os.pipe()


def waits_too_long() -> None:
    vm = endless()
    try:
        vm.wait(0.01)
    finally:
        vm.stop()
        os.write(PIPE[1], bytes(64))
        vm.close()


def closes_inside() -> None:
    errors: list[BaseException] = []

    def close(_: bytes) -> None:
        with suppress(ZeroDivisionError):
            try:
                vm.close()
            except VmStateError as error:
                errors.append(error)

    with new(console=close) as vm:
        vm.run(60)
    raise errors[0]


def pool(**arguments: Any) -> VmPool:
    return VmPool(image(), SMALL, backend="sandbox", **arguments)


def closed_pool() -> VmPool:
    made = pool()
    made.close()
    return made


def of_a_closed_image(pool: VmPool) -> VmPool:
    """Returns the pool without its idle VM and with its image closed."""
    pool.image.close()
    pool._idle.pop().close()
    return pool


def limited(limit: int, value: int, act: Callable[[], object]) -> None:
    """Calls `act` while this process has a resource limit of `value`."""
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, hard))
    try:
        act()
    finally:
        resource.setrlimit(limit, (soft, hard))


def without_memory(act: Callable[[], object]) -> None:
    limited(resource.RLIMIT_FSIZE, 4096, act)


def without_descriptors(act: Callable[[Vm], object]) -> None:
    with new(console=tender.DISCARD) as vm:
        limited(resource.RLIMIT_NOFILE, 3, lambda: act(vm))


def refused_run() -> None:
    """Runs a VM while no thread can be made for its time limit."""

    class Refusing:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: -errno.EAGAIN) if name == "tn_run_begin" else getattr(lib, name)

    with pytest.MonkeyPatch.context() as patch, new(console=tender.DISCARD) as vm:
        patch.setattr("tender.vm.lib", Refusing())
        vm.run(timeout=5)


def without_kvm(act: Callable[..., object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm.open_kvm, "__defaults__", ("/nowhere/kvm",))
        act(image(), SMALL, backend="kvm")


BAD_DEVICES = VmConfig(mem=4, net=Tap("tap0"))
LAYERS = VmConfig(mem=4, require=("kvm",))
NO_CONSOLE = Path("/nowhere/console")
WRONG_TIME: Any = "5"
RAISED: list[tuple[str, type[BaseException], Callable[[], object]]] = [
    ("Image.open", ConfigError, lambda: Image.open(NO_TEXT)),
    ("Image.open", ImageError, lambda: Image.open("/nowhere/app.elf")),
    ("Image.from_bytes", ConfigError, lambda: Image.from_bytes(NO_TEXT)),
    ("Image.from_bytes", ImageError, lambda: Image.from_bytes(b"no ELF")),
    ("Image.open", HostError, lambda: without_memory(lambda: Image.open(ELF))),
    ("Image.from_bytes", HostError, lambda: without_memory(image)),
    ("Image.check_fits", ImageError, lambda: image().check_fits(4096)),
    ("Image.check_fits", ConfigError, lambda: image().check_fits(NO_TEXT - 6)),
    ("Image.template", ImageError, lambda: closed_image().template(4 << 20)),
    ("Image.template", ConfigError, lambda: image().template(NO_TEXT - 6)),
    (
        "Image.template",
        HostError,
        lambda: limited(resource.RLIMIT_NOFILE, 3, partial(image().template, 4 << 20)),
    ),
    ("VmConfig", ConfigError, lambda: VmConfig(mem=3)),
    ("VmConfig.with_args", ConfigError, lambda: SMALL.with_args(["x" * 9000])),
    ("Tap", ConfigError, lambda: Tap("")),
    ("NetFd", ConfigError, lambda: NetFd(-1)),
    ("BlockFile", ConfigError, lambda: BlockFile("d", sector_size=5)),
    ("BlockFd", ConfigError, lambda: BlockFd(-1)),
    ("OtherDevice", ConfigError, lambda: OtherDevice(NO_TEXT, {})),
    ("Vm", ConfigError, lambda: Vm(NO_TEXT)),
    ("Vm", ManifestError, lambda: Vm(image(), BAD_DEVICES)),
    ("Vm", ImageError, lambda: Vm(closed_image(), SMALL)),
    ("Vm", DeviceError, lambda: Vm(image(), SMALL, console=NO_CONSOLE)),
    ("Vm", KvmUnavailable, lambda: without_kvm(Vm)),
    ("Vm", HostError, lambda: Vm(image(), LAYERS, backend="sandbox")),
    ("Vm.run", ConfigError, lambda: new().run(WRONG_TIME)),
    ("Vm.run", HostError, refused_run),
    ("Vm.run", VmStateError, lambda: closed().run()),
    ("Vm.run", ZeroDivisionError, lambda: new(console=raises).run(60)),
    ("Vm.start", ConfigError, lambda: new().start(WRONG_TIME)),
    ("Vm.start", HostError, lambda: without_descriptors(Vm.start)),
    ("Vm.start", VmStateError, lambda: closed().start()),
    ("Vm.wait", ConfigError, lambda: new().wait(WRONG_TIME)),
    ("Vm.wait", TimeoutError, waits_too_long),
    ("Vm.wait", VmStateError, lambda: closed().wait()),
    ("Vm.wait", ZeroDivisionError, lambda: failing().wait(60)),
    ("Vm.fileno", VmStateError, lambda: closed().fileno()),
    ("Vm.fileno", HostError, lambda: without_descriptors(Vm.fileno)),
    ("Vm.pid", VmStateError, lambda: closed().pid),
    ("Vm.isolation", VmStateError, lambda: closed().isolation),
    ("Vm.counters", VmStateError, lambda: closed().counters),
    ("Vm.boot", VmStateError, lambda: closed().boot),
    ("Vm.memory", ConfigError, lambda: new().memory(4 << 20, 1)),
    ("Vm.memory", VmStateError, lambda: closed().memory(0x100000, 1)),
    ("Vm.memory", HostError, lambda: new().memory(0, 1)),
    ("Vm.registers", VmStateError, lambda: closed().registers()),
    ("Vm.registers", HostError, lambda: killed().registers()),
    ("Vm.backtrace", VmStateError, lambda: closed().backtrace()),
    ("Vm.hypercalls", VmStateError, lambda: closed().hypercalls()),
    ("Vm.backtrace", HostError, lambda: killed().backtrace()),
    ("Vm.symbol", ConfigError, lambda: new().symbol(NO_TEXT)),
    ("Vm.symbol", ImageError, lambda: new().symbol("main")),
    ("Vm.symbol", VmStateError, lambda: closed().symbol("main")),
    ("Vm.memory_use", VmStateError, lambda: closed().memory_use()),
    ("Vm.memory_use", HostError, lambda: killed().memory_use()),
    ("Vm.core", ConfigError, lambda: new().core(NO_TEXT)),
    ("Vm.core", VmStateError, lambda: closed().core("/nowhere/core")),
    ("Vm.core", HostError, lambda: killed().core("/nowhere/core")),
    ("Vm.close", VmStateError, closes_inside),
    ("VmPool", ConfigError, lambda: pool(size=0)),
    ("VmPool", ManifestError, lambda: VmPool(image(), BAD_DEVICES)),
    ("VmPool", ImageError, lambda: VmPool(closed_image(), SMALL)),
    ("VmPool", DeviceError, lambda: VmPool(image(), SMALL, console=NO_CONSOLE)),
    ("VmPool", KvmUnavailable, lambda: without_kvm(VmPool)),
    ("VmPool", HostError, lambda: VmPool(image(), LAYERS, backend="sandbox")),
    ("VmPool.take", ConfigError, lambda: pool().take(NO_TEXT)),
    ("VmPool.take", VmStateError, lambda: closed_pool().take()),
    ("VmPool.take", ImageError, lambda: of_a_closed_image(pool()).take()),
    ("VmPool.run", ConfigError, lambda: pool().run(timeout=WRONG_TIME)),
    ("VmPool.run", VmStateError, lambda: closed_pool().run()),
    ("VmPool.run", ImageError, lambda: of_a_closed_image(pool()).run()),
    ("VmPool.run", ZeroDivisionError, lambda: pool(console=raises).run(timeout=60)),
    ("run", ConfigError, lambda: tender.run(image(), timeout=WRONG_TIME)),
    ("run", ManifestError, lambda: tender.run(image(), BAD_DEVICES)),
    ("run", ImageError, lambda: tender.run("/nowhere/app.elf")),
    ("run", DeviceError, lambda: tender.run(image(), SMALL, console=NO_CONSOLE)),
    ("run", KvmUnavailable, lambda: without_kvm(tender.run)),
    ("run", HostError, lambda: tender.run(image(), LAYERS, backend="sandbox")),
    ("run", ZeroDivisionError, lambda: tender.run(image(), SMALL, console=raises, backend="sandbox")),
    ("VmResult.check", GuestFailed, lambda: RESULT.check()),
    ("BootTimeline.since_start_ms", ConfigError, lambda: RESULT.boot.since_start_ms("end")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("name", "error", "act"), RAISED, ids=[f"{n}-{e.__name__}" for n, e, _ in RAISED])
def test_every_raised_error_is_in_the_docstring(
    name: str, error: type[BaseException], act: Callable[[], object]
) -> None:
    with pytest.raises(error) as raised:
        act()
    named = sections(DOCUMENTED[name])["Raises"]
    assert any(kind.__name__ in named for kind in type(raised.value).__mro__[:-2]), named


def is_shown(name: str, error: type[BaseException]) -> bool:
    """Returns whether a row raises it. `Exception` stands for any error that the caller's own callable raises."""
    return any(
        of == name and (issubclass(kind, error) if error is not Exception else kind is ZeroDivisionError)
        for of, kind, _ in RAISED
    )


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_error_in_a_docstring_is_raised(name: str) -> None:
    for entry in sections(DOCUMENTED[name]).get("Raises", {}):
        error: type[BaseException] = getattr(tender, entry, None) or getattr(builtins, entry)
        assert is_shown(name, error), entry
