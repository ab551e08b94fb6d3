"""How runs end. One table (bindings/vm/exit_reasons.def) serves the native command, Python, the library and
the document.

The sentences that C and Python both print are in one place (bindings/machine/says.def).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tender.cli import run
from tender.native import ffi, lib, says
from tender.result import STATUS_ENDED, STATUS_HOST_FAILED, ExitReason

ROOT = Path(__file__).resolve().parents[2]
SAYS = ROOT / "bindings" / "machine" / "says.def"
C_FILES = sorted(p for p in (ROOT / "bindings").rglob("*.[ch]") if p.name != "native.h")
PYTHON_FILES = sorted(p for p in (ROOT / "tender").rglob("*.py") if "bench" not in p.parts)


def rows() -> dict[str, int]:
    """Returns each reason and its status, as the core defines them."""
    found: dict[str, int] = {}
    status = ffi.new("int32_t *")
    while (reason := lib.tn_exit_reason_name(len(found), status)) != ffi.NULL:
        found[ffi.string(reason).decode()] = int(status[0])
    return found


def test_python_names_every_reason_and_no_other() -> None:
    """A refused start has no result: its reason appears only in the JSON."""
    named = {value for name, value in vars(ExitReason).items() if name.isupper()}
    assert named | {"not-started"} == set(rows())


def test_the_document_lists_every_end_with_its_status() -> None:
    text = (ROOT / "docs" / "cli.md").read_text().split("| `reason` in the JSON |")[1].split("\n\n")[0]
    document = {
        reason: cells[2].strip()
        for cells in (row.strip("| ").split(" | ") for row in text.split("\n")[2:])
        for reason in re.findall(r"`([a-z-]+)`", cells[0])
    }
    expected = rows()
    assert set(document) == set(expected)
    for reason, status in document.items():
        if reason == "exit":
            assert status == "the guest's"
        else:
            assert str(expected[reason]) in re.findall(r"\d+", status), reason
        if status.isdigit():
            assert expected[reason] == int(status), reason


def test_the_statuses_in_python_are_equal_to_the_cores() -> None:
    assert run.STATUS_CANNOT_START == lib.STATUS_CANNOT_START
    assert (STATUS_ENDED, STATUS_HOST_FAILED) == (1, 2)  # the statuses that managers of unikernels know


# ---- sentences that both languages print


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


SENTENCES = re.findall(r"SAYS\((\w+),((?:\s*\"(?:[^\"\\]|\\.)*\")+)\)", without_comments(SAYS.read_text()))


def test_the_whole_table_is_read() -> None:
    assert len(SENTENCES) == without_comments(SAYS.read_text()).count("\nSAYS(") > 10
    for name, text in SENTENCES:
        assert ffi.string(lib.tn_says(name.encode())).decode() == "".join(re.findall(r'"(.*?)"', text))
    assert lib.tn_says(b"absent") == lib.tn_says(b"") == ffi.NULL


def test_a_sentence_takes_values_as_printf_does() -> None:
    assert says("memory_adjusted", 2097152) == "adjusting memory to 2097152 bytes"
    assert says("time_over", 0.25) == "the guest was stopped: its time limit of 0.25 s is over"
    assert says("sandbox_failed", "limits", "%s") == "sandbox: limits: %s"


@pytest.mark.parametrize("name", [name for name, _ in SENTENCES])
def test_every_sentence_of_the_table_is_printed_by_c_and_python(name: str) -> None:
    """A sentence that only one of them prints does not belong in the table."""
    assert [p for p in C_FILES if re.search(rf"\bsays_{name}\b", without_comments(p.read_text()))]
    assert [p for p in PYTHON_FILES if re.search(rf"\bsays\(\s*['\"]{name}['\"]", p.read_text())]


def c_strings(path: Path) -> Iterator[str]:
    text = re.sub(
        r'"\s*PRI\w+(\s*")?', lambda m: "u" + ("" if m[1] else '"'), without_comments(path.read_text())
    )
    for joined in re.finditer(r'(?:"(?:[^"\\\n]|\\.)*"[\s\\]*)+', text):
        yield (
            "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', joined[0])).replace("\\n", "\n").replace('\\"', '"')
        )


def python_strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def said(text: str) -> str:
    """Returns a sentence without its values."""
    return re.sub(r"%[-0-9.*]*l*[a-z]|\{[^}]*\}", "", text).strip()


# Sentences that C and Python print from two places.
TWICE = {
    "Malformed value of TENDER_LAUNCHER": "Python reads the variable before it loads the core",
    "Could not attach interface: :": "solo5-hvt's message for an invalid descriptor number",
}


def test_no_other_sentence_is_in_both_languages() -> None:
    """A string with a blank is a sentence. A string without one is a name that both may use."""
    of_c = {said(text) for path in C_FILES for text in c_strings(path)}
    of_python = {said(text) for path in PYTHON_FILES for text in python_strings(path)}
    sentences = {text for text in of_c & of_python if " " in text and len(text) >= 20}
    assert sentences == set(TWICE)


def test_no_sentence_of_the_table_is_elsewhere() -> None:
    for path in (*C_FILES, *PYTHON_FILES):
        others = {said(t) for t in (c_strings if path.suffix in (".c", ".h") else python_strings)(path)}
        for name, text in SENTENCES:
            sentence = said("".join(re.findall(r'"(.*?)"', text)))
            assert len(sentence) < 12 or sentence not in others, f"{path}: {name}"
