"""The site of `make docs`: it is built without a warning, has every public name, and loads nothing from elsewhere."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tender

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "docs"


def make(*words: str) -> "subprocess.CompletedProcess[str]":
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        words, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def site() -> Path:
    done = make("make", "-s", "docs")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return SITE


@pytest.fixture(scope="module")
def api(site: Path) -> str:
    return (site / "docs" / "api.html").read_text()


@pytest.mark.parametrize("name", tender.__all__)
def test_each_public_name_is_on_the_page_with_its_docstring(api: str, name: str) -> None:
    assert f'id="tender.{name}"' in api
    said = getattr(tender, name).__doc__ if isinstance(getattr(tender, name), type) else None
    if said:
        words = re.sub(r"<[^>]*>", "", html.unescape(api))
        plain = re.sub(r"\s+", " ", said.partition("\n\n")[0].replace("`", "")).strip()
        assert plain.split("  ")[0][:60] in re.sub(r"\s+", " ", words)


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loads = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="([^"]*)"', text)
        loads += re.findall(r'<link\b(?=[^>]*rel="(?:stylesheet|preconnect)")[^>]*href="([^"]*)"', text)
        assert loads
        assert [target for target in loads if re.match(r"(?:\w+:)?//", target)] == [], page.name


@pytest.mark.parametrize("page", ["index.html", "docs/cli.html", "sources/examples/boot.py.html"])
def test_the_search_of_a_page_that_is_opened_as_a_file_has_its_scripts(site: Path, page: str) -> None:
    """A browser gives such a page neither a worker nor a fetch of the index."""
    (script,) = re.findall(r'<script src="([^"]*iframe-worker[^"]*)"', (site / page).read_text())
    assert "window.Worker = " in ((site / page).parent / script).read_text()
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = {") and "docs/cli.html#disks" in index


@pytest.mark.parametrize(
    ("page", "target"),
    [
        ("index.html", "sources/examples/index.html"),
        ("docs/library.html", "../sources/examples/boot.py.html"),
        ("sources/examples/index.html", "boot.py.html"),
        ("CONTRIBUTING.html", "sources/tools/suites.py.html"),
    ],
)
def test_a_link_to_a_file_leads_to_a_page_with_its_text(site: Path, page: str, target: str) -> None:
    assert f'href="{target}"' in (site / page).read_text()
    assert ((site / page).parent / target).is_file()


def test_arguments_and_errors_are_tables(api: str) -> None:
    """griffe reads the docstrings and warns about parts that it cannot read; a warning fails the build."""
    (start,) = [part for part in api.split("<h3 ")[1:] if part.startswith('id="tender.Vm"')]
    tables = re.findall(r"<p>\s*<span class=\"doc-section-title\">(\w+):</span>", start)
    assert {"Parameters", "Raises", "Attributes"} <= set(tables)


@pytest.mark.parametrize("link", ["nowhere.md", "#nowhere", "docs/cli.md#nowhere", "/docs/cli.md"])
def test_a_broken_link_fails_the_build(site: Path, tmp_path: Path, link: str) -> None:
    assert make(sys.executable, "tools/pages.py", "--site", "build/pages").returncode == 0
    with open(ROOT / "build/pages/README.md", "a") as page:
        page.write(f"\n[a link]({link})\n")
    done = make(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 1
    assert f"'{link}'" in done.stderr and done.stderr.count("WARNING -") == 1


def test_a_page_missing_from_the_menu_fails_the_build(site: Path, tmp_path: Path) -> None:
    assert make(sys.executable, "tools/pages.py", "--site", "build/pages").returncode == 0
    (ROOT / "build/pages/docs/extra.md").write_text("# Extra\n")
    done = make(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 1 and "docs/extra.md" in done.stderr
