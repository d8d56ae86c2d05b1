"""The page in a real browser: it renders, sorts, filters, follows the theme, and asks nothing of any network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvarena.framework.report import compare

from .browser import page

RunMaker = Callable[..., Path]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def report(make_shared_run: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = [
        make_shared_run(system, seed, speed, hit, folder=f"{system}-{rate}-{seed}", overrides=[f"workload.rate={rate}"])
        for system, speed, hit in (("vllm", 1.0, 0.4), ("pensieve", 2.0, 0.9), ("<b>odd</b>", 0.5, 0.0))
        for rate in (1, 2)
        for seed in (0, 1)
    ]
    folders.append(make_shared_run("vllm", folder="sim", backend="simulated"))
    out = tmp_path_factory.mktemp("report")
    compare(folders, out)
    return out / "comparison.html"


def test_the_page_works_in_a_browser(report: Path) -> None:
    with page(report, viewport={"width": 1300, "height": 900}, color_scheme="dark") as (shown, faults):
        assert shown.locator("section > h2").all_inner_texts() == [
            "measured synthetic_chat, tiny on local",
            "simulated synthetic_chat, tiny on local",
        ]
        table = shown.locator("table").first
        column = 2  # TTFT p50
        values = [float(text.split(" ")[0].replace(",", "")) for text in _column(table, column)]
        assert values != sorted(values)
        button = table.locator("thead button").nth(column)
        button.click()
        assert [float(text.split(" ")[0].replace(",", "")) for text in _column(table, column)] == sorted(values)
        assert table.locator("thead th").nth(column).get_attribute("aria-sort") == "ascending"
        button.focus()
        shown.keyboard.press("Enter")
        found = [float(text.split(" ")[0].replace(",", "")) for text in _column(table, column)]
        assert found == sorted(values, reverse=True)
        shown.fill("#filter", "pensieve")
        assert set(_column(table, 0)) == {"pensieve"}
        assert shown.locator(".count").first.inner_text() == "2 of 6 rows"
        shown.fill("#filter", "")
        assert "<b>odd</b>" in _column(table, 0)  # labels are text, never markup
        shown.click("#unfold")
        shown.locator("figure svg").first.scroll_into_view_if_needed()
        assert all(box["width"] > 300 and box["height"] > 100 for box in _boxes(shown))
        assert _background(shown) == "rgb(21, 23, 27)"
        shown.click("#theme")
        assert _background(shown) == "rgb(255, 255, 255)"
        assert faults == []


def test_a_narrow_page_scrolls_its_tables_and_not_itself(report: Path) -> None:
    with page(report, viewport={"width": 400, "height": 800}) as (shown, faults):
        shown.click("#unfold")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 400
        assert faults == []


def test_print_opens_every_figure_on_white(report: Path) -> None:
    with page(report, color_scheme="dark") as (shown, faults):
        assert shown.locator("details:not([open]):not(.notes)").count() > 0
        assert len(shown.pdf()) > 20_000
        assert shown.locator("details:not([open]):not(.notes)").count() == 0
        shown.emulate_media(media="print")
        assert _background(shown) == "rgb(255, 255, 255)"
        assert faults == []


def _column(table: object, column: int) -> list[str]:
    rows = table.locator("tbody tr:visible")  # type: ignore[attr-defined]
    return [row.locator("th, td").nth(column).inner_text().strip() for row in rows.all()]


def _boxes(shown: object) -> list[dict[str, float]]:
    return [box for svg in shown.locator("figure svg").all() if (box := svg.bounding_box())]  # type: ignore[attr-defined]


def _background(shown: object) -> str:
    return str(shown.evaluate("getComputedStyle(document.documentElement).backgroundColor"))  # type: ignore[attr-defined]
