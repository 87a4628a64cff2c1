"""The page in a real browser: its numbers against results.csv, and its clicks, keys, filters and sorting."""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resources import CHROMIUM, needs
from result_files import STRATEGIES, channel_result, full_sweep, result, timed, write

from mmp.report.write import write_comparison, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="drives a browser: pip install -e '.[dev]'")
pytestmark = [pytest.mark.slow, needs("browser")]

LONG = "long" * 75
HOSTILE = "<script>document.title='owned'</script><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty configurations with three seeds, baselines, a strategy with a hostile name, and a failure."""
    more = [
        *(result("p70", 0.7, 0.93, 0.92, signal=None, criterion="lamp", seed=seed) for seed in (0, 1, 2)),
        result(HOSTILE, 0.99, 0.5, 0.5, overrides=["strategy=a b", "model.name='x'"]),
        result("p90", 0, 0, 0, status="failed", error={"type": "MmpError", "message": f"no {HOSTILE}"}),
    ]
    place = full_sweep(tmp_path_factory.mktemp("sweeps") / HOSTILE.replace("/", "|"), more=more)
    write_report(place)
    return place


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long name; layers with numbers as names, other ranges per seed, or none; trainings of one epoch."""

    def layers(lo: float, hi: float, *pruned: int) -> list[dict[str, Any]]:
        known = {"role": "conv", "lo": lo, "hi": hi, "total": 200}
        return [{"name": name, "pruned": n, **known} for name, n in zip(("0", "3", "10"), pruned, strict=True)]

    def history(accuracy: float) -> list[dict[str, float]]:
        return [{"epoch": 0, "val/accuracy": accuracy, "val/loss": 0.1, "train/loss": 0.2}]

    contents = [
        result("a", 0.5, 0.96, 0.95, seed=0),
        result("a", 0.5, 0.96, 0.96, seed=1, layers=layers(0.2, 0.6, 40, 80, 100), history=history(0.96)),
        result("a", 0.5, 0.96, 0.96, seed=2, layers=layers(0.1, 0.5, 60, 80, 100), history=history(0.95)),
        result("b", 0.6, 0.94, 0.93, seed=0, layers=layers(0.2, 0.9, 100, 120, 140)),
        result("c", 0.4, 0.99, 0.98),
        result(LONG, 0.7, 0.92, 0.91),
    ]
    place = write(tmp_path_factory.mktemp("odd"), *contents)
    write_report(place)
    return place


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    yield from opened(browser, folder / "report" / "index.html")


def opened(browser: Any, path: Path, **context: Any) -> Iterator[Any]:
    """Open a page without a network; fail if it logs an error or requests anything else."""
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
    """Return the means and standard deviations of each configuration, from results.csv."""
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
    """Return the cells of the table by configuration, in the order of the rows."""
    headings = page.locator("#table th").all_inner_texts()
    headings = [heading.strip(" ▲▼") for heading in headings]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def efficient(truth: dict[str, dict[str, float]]) -> set[str]:
    """Return the Pareto-efficient configurations among those with the most seeds, by comparing all pairs."""
    most = max(one["seeds"] for one in truth.values())
    known = {
        name: (round(one["sparsity"], 7), round(one["validation"], 7))
        for name, one in truth.items()
        if one["seeds"] == most
    }

    def beaten(mine: tuple[float, float]) -> bool:
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in known.values())

    return {name for name, mine in known.items() if not beaten(mine)}


def choose(page: Any, name: str) -> None:
    """Select a configuration in the table, and wait until it is shown."""
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_selector("#command")


def points(page: Any) -> dict[str, tuple[float, float]]:
    """Return the points of the chart by configuration, from the data that Plotly has drawn."""
    script = """() => Object.fromEntries(document.getElementById('pareto').data.filter(t => t.customdata)
        .flatMap(t => t.customdata.map((c, i) => [c, [t.x[i], t.y[i]]])))"""
    return {name: tuple(point) for name, point in page.evaluate(script).items()}


def test_the_table_has_the_numbers_of_the_csv_file(page: Any, folder: Path) -> None:
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
    assert len(efficient(truth)) > 3
    assert {name for name, cells in shown.items() if cells["front"] == "*"} == efficient(truth)


def test_fewer_seeds_are_never_efficient(page: Any, folder: Path) -> None:
    sparsest = f"magnitude/{HOSTILE}"  # has seed 0 alone
    assert table(page)[sparsest]["front"] == ""
    for seed in ("1", "2"):
        page.locator("#filter-seed label", has_text=seed).click()
    shown = table(page)
    assert shown[sparsest]["front"] == "*"
    assert {name for name, cells in shown.items() if cells["front"] == "*"} == efficient(expected(folder, seed="0"))


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
    exports = [shlex.split(line) for line in page.locator("#export").inner_text().splitlines()]
    assert [words[:3] + words[4:] for words in exports] == [["python", "-m", "mmp.export", "target=onnx"]] * 3
    for words, seed in zip(exports, (0, 1, 2), strict=True):
        result = json.loads((Path(words[3]) / "result.json").read_text())
        assert (result["signal"], result["strategy"], result["seed"]) == ("gradient", "p50", seed)
    layers = page.evaluate("document.getElementById('layers').data.map(t => [t.name, t.base ?? null, t.x])")
    assert layers[0] == ["range", [0, 30, 50], pytest.approx([10, 60, 45])]
    assert layers[1] == ["sparsity", None, pytest.approx([2, 32, 52])]
    curve = page.evaluate("document.getElementById('curve').data.map(t => [t.name, t.x.length])")
    assert curve == [["seed 0", 4], ["seed 1", 4], ["seed 2", 4]]


def test_the_address_names_a_configuration_also_when_more_runs_are_there(browser: Any, tmp_path: Path) -> None:
    place = full_sweep(tmp_path, seeds=(0,), signals=("gradient",))
    write_report(place)
    path = place / "report" / "index.html"
    for page in opened(browser, path):
        choose(page, "gradient/p50")
        address = page.evaluate("location.hash")
        full_sweep(tmp_path / "more", seeds=(0, 1), signals=("magnitude",), strategies=("p10", "p20"))
        full_sweep(tmp_path / "again", seeds=(1,), signals=("gradient",), strategies=("p50",))
        write_report(place)
        page.reload()
        page.wait_for_selector("#curve .main-svg")
        assert page.locator("#detail-title").inner_text().startswith("gradient/p50")
        assert len(page.locator("#command").inner_text().splitlines()) == 2
        choose(page, "magnitude/p10")
        page.locator("#filter-signal label", has_text="gradient").click()
        page.evaluate("address => { location.hash = address; }", address)  # a configuration that a filter hides
        page.locator("#detail-title", has_text="gradient/p50").wait_for()
        assert page.locator("#table tr[aria-current]").inner_text().startswith("gradient/p50")
        page.evaluate("location.hash = 'gone'")
        page.locator("#detail-body", has_text="does not have the configuration").wait_for()


def test_commands_can_be_pasted_into_a_shell(page: Any) -> None:
    page.locator("#table td button", has_text="<script>").click()
    assert page.locator("#command").inner_text() == """python prune.py 'strategy=a b' 'model.name='"'"'x'"'"''"""


def test_filters_apply_to_all_tables_and_charts(page: Any, folder: Path) -> None:
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


def test_a_page_without_shown_configurations_works(page: Any) -> None:
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


def test_cells_without_a_number_are_last_up_and_down(page: Any) -> None:
    for _ in range(2):
        page.locator("#table th button", has_text="sd").click()
        assert list(table(page))[-1] == f"magnitude/{HOSTILE}"


def test_the_axes_can_be_changed(page: Any, folder: Path) -> None:
    page.locator("#measure").select_option("drop")
    page.locator("#axis").select_option("megabytes")
    with (folder / "report" / "results.csv").open() as file:
        sizes = {float(row["megabytes"]) for row in csv.DictReader(file) if row["status"] == "completed"}
    assert sorted({x for x, _ in points(page).values()}) == pytest.approx(sorted(sizes), abs=1e-5)
    low, high = page.evaluate("document.getElementById('pareto').layout.yaxis.range")
    assert low > high  # a smaller drop is drawn higher


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


def test_everything_has_an_accessible_name(page: Any) -> None:
    page.locator("#table td button").first.click()
    page.wait_for_selector("#layers[role=group]")
    for chart in ("pareto", "effect", "heat", "layers"):
        assert page.locator(f"#{chart}").get_attribute("aria-label")
    unnamed = """() => [...document.querySelectorAll('button, select, input')]
        .filter(e => !e.textContent.trim() && !e.labels?.length && !e.getAttribute('aria-label')).length"""
    assert page.evaluate(unnamed) == 0
    assert page.locator("#pareto .modebar-btn").count() > 0
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, folder: Path, scheme: str) -> None:
    path = folder / "report" / "index.html"
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    for page in opened(browser, path, **phone):
        page.locator("#table td button").first.click()
        page.wait_for_selector("#layers .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.locator(".modebar-btn").count() == 0
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


def test_charts_are_drawn_for_paper_and_back(browser: Any, folder: Path) -> None:
    charts = """() => Object.fromEntries([...document.querySelectorAll('.chart')].map(chart => [chart.id, [
        chart.querySelector('.main-svg').clientWidth, getComputedStyle(chart.querySelector('.xtick text')).fill]]))"""
    for page in opened(browser, folder / "report" / "index.html", color_scheme="dark"):
        choose(page, "gradient/p50")
        page.wait_for_selector("#curve .main-svg")
        before = page.evaluate(charts)
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = ({charts})(); }})")
        pdf = page.pdf(format="A4")
        printed = page.evaluate("window.printed")
        assert set(printed) == {"pareto", "effect", "layers", "curve", "heat"}
        assert {tuple(look) for look in printed.values()} == {(680, "rgb(0, 0, 0)")}
        assert page.evaluate(charts) == before
        assert 4 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 6


def test_nothing_is_cut_off_on_paper(browser: Any, odd: Path) -> None:
    width = 703  # of A4 between its margins
    for page in opened(browser, odd / "report" / "index.html"):
        choose(page, "magnitude/b")
        page.emulate_media(media="print")
        page.set_viewport_size({"width": width, "height": 1000})
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for chart in page.locator(".chart:has(.main-svg)").all():
            inside = """e => { const [svg, box] = [e.querySelector('.main-svg'), e].map(x => x.getBoundingClientRect());
                return svg.bottom <= box.bottom + 1 && svg.right <= innerWidth; }"""
            assert chart.evaluate(inside)
            assert chart.evaluate("e => getComputedStyle(e).breakInside") == "avoid"
        assert page.locator("h3").first.evaluate("e => getComputedStyle(e).breakAfter") == "avoid"


@pytest.mark.parametrize("width", [1280, 375])
def test_a_long_name_leaves_room_for_the_numbers(browser: Any, odd: Path, width: int) -> None:
    for page in opened(browser, odd / "report" / "index.html", viewport={"width": width, "height": 800}):
        box, cell = (page.locator(f"#table {which}").first.bounding_box() for which in ("table", "td"))
        assert cell["width"] < 0.65 * width
        assert box["width"] < 1300
        ticks = page.locator("#heat .xtick text").all_text_contents()
        assert all(len(tick) <= 40 for tick in ticks)


def test_layers_are_means_over_the_seeds_that_have_them(browser: Any, odd: Path) -> None:
    for page in opened(browser, odd / "report" / "index.html"):
        choose(page, "magnitude/a")
        page.wait_for_selector("#layers .main-svg")
        drawn, text, kind = page.evaluate("""() => { const e = document.getElementById('layers');
            return [e.data.map(t => [t.y, t.base ?? null, t.x]), e.data[0].text[0], e.layout.yaxis.type]; }""")
        names = ["0", "3", "10"]
        assert drawn[0] == [
            names,
            pytest.approx([10] * 3),
            pytest.approx([50] * 3),
        ]  # covers both seeds
        assert drawn[1] == [names, None, pytest.approx([25, 40, 50])]
        assert "mean over 2 seeds" in text
        assert "10 to 60 % over all seeds" in text
        assert kind == "category"
        heat = page.evaluate("""() => { const e = document.getElementById('heat');
            return [e.data[0].y, e.data[0].z, e.layout.yaxis.type, e.innerHTML.includes('NaN')]; }""")
        assert heat == [names, [pytest.approx(row) for row in ([25, 50], [40, 60], [50, 70])], "category", False]
        choose(page, "magnitude/c")
        assert page.locator("#layers").inner_text() == "The result files contain no layers."


def test_a_training_of_one_epoch_has_a_line_for_the_dense_model_and_points_apart(browser: Any, odd: Path) -> None:
    for page in opened(browser, odd / "report" / "index.html"):
        choose(page, "magnitude/a")
        page.wait_for_selector("#curve .main-svg")
        line = page.locator("#curve .shapelayer path").bounding_box()
        assert line["width"] == pytest.approx(page.locator("#curve .nsewdrag").bounding_box()["width"], abs=2)
        assert len(set(page.evaluate("document.getElementById('curve').data.map(t => t.marker.symbol)"))) == 2
        low, high = page.evaluate("document.getElementById('curve').layout.yaxis.range")
        assert low < 95  # a seed
        assert high >= 99  # the dense model


def test_the_dense_model_has_a_band_for_images_and_one_for_seeds(browser: Any, odd: Path) -> None:
    def shapes() -> dict[str, Any]:
        found = page.evaluate("document.getElementById('pareto').layout.shapes.map(s => [s.name, [s.y0, s.y1]])")
        return {name.split(" (")[0]: pytest.approx(ends, abs=1e-6) for name, ends in found}

    error, spread = 100 * (0.975 * 0.025 / 400) ** 0.5, statistics.stdev([2.5, 1.5, 1.5])
    for page in opened(browser, odd / "report" / "index.html"):
        images, seeds, dense = shapes().items()
        assert images == ("± one standard error", [97.5 - error, 97.5 + error])
        assert seeds == ("± standard deviation over seeds", [97.5 - spread, 97.5 + spread])
        assert dense == ("dense", [97.5, 97.5])
        page.locator("#measure").select_option("drop")
        assert shapes()["± standard deviation over seeds"] == [-spread, spread]
        page.locator("#measure").select_option("validation")  # the deviation of a test drop does not apply there
        assert list(shapes()) == ["± one standard error", "dense"]


def test_commands_are_copied_or_selected(browser: Any, folder: Path) -> None:
    permissions = {"permissions": ["clipboard-read", "clipboard-write"]}
    for page in opened(browser, folder / "report" / "index.html", **permissions):
        choose(page, "gradient/p50")
        commands = page.locator("#command").inner_text()
        page.get_by_role("button", name="Copy").click()
        page.locator("#copied[role=status]", has_text="Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == commands
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.get_by_role("button", name="Copy").click()
        page.locator("#copied", has_text="Selected").wait_for()
        assert page.evaluate("getSelection().toString().trim()") == commands


def test_a_count_of_one_is_singular(browser: Any, tmp_path: Path) -> None:
    write_report(write(tmp_path, result("p50", 0.5, 0.96, 0.95)))
    for page in opened(browser, tmp_path / "report" / "index.html"):
        assert page.locator("#shown").inner_text() == "1 of 1 configuration, 1 run shown."
        assert " of 1 configuration;" in page.locator("#pareto").get_attribute("aria-label")


def test_the_content_security_policy_forbids_everything_else(page: Any) -> None:
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content").split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy)


def better(page: Any) -> list[float]:
    """Return the column "B better by" of a comparison's table, in the order of the rows."""
    headings = [heading.strip(" ▲▼") for heading in page.locator("#tables th").all_inner_texts()]
    place = headings.index("B better by") + 1
    return [float(text) for text in page.locator(f"#tables td:nth-child({place})").all_inner_texts()]


