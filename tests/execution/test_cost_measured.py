"""The cost model against measured kernels of three GPUs (aiconfigurator's tables, where KVARENA_DATA has them)."""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from kvarena.framework.execution.cost import CostModel, Gemm
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.schema import build

FOLDERS = {"a100-80g": "a100_sxm", "h100": "h100_sxm", "h200": "h200_sxm"}
LAYERS = 32  # of llama-3-8b, whose 32 query and 8 KV heads of size 128 are looked up

pytestmark = pytest.mark.skipif("KVARENA_DATA" not in os.environ, reason="KVARENA_DATA is not set")


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


@pytest.fixture(params=FOLDERS)
def machine(request):
    """(cost model, folder of the measured tables) of one GPU."""
    hardware = build(Hardware, load("hardware", request.param), "")
    folder = Path(os.environ["KVARENA_DATA"]) / "aiconfigurator" / FOLDERS[request.param]
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not among the data")
    return CostModel(model_shape(load("model", "llama-3-8b")), hardware), folder


def table(folder, kind):
    pandas = pytest.importorskip("pandas")
    (path,) = folder.glob(f"**/{kind}_perf.parquet")
    rows = pandas.read_parquet(path)
    if kind == "gemm":
        return rows[rows.gemm_dtype == "bfloat16"]
    rows = rows[(rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == "bfloat16") & (rows.head_dim == 128)]
    rows = rows[(rows.num_heads == 32) & (rows.num_key_value_heads == 8)]
    return rows[rows.window_size == 0] if "window_size" in rows else rows


def attention_ms(model, queries, keys, batch_size):
    """Attention of one layer, without the launches that the cost model counts with the layer."""
    query_lens, kv_lens = np.full(batch_size, queries), np.full(batch_size, keys)
    step_s = model.step_s(query_lens, kv_lens, 0) - model.step_s(query_lens, 0 * kv_lens, 0)
    return step_s / LAYERS * 1e3


@pytest.mark.parametrize(("least", "most"), [(1, 32), (33, 128), (1025, 1 << 20)])
def test_gemms_are_right_in_the_median_and_mostly_within_a_fifth(machine, least, most):
    model, folder = machine
    rows = table(folder, "gemm")
    launch_ms = rows.latency.min()  # the cost model counts it with the layer
    rows = rows[rows.m.between(least, most) & rows.n.between(4096, 28672) & rows.k.between(4096, 16384)]
    predicted = [launch_ms + 1e3 * Gemm(r.k, r.n, model.shape, model.hardware).seconds(r.m) for r in rows.itertuples()]
    ratio = np.array(predicted) / rows.latency
    assert len(ratio) >= 20
    assert 0.9 < np.median(ratio) < 1.1
    assert np.mean(abs(ratio - 1) < 0.2) > 0.8


def test_long_prefill_attention_is_right_in_the_median(machine):
    model, folder = machine
    rows = table(folder, "context_attention")
    rows = rows[rows.latency >= 1]
    ratio = np.array([attention_ms(model, r.isl, r.isl, r.batch_size) for r in rows.itertuples()]) / rows.latency
    assert len(ratio) >= 20
    assert 0.9 < np.median(ratio) < 1.1


def test_batched_decode_attention_is_right_in_the_median(machine):
    model, folder = machine
    rows = table(folder, "generation_attention")
    rows = rows[rows.batch_size.between(16, 512) & (rows.isl + rows.step >= 1024) & (rows.latency >= 0.1)]
    ratio = np.array([attention_ms(model, 1, r.isl + r.step, r.batch_size) for r in rows.itertuples()]) / rows.latency
    assert len(ratio) >= 10
    assert 0.85 < np.median(ratio) < 1.15
