"""Tables on pages: each has its place; differences of one seed have no interval."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tables import difference, fill, fill_page, spread
from mmp.errors import MmpError


def test_tables_go_where_the_page_has_a_place_for_them() -> None:
    page = "one\n<!-- claims -->\nold\nlines\n<!-- end -->\ntwo\n<!-- signals -->\n\n<!-- end -->\n"
    page = fill(page, "claims", "| new |")
    assert page == "one\n<!-- claims -->\n| new |\n<!-- end -->\ntwo\n<!-- signals -->\n\n<!-- end -->\n"
    assert fill(page, "claims", "| new |") == page
    with pytest.raises(MmpError, match="no place for 'recipes'"):
        fill(page, "recipes", "")


def test_a_page_that_lacks_a_place_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- claims -->\nold\n<!-- end -->\n")
    with pytest.raises(MmpError, match="no place for 'signals'"):
        fill_page(page, {"claims": "new", "signals": "new"})
    assert "old" in page.read_text()
    fill_page(page, {"claims": "new"})
    assert page.read_text() == "<!-- claims -->\nnew\n<!-- end -->\n"


def test_one_value_has_no_spread() -> None:
    assert (spread([1.0]), spread([1.0, 2.0])) == ("1.00", "1.50 ± 0.71")
    # The 95 % interval of 3 and 2 is 12.706 * 0.7071 / sqrt(2) wide.
    assert (difference([1.0]), difference([3.0, 2.0])) == ("+1.00", "+2.50 ± 6.35")
