"""How much room is left: what a cache that never evicts, and Belady's policy where it ran, would have saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .rows import Row
from .runs import Run

HITS = ("cache", "hit_ratio", "token")


def with_regret(rows: Sequence[Row]) -> list[Row]:
    """``rows`` of one setting, their summaries with a section ``regret`` more.

    ``infinite``: reusable tokens that were computed again, as a share of all: a cache that never evicts computes none
    again (but, at most, the end of a page), and what truncation dropped it could not hit either. ``belady``: how much
    higher the hit ratio of Belady's policy is with the same seed, the best one where several systems used it.
    """
    best = _best_by_seed(rows)
    return [replace(row, runs=tuple(_with_regret(run, best) for run in row.runs)) for row in rows]


def _best_by_seed(rows: Sequence[Row]) -> dict[int, float]:
    best: dict[int, float] = {}
    for run in (run for row in rows for run in row.runs):
        eviction, hits = run.info.get("policies", {}).get("eviction", {}), run.figure(*HITS)
        if run.ok and hits is not None and eviction.get("name") == "belady":
            best[_seed(run)] = max(hits, best.get(_seed(run), 0.0))
    return best


def _with_regret(run: Run, best: dict[int, float]) -> Run:
    again, reusable = run.figure("cache", "recomputed_tokens"), run.figure("workload", "reusable_tokens")
    hits, most = run.figure(*HITS), best.get(_seed(run))
    regret = {
        "infinite": again / reusable if again is not None and reusable else None,
        "belady": most - hits if most is not None and hits is not None else None,
    }
    return replace(run, summary={**run.summary, "regret": regret})


def _seed(run: Run) -> int:
    return int(run.info["seed"] or 0)