def test_a_comparison_shows_both_sweeps_apart(browser: Any, folder: Path, tmp_path: Path) -> None:
    others = [result(name, 0.5, 0.9, 0.9 + 0.001 * (7 * i % 10), seed=1) for i, name in enumerate(STRATEGIES)]
    other = write(tmp_path / "other", *others)
    write_comparison(folder, other)
    (path,) = (other / "report").glob("*/index.html")
    for page in opened(browser, path):
        assert page.locator("#filter-sweep label").all_inner_texts() == [" A", " B"]
        assert page.locator("#table tbody tr").count() == 42
        assert page.locator("#tables tbody tr").count() == 10
        heading = page.locator("#tables th button", has_text="better by")
        heading.click()
        assert better(page) == sorted(better(page))
        page.keyboard.press("Enter")  # the heading keeps the focus
        assert better(page) == sorted(better(page), reverse=True)
        assert len(set(better(page))) == 10
        assert page.locator("#tables th[aria-sort=descending]").inner_text().startswith("B better by")
        page.locator("#filter-sweep label", has_text="A").click()
        assert page.locator("#table tbody tr").count() == 10


@pytest.fixture
def with_channels(tmp_path: Path) -> Path:
    """Two runs without and three with whole channels; two files of the latter were timed, one of the former."""
    layers = [{"name": "a.weight", "role": "conv_inner", "lo": 0.1, "hi": 0.5, "pruned": 16, "total": 64}]
    place = write(
        tmp_path,
        result("p30", 0.3, 0.98, 0.97),
        result("p70", 0.7, 0.96, 0.95),
        channel_result("p30", 0.3, 0.98, 0.97, sparsity=0.9, layers=layers),
        channel_result("p50", 0.5, 0.96, 0.95, sparsity=0.8, layers=layers),
        channel_result("p70", 0.7, 0.97, 0.96, sparsity=0.7, multiply_adds=None),
    )
    timed(place / "run2", "onnx", 0, latency=[{"batch": 1, "ratio": 0.8, "quartiles": [0.7, 0.85]}])
    timed(place / "run3", "onnx", 0.9)
    timed(place / "run3", "openvino", 0.4)
    write_report(place)
    return place / "report" / "index.html"


