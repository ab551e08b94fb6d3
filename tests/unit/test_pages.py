"""Pages: each relative link and anchor exists, and text that is read outside of the tree has no broken
link."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import markdown
import pytest
from pymdownx.slugs import slugify
from support import markdown_pages, tool

ROOT = Path(__file__).resolve().parents[2]
PAGES = markdown_pages(ROOT)


@cache
def read(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the targets of the page's links, and its anchors as forges generate them."""
    renderer = markdown.Markdown(
        extensions=["fenced_code", "tables", "toc"],
        extension_configs={"toc": {"slugify": slugify(case="lower")}},
    )
    html = renderer.convert(path.read_text())
    return (
        frozenset(re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"]*)"', html)),
        frozenset(re.findall(r'\bid="([^"]*)"', html)),
    )


def broken(path: Path) -> list[str]:
    """Returns the page's relative links whose target does not exist."""
    found = []
    for target in read(path)[0]:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in read(there)[1]):
            found.append(target)
    return sorted(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_link_and_anchor_exists(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b` & c\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n\n[a](nowhere.md) [b](#nowhere) [c](other.md#nowhere) [d](other.md#a-b--c) [e](#one) [f](other.md)\n\n"
        "```\n[g](in-a-block.md)\n```\n\n`[h](in-code.md)` [i](https://example.org/#x)\n\n| a |\n|---|\n| [j](cell.md) |\n"
    )
    assert broken(page) == ["#nowhere", "cell.md", "nowhere.md", "other.md#nowhere"]


def wide(text: str) -> list[str]:
    """Returns its lines of prose with more than 100 columns. Blocks, tables and one long word may be wider."""
    prose = re.sub(r"(?ms)^ *(```+|~~~+).*?^ *\1 *$", "", text)
    return [
        line
        for line in prose.split("\n")
        if len(line) > 100 and not line.startswith("|") and re.search(r"\S\s+\S+$", line[2:])
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_prose_fits_100_columns(page: Path) -> None:
    assert wide(page.read_text()) == []


def test_a_wide_line_of_prose_is_found() -> None:
    word = "x" * 99
    text = f"{word} y\n| {word} | y |\n```\n{word} y\n```\n- {word}\n  {word} y\n{word}\n"
    assert wide(text) == [f"{word} y", f"  {word} y"]


@pytest.fixture(scope="module")
def pages() -> Any:
    """tools/pages.py as a module."""
    return tool("pages")


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("[docs/cli.md](docs/cli.md)", "`docs/cli.md`"),
        ("[cli.md](docs/cli.md)", "`docs/cli.md`"),
        ("[`tools/x`](tools/x)", "`tools/x`"),
        ("[tools/requirements/](tools/requirements/)", "`tools/requirements`"),
        ("[the test VM](tools/kvmbox/README.md)", "the test VM (`tools/kvmbox/README.md`)"),
        ("[options](docs/cli.md#options)", "options (`docs/cli.md`)"),
        ("[above](#exit-status)", "above"),
        ("[list [1]](a.md)", "list [1] (`a.md`)"),
        ("[site](https://example.org/a.md)", "[site](https://example.org/a.md)"),
        ("[kept](KEPT.md#part)", "kept (`KEPT.md`)"),
        ("```\n[a](b.md)\n```\n[a](b.md)", "```\n[a](b.md)\n```\na (`b.md`)"),
        ("~~~~ x\n[a](b.md)\n~~~~\n", "~~~~ x\n[a](b.md)\n~~~~\n"),
    ],
)
def test_a_link_becomes_text_that_is_useful_outside_of_the_tree(pages: Any, text: str, outside: str) -> None:
    assert pages.outside(text, "README.md", ()) == outside


def test_on_the_site_a_link_to_a_file_leads_to_its_page(pages: Any, tmp_path: Path) -> None:
    linked: set[str] = set()
    text = "[a](cli.md) [b](../tools/setup) [c](../examples/) [d](gone.py)"
    said = "[a](cli.md) [b](../sources/tools/setup.md) [c](../sources/examples/index.md) d (`docs/gone.py`)"
    assert pages.outside(text, "docs/library.md", ("docs/cli.md",), linked) == said
    assert linked == {"tools/setup", "examples"}
    program = pages.source("examples/boot.py")
    assert f"```python\n{(ROOT / 'examples' / 'boot.py').read_text().rstrip()}\n```\n" in program
    assert "- [`boot.py`](boot.py.md)\n" in pages.source("examples")
    assert "\n````text\n" in pages.source("README.md")  # a longer fence than those in the file


def test_a_link_between_kept_pages_stays(pages: Any) -> None:
    text = "[a](../README.md) [b](cli.md#x) [c](#here) [d](../tools/setup) [e](gone.md)"
    kept = ("README.md", "docs/cli.md")
    said = "[a](../README.md) [b](cli.md#x) [c](#here) d (`tools/setup`) e (`docs/gone.md`)"
    assert pages.outside(text, "docs/library.md", kept) == said
