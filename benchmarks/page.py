"""The page of a report in a browser: its size, the time until its chart is drawn, and screenshots.

``python -m benchmarks.page results/sweeps/fashion`` prints megabytes and seconds until the chart is drawn;
``picture=docs/images configuration=magnitude/p90`` also writes screenshots: desktop in light, phone in dark colours.
Needs Chromium and ``pip install playwright``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from mmp.markdown import table_of
from mmp.pruning.sizes import MEGABYTE

REPEATS = 5
VIEWS = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}


def opened(browser: Any, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> tuple[Any, float]:
    """Open a page; return it and the seconds until its first chart is drawn."""
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
    ).new_page()
    start = time.perf_counter()
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("#pareto .main-svg")
    return page, time.perf_counter() - start


def photograph(browser: Any, path: Path, folder: Path, configuration: str) -> None:
    """Write a screenshot of each view, with one configuration selected."""
    for name, (width, height, scheme) in VIEWS.items():
        page, _ = opened(browser, path, width, height, scheme)
        page.get_by_role("button", name=configuration, exact=True).click()
        page.wait_for_selector("#curve .main-svg")
        page.evaluate("scrollTo(0, 0)")
        top = 0 if name == "desktop" else page.locator("#pareto-title").bounding_box()["y"] - 10
        clip = {"x": 0, "y": top, "width": width, "height": 1400 if name == "desktop" else 1150}
        page.screenshot(path=folder / f"report_{name}.png", full_page=True, clip=clip)


def main(arguments: list[str]) -> None:
    """Measure the page, and write screenshots if the arguments say so."""
    from playwright.sync_api import sync_playwright

    folder, *rest = arguments
    options = dict(argument.split("=", 1) for argument in rest)
    path = Path(folder) / "report" / "index.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened(browser, path)
        seconds = [opened(browser, path)[1] for _ in range(REPEATS)]
        rows = [
            ["size", f"{path.stat().st_size / MEGABYTE:.2f} MB"],
            ["chart drawn after", f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"],
        ]
        sys.stdout.write(table_of(["page", folder], rows) + "\n")
        if "picture" in options:
            photograph(browser, path, Path(options["picture"]), options["configuration"])
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