def test_whole_channels_have_axes_columns_and_words_of_their_own(browser: Any, with_channels: Path) -> None:
    for page in opened(browser, with_channels):
        axes = page.locator("#axis option")
        assert [axis.split(" (")[0] for axis in axes.all_inner_texts()] == ["sparsity", "size"]
        page.locator("#group").select_option("1")
        labels = [axis.split(" (")[0] for axis in axes.all_inner_texts()]
        assert labels == ["parameters removed", "multiply-adds left", "size"]
        shown = table(page)
        assert {name: (cells["removed %"], cells["MACs %"], cells["front"]) for name, cells in shown.items()} == {
            "magnitude/p30": ("30.00", "85.00", "*"),
            "magnitude/p50": ("50.00", "75.00", ""),
            "magnitude/p70": ("70.00", "", "*"),
        }
        assert list(shown) == ["magnitude/p30", "magnitude/p50", "magnitude/p70"]  # sorted by what is removed
        assert sorted(x for x, _ in points(page).values()) == pytest.approx([30, 50, 70])
        choose(page, "magnitude/p50")
        text = page.locator("#detail").inner_text()
        for part in ("50.00 % of all parameters", "75.00 % of the dense model's", "onnx 0.90; openvino 0.40"):
            assert part in text
        page.wait_for_selector("#layers .main-svg")
        assert "64 sets of channels" in page.evaluate("document.getElementById('layers').data[0].text[0]")
        page.locator("#axis").select_option("multiply_adds")
        assert sorted(x for x, _ in points(page).values() if x is not None) == pytest.approx([75, 85])
        page.locator("#group").select_option("0")  # which has no such axis
        assert page.locator("#axis").input_value() == "reduction"
        assert "of all %" in page.locator("#table th").all_inner_texts()


