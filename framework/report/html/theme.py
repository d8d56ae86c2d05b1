"""Figures that follow the page's colours: those in their SVG become CSS variables with a light and a dark value."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_STYLE = re.compile(r'style="[^"]*"')


def themed(svg: str) -> str:
    """``svg`` with the variable ``--c-rrggbb`` for each colour, and the width of its page at most its own."""
    body = _STYLE.sub(lambda found: _COLOUR.sub(r"var(--c-\1)", found[0]), svg)
    width = re.search(r'<svg viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', body)
    most = f"max-width:{float(width[1]) * 4 / 3:.0f}px" if width else ""
    return body.replace("<svg", f'<svg style="{most}" aria-hidden="true" focusable="false"', 1)


def colours(texts: Iterable[str]) -> list[str]:
    """The variables that ``texts`` use: rrggbb, sorted."""
    return sorted({found for text in texts for found in re.findall(r"var\(--c-([0-9a-f]{6})\)", text)})


def dark(colour: str) -> str:
    """What stands for ``colour`` (rrggbb) on a dark page, as #rrggbb: greys change places with each other, the others
    become light enough to be read."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    hue, light, saturation = colorsys.rgb_to_hls(red, green, blue)
    if saturation < 0.08:
        light = 0.93 - 0.83 * light
    else:
        light, saturation = max(light, 0.6), min(saturation, 0.7)
    parts = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, saturation))
    return "#" + "".join(f"{part:02x}" for part in parts)
