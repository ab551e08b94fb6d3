"""The signatures that docs/library.md shows are those of the library."""

import inspect
import re
from pathlib import Path

import pytest

import tender

DOC = Path(__file__).parents[2] / "docs" / "library.md"
OWNERS = {"vm": tender.Vm, "pool": tender.VmPool}
SHOWN = {
    "Tap",
    "NetFd",
    "BlockFile",
    "BlockFd",
    "Vm",
    "VmPool",
    "run",
    "vm.run",
    "vm.start",
    "vm.wait",
    "vm.stop",
}
SHOWN |= {"vm.memory", "vm.close", "pool.run", "pool.take"}


def written(text: str) -> dict[str, str]:
    """The arguments by name, of the lines of code blocks that begin with a call."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    calls = (re.match(r"([\w.]+)\(([^)]*)\)", line) for block in blocks for line in block.splitlines())
    return {call[1]: call[2] for call in calls if call and call[1] in SHOWN}


def real(name: str) -> str:
    owner, _, method = name.rpartition(".")
    found = getattr(OWNERS[owner], method) if owner else getattr(tender, name)
    parameters = [it for it in inspect.signature(found).parameters.values() if it.name != "self"]
    words: list[str] = []
    for it in parameters:
        if it.kind is it.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = "CAPTURE" if it.default == tender.CAPTURE else str(it.default)
        if it.name == "backend":
            default = f'"{it.default}"'
        words.append(it.name if it.default is it.empty else f"{it.name}={default}")
    return ", ".join(words)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_the_signature_in_the_documentation_is_the_real_one(name: str) -> None:
    assert written(DOC.read_text())[name] == real(name)
