"""Reports of stored runs say what they said when they were stored; run this file to renew what is stored."""

from __future__ import annotations

import csv
import io
import re
import sys
import tempfile
from pathlib import Path

import pytest

from kvarena.framework.report.command import main

STORED = Path(__file__).parent / "stored"
TEXTS = ("comparison.md", "comparison.html")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report without figures of all stored runs."""
    out = tmp_path_factory.mktemp("report")
    assert main([str(STORED), "--out", str(out), "--quiet", "--figures", "none"]) == 0
    return out


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_as_they_were(report: Path, name: str) -> None:
    assert lasting((report / name).read_text()) == (STORED / "expected" / name).read_text()


def test_figures_are_as_they_were(report: Path) -> None:
    now, then = (_rows(folder / "comparison.csv") for folder in (report, STORED / "expected"))
    assert len(now) == len(then) > 0
    for found, told in zip(now, then, strict=True):
        assert found.keys() == told.keys()
        for name in told:
            one, other = number(found[name]), number(told[name])
            assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-9)), name


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def lasting(text: str) -> str:
    """The text without what is not the runs': styles and scripts."""
    return re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)


def number(text: str) -> float | str:
    """The number, or what else stands there."""
    try:
        return float(text)
    except ValueError:
        return text


def renew() -> None:
    """Store what is said now."""
    with tempfile.TemporaryDirectory() as out:
        main([str(STORED), "--out", out, "--quiet", "--figures", "none"])
        (STORED / "expected").mkdir(exist_ok=True)
        for name in (*TEXTS, "comparison.csv"):
            (STORED / "expected" / name).write_text(lasting((Path(out) / name).read_text()))


if __name__ == "__main__":
    sys.exit(renew())
