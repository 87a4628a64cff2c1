"""Collects the pages of the documentation site, and checks the links of the built site. ``make docs`` runs both.

The pages link to each other, and to source files, by relative paths in the repository, as a git host expects. The site
keeps the layout of the repository, so the same links work there: ``python docs/pages.py copy`` copies the pages and all
files that they link to into build/pages, from which Zensical builds build/site.

``python docs/pages.py check`` fails if a link leads to a missing file or anchor, or if a page loads a script, a style
sheet, a font or an image from another host.
"""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build/pages", ROOT / "build/site"  # as in mkdocs.yml
PAGES_OUTSIDE_DOCS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")

_LINK = re.compile(r"""(?:\]\(|\b(?:src|href)=")([^)\s"#]+)""")  # the target in [text](target#anchor) or src="target"


def copy_pages() -> None:
    """Copy the pages, their assets and the files that they link to into an empty build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = [ROOT / name for name in PAGES_OUTSIDE_DOCS] + sorted((ROOT / "docs").glob("*.md"))
    linked = {file for page in pages for file in files_linked_by(page)}
    for file in {*pages, *linked, *(ROOT / "docs/assets").iterdir()}:
        copy = PAGES / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def files_linked_by(page: Path) -> list[Path]:
    """Return the existing files of the repository that a Markdown page links to; it may name missing ones, too."""
    targets = (page.parent / target for target in _LINK.findall(page.read_text(encoding="utf-8")) if ":" not in target)
    return [file for target in targets if (file := target.resolve()).is_file() and file.is_relative_to(ROOT)]


def broken_links(site: Path) -> list[str]:
    """Return a line for each broken link of a site, and for each file that a page loads from another host."""
    documents = {file: _Document(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    broken = []
    for file, document in documents.items():
        for target, is_loaded in document.targets:
            url = urlsplit(target)
            folder = site if url.path.startswith("/") else file.parent
            linked = (folder / unquote(url.path).lstrip("/")).resolve() if url.path else file
            if url.scheme or url.netloc:
                problem = "loaded from another host" if is_loaded and url.scheme != "data" else ""
            elif not linked.is_file():
                problem = "no such file"
            elif url.fragment and linked in documents and unquote(url.fragment) not in documents[linked].anchors:
                problem = "no such anchor"
            else:
                problem = ""
            if problem:
                broken.append(f"{file.relative_to(site)}: {target}: {problem}")
    return broken


class _Document(HTMLParser):
    """The anchors of an HTML page, and what it links to.

    Attributes:
        anchors: The values of all ``id`` attributes.
        targets: Each URL that the page names, and whether a browser loads it with the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element's id and its ``href`` or ``src``."""
        values = dict(attrs)
        if anchor := values.get("id"):
            self.anchors.add(anchor)
        names_a_page = tag == "a" or (tag == "link" and values.get("rel") in {"canonical", "next", "prev"})
        if target := values.get("href") or values.get("src"):
            self.targets.append((target, not names_a_page))


if __name__ == "__main__":
    if sys.argv[1:] == ["copy"]:
        copy_pages()
    elif sys.argv[1:] == ["check"]:
        sys.exit("\n".join(broken_links(SITE)) or None)
    else:
        sys.exit(__doc__)
