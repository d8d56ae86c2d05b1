"""Which batches are timed, how, and what the tables make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvarena.framework.calibrate.design import Limits, Probe, check_probes, table_probes
from kvarena.framework.calibrate.fitting import StepTables, fit_steps
from kvarena.framework.calibrate.smoothing import smoothed
from kvarena.framework.calibrate.steps import StepTimer, midmean, timed
from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.workloads.tokens import IdLog

LIMITS = Limits(tokens=256, context=512, sequences=8)


def timer(executor: Any, limits: Limits = LIMITS) -> StepTimer:
    return StepTimer(executor, [*table_probes(limits), *check_probes(limits)], 128, 16, 100)


def measured(executor: Any, passes: int) -> StepTimer:
    found = timer(executor)
    found.complete(passes)
    return found


def batch(probe: Probe) -> Batch:
    log, table = IdLog(np.zeros(0, np.int32)), np.zeros(0, np.int32)
    return Batch([Segment(-1, log, p.context, p.length, table, sample=p.sample) for p in probe.segments()])


def total_s(steps: StepTables, queries: int, context: int, sequences: int, keys: int) -> float:
    """Dense, head and attention of points that the tables hold."""
    prefill, decode = steps.attention.prefill, steps.attention.decode
    assert prefill is not None and decode is not None
    seconds = steps.dense.at(queries + sequences) + steps.head.at(sequences + bool(queries))
    if queries:
        seconds += prefill.seconds[prefill.axes[0] == queries, prefill.axes[1] == context].item()
    if sequences:
        seconds += decode.seconds[decode.axes[0] == sequences, decode.axes[1] == keys].item()
    return float(seconds)


@pytest.mark.parametrize(("field", "value"), [("tokens", 8), ("context", 0), ("sequences", 1)])
def test_limits_that_tell_nothing_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Limits(**{field: value})


@pytest.mark.parametrize("limits", [Limits(), Limits(32, 64, 2), Limits(8192, 65_536, 256)])
def test_the_probes_stay_within_the_limits_and_fill_whole_grids(limits: Limits) -> None:
    probes = table_probes(limits)
    assert len(set(probes)) == len(probes)
    assert max(p.tokens for p in probes) == limits.tokens
    assert max(p.context for p in probes if p.operator == "prefill") <= limits.context
    assert max(p.sequences for p in probes if p.operator == "decode") == limits.sequences
    first = [p.context for p in probes if (p.operator, p.tokens) == ("prefill", 8)]
    if limits == Limits():
        for tokens in {p.tokens for p in probes if p.operator == "prefill"}:
            assert [p.context for p in probes if (p.operator, p.tokens) == ("prefill", tokens)] == first
    dense = {p.tokens for p in probes if p.operator == "dense"}
    assert dense >= {p.tokens for p in probes if p.operator == "prefill"} - {limits.context}


def test_what_the_tables_are_tried_on_is_in_none_of_them() -> None:
    tables = {tuple(p.segments()) for p in table_probes(LIMITS)}
    checks = check_probes(LIMITS)
    assert checks
    assert tables.isdisjoint(tuple(p.segments()) for p in checks)
    assert all({part.length > 1 for part in p.segments()} == {False, True} for p in checks)


def test_a_probe_is_the_batch_that_it_says() -> None:
    assert sum(part.length for part in Probe("dense", tokens=70).segments()) == 70
    assert {part.length for part in Probe("decode", sequences=3, keys=9).segments()} == {1}
    assert [part.context for part in Probe("decode", sequences=3, keys=9).segments()] == [8, 8, 8]
    mixed = Probe("mixed", 5, 7, 2, 4, True).segments()
    assert [(part.length, part.context, part.sample) for part in mixed] == [(5, 7, True), (1, 3, True), (1, 3, True)]


def test_every_batch_runs_equally_often_in_an_order_that_changes(known: Any) -> None:
    executor = known()
    found = measured(executor, 3)
    assert {len(times) for times in found.times_s.values()} == {3}
    count = len(found.probes)
    orders = [
        [sum(part.length + part.start for part in batch.segments) for batch in executor.batches[i : i + count]]
        for i in (0, count)
    ]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_a_page_table_names_pages_of_the_pool_and_holds_the_segment(known: Any) -> None:
    executor = known()
    measured(executor, 1)
    for each in (part for found in executor.batches for part in found.segments):
        assert len(each.table) == -(-(each.start + each.length) // 16)
        assert 0 <= each.table.min() <= each.table.max() < 128


def test_without_noise_the_tables_are_the_formula(known: Any) -> None:
    steps = fit_steps(measured(known(), 2).times_s)
    for queries, context, sequences, keys in ((64, 256, 0, 0), (0, 0, 8, 256), (32, 512, 4, 512), (128, 0, 2, 16)):
        probe = Probe("mixed", queries, context, sequences, keys, True)
        exact_s = known.seconds(batch(probe))
        assert total_s(steps, queries, context, sequences, keys) == pytest.approx(exact_s, rel=0.02)


def test_noise_does_not_get_into_the_tables(known: Any) -> None:
    """A tenth of the times three times too long, the others off by 8 %: the tables are right to 5 %."""
    times_s = measured(known(noise=0.08), 12).times_s
    steps = fit_steps(times_s)
    errors = []
    for queries, context, sequences, keys in ((64, 256, 0, 0), (0, 0, 8, 256), (32, 512, 4, 512), (128, 256, 2, 16)):
        exact_s = known.seconds(batch(Probe("mixed", queries, context, sequences, keys, True)))
        errors.append(total_s(steps, queries, context, sequences, keys) / exact_s - 1)
    assert np.abs(errors).max() < 0.05
    assert abs(np.mean(errors)) < 0.03


def test_smoothing_keeps_what_was_measured_well_and_mends_what_was_not(known: Any) -> None:
    probes = table_probes(LIMITS)
    exact = {probe: known.seconds(batch(probe)) for probe in probes}
    odd, noisy = probes[5], probes[9]
    times = {probe: [seconds] * 8 for probe, seconds in exact.items()}
    times[odd] = [1.3 * exact[odd]] * 8  # slower than its neighbours, every time
    times[noisy] = [exact[noisy] * factor for factor in (0.6, 0.8, 1.0, 1.4, 1.8, 1.9, 1.2, 0.7)]
    found = smoothed(times)
    assert found[odd] == pytest.approx(1.3 * exact[odd], rel=0.02)
    assert abs(found[noisy] / exact[noisy] - 1) < abs(midmean(times[noisy]) / exact[noisy] - 1) / 2


def test_more_work_never_takes_less(known: Any) -> None:
    steps = fit_steps(measured(known(noise=0.3), 3).times_s)
    for curve in (steps.dense, steps.head):
        assert (np.diff(curve.seconds) >= 0).all()
        assert (curve.seconds > 0).all()


def test_timing_warms_up_keeps_to_its_time_and_says_how_far_it_is(known: Any) -> None:
    executor, plans, ticks = known(), list[int](), list[int]()
    found = timer(executor)
    timed(found, 0.0, lambda: ticks.append(1), plans.append)
    assert found.passes == 2
    assert len(ticks) == plans[0] == 3 * len(found.probes)
    assert len(executor.batches) == len(ticks)
    assert sum(len(times) for times in found.times_s.values()) == 2 * len(found.probes)  # the first run is not kept


def test_the_midmean_ignores_both_ends() -> None:
    assert midmean([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 90.0, 0.0]) == 1.0
    assert midmean([3.0]) == 3.0
