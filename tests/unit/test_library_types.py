"""What type checkers and editors know about the library: wrong words are errors, the documents' examples
pass, and completion offers names, signatures and docstrings."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import get_args

import jedi
import pytest
from language_server import LanguageServer
from support import markdown_pages

import tender
from tender import Backend, IsolationLayer, NetRing, annotations
from tender.config import BACKENDS, LAYERS, NET_RINGS

STEPS = tender.BootTimeline.__slots__
ROOT = Path(__file__).parents[2]


def examples() -> dict[str, str]:
    """Returns every program of examples/ by name, and every Python block of the documents by page and line."""
    found = {f"examples_{path.stem}": path.read_text() for path in (ROOT / "examples").glob("*.py")}
    for page in markdown_pages(ROOT):
        text = page.read_text()
        for block in re.finditer(r"^ *```python\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
            found[f"{page.stem}_{text.count(chr(10), 0, block.start(1)) + 1}"] = block[1]
    return found


def spelt(words: type[StrEnum]) -> list[str]:
    """Returns each word as a program may write it: by its name, and as a plain string."""
    return [f"{words.__name__}.{it.name}" for it in words] + [repr(it.value) for it in words]


USE = """\
from pathlib import Path
from tender import *
from tender import BackendLike, ConsoleTarget, IsolationLayerLike, NetRingLike

def made(
    image: Image, vm: Vm, result: VmResult, device: Device,
    console: ConsoleTarget, backend: BackendLike, layer: IsolationLayerLike, ring: NetRingLike,
) -> None:
    {body}
"""
RIGHT = [
    *(
        f"Vm(image, console={it})"
        for it in ("1", "CAPTURE", "DISCARD", "Path('f')", "print", "console", "'capture'", "'discard'")
    ),
    *(f"Vm(image, console=Console.{it.name})" for it in tender.Console),
    *(
        f"{it}, backend={word})"
        for it in ("Vm(image", "VmPool(image", "run(image")
        for word in spelt(Backend)
    ),
    *(f"VmConfig(net_ring={word})" for word in spelt(NetRing)),
    *(f"VmConfig(require=[{word}])" for word in spelt(IsolationLayer)),
    "VmConfig(require=(layer,), net_ring=ring)",
    "Vm(image, backend=backend)",
    "Vm(image, backend=vm.backend)",
    "VmConfig(require=vm.isolation)",
    *(
        f"print({it})"
        for it in ("vm.backend == 'kvm'", "result.reason == 'exit'", "result.backend == Backend.KVM")
    ),
    *(
        f"print({it})"
        for it in ("device.kind == 'net'", "device.kind == DeviceKind.BLOCK", "'kvm' in vm.isolation")
    ),
    "vm.wait().status",
    "vm.wait(5).status",
    "result.boot.since_start_ms('first_run')",
]
WRONG = {
    **{
        f"{it}(image, console={word})": "arg-type"
        for it in ("Vm", "VmPool", "run")
        for word in ("'captrue'", "'out.txt'", "None", "b'out'", "1.5", "open('f')")
    },
    **{f"{it}(image, backend='xen')": "arg-type" for it in ("Vm", "VmPool", "run")},
    "VmConfig(net_ring='yes')": "arg-type",
    "VmConfig(require=('moat',))": "arg-type",
    "VmConfig(require='kvm')": "arg-type",
    "VmConfig(args='one string')": "arg-type",
    "VmConfig(64)": "call-arg",
    "VmConfig(net='tap0')": "arg-type",
    "VmConfig(block='disk.img')": "arg-type",
    "result.boot.since_start_ms('first_byte')": "arg-type",
    "Vm(image, backend=Console.CAPTURE)": "arg-type",
    "Vm(image, console=Backend.KVM)": "arg-type",
    "Backend.XEN": "attr-defined",
    "result.reason.timeout": "attr-defined",
    "result.console.decode()": "union-attr",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the output of mypy --strict for all examples and for the uses above, with the installed
    package, as a user runs it."""
    where = tmp_path_factory.mktemp("types")
    # A missing error makes its `type: ignore` unused, which --strict reports.
    lines = [*RIGHT, *(f"{line}  # type: ignore[{code}]" for line, code in WRONG.items())]
    files = examples() | {"use": USE.format(body="\n    ".join(lines))}
    for name, text in files.items():
        (where / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache"]
    command += [f"{name}.py" for name in files]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode in (0, 1), done.stderr
    assert re.search(
        rf"checked {len(files)} source files|no issues found in {len(files)} source", done.stdout
    ), done.stdout
    return done.stdout


def errors_in(errors: str, file: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith(f"{file}.py:")]


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """What pyright's strict mode says of the same: by file and line."""
    where = tmp_path_factory.mktemp("pyright")
    files = examples() | {"use": USE.format(body="\n    ".join([*RIGHT, *WRONG]))}
    for name, text in files.items():
        (where / f"{name}.py").write_text(text)
    (where / "pyrightconfig.json").write_text(
        # The lines of USE show values and calls for their types alone.
        '{"typeCheckingMode": "strict", "reportUnusedExpression": false, "reportUnusedCallResult": false}'
    )
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "."]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == len(files)
    found: dict[str, dict[int, str]] = {name: {} for name in files}
    for it in said["generalDiagnostics"]:
        if it["severity"] == "error":
            found[Path(it["file"]).stem][it["range"]["start"]["line"]] = it["message"]
    return found