def test_measured_latencies_have_a_chart_of_their_own(browser: Any, with_channels: Path) -> None:
    drawn = """() => Object.fromEntries(document.getElementById('latency').data.filter(t => t.customdata)
        .map(t => [t.name, [t.x, t.y, t.text, t.error_x.array, t.error_x.arrayminus]]))"""
    for page in opened(browser, with_channels):
        assert page.locator("#latency").count() == 0  # nothing of the first group was timed
        page.locator("#group").select_option("1")
        page.wait_for_selector("#latency .main-svg")
        found = page.evaluate(drawn)
        assert found == {
            "onnx: magnitude": [
                [0.8, 0.9], pytest.approx([97, 95]), ["p30", "p50"], pytest.approx([0.05, 0]), pytest.approx([0.1, 0]),
            ],
            "openvino: magnitude": [[0.4], pytest.approx([95]), ["p50"], [0], [0]],
        }  # fmt: skip
        rings = page.evaluate("document.getElementById('latency').data[0].x")
        assert sorted(rings) == [0.4, 0.8]  # in onnx, the second is slower and less accurate
        assert "table has the numbers" in page.locator("#latency").get_attribute("aria-label")
        for chart in ("latency", "effect"):  # in another window, as high as before, so that charts do not overlap
            page.evaluate(f"Plotly.Plots.resize('{chart}')")
            assert page.locator(f"#{chart}").bounding_box()["height"] >= 380
        for _ in range(2):
            page.locator("#filter-strategy button").click()
        page.wait_for_selector("#latency .main-svg")


def test_a_thousand_configurations(browser: Any, tmp_path: Path) -> None:
    place = full_sweep(tmp_path, seeds=(0,), strategies=[f"s{i}" for i in range(334)])
    write_report(place)
    for page in opened(browser, place / "report" / "index.html"):
        assert page.locator("#table tbody tr").count() == 1002
        assert len(points(page)) == 1002
        page.locator("#filter-signal label", has_text="gradient").click()
        assert page.locator("#table tbody tr").count() == 668


def test_a_sweep_without_any_result_is_a_page_of_failures(browser: Any, tmp_path: Path) -> None:
    write(tmp_path, result("p50", 0, 0, 0, status="failed", error={"type": "MmpError", "message": "no images"}))
    write_report(tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert "no images" in page.locator(".ended").inner_text()
    assert not page.locator("#explorer").is_visible()
