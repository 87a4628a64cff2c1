"""The page in a real browser: what it shows against results.csv, what clicks, keys, filters and sorting do."""

from __future__ import annotations

import csv
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from result_files import full_sweep, result

from mmp.report import write_comparison, write_report

CHROMIUM = os.environ.get("MMP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="drives a browser: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on PATH (apt-get install chromium), nor in MMP_CHROMIUM"),
]

HOSTILE = "<script>document.title='owned'</script><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty configurations, three seeds, baselines, a strategy with a hostile name, and failures."""
    more = [
        *(result("p70", 0.7, 0.93, 0.92, signal=None, criterion="lamp", seed=seed) for seed in (0, 1, 2)),
        result(HOSTILE, 0.99, 0.5, 0.5, overrides=["strategy=a b", "model.name='x'"]),
        result("p90", 0, 0, 0, status="failed", error={"type": "MmpError", "message": f"no {HOSTILE}"}),
    ]
    place = full_sweep(tmp_path_factory.mktemp("sweeps") / HOSTILE.replace("/", "|"), more=more)
    write_report(place)
    return place


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    yield from opened(browser, folder / "report" / "index.html")


def opened(browser: Any, path: Path, **context: Any) -> Iterator[Any]:
    """Open a page that may reach no network, and see to it that nothing goes wrong on it."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True, **context})
    page = made.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url == path.as_uri() else errors.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#heat .main-svg")
    yield page
    made.close()
    assert errors == []


def expected(folder: Path, **chosen: str) -> dict[str, dict[str, float]]:
    """Return means and spreads by configuration, straight from results.csv."""
    runs = defaultdict(list)
    with (folder / "report" / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["status"] == "completed" and all(row[key] == value for key, value in chosen.items()):
                runs[f"{row['signal']}/{row['strategy']}"].append(row)
    found = {}
    for name, rows in runs.items():
        column = {
            key: [float(row[key]) for row in rows] for key in ("sparsity", "test", "validation", "drop", "pareto")
        }
        means = {key: statistics.fmean(values) for key, values in column.items()}
        found[name] = {**means, "sd": statistics.stdev(column["drop"]) if len(rows) > 1 else 0.0, "seeds": len(rows)}
    return found


def table(page: Any) -> dict[str, dict[str, str]]:
    """Return what the table shows, by configuration, in the order of its rows."""
    headings = page.locator("#table th").all_inner_texts()
    headings = [heading.strip(" ▲▼") for heading in headings]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def points(page: Any) -> dict[str, tuple[float, float]]:
    """Return the points of the chart by configuration, as Plotly has drawn them."""
    script = """() => Object.fromEntries(document.getElementById('pareto').data.filter(t => t.customdata)
        .flatMap(t => t.customdata.map((c, i) => [c, [t.x[i], t.y[i]]])))"""
    return {one: tuple(point) for one, point in page.evaluate(script).items()}


def test_the_table_says_what_the_csv_says(page: Any, folder: Path) -> None:
    shown, truth = table(page), expected(folder)
    assert set(shown) == set(truth)
    for name, cells in shown.items():
        one = truth[name]
        assert float(cells["sparsity %"]) == pytest.approx(100 * one["sparsity"], abs=0.006)
        assert float(cells["test %"]) == pytest.approx(100 * one["test"], abs=0.006)
        assert float(cells["val %"]) == pytest.approx(100 * one["validation"], abs=0.006)
        assert float(cells["drop"]) == pytest.approx(one["drop"], abs=0.006)
        assert float(cells["sd"] or 0) == pytest.approx(one["sd"], abs=0.006)
        assert int(cells["seeds"]) == one["seeds"]
        assert (cells["front"] == "*") == bool(one["pareto"])
    assert sum(cells["front"] == "*" for cells in shown.values()) > 3


def test_the_chart_has_a_point_for_each_configuration(page: Any, folder: Path) -> None:
    drawn = sorted(points(page).values())
    truth = sorted((100 * one["sparsity"], 100 * one["test"]) for one in expected(folder).values())
    assert drawn == [pytest.approx(point, abs=1e-3) for point in truth]


def test_a_click_on_a_point_shows_the_configuration(page: Any, folder: Path) -> None:
    spot = page.locator("#pareto .scatterlayer .trace .points path.point").last
    spot.scroll_into_view_if_needed()
    box = spot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#pareto .hoverlayer .hovertext")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#command")
    name = page.locator("#detail-title").inner_text().partition(",")[0]
    one = expected(folder)[name]
    text = page.locator("#detail").inner_text()
    assert f"{100 * one['test']:.2f} %" in text
    assert f"{one['drop']:+.2f} points" in text
    assert page.locator("#table tr[aria-current]").count() == 1


def test_keys_alone_reach_a_configuration_with_its_layers_curve_and_commands(page: Any) -> None:
    button = page.locator("#table td button", has_text="gradient/p50")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#curve .main-svg")
    assert page.evaluate("document.activeElement.id") == "detail-title"
    assert page.locator("#command").inner_text().splitlines() == [
        f"python prune.py signal=gradient strategy=p50 seed={seed}" for seed in (0, 1, 2)
    ]
    layers = page.evaluate("document.getElementById('layers').data.map(t => [t.name, t.base ?? null, t.x])")
    assert layers[0] == ["range", [0, 30, 50], pytest.approx([10, 60, 45])]
    assert layers[1] == ["sparsity", None, pytest.approx([2, 32, 52])]
    curve = page.evaluate("document.getElementById('curve').data.map(t => [t.name, t.x.length])")
    assert curve == [["seed 0", 4], ["seed 1", 4], ["seed 2", 4], ["dense", 2]]
    page.reload()  # the address names the configuration
    page.wait_for_selector("#curve .main-svg")
    assert page.locator("#detail-title").inner_text().startswith("gradient/p50")


def test_commands_can_be_pasted_into_a_shell(page: Any) -> None:
    page.locator("#table td button", has_text="<script>").click()
    assert page.locator("#command").inner_text() == """python prune.py 'strategy=a b' 'model.name='"'"'x'"'"''"""


def test_filters_leave_what_they_say_everywhere(page: Any, folder: Path) -> None:
    page.locator("#filter-signal label", has_text="gradient").click()
    page.locator("#filter-kind label", has_text="baseline").click()
    shown = table(page)
    assert {name.split("/")[0] for name in shown} == {"magnitude", "product"}
    assert len(points(page)) == len(shown) == 21
    assert len(page.evaluate("document.getElementById('heat').data[0].x")) == 20  # one run has no layers
    page.locator("#filter-seed label", has_text="0").click()
    page.locator("#filter-seed label", has_text="2").click()
    shown, truth = table(page), expected(folder, seed="1")
    assert len(shown) == 20
    for name, cells in shown.items():
        assert float(cells["test %"]) == pytest.approx(100 * truth[name]["test"], abs=0.006)
        assert cells["sd"] == ""
    assert page.locator("#shown").inner_text() == "20 of 32 configurations, 20 runs shown."


def test_nothing_shown_is_no_error(page: Any) -> None:
    page.locator("#filter-signal button").click()
    assert table(page) == {}
    page.locator("#filter-signal button").click()
    assert len(table(page)) == 32


def test_tables_are_sorted_by_numbers_with_a_click_or_a_key(page: Any) -> None:
    def column(heading: str) -> list[float]:
        return [float(cells[heading]) for cells in table(page).values()]

    assert column("sparsity %") == sorted(column("sparsity %"))
    heading = page.locator("#table th button", has_text="drop")
    heading.click()
    assert column("drop") == sorted(column("drop"))
    page.keyboard.press("Enter")  # the heading keeps the focus
    assert column("drop") == sorted(column("drop"), reverse=True)
    assert page.locator("#table th[aria-sort=descending]").inner_text().startswith("drop")
    page.locator("#tables th button", has_text="better by").click()
    assert page.locator("#tables th[aria-sort=ascending]").inner_text().startswith("better by")


def test_other_axes_draw_other_numbers(page: Any, folder: Path) -> None:
    page.locator("#measure").select_option("drop")
    page.locator("#axis").select_option("megabytes")
    with (folder / "report" / "results.csv").open() as file:
        sizes = {float(row["megabytes"]) for row in csv.DictReader(file) if row["status"] == "completed"}
    assert sorted({x for x, _ in points(page).values()}) == pytest.approx(sorted(sizes), abs=1e-5)
    low, high = page.evaluate("document.getElementById('pareto').layout.yaxis.range")
    assert low > high  # the less is lost, the higher a point lies


def test_names_and_reasons_are_text(page: Any, folder: Path) -> None:
    assert page.title() == f"Sweep {folder.name}"
    assert page.locator("h1").inner_text() == f"Sweep {folder.name}"
    assert f"magnitude/{HOSTILE}" in table(page)
    assert f"no {HOSTILE}" in page.locator(".ended").inner_text()
    page.locator("#table td button", has_text="<script>").click()
    assert page.locator("#detail-title").inner_text().startswith(f"magnitude/{HOSTILE}")
    # Plotly draws text into <text>; the name is there as characters and nothing of it as an element.
    assert page.locator("svg script").count() == 0
    assert page.locator("main b", has_text="bold").count() == 0


def test_everything_has_a_name_for_those_who_listen(page: Any) -> None:
    page.locator("#table td button").first.click()
    page.wait_for_selector("#layers[role=img]")
    for chart in ("pareto", "effect", "heat", "layers"):
        assert page.locator(f"#{chart}").get_attribute("aria-label")
    unnamed = """() => [...document.querySelectorAll('button, select, input')]
        .filter(e => !e.textContent.trim() && !e.labels?.length && !e.getAttribute('aria-label')).length"""
    assert page.evaluate(unnamed) == 0
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, folder: Path, scheme: str) -> None:
    path = folder / "report" / "index.html"
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, path, **phone):
        page.locator("#table td button").first.click()
        page.wait_for_selector("#layers .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        light, dark = page.evaluate("""() => ['color', 'backgroundColor'].map(what =>
            getComputedStyle(document.body)[what].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))""")
        assert (light < dark) == (scheme == "light")


def test_print_has_the_whole_table_and_dark_text(browser: Any, folder: Path) -> None:
    for page in opened(browser, folder / "report" / "index.html", color_scheme="dark"):
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert not page.locator("#filters").is_visible()
        box = page.evaluate("(e => [e.scrollHeight, e.clientHeight])(document.getElementById('table'))")
        assert box[0] == box[1]
        assert len(page.pdf()) > 50_000


def test_a_comparison_shows_both_sweeps_apart(browser: Any, folder: Path, tmp_path: Path) -> None:
    other = full_sweep(tmp_path / "other", signals=("magnitude",))
    write_comparison(folder, other)
    (path,) = (other / "report").glob("*/index.html")
    for page in opened(browser, path):
        assert page.locator("#filter-sweep label").all_inner_texts() == [" A", " B"]
        assert page.locator("#table tbody tr").count() == 42
        assert page.locator("#tables tbody tr").count() == 10
        page.locator("#filter-sweep label", has_text="A").click()
        assert page.locator("#table tbody tr").count() == 10


def test_a_thousand_configurations(browser: Any, tmp_path: Path) -> None:
    place = full_sweep(tmp_path, seeds=(0,), strategies=[f"s{i}" for i in range(334)])
    write_report(place)
    for page in opened(browser, place / "report" / "index.html"):
        assert page.locator("#table tbody tr").count() == 1002
        assert len(points(page)) == 1002
        page.locator("#filter-signal label", has_text="gradient").click()
        assert page.locator("#table tbody tr").count() == 668


def test_a_sweep_without_any_result_is_a_page_of_failures(browser: Any, tmp_path: Path) -> None:
    from result_files import write

    write(tmp_path, result("p50", 0, 0, 0, status="failed", error={"type": "MmpError", "message": "no images"}))
    write_report(tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert "no images" in page.locator(".ended").inner_text()
    assert not page.locator("#explorer").is_visible()