@pytest.mark.parametrize("name", examples())
def test_an_example_passes_a_strict_type_check(name: str, errors: str) -> None:
    assert errors_in(errors, name) == []


@pytest.mark.parametrize("name", examples())
def test_an_example_passes_pyrights_strict_mode(name: str, pyright: dict[str, dict[int, str]]) -> None:
    assert pyright[name] == {}


def test_pyright_takes_what_is_right_and_refuses_each_wrong_word(pyright: dict[str, dict[int, str]]) -> None:
    first = USE.split("{body}")[0].count("\n")
    refused = pyright["use"]
    lines = dict(enumerate([*RIGHT, *WRONG], start=first))
    assert {lines[number] for number in refused if number >= first} == set(WRONG)


def test_only_these_pages_have_examples() -> None:
    pages = {name.rpartition("_")[0] for name in examples() if not name.startswith("examples_")}
    assert pages == {"README", "library", "debugging"}


def test_a_type_checker_accepts_right_uses_and_refuses_each_wrong_one(errors: str) -> None:
    assert errors_in(errors, "use") == []


@pytest.mark.parametrize(
    ("words", "checked"),
    [
        (get_args(annotations.BackendLike), BACKENDS),
        (get_args(annotations.NetRingLike), NET_RINGS),
        (get_args(annotations.IsolationLayerLike), LAYERS),
        (get_args(annotations.ConsoleTarget), (tender.CAPTURE, tender.DISCARD)),
    ],
)
def test_the_words_of_a_type_are_the_accepted_ones(
    words: tuple[object, ...], checked: tuple[StrEnum, ...]
) -> None:
    assert type(checked[0]) in words and tuple(type(checked[0])) == checked
    assert get_args(words[-1]) == checked


def test_the_steps_of_a_boot_are_the_fields_of_its_timeline() -> None:
    assert get_args(annotations.BootStep) == STEPS


