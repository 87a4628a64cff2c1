"""The documentation site: its link check, and pages that list what the code has."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import grimp
import pytest
from places import ROOT

import mmp

PAGES = runpy.run_path(str(ROOT / "docs/pages.py"))
GROUND = {"cache", "cgroups", "errors", "files", "machine", "markdown", "openmp", "compilation", "imports", "tensors"}


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<a href="b.html">', None),
        ('<a href="b.html#there">', None),
        ('<a href="#here">', None),
        ('<a href="../a.html">', "no such file"),
        ('<a href="c.html">', "no such file"),
        ('<a href="b.html#nowhere">', "no such anchor"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<a href="https://example.org/">', None),
        ('<script src="https://example.org/a.js">', "loaded from another host"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "loaded from another host"),
        ('<img src="c.png">', "no such file"),
        ('<img src="data:image/png;base64,AA==">', None),
    ],
)
def test_broken_links_are_found(link: str, problem: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f'<h1 id="here">A</h1>{link}')
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1>')
    found = PAGES["broken_links"](tmp_path)
    assert [line.rpartition(": ")[2] for line in found] == ([problem] if problem else [])


def test_pages_name_the_files_that_they_link_to() -> None:
    linked = PAGES["files_linked_by"](ROOT / "docs/method.md")
    assert {ROOT / "docs/roles.md", ROOT / "mmp/pruning/ranges.py"} <= set(linked)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages | set(PAGES["PAGES_OUTSIDE_DOCS"]) == set(re.findall(r"[\w/-]+\.md", navigation))


def test_the_api_page_has_every_public_name_once() -> None:
    shown = re.findall(r"^::: mmp\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(mmp.__all__)


def test_the_architecture_lists_the_imports_between_packages() -> None:
    graph = grimp.build_graph("mmp", "callbacks", exclude_type_checking_imports=True)
    imports: dict[str, set[str]] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            importer, other = _package(module), _package(imported)
            if other not in {importer, *GROUND}:
                imports.setdefault(importer, set()).add(other)
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert len(rows) == 9
    for package, listed in rows:
        assert set(re.findall(r"`(\w+)`", listed)) == imports.get(package, set()), package


def _package(module: str) -> str:
    """Return ``pruning`` for ``mmp.pruning.masks``, and ``callbacks`` for all of ``callbacks``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mmp" and len(parts) > 1 else parts[0]
