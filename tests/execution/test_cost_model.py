"""The cost model: published anchors, exactness of the closed forms, and how cost must scale."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kvarena.framework.execution.cost import QUERY_KEYS, CostModel, blend
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.policy import Tier
from kvarena.framework.schema import ConfigError, build

HARDWARE = ("a100-80g", "4xa100-80g", "h100", "h200", "rtxpro6000", "local")


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


def machine(name):
    return build(Hardware, load("hardware", name), f"hardware={name}")


def cost(model, hardware, page_size=16):
    return CostModel(model_shape(load("model", model)), machine(hardware), page_size)


def ints(*values):
    return np.array(values, dtype=np.int64)


LLAMA_ON_H100 = cost("llama-3-8b", "h100")
lengths = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 30000)), min_size=1, max_size=20)


# --- anchors ----------------------------------------------------------------------------------------------------------


def test_llama_65b_prefill_and_load_match_cachedattention():
    """CachedAttention, section 2: 2K tokens on 4 x A100 take about 360 ms to compute and 192 ms to load over PCIe."""
    model = cost("llama-1-65b", "4xa100-80g")
    assert model.step_s(ints(2048), ints(2048), 1) == pytest.approx(0.360, rel=0.1)
    one_link = CostModel(model.shape, replace(model.hardware, host_links=1))
    assert one_link.load_s(2048, Tier.HOST) == pytest.approx(0.192, rel=0.1)


@pytest.mark.parametrize(("hardware", "bandwidth"), [("h100", 3.35e12), ("h200", 4.8e12), ("a100-80g", 2.039e12)])
def test_single_decode_is_bound_by_reading_the_weights(hardware, bandwidth):
    model = cost("llama-3-8b", hardware)
    multiplied = model.shape.num_params - model.shape.embedding_params
    weights_s = 2 * multiplied / bandwidth
    assert weights_s < model.step_s(ints(1), ints(128), 1) < 1.8 * weights_s


def test_large_prefill_runs_near_the_peak():
    model, tokens = LLAMA_ON_H100, 8192
    multiplied = (
        model.shape.num_params - model.shape.embedding_params - model.shape.vocab_size * model.shape.hidden_size
    )
    utilization = 2 * multiplied * tokens / 9.89e14 / model.step_s(ints(tokens), ints(tokens), 1)
    assert 0.5 < utilization < 0.81


def test_recompute_of_a_chunk_is_affine_in_its_position():
    """Pensieve, section 4.3.1: Cost(s, l) = c + attention(l), linear in l."""
    model = cost("opt-13b", "a100-80g")
    costs = [model.recompute_s(stop - 32, stop) for stop in (4096, 8192, 12288, 16384)]
    steps = np.diff(costs)
    assert steps[0] > 0
    assert steps == pytest.approx(steps[0])


def test_grouped_heads_make_decode_attention_cheaper():
    full, grouped = cost("llama-2-13b", "a100-80g"), cost("llama-2-13b-gqa10", "a100-80g")

    def attention_s(model):
        return model.step_s(ints(1), ints(100_000), 1) - model.step_s(ints(1), ints(1), 1)

    assert attention_s(full) == pytest.approx(4 * attention_s(grouped))


# --- exactness --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=40), st.integers(1, 200))
def test_a_stretch_is_the_sum_of_its_steps(kv_lens, steps):
    model, keys = LLAMA_ON_H100, ints(*kv_lens)
    ones = np.ones_like(keys)
    one_by_one = sum(model.step_s(ones, keys + step, len(keys)) for step in range(steps))
    assert model.stretch_s(keys, steps) == pytest.approx(one_by_one, rel=1e-12)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=10), st.integers(1, 5000), st.floats(-1, 100))
def test_steps_until_is_the_first_step_that_reaches_the_limit(kv_lens, steps, limit_s):
    model, keys = LLAMA_ON_H100, ints(*kv_lens)
    found = model.steps_until(keys, steps, limit_s)
    assert 1 <= found <= steps
    assert found == steps or model.stretch_s(keys, found) >= limit_s
    assert found == 1 or model.stretch_s(keys, found - 1) < limit_s


def test_steps_until_includes_a_step_that_ends_exactly_at_the_limit():
    keys = ints(100, 2000)
    assert LLAMA_ON_H100.steps_until(keys, 1000, LLAMA_ON_H100.stretch_s(keys, 77)) == 77


@given(lengths)
def test_attention_counts_causal_pairs(segments):
    """A compute-bound machine (infinite bandwidth) pays for exactly the pairs that a causal mask leaves, and for each
    query of a prompt as for so many pairs more."""
    model = LLAMA_ON_H100
    fast = replace(model.hardware, memory_bytes_per_s=1e30)
    shape, compute = model.shape, CostModel(model.shape, fast)
    queries = ints(*(q for q, _ in segments))
    starts = ints(*(s for _, s in segments))
    pairs = sum(start + i + 1 for query, start in segments for i in range(query))
    pairs += sum(QUERY_KEYS * query for query, _ in segments if query > 1)
    flops = 4 * pairs * shape.num_heads * shape.head_dim * shape.num_layers
    no_attention = CostModel(
        shape, replace(fast, flops_per_s_16bit=1e30, gemm_efficiency=fast.gemm_efficiency * 9.89e14 / 1e30)
    )
    without_keys_s = no_attention.step_s(queries, starts + queries, 0)
    attention_s = compute.step_s(queries, starts + queries, 0) - without_keys_s
    reachable = 9.89e14 * fast.attention_efficiency
    assert attention_s == pytest.approx(flops / reachable, rel=1e-6, abs=1e-9)


def test_the_order_of_segments_does_not_matter():
    queries, keys = ints(1, 512, 1, 7), ints(900, 4096, 17, 8)
    assert LLAMA_ON_H100.step_s(queries, keys, 4) == LLAMA_ON_H100.step_s(queries[::-1], keys[::-1], 4)


def test_computing_and_reading_overlap_but_not_fully():
    assert blend(1.0, 0.0) == pytest.approx(1.0)
    assert 1.0 < blend(1.0, 1.0) < 1.3
    assert blend(1.0, 0.3) == pytest.approx(1.0, rel=0.01)


def test_a_kv_cache_of_fewer_bytes_is_read_faster_and_holds_more():
    shape = LLAMA_ON_H100.shape
    small = CostModel(replace(shape, kv_dtype=1), LLAMA_ON_H100.hardware)
    assert small.shape.kv_bytes_per_token == shape.kv_bytes_per_token / 2
    assert small.shape.weight_bytes == shape.weight_bytes
    one, keys = ints(1), ints(100_000)
    long_s, long_small_s = (model.step_s(one, keys, 1) for model in (LLAMA_ON_H100, small))
    short_s = LLAMA_ON_H100.step_s(one, one, 1)
    assert long_small_s - short_s == pytest.approx((long_s - short_s) / 2, rel=0.01)


def test_an_empty_batch_costs_nothing():
    assert LLAMA_ON_H100.step_s(ints(), ints(), 0) == 0.0
    assert LLAMA_ON_H100.stretch_s(ints(), 5) == 0.0
    assert LLAMA_ON_H100.stretch_s(ints(4), 0) == 0.0


def test_costs_are_deterministic():
    again = cost("llama-3-8b", "h100")
    queries, keys = ints(1, 512, 300), ints(900, 4096, 17000)
    assert again.step_s(queries, keys, 3) == LLAMA_ON_H100.step_s(queries, keys, 3)


# --- scaling ----------------------------------------------------------------------------------------------------------


@given(lengths, st.integers(1, 500))
def test_more_work_never_costs_less(segments, more):
    queries = ints(*(q for q, _ in segments))
    keys = ints(*(q + s for q, s in segments))
    model, sampled = LLAMA_ON_H100, len(segments)
    base_s = model.step_s(queries, keys, sampled)
    assert model.step_s(queries, keys + more, sampled) > base_s
    assert model.step_s(queries + more, keys + more, sampled) > base_s
    assert model.step_s(np.append(queries, 1), np.append(keys, more), sampled + 1) > base_s
    assert model.step_s(queries, keys, 0) < base_s


def test_batching_decodes_is_cheaper_than_running_them_apart():
    one_s = LLAMA_ON_H100.step_s(ints(1), ints(1000), 1)
    batch_s = LLAMA_ON_H100.step_s(np.ones(64, np.int64), np.full(64, 1000), 64)
    assert one_s < batch_s < 8 * one_s


@given(st.integers(0, 50_000), st.integers(1, 5000), st.integers(1, 5000))
def test_recompute_grows_with_length_and_context(start, tokens, more):
    model = LLAMA_ON_H100
    base_s = model.recompute_s(start, start + tokens)
    assert model.recompute_s(start, start + tokens + more) > base_s
    assert model.recompute_s(start + more, start + more + tokens) > base_s
    assert base_s <= model.step_s(ints(tokens), ints(start + tokens), 0)


def test_nothing_to_recompute_or_load_is_free():
    assert LLAMA_ON_H100.recompute_s(7, 7) == 0.0
    assert LLAMA_ON_H100.load_s(0, Tier.HOST) == 0.0
    assert LLAMA_ON_H100.load_s(100, Tier.DEVICE) == 0.0


def test_loads_move_whole_pages_and_farther_tiers_take_longer():
    model = LLAMA_ON_H100
    assert model.load_s(1, Tier.HOST) == model.load_s(16, Tier.HOST) < model.load_s(17, Tier.HOST)
    assert model.load_s(4096, Tier.DISK) > model.load_s(4096, Tier.HOST)
    assert model.load_s(4096, Tier.REMOTE) > model.load_s(4096, Tier.HOST)
    native_s = 4096 * model.shape.kv_bytes_per_token / 5.5e10
    assert model.load_s(4096, Tier.HOST) == pytest.approx(native_s + 1e-5)


def test_tensor_parallelism_helps_less_than_linearly():
    shape = model_shape(load("model", "llama-2-70b"))
    four = machine("4xa100-80g")
    one_s = CostModel(shape, replace(four, devices=1)).step_s(ints(4096), ints(4096), 1)
    four_s = CostModel(shape, four).step_s(ints(4096), ints(4096), 1)
    assert one_s / 4 < four_s < one_s / 2


def test_float32_is_slower_than_float16():
    shape = model_shape(load("model", "llama-3-8b") | {"dtype": "float32"})
    slow = CostModel(shape, machine("h100"))
    for query, key in ((1, 500), (4096, 4096)):
        assert slow.step_s(ints(query), ints(key), 1) > 1.7 * LLAMA_ON_H100.step_s(ints(query), ints(key), 1)


@pytest.mark.parametrize("width", ["num_params", "page_size"])
def test_impossible_arguments_are_refused(width):
    shape, hardware = LLAMA_ON_H100.shape, LLAMA_ON_H100.hardware
    with pytest.raises(ValueError, match=width):
        if width == "page_size":
            CostModel(shape, hardware, 0)
        else:
            CostModel(replace(shape, num_params=1000), hardware)


# --- hardware files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_file_lists_every_knob(name):
    knobs = load("hardware", name)
    assert set(knobs) == set(Hardware.__dataclass_fields__)
    assert machine(name).name == name


def test_free_bytes_are_what_the_weights_leave():
    hardware = machine("4xa100-80g")
    assert hardware.free_bytes(0) == int(4 * 80 * 2**30 * 0.9)
    assert hardware.free_bytes(100) == hardware.free_bytes(0) - 100
    assert hardware.free_bytes(10**12) == 0


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("devices", 0),
        ("gemm_efficiency", 1.5),
        ("memory_bytes_per_s", 0.0),
        ("duplex_loss", 1.0),
        ("disk_latency_s", -1.0),
    ],
)
def test_hardware_refuses_impossible_figures(knob, value):
    with pytest.raises(ConfigError, match=f"hardware=h100: .*{knob}="):
        build(Hardware, load("hardware", "h100") | {knob: value}, "hardware=h100")