@pytest.mark.parametrize(
    ("refused", "listed"),
    [
        (lambda: tender.Vm(image(), console="captrue"), ("CAPTURE ('capture')", "DISCARD ('discard')")),  # type: ignore[arg-type]
        (lambda: tender.VmPool(image(), console="captrue"), ("CAPTURE ('capture')", "DISCARD ('discard')")),  # type: ignore[arg-type]
        (lambda: tender.Vm(image(), backend="xen"), BACKENDS),  # type: ignore[arg-type]
        (lambda: tender.VmPool(image(), backend="xen"), BACKENDS),  # type: ignore[arg-type]
        (lambda: tender.VmConfig(net_ring="yes"), NET_RINGS),  # type: ignore[arg-type]
        (lambda: tender.VmConfig(require=("moat",)), LAYERS),  # type: ignore[arg-type]
        (lambda: tender.BootTimeline(**dict.fromkeys(STEPS, 0)).since_start_ms("first_byte"), STEPS),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_word_is_a_value_error_that_lists_the_right_ones(
    refused: "Callable[[], object]", listed: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        refused()
    assert isinstance(error.value, tender.ConfigError)
    assert all(word in str(error.value) for word in listed)


def image() -> tender.Image:
    from tender.backend import trial

    return tender.Image.from_bytes(trial.elf())


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Callable[[str], jedi.Script]":
    """jedi for a program outside of this tree, so that it sees the installed package."""
    monkeypatch.setattr(jedi.settings, "cache_directory", str(tmp_path))
    project = jedi.Project(tmp_path)
    environment = jedi.InterpreterEnvironment()
    return lambda code: jedi.Script(
        code, path=tmp_path / "program.py", project=project, environment=environment
    )


MADE = """\
from tender import *
image = Image.open("app.elf")
with VmPool(image) as pool:
    taken = pool.take()
vm = Vm(image)
result = vm.run()
waited = vm.wait()
config = VmConfig()
"""


def offered(script: "jedi.Script") -> "dict[str, str]":
    return {it.name: it.docstring(raw=True) for it in script.complete() if not it.name.startswith("_")}


def test_an_editor_offers_every_public_name(editor: "Callable[[str], jedi.Script]") -> None:
    names = offered(editor("import tender\ntender."))
    assert set(names) >= {name for name in tender.__all__ if not name.startswith("_")}
    for name, doc in names.items():
        found = getattr(tender, name, None)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert doc == inspect.getdoc(found), name
            assert doc, name


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("image", tender.Image),
        ("pool", tender.VmPool),
        ("taken", tender.Vm),
        ("vm", tender.Vm),
        ("result", tender.VmResult),
        ("waited", tender.VmResult),
        ("result.boot", tender.BootTimeline),
        ("result.counters", tender.Counters),
        ("config", tender.VmConfig),
    ],
)
def test_an_editor_offers_methods_with_their_docstrings(
    editor: "Callable[[str], jedi.Script]", variable: str, kind: type
) -> None:
    names = offered(editor(f"{MADE}{variable}."))
    members = {name: it for name, it in inspect.getmembers(kind) if not name.startswith("_")}
    assert set(names) >= set(members)
    for name, member in members.items():
        if callable(member) or isinstance(member, property):
            assert names[name] == inspect.getdoc(member), name
            assert names[name], name


@pytest.mark.parametrize(
    "call",
    [
        *("Vm", "VmPool", "VmConfig", "Tap", "NetFd", "BlockFile", "BlockFd", "run"),
        *("Image.open", "Image.from_bytes"),
    ],
)
def test_an_editor_shows_a_calls_arguments(editor: "Callable[[str], jedi.Script]", call: str) -> None:
    found = tender
    for name in call.split("."):
        found = getattr(found, name)
    [shown] = editor(f"import tender\ntender.{call}(").get_signatures()
    expected = [it.name for it in inspect.signature(found).parameters.values()]  # type: ignore[arg-type]
    assert [it.name for it in shown.params] == expected
    assert shown.docstring(raw=True) == inspect.getdoc(found)


# ---- pyright's language server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    """An editor's view of a program elsewhere than in this tree: the server sees the installed package."""
    with LanguageServer(tmp_path_factory.mktemp("editor")) as server:
        yield server


@pytest.fixture
def completed(server: LanguageServer) -> Iterator[Callable[[str], dict[str, Callable[[], str]]]]:
    """What is offered at the end of a program, and how each name is explained."""

    def complete(text: str) -> dict[str, Callable[[], str]]:
        server.open(text)
        return {name: it for name, it in server.completions().items() if not name.startswith("_")}

    yield complete
    server.close()


def test_pyright_offers_every_public_name(completed: Callable[[str], dict[str, Callable[[], str]]]) -> None:
    names = completed("import tender\ntender.")
    assert set(names) == {name for name in tender.__all__ if not name.startswith("_")}
    for name in ("Vm", "VmPool", "run", "CAPTURE"):
        doc = inspect.getdoc(getattr(tender, name)) if name != "CAPTURE" else "the console's bytes are in"
        assert str(doc) in names[name]()


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("vm", tender.Vm),
        ("taken", tender.Vm),
        ("pool", tender.VmPool),
        ("image", tender.Image),
        ("waited", tender.VmResult),
    ],
)
def test_pyright_offers_methods_with_their_docstrings(
    completed: Callable[[str], dict[str, Callable[[], str]]], variable: str, kind: type
) -> None:
    names = completed(f"{MADE}{variable}.")
    members = {name: it for name, it in inspect.getmembers(kind) if not name.startswith("_")}
    assert set(names) >= set(members)
    for name, member in members.items():
        if callable(member) or isinstance(member, property):
            assert str(inspect.getdoc(member)) in names[name](), name


def test_pyright_shows_a_method_under_the_cursor(server: LanguageServer) -> None:
    server.open("from tender import Image, Vm\nvm = Vm(Image.open('app.elf'))\nvm.wait")
    shown = server.hover()
    server.close()
    assert "wait(timeout: float | None = None) -> VmResult" in shown
    assert str(inspect.getdoc(tender.Vm.wait)) in shown
