"""The page: whole in one file, safe against what labels hold, the same every time, and light."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kvarena.framework.report import Comparison, compare
from kvarena.framework.report.command import run_folders
from kvarena.framework.report.drawing import _inline
from kvarena.framework.report.html.content import Shown, sections
from kvarena.framework.report.html.theme import dark, themed

RunMaker = Callable[..., Path]
STORED = Path(__file__).parent / "stored"
VOID = ("meta", "link", "input", "br")


class Checker(HTMLParser):
    """Notes what is not closed, ids that are given twice, and addresses of anything that is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        loads = {"script": "src", "img": "src", "link": "href", "use": "xlink:href", "image": "xlink:href"}.get(tag)
        self.loads += [given[loads] or ""] if loads in given else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(make_shared_run: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, str]:
    """A measured and a simulated setting of the same workload, with figures, and a label that is markup."""
    folders = [
        *(
            make_shared_run(system, seed, hit=hit)
            for system, hit in (("vllm", 0.4), ("pensieve", 0.9))
            for seed in (0, 1)
        ),
        make_shared_run("vllm", folder="simulated", backend="simulated"),
        make_shared_run("<script>alert(1)</script>", folder="markup"),
    ]
    out = tmp_path_factory.mktemp("page")
    return compare(folders, out), (out / "comparison.html").read_text()


def test_the_page_is_whole_and_loads_nothing(made: tuple[Comparison, str]) -> None:
    checker = Checker()
    checker.feed(made[1])
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids)) > 100
    assert all(address.startswith(("#", "data:")) for address in checker.loads)
    assert not re.search(r"@import|url\((?!#)", made[1])
    assert "default-src 'none'" in made[1]


def test_labels_are_text(made: tuple[Comparison, str]) -> None:
    assert "<script>alert(1)" not in made[1]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made[1]


def test_measured_and_simulated_share_no_section(made: tuple[Comparison, str]) -> None:
    found = sections(made[0])
    assert [(one.kind, one.title) for one in found] == [
        ("measured", "synthetic_chat, tiny on local"),
        ("simulated", "synthetic_chat, tiny on local"),
    ]
    assert [len(sheet.rows) for one in found for sheet in one.sheets] == [3, 2, 1]
    for one in found:
        names = [picture.path.stem for album in one.albums for picture in album.pictures]
        assert names
        assert all(name.split("_")[-1].endswith(one.kind) for name in names if "local" in name)


def test_every_picture_is_on_the_page_once(made: tuple[Comparison, str]) -> None:
    comparison, text = made
    assert len(comparison.pictures) >= 13
    for picture in comparison.pictures:
        assert text.count(f'<figure id="{picture.path.stem}">') == 1
        assert picture.path.is_file()
    assert text.count("<svg ") == len(comparison.pictures)


def test_the_page_is_light_and_always_the_same(made: tuple[Comparison, str], tmp_path: Path) -> None:
    assert len(made[1]) < 1_500_000
    texts = []
    for name in ("one", "two"):
        (replayed,) = compare(run_folders(STORED / "replayed"), tmp_path / name).pictures
        assert replayed.path.is_file()
        texts.append((tmp_path / name / "comparison.html").read_text())
    assert texts[0] == texts[1]


def test_figures_have_two_sets_of_colours() -> None:
    svg = '<svg viewBox="0 0 72.00 36"><path style="fill: #0072b2; stroke: #000000"/><use href="#abcdef"/></svg>'
    found = themed(svg)
    assert 'style="fill: var(--c-0072b2); stroke: var(--c-000000)"' in found
    assert 'href="#abcdef"' in found
    assert "max-width:96px" in found
    assert dark("000000") == "#ededed"
    assert dark("ffffff") == "#1a1a1a"
    for colour in ("0072b2", "d55e00", "8c564b", "6a3d9a"):
        assert _contrast(dark(colour), "#15171b") > 4.5


def test_numbers_that_are_read_keep_their_digits() -> None:
    svg = '<svg width="9pt"><g id="patch_1"/>\n<path d="M 1.23456 2.34567"/><text>0.0001</text></svg>'
    assert _inline(svg, "a", (0, 0, 1, 1)).endswith('<path d="M 1.23 2.34"/><text>0.0001</text></svg>')


def _contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    light = []
    for colour in (one, other):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,234 ± 5", "1234"), ("-96.6 [-98.9, -94.2]", "-96.6"), ("+3.4", "3.4"), ("0.544x", "0.544"),
     ("1.2e-05", "1.2e-05"), ("vllm", ""), ("-", "")],
)  # fmt: skip
def test_cells_are_sorted_by_their_number(text: str, number: str) -> None:
    assert Shown(text).number == number
