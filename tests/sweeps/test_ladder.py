"""The ladder of rates finds the knee of each contestant, at the same rates for all."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kvarena.framework.sweeps import Grid, Ladder, RateLadder, Words, contestants
from kvarena.framework.sweeps.ladder import is_saturated


def summary(saturated: bool) -> dict[str, Any]:
    return {"run": {"saturated": saturated}, "latency": {"queue_s": {"mean": 0.0}, "e2e_s": {"mean": 1.0}}}


def climb(ladder: Ladder, knees: dict[str, float], broken: str = "") -> list[list[Words]]:
    """The rungs that are asked for if each system saturates at its knee."""
    plan, rungs, known = RateLadder(ladder, [[(f"system={name}",)] for name in knees]), [], dict[Words, Any]()
    while jobs := plan.next(known):
        rungs.append(jobs)
        for words in jobs:
            name, rate = words[0].removeprefix("system="), float(words[1].removeprefix("workload.rate="))
            if name != broken:
                known[words] = summary(rate >= knees[name])
    return rungs


def rates(rungs: list[list[Words]], name: str) -> list[float]:
    return [float(words[1].split("=")[1]) for jobs in rungs for words in jobs if words[0] == f"system={name}"]


@pytest.mark.parametrize("knee", [0.03, 0.9, 1.0, 1.5, 3.0, 3.9, 70.0])
def test_the_knee_is_found_to_a_bisected_step(knee: float) -> None:
    tried = rates(climb(Ladder(first=1.0, factor=2.0, bisect=2), {"a": knee}), "a")
    below, above = max(r for r in tried if r < knee), min(r for r in tried if r >= knee)
    assert above / below == pytest.approx(2 ** (1 / 4), rel=1e-3)
    assert len(tried) == len(set(tried)) <= 2 + abs(math.log2(knee)) + 1 + 2


def test_contestants_climb_side_by_side_at_the_same_rates() -> None:
    rungs = climb(Ladder(first=1.0, bisect=2), {"a": 3.0, "b": 6.0})
    assert [len(jobs) for jobs in rungs[:3]] == [2, 2, 2]
    lattice = {float(f"{2 ** (place / 4):.4g}") for place in range(40)}
    assert {*rates(rungs, "a"), *rates(rungs, "b")} <= lattice


def test_a_ladder_ends() -> None:
    assert len(climb(Ladder(rungs=5), {"a": math.inf})) == 5
    assert len(climb(Ladder(rungs=5), {"a": 0.0})) == 5


def test_a_contestant_that_fails_does_not_stop_the_others() -> None:
    rungs = climb(Ladder(), {"a": 3.0, "b": 3.0}, broken="b")
    assert (rates(rungs, "b"), len(rates(rungs, "a"))) == ([1.0], 5)


def test_all_seeds_stand_at_the_same_rates() -> None:
    jobs: list[Words] = [("system=a", "seed=0"), ("system=b", "seed=0"), ("system=a", "seed=1"), ("system=b", "seed=1")]
    groups = contestants(jobs)
    assert groups == [[jobs[0], jobs[2]], [jobs[1], jobs[3]]]
    plan = RateLadder(Ladder(), groups[:1])
    first = plan.next({})
    assert first == [(*words, "workload.rate=1") for words in groups[0]]
    second = plan.next({first[0]: summary(True), first[1]: summary(False)})
    assert second[0][-1] == "workload.rate=2", "half of the runs are served: the rate is"


def test_saturated_is_a_growing_queue_or_a_long_one() -> None:
    long = {"run": {"saturated": False}, "latency": {"queue_s": {"mean": 2.0}, "e2e_s": {"mean": 8.0}}}
    assert is_saturated(summary(True), 0.25)
    assert is_saturated(long, 0.25)
    assert not is_saturated(long, 0.3)
    assert not is_saturated({"run": {}}, 0.25)


def test_a_workload_that_arrives_at_once_ends_the_ladder_and_is_named() -> None:
    plan, known = RateLadder(Ladder(), [[("system=a", "seed=0")]]), dict[Words, Any]()
    while jobs := plan.next(known):
        known[jobs[0]] = {**summary(False), "workload": {"conversations": 10, "duration_s": 100.0}}
    assert list(known)[-1][-1] == "workload.rate=4"
    assert plan.notes() == [
        "system=a: not saturated at workload.rate=4: all conversations arrive at once; a higher workload.limit has more"
    ]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"first": 0.0}, "first is 0.0"),
        ({"factor": 1.0}, "factor is 1.0"),
        ({"bisect": 9}, "bisect is 9"),
        ({"rungs": 0}, "rungs is 0"),
        ({"queue_share": 0.0}, "queue_share is 0.0"),
    ],
)
def test_a_bad_knob_is_named(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Ladder(**knobs)


def test_a_grid_is_asked_once() -> None:
    plan = Grid([("seed=0",)])
    assert (plan.next({}), plan.next({}), plan.notes()) == ([("seed=0",)], [], [])
