"""From a residency to a restore plan: the steps that most prefetch policies share."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from .base import Tier
from .restoration import Action, Loading, Range, Residency, RestorePlan


def nearest(residency: Residency, limit: int) -> list[Range]:
    """The first ``limit`` tokens, each from the nearest tier that holds it: used, loaded or, in a hole, recomputed.

    Ranges are in order, without gaps, neighbours differ. A load that ``limit`` cuts inside a page ends before that
    page, so that the ranges may end before ``limit``.
    """
    ranges: list[Range] = []
    for span in residency.spans:
        stop, tier = min(span.stop, limit), min(span.tiers, default=None)
        action: Action = "recompute" if tier is None else "use" if tier is Tier.DEVICE else "load"
        if action == "load" and stop < span.stop:
            stop = stop // residency.page_size * residency.page_size
        if stop > span.start:
            _append(ranges, Range(span.start, stop, action, Tier.DEVICE if tier is None else tier))
    return ranges


def leading(ranges: Iterable[Range]) -> list[Range]:
    """The ranges before the first one that is recomputed."""
    return list(takewhile(lambda part: part.action != "recompute", ranges))


def complete(ranges: Iterable[Range], known_tokens: int, loading: Loading = "layers") -> RestorePlan:
    """A plan of ``ranges``, with everything behind them up to ``known_tokens`` recomputed."""
    joined: list[Range] = []
    for part in ranges:
        _append(joined, part)
    done = joined[-1].stop if joined else 0
    _append(joined, Range(done, known_tokens, "recompute"))
    return RestorePlan(tuple(joined), loading)


def _append(ranges: list[Range], new: Range) -> None:
    """Add ``new``, as a part of the last range where only the cut distinguishes the two."""
    last = ranges[-1] if ranges else None
    if last is not None and (last.action, last.tier) == (new.action, new.tier):
        ranges[-1] = Range(last.start, new.stop, new.action, new.tier)
    else:
        ranges.append(new)
