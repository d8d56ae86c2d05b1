"""Longest prefix first, within a window."""

from __future__ import annotations

import sys
from pathlib import Path

from kvarena.policies.scheduling.chunked import Chunked
from kvarena.policies.scheduling.longest_prefix import LongestPrefix

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeEngine, waiting


def admitted(policy: Chunked | LongestPrefix, engine: FakeEngine) -> list[tuple[int, int]]:
    plan = policy.plan(engine)
    assert plan.stable
    return [(share.request.id, share.tokens) for share in plan.shares]


def engine(**given: object) -> FakeEngine:
    """Four requests of 100 tokens that find 0, 60, 20 and 60 of them."""
    return FakeEngine(waiting([100] * 4), [100, 40, 80, 40], **given)  # type: ignore[arg-type]


def test_the_longest_prefix_goes_first_and_ties_by_arrival() -> None:
    assert admitted(LongestPrefix(), engine()) == [(1, 40), (3, 40), (2, 80), (0, 100)]
    assert admitted(Chunked(), engine()) == [(0, 100), (1, 40), (2, 80), (3, 40)]


def test_only_the_window_is_looked_at() -> None:
    view = engine()
    assert admitted(LongestPrefix(window=2), view) == [(1, 40), (0, 100)]
    assert view.offered == [0, 1]


def test_budget_slots_and_pages_end_admission() -> None:
    assert admitted(LongestPrefix(max_batched_tokens=100), engine()) == [(1, 40), (3, 40), (2, 20)]
    assert admitted(LongestPrefix(max_running=1), engine()) == [(1, 40)]
    assert admitted(LongestPrefix(), engine(available_pages=90)) == [(1, 40), (3, 40)]
    assert admitted(LongestPrefix(), engine(blocked={1})) == [(3, 40), (2, 80), (0, 100)]


def test_nothing_is_offered_where_nothing_fits() -> None:
    view = engine(available_pages=0)
    assert admitted(LongestPrefix(), view) == []
    assert view.offered == []
