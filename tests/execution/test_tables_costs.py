"""The cost model with tables: interpolated inside, scaled outside, exact over stretches, and it says which."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.contract import Batch, Segment
from kvarena.framework.execution.cost import CostModel
from kvarena.framework.execution.cost_tables import Shares, TableCosts
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.simulated import SimulatedExecutor
from kvarena.framework.execution.tables import AttentionTables, Curve, Grid, OperatorTables
from kvarena.framework.execution.tables.operators import Uneven
from kvarena.framework.schema import build


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


SHAPE = model_shape(load("model", "llama-3-8b"))
H100 = build(Hardware, load("hardware", "h100"), "h100")
SIZES, KEYS, CHUNKS, CONTEXTS = (1, 4, 16, 64), (16, 256, 1024, 8192), (16, 128, 1024), (0, 1024, 8192)


def grid(axes, seconds):
    points = np.meshgrid(*[np.array(axis, dtype=np.float64) for axis in axes], indexing="ij")
    return Grid(tuple(np.array(axis, dtype=np.float64) for axis in axes), seconds(*points))


def prefill_s(queries, context):
    return 1e-4 + 1e-9 * queries * (context + queries / 2)


def decode_s(sequences, keys):
    return 2e-4 + 3e-8 * sequences * keys


ATTENTION = AttentionTables(
    prefill=grid((CHUNKS, CONTEXTS), prefill_s),
    decode=grid((SIZES, KEYS), decode_s),
    mixed=grid((CHUNKS, CONTEXTS, SIZES, KEYS), lambda q, c, n, k: 1.5 * (prefill_s(q, c) + decode_s(n, k))),
)
UNEVEN = replace(
    ATTENTION,
    uneven_decode=Uneven((np.array([1.0, 64.0]), np.array([0.0, 1.0])), np.array([[1e-8, 0.0], [1e-7, 1e-8]])),
    uneven_mixed=Uneven(tuple(np.array([1.0]) for _ in range(4)), np.full((1, 1, 1, 1), 5e-8)),
)
TABLES = OperatorTables(
    source="a test",
    shape=SHAPE,
    dense=Curve(np.array([1.0, 64.0, 1024.0]), np.array([5e-3, 6e-3, 2e-2])),
    head=Curve(np.array([1.0, 64.0]), np.array([1e-4, 3e-4])),
    attention=ATTENTION,
    iteration_s=1e-3,
    sequence_s=1e-5,
)


def costs(**changes):
    return TableCosts(SHAPE, H100, 16, replace(TABLES, **changes))


def ints(*values):
    return np.array(values, dtype=np.int64)


EVEN, SKEWED = costs(), costs(attention=UNEVEN)
kv_lists = st.lists(st.integers(1, 30_000), min_size=1, max_size=80)


# --- inside the tables ------------------------------------------------------------------------------------------------


def test_measured_points_come_back_exactly():
    overhead_s = 1e-3 + 4 * 1e-5
    head_s = 1e-4 + 2e-4 * 3 / 63
    dense_s = 5e-3 + 1e-3 * 3 / 63
    assert EVEN.step_s(np.ones(4, np.int64), np.full(4, 256), 4) == pytest.approx(
        dense_s + head_s + overhead_s + decode_s(4, 256)
    )
    found_s = EVEN.step_s(ints(128), ints(1024 + 128), 1)
    assert found_s == pytest.approx(EVEN.outside_s(1, 1) + EVEN.recompute_s(1024, 1024 + 128))
    assert EVEN.recompute_s(1024, 1152) == pytest.approx(6e-3 + 1.4e-2 * 64 / 960 + prefill_s(128, 1024))


def test_a_batch_of_prompts_and_decodes_is_looked_up_as_measured_together():
    queries, keys = ints(1, 1, 1, 1, 128), ints(256, 256, 256, 256, 1024 + 128)
    alone_s = EVEN.step_s(queries[:4], keys[:4], 0) - EVEN.outside_s(4, 0)
    both_s = EVEN.step_s(queries, keys, 0) - EVEN.outside_s(5, 0)
    attention_s = 1.5 * (prefill_s(128, 1024) + decode_s(4, 256))
    dense_s = 6e-3 + 1.4e-2 * (132 - 64) / 960
    assert both_s == pytest.approx(dense_s + attention_s)
    assert both_s > alone_s


def test_several_prompts_are_launched_once():
    one_s, two_s = (EVEN.step_s(np.full(n, 128), np.full(n, 128), 0) - EVEN.outside_s(n, 0) for n in (1, 2))
    least_s = float(ATTENTION.prefill.seconds.min())
    dense_s = 1.4e-2 * 128 / 960
    assert two_s - one_s == pytest.approx(dense_s + prefill_s(128, 0) - least_s)


def test_lists_and_arrays_cost_the_same():
    queries, keys = [1, 1, 300, 40], [900, 17, 700, 9000]
    by_lists = EVEN.mixed_s(queries, keys, 3, 0, 0)
    assert by_lists == EVEN.step_s(ints(*queries), ints(*keys), 3)
    assert by_lists == pytest.approx(EVEN.mixed_s(queries[2:], keys[2:], 1, 2, 917), rel=1e-12)


# --- uneven batches ---------------------------------------------------------------------------------------------------


def test_unequal_sequences_take_longer_by_what_was_measured():
    equal, unequal = ints(*[1000] * 64), ints(*[700] * 32, *[1300] * 32)
    more_s = SKEWED.stretch_s(unequal, 1) - SKEWED.stretch_s(equal, 1)
    assert more_s == pytest.approx((1e-7 + 1e-8) / 2 * 300)
    assert EVEN.stretch_s(unequal, 1) == EVEN.stretch_s(equal, 1)
    mixed = [SKEWED.step_s(ints(*[1] * 64, 128), ints(*keys, 128), 0) for keys in (unequal, equal)]
    assert mixed[0] - mixed[1] == pytest.approx(5e-8 * 300)


def test_only_costs_that_ask_are_given_the_lengths():
    assert SKEWED.uneven and not EVEN.uneven
    assert SimulatedExecutor(SHAPE, H100, 16, tables=TABLES).sums_decodes
    assert not SimulatedExecutor(SHAPE, H100, 16, tables=replace(TABLES, attention=UNEVEN)).sums_decodes


# --- stretches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [EVEN, SKEWED], ids=["even", "uneven"])
@given(kv_lens=kv_lists, steps=st.integers(1, 300))
def test_a_stretch_is_the_sum_of_its_steps(model, kv_lens, steps):
    keys = ints(*kv_lens)
    one_by_one = sum(model.step_s(np.ones_like(keys), keys + step, len(keys)) for step in range(steps))
    assert model.stretch_s(keys, steps) == pytest.approx(one_by_one, rel=1e-9)


@pytest.mark.parametrize("model", [EVEN, SKEWED], ids=["even", "uneven"])
@given(kv_lens=kv_lists, steps=st.integers(1, 5000), limit_s=st.floats(-1, 100))
def test_steps_until_is_the_first_step_that_reaches_the_limit(model, kv_lens, steps, limit_s):
    keys = ints(*kv_lens)
    found = model.steps_until(keys, steps, limit_s)
    assert 1 <= found <= steps
    assert found == steps or model.stretch_s(keys, found) >= limit_s
    assert found == 1 or model.stretch_s(keys, found - 1) < limit_s


@given(kv_lists, st.integers(1, 500))
def test_more_keys_never_cost_less(kv_lens, more):
    keys = ints(*kv_lens)
    assert EVEN.stretch_s(keys + more, 1) >= EVEN.stretch_s(keys, 1)
    queries = np.append(np.ones_like(keys), 200)
    assert EVEN.step_s(queries, np.append(keys + more, 200), 0) >= EVEN.step_s(queries, np.append(keys, 200), 0)


@given(st.integers(1, 500), st.integers(0, 4000), st.integers(1, 500))
def test_longer_prompts_never_cost_less(queries, context, more):
    base_s = EVEN.recompute_s(context, context + queries)
    assert EVEN.recompute_s(context, context + queries + more) >= base_s
    assert EVEN.recompute_s(context + more, context + more + queries) >= base_s


# --- outside the tables -----------------------------------------------------------------------------------------------


def test_beyond_a_table_the_roofline_scales_its_last_point():
    roofline = CostModel(SHAPE, H100, 16)
    ratio = (roofline.recompute_s(0, 4096) - roofline.recompute_s(0, 2048)) / roofline.recompute_s(0, 2048)
    found = (EVEN.recompute_s(0, 4096) - EVEN.recompute_s(0, 2048)) / EVEN.recompute_s(0, 2048)
    assert found == pytest.approx(ratio, rel=0.2)
    far_s, farther_s = (
        EVEN.stretch_s(ints(*[keys] * 64), 1) - EVEN.stretch_s(ints(*[1] * 64), 1) for keys in (8192, 81920)
    )
    assert farther_s == pytest.approx(10 * far_s, rel=0.02)
    more_s, many_s = (EVEN.stretch_s(ints(*[1024] * n), 1) for n in (64, 640))
    assert more_s < many_s < 11 * more_s


def test_without_tables_the_costs_are_those_of_the_roofline():
    bare = TableCosts(SHAPE, H100, 16, OperatorTables("nobody", SHAPE))
    roofline = CostModel(SHAPE, H100, 16)
    for queries, keys in ((ints(1, 1), ints(500, 9000)), (ints(1, 700), ints(500, 9000)), (ints(64), ints(64))):
        assert bare.step_s(queries, keys, 1) == pytest.approx(roofline.step_s(queries, keys, 1), rel=1e-12)
    assert bare.recompute_s(10, 500) == roofline.recompute_s(10, 500)


@pytest.mark.parametrize("lacking", ["prefill", "decode", "mixed"])
def test_what_one_table_lacks_the_others_do_not_change(lacking):
    part = costs(attention=replace(ATTENTION, **{lacking: None}))
    assert part.step_s(ints(1, 1, 128), ints(256, 300, 128), 3) > 0
    if lacking != "decode":
        assert part.stretch_s(ints(256, 300), 9) == EVEN.stretch_s(ints(256, 300), 9)
    if lacking != "prefill":
        assert part.recompute_s(0, 128) == EVEN.recompute_s(0, 128)


# --- it says which ----------------------------------------------------------------------------------------------------


def segments(*lengths_and_starts):
    table = np.zeros(4096, np.int32)
    return [Segment(0, None, start, length, table, sample=True) for length, start in lengths_and_starts]


def test_a_run_says_where_its_time_came_from():
    executor = SimulatedExecutor(SHAPE, H100, 16, tables=TABLES)
    assert executor.times_from() == {"tables": "a test", "measured": 0.0, "extrapolated": 0.0, "roofline": 0.0}
    executor.run(Batch(segments((1, 100), (1, 200)), steps=10))
    executor.run(Batch(segments((1, 100), (128, 0))))
    assert executor.times_from()["measured"] == pytest.approx(1.0)
    executor.run(Batch(segments((1, 20_000)), steps=10))
    found = executor.times_from()
    assert found["extrapolated"] > 0
    assert found["measured"] + found["extrapolated"] + found["roofline"] == pytest.approx(1.0)
    assert SimulatedExecutor(SHAPE, H100, 16).times_from() is None


@given(kv_lists, st.integers(1, 100), st.lists(st.integers(2, 3000), max_size=3))
def test_the_parts_add_up_to_the_time(kv_lens, steps, prompts):
    shares, keys = Shares(), ints(*kv_lens)
    if prompts:
        lengths, ends = [1] * len(kv_lens) + prompts, [*kv_lens, *prompts]
        EVEN.count_mixed(shares, lengths, ends, 0, 0, 0)
        total_s = EVEN.mixed_s(lengths, ends, 0, 0, 0)
    else:
        EVEN.count_decode(shares, len(keys), int(keys.sum()), steps)
        total_s = EVEN.stretch_s(keys, steps)
    assert shares.measured_s + shares.extrapolated_s + shares.roofline_s == pytest.approx(total_s, rel=1e-9)


def test_without_its_own_engine_time_the_hardware_files_is_called_roofline():
    shares = Shares()
    costs(iteration_s=None, sequence_s=None).count_decode(shares, 4, 1024, 10)
    assert shares.roofline_s == pytest.approx(10 * (H100.iteration_overhead_s + 4 * H100.sequence_overhead_s))
