"""docs/library.md shows every public name of the library, with its real signature.

A line of a block that begins with a call shows a signature: `vm.run(timeout=None)` is the signature of
Vm.run.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fences

import tender
from tender.backend import trial
from tender.native import ffi, lib

DOC = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
SHOWN_BY = {"image": tender.Image, "config": tender.VmConfig, "vm": tender.Vm, "pool": tender.VmPool}
MADE_BY_USERS = ("Tap", "NetFd", "BlockFile", "BlockFd", "VmConfig", "Vm", "VmPool", "run", "running")
CLASS_METHODS = ("Image.open", "Image.from_bytes")
OURS = {"image.elf", "image.template", "config.to_dict"}
"""Public by name, but only used by other parts of the library."""


def blocks() -> Iterator[str]:
    """Returns the blocks that are not programs."""
    return iter([text for language, text in fences(DOC) if not language])


def written() -> dict[str, str]:
    """Returns arguments by name, from the lines of blocks that begin with a call. After a comma a call may
    continue on the next line."""
    lines = [line for block in blocks() for line in re.sub(r",\n +", ", ", block).splitlines()]
    calls = (re.match(r"([\w.]+)\((.*?)\)(?:  |$)", line) for line in lines)
    return {call[1]: call[2] for call in calls if call}


def members() -> dict[str, object]:
    """Returns every public attribute of the objects that users hold, such as `vm.run`. An attribute that
    only an instance has is None."""
    found: dict[str, object] = {}
    with tender.Image.from_bytes(trial.elf()) as image:
        made = {"image": image, "config": tender.VmConfig()}
        for name, kind in SHOWN_BY.items():
            held = getattr(made.get(name), "__dict__", {})
            for member in {*dir(kind), *held}:
                if not member.startswith("_") and f"{kind.__name__}.{member}" not in CLASS_METHODS:
                    found[f"{name}.{member}"] = getattr(kind, member, None)
    return {name: it for name, it in found.items() if name not in OURS}


METHODS = {name: it for name, it in members().items() if inspect.isfunction(it)}
CALLS: dict[str, object] = {
    **METHODS,
    **{name: getattr(tender, name) for name in MADE_BY_USERS},
    **{name: getattr(tender.Image, name.partition(".")[2]) for name in CLASS_METHODS},
}


def real(found: object) -> str:
    assert callable(found)
    words: list[str] = []
    for it in inspect.signature(found).parameters.values():
        if it.name == "self":
            continue
        if it.kind is it.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = "CAPTURE" if it.default == tender.CAPTURE else repr(it.default).replace("'", '"')
        words.append(it.name if it.default is it.empty else f"{it.name}={default}")
    return ", ".join(words)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_signature_in_the_documentation_is_the_real_one(name: str) -> None:
    assert written()[name] == real(CALLS[name])


def test_every_call_in_the_documentation_exists() -> None:
    assert set(written()) - {"config.to_dict"} == set(CALLS)


def test_every_attribute_is_documented_with_its_object() -> None:
    """A line like `image.name, .entry` names two attributes of an image."""
    named: set[str] = set()
    for line in (line for block in blocks() for line in block.splitlines()):
        words = re.match(r"(?:(\w+)\.\w+)(?:\(.*?\))?(?:, (?:\w+)?\.\w+)*", line)
        if words and words[1] in SHOWN_BY:
            named |= {f"{words[1]}.{it}" for it in re.findall(r"\.(\w+)", words[0])}
    assert set(members()) <= named | set(METHODS)
    made_by_run = {"vm.backend", "vm.fallback", "vm.config", "vm.image_name"}
    made_by_run |= {"pool.image", "pool.config", "pool.size"}
    assert named - set(members()) == made_by_run


@pytest.mark.parametrize("name", [it for it in tender.__all__ if not it.startswith("_")])
def test_every_public_name_is_in_the_documentation(name: str) -> None:
    assert re.search(rf"\b{name}\b", DOC)


@pytest.mark.parametrize("kind", [tender.VmResult, tender.GuestFault, tender.Trap])
def test_every_field_of_a_result_is_in_the_documentation(kind: type) -> None:
    fields = [name for name in dir(kind) if not name.startswith("_")]
    shown = DOC[DOC.index("## VmResult") : DOC.index("## Errors")]
    assert [name for name in fields if not re.search(rf"\b{name}\b", shown)] == []


def test_the_documented_names_of_extensions_are_those_of_an_image() -> None:
    line = re.search(r"^image\.extensions .*\n .*$", DOC, re.MULTILINE)
    assert line
    names = [lib.tn_feature_name(1 << i) for i in range(32)]
    assert re.findall(r'"([\w-]+)"', line[0]) == [ffi.string(name).decode() for name in names if name]


def test_the_documented_tree_of_errors_is_the_real_one() -> None:
    """A class that is indented by two more columns is a subclass."""
    tree = next(block for block in blocks() if block.startswith("TenderError"))
    above: list[str] = []
    shown = {}
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        del above[indent // 2 :]
        shown[name] = above[-1] if above else "Exception"
        above.append(name)
    errors = {n: getattr(tender, n) for n in tender.__all__ if n.endswith(("Error", "Unavailable", "Failed"))}
    assert shown == {name: kind.__base__.__name__ for name, kind in errors.items()}
