"""Prepares pages of this repository for readers outside of it: a relative link that leads nowhere becomes plain text.

usage: tools/pages.py PAGE OUTPUT      prepares one page; the build calls this for each page that it installs
       tools/pages.py --list           lists the pages that are installed
       tools/pages.py --site DIRECTORY writes to DIRECTORY the pages of the site that `make docs` builds

The site has every page of this tree, and a page for each file that a page links to. What it says about the API comes
from the docstrings (mkdocs.yml).

An installed package has its pages in share/doc/tender, and its README.md is the description in its metadata. A link
from one installed page to another stays. Any other relative link becomes its text, with the name of the file that it
leads to. The build and the build backend import this file or start it, before the package is there.
"""

import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from posixpath import basename, dirname, join, normpath, relpath, splitext

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^ {0,3}(```+|~~~+).*?^ {0,3}\2 *$)", re.MULTILINE | re.DOTALL)
SOURCES = "sources"
"""The site's directory of pages that show files."""
LANGUAGES = {
    **dict.fromkeys((".c", ".h", ".def"), "c"),
    **{".py": "python", ".S": "gas", ".toml": "toml", ".yml": "yaml", ".sh": "sh"},
}
"""How the site colours a file, by the end of its name."""
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
    """Write a tree like this one, with its pages. Below SOURCES is a page for each file that they link to."""
    pages = site_pages()
    linked = set[str]()
    shutil.rmtree(directory, ignore_errors=True)
    for name in pages:
        write(directory / name, outside((ROOT / name).read_text(), name, pages, linked))
    listed = {file for each in linked if (ROOT / each).is_dir() for file in files_of(each)}
    for name in linked | listed:
        write(directory / source_page(name), source(name))
    shutil.copy(ROOT / "tools" / "site.css", directory)
    shutil.copy(ROOT / "tools" / "site_worker.js", directory / "iframe-worker.js")


def write(place: Path, text: str) -> None:
    """Write a file, in a directory that may not exist yet."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def files_of(directory: str) -> list[str]:
    """The files in a directory of this tree, except pages and hidden files."""
    found = sorted(entry for entry in (ROOT / directory).iterdir() if entry.is_file())
    return [str(entry.relative_to(ROOT)) for entry in found if entry.name[0] != "." and entry.suffix != ".md"]


def source_page(name: str) -> str:
    """The path of the site's page that shows a file, or lists a directory."""
    return f"{SOURCES}/{name}/index.md" if (ROOT / name).is_dir() else f"{SOURCES}/{name}.md"


def source(name: str) -> str:
    """The page that shows a file, or lists a directory. The site's search leaves it out."""
    head = f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n"
    if (ROOT / name).is_dir():
        names = (basename(file) for file in files_of(name))
        return head + "".join(f"- [`{name}`]({name}.md)\n" for name in names)
    text = (ROOT / name).read_text()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{head}{fence}{LANGUAGES.get(splitext(name)[1], 'text')}\n{text.rstrip()}\n{fence}\n"


def outside(text: str, page: str, kept: Collection[str], linked: set[str] | None = None) -> str:
    """The text of `page`, with relative links only to pages of `kept`.

    With `linked`, a link to another file of this tree leads to the page that shows it, and `linked` gets its name.
    """

    def plain(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, _, _ = target.partition("#")
        if ABSOLUTE.match(target) or (kept and (not path or normpath(join(dirname(page), path)) in kept)):
            return found[0]
        if not path:
            return words
        name = normpath(join(dirname(page), path))
        if linked is not None and (ROOT / name).exists():
            linked.add(name)
            return f"[{words}]({relpath(source_page(name), dirname(page) or '.')})"
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
