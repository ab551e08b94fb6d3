"""Prepares pages of this repository for readers outside of it: a relative link that leads nowhere becomes plain text.

usage: tools/pages.py PAGE OUTPUT      prepares one page; the build calls this for each page that it installs
       tools/pages.py --list           lists the pages that are installed
       tools/pages.py --site DIRECTORY writes to DIRECTORY the pages of the site that `make docs` builds

The site has every page of this tree. What it says about the API comes from the docstrings (mkdocs.yml).

An installed package has its pages in share/doc/tender, and its README.md is the description in its metadata. A link
from one installed page to another stays. Any other relative link becomes its text, with the name of the file that it
leads to. The build and the build backend import this file or start it, before the package is there.
"""

import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from posixpath import dirname, join, normpath

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^ {0,3}(```+|~~~+).*?^ {0,3}\2 *$)", re.MULTILINE | re.DOTALL)
API = "docs/api.md"
"""Only the site has this page. It is made from docstrings."""
ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
NOTE = """
The files that this page names are in the sources. The pages among them are installed too, in `share/doc/tender`:
`python -c "import sys; print(sys.prefix + '/share/doc/tender')"` prints where.
"""


def installed_pages() -> list[str]:
    """The paths of the installed pages, in this repository."""
    return [
        "README.md",
        "CHANGELOG.md",
        *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
    ]


def site_pages() -> list[str]:
    """The paths, in this repository, of each page that is for readers."""
    found = (page for where in ("*", "*/*", "*/*/*") for page in ROOT.glob(f"{where}.md"))
    names = (str(page.relative_to(ROOT)) for page in found)
    return sorted(name for name in names if not name.startswith((".", "build/", "dist/")))


def write_site(directory: Path) -> None:
    """Write a tree like this one, with only its pages."""
    pages = site_pages()
    shutil.rmtree(directory, ignore_errors=True)
    for name in pages:
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(outside((ROOT / name).read_text(), name, pages))
    shutil.copy(ROOT / "tools" / "site.css", directory)


def outside(text: str, page: str, kept: Collection[str]) -> str:
    """The text of `page`, with relative links only to pages of `kept`."""

    def plain(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, _, _ = target.partition("#")
        if ABSOLUTE.match(target) or (kept and (not path or normpath(join(dirname(page), path)) in kept)):
            return found[0]
        if not path:
            return words
        name = normpath(join(dirname(page), path))
        bare = words.strip("`").rstrip("/").replace("\\", "")
        return f"`{name}`" if name.endswith(bare) else f"{words} (`{name}`)"

    parts = FENCE.split(text)
    # The pattern has two groups for each fence: the whole block, and its mark.
    return "".join(
        LINK.sub(plain, part) if number % 3 == 0 else part if number % 3 == 1 else ""
        for number, part in enumerate(parts)
    )


def description() -> str:
    """README.md as the long description of a package, which has no other page next to it."""
    return outside((ROOT / "README.md").read_text(), "README.md", ()) + NOTE


def main(arguments: list[str]) -> int:
    """The exit status."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__, end="")
        return 0
    if arguments == ["--list"]:
        print(*installed_pages(), sep="\n")
        return 0
    if len(arguments) == 2 and arguments[0] == "--site":
        write_site(Path(arguments[1]))
        return 0
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print("pages: usage: tools/pages.py PAGE OUTPUT, --list or --site DIRECTORY", file=sys.stderr)
        return 2
    page = Path(arguments[0]).resolve()
    name = str(page.relative_to(ROOT))
    Path(arguments[1]).write_text(outside(page.read_text(), name, installed_pages()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
