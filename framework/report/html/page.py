"""The page itself, from a template."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .content import Section, sections
from .theme import colours, dark, themed

if TYPE_CHECKING:
    from ..comparison import Comparison

OPEN = 1  # settings whose figures are shown at once; those of others open with a click


def render_page(comparison: Comparison) -> str:
    """The content of ``comparison.html``; the same for the same comparison."""
    from jinja2 import Environment, StrictUndefined

    here = files(__package__)
    style, script, template = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js", "page.html"))
    found = sections(comparison)
    pictures = {one.path.stem: themed(one.svg) for one in comparison.pictures}
    used = colours([*pictures.values(), *_swatches(found)])
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        comparison=comparison,
        sections=found,
        svg=pictures,
        light_colours={colour: f"#{colour}" for colour in used},
        dark_colours={colour: dark(colour) for colour in used},
        style=style,
        script=script,
        about=_about(comparison),
        opened=OPEN,
    )


def _swatches(found: list[Section]) -> list[str]:
    cells = (cell for one in found for sheet in one.sheets for _, row in sheet.rows for cell in row if cell.colour)
    return [f"var(--c-{cell.colour})" for cell in cells]


def _about(comparison: Comparison) -> dict[str, Any]:
    """How many runs of what versions, and when they began."""
    runs = [run for table in comparison.tables for row in table.rows for run in row.runs]
    runs += [run for replay in comparison.replays for run in replay.runs]
    runs += [run for judged in comparison.quality for run in judged.runs]
    days = sorted({str(run.info.get("started") or "")[:10] for run in runs} - {""})
    return {
        "runs": len(runs),
        "versions": sorted({str(run.info.get("version")) for run in runs}),
        "days": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
    }
