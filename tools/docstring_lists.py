"""For the site: an aligned list in a docstring becomes a list of Markdown, which has no such form.

    name      what it is, on lines that are indented
              below each other
    other     the next one

griffe, which reads the sources for mkdocstrings, calls this for each object (mkdocs.yml). An editor shows the docstring
as it is written.
"""

import re
from typing import Any

import griffe

ITEM = re.compile(r"(\S+(?:, \S+)*) {2,}(\S.*)")


def as_markdown(docstring: str) -> str:
    """The same, with a list item for each aligned one. A paragraph that is not such a list as a whole stays."""
    return "\n\n".join(_paragraph(paragraph) for paragraph in docstring.split("\n\n"))


def _paragraph(text: str) -> str:
    items: list[str] = []
    for line in text.split("\n"):
        if found := ITEM.fullmatch(line):
            items.append(f"- `{found[1].strip('`')}`: {found[2]}")
        elif items and line.startswith("    "):
            items[-1] += f" {line.strip()}"
        else:
            return text
    return "\n".join(items)


class DocstringLists(griffe.Extension):
    """Rewrites each docstring once, when its object is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
