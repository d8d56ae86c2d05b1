"""Checks that every request's record agrees with itself; what fails here is a fault of the engine, not of the user."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .columns import TIERS, Rows

_EPSILON_S = 1e-6
_WHOLE = "reusable_tokens"


class RecordError(RuntimeError):
    """A record that contradicts itself. The message names the request and the figures."""


def audit_requests(rows: Rows, mistimed: Sequence[str] = ()) -> None:
    """Check the rows of all requests that succeeded.

    Each reusable token is exactly one of reused (from one tier), recomputed or dropped; no count is negative; reused
    pages are at most the reusable ones; arrival <= scheduled <= first token <= completion; at least one output token.

    Raises
    ------
    RecordError
        For the first request that breaks a rule.
    """
    if mistimed:
        raise RecordError(mistimed[0])
    ok = rows[rows["status"] == "ok"]
    parts = [f"reused_{tier}" for tier in TIERS] + ["recomputed", "dropped"]
    _check(ok, sum(ok[part] for part in parts) == ok["reusable_tokens"], "the parts do not add up", _WHOLE, *parts)
    _check(ok, ok["reused_pages"] <= ok["reusable_pages"], "more than there are", "reused_pages", "reusable_pages")
    _check(ok, ok["output_tokens"] >= 1, "no output", "output_tokens")
    for name in (*parts, "prompt_tokens", "history_tokens", "preempted", "suspensions", "reused_pages"):
        _check(ok, ok[name] >= 0, "negative", name)
    times = ["arrival_s", "scheduled_s", "first_token_s", "completion_s"]
    ordered = [ok[early] <= ok[late] + _EPSILON_S for early, late in pairwise(times)]
    _check(ok, np.logical_and.reduce(ordered), "times out of order", *times)


def _check(rows: Rows, good: Any, problem: str, *names: str) -> None:
    bad = np.flatnonzero(~np.asarray(good, bool))
    if len(bad):
        row = rows[bad[0]]
        figures = ", ".join(f"{name} = {row[name]}" for name in names)
        raise RecordError(f"request {row['request']}: {problem}: {figures} ({len(bad)} such requests)")
