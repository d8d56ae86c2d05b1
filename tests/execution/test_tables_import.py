"""Readers of published tables, on small files in the formats of their authors, and on the real ones where they are."""

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from pyarrow import csv

from kvarena.framework.execution.cost import CostModel
from kvarena.framework.execution.cost_tables import TableCosts
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.tables import load_tables
from kvarena.framework.schema import ConfigError, build


def load(group, name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / group / f"{name}.yaml")))


def machine(name, devices=1):
    return replace(build(Hardware, load("hardware", name), name), devices=devices)


SHAPE = model_shape(load("model", "llama-3.1-8b"))
BOX = machine("h100")
LAYERS = SHAPE.num_layers


def refuses(folder, words, shape=SHAPE, hardware=BOX):
    with pytest.raises(ConfigError, match=words) as error:
        load_tables(folder, shape, hardware)
    assert "\n" not in str(error.value)


def write_csv(path, compressed=False, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        with pa.output_stream(str(path) + ".zst", compression="zstd") as out:
            csv.write_csv(pa.table(columns), out)
    else:
        csv.write_csv(pa.table(columns), path)


# --- LLMServingSim ----------------------------------------------------------------------------------------------------

DENSE = ("qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "layernorm", "embedding")
META = """vllm_version: 0.19.0
gpu: A GPU
variant: bf16
profiled_at: '2026-04-24'
model: meta-llama/Llama-3.1-8B
tp_degrees: [1, 2]
engine_effective: {hf_overrides: {num_attention_heads: 16, num_key_value_heads: 4, vocab_size: 64128}}
"""


def llmservingsim(root):
    """Times that are easy to add up: 10 us a layer and token, 100 us a row, 1 us a chunk token and decode key."""
    folder = root / "A_GPU" / "meta-llama" / "Llama-3.1-8B" / "bf16" / "tp1"
    layers = [layer for layer in (*DENSE, "final_layernorm") for _ in range(2)]
    tokens = [1, 33] * (len(DENSE) + 1)
    write_csv(folder / "dense.csv", layer=layers, tokens=tokens, time_us=[10.0 * count for count in tokens])
    write_csv(
        folder / "per_sequence.csv", layer=["lm_head", "sampler"] * 2, sequences=[1, 1, 8, 8], time_us=[100.0] * 4
    )
    grid = [(q, c, n, k) for q in (0, 16, 64) for c in (0, 512) for n in (0, 1, 4) for k in (0, 15, 255)]
    grid = [(q, c, n, k) for q, c, n, k in grid if (q or n) and (bool(n) == bool(k)) and (q or not c)]
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    columns = {name: [point[i] for point in grid] for i, name in enumerate(names)}
    times = [5.0 + q * (1 + c / 512) + n * k for q, c, n, k in grid]
    write_csv(folder / "attention.csv", compressed=True, **columns, time_us=times)
    write_csv(
        folder / "skew.csv",
        compressed=True,
        n=[4, 4],
        pc=[0, 16],
        kvs=[100, 100],
        kv_big=[400, 400],
        kv_mean=[175, 175],
        t_mean_us=[30.0, 60.0],
        t_skew_us=[57.0, 60.0],
    )
    (folder.parent / "meta.yaml").write_text(META)
    return folder


def test_llmservingsim_layers_add_up_to_the_model(tmp_path):
    tables = load_tables(llmservingsim(tmp_path).parent, SHAPE, BOX)
    assert "vLLM 0.19.0 on A GPU" in tables.source
    assert tables.dense.at(1) == pytest.approx((8 * LAYERS + 2) * 10e-6)  # 7 kinds, layernorm twice; 2 outside layers
    assert tables.dense.at(2) == tables.dense.at(33) == pytest.approx(33 * tables.dense.at(1))  # tiles
    assert tables.head.at(4) == pytest.approx(200e-6)
    attention = tables.attention
    assert attention.decode.axes[1].tolist() == [16, 256]  # kv_decode is what precedes the query
    assert attention.decode.seconds[1, 1] == pytest.approx(LAYERS * (5 + 4 * 255) * 1e-6)
    assert attention.prefill.seconds[0, 1] == pytest.approx(LAYERS * (5 + 32) * 1e-6)
    assert attention.mixed.seconds[1, 0, 1, 0] == pytest.approx(LAYERS * (5 + 64 + 60) * 1e-6)
    assert attention.uneven_decode.seconds.ravel() == pytest.approx(LAYERS * 9e-6 / 225)  # three runs are summed
    assert attention.uneven_mixed.seconds.ravel() == pytest.approx(0.0)
    assert tables.unmeasured == ()


def edit(path, **columns):
    with pa.input_stream(str(path)) as stream:
        table = csv.read_csv(stream).to_pydict()
    for name, (index, value) in columns.items():
        table[name][index] = value
    csv.write_csv(pa.table(table), path)


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        ("dense.csv", "time_us", -1.0, "row 3, column 'time_us' is -1, expected a number > 0"),
        ("dense.csv", "time_us", float("nan"), "row 3, column 'time_us' is"),
        ("dense.csv", "tokens", -4, "row 3, column 'tokens' is -4, expected a whole number"),
        ("dense.csv", "layer", "qkv", "per_sequence|dense"),
        ("per_sequence.csv", "time_us", 0.0, "per_sequence.csv: row 3, column 'time_us' is 0, expected a number"),
    ],
)
def test_llmservingsim_impossible_values_are_named(tmp_path, file, name, value, words):
    folder = llmservingsim(tmp_path)
    edit(folder / file, **{name: (1, value)})
    if name == "layer":
        edit(folder / file, layer=(0, value))
        words = "dense.csv: layer 'qkv_proj' is missing"
    refuses(folder, words)


def test_llmservingsim_missing_parts_are_named(tmp_path):
    folder = llmservingsim(tmp_path)
    write_csv(folder / "dense.csv", layer=["qkv_proj"], tokens=[1])
    refuses(folder, "dense.csv: column 'time_us' is missing; it has layer, tokens")
    llmservingsim(tmp_path)
    (folder / "attention.csv.zst").unlink()
    refuses(folder, "has no attention.csv")
    (folder / "attention.csv.zst").write_bytes(b"no zstd")
    refuses(folder, "attention.csv.zst: cannot be read")


def test_llmservingsim_another_model_is_refused(tmp_path):
    folder = llmservingsim(tmp_path)
    refuses(folder, "num_key_value_heads=8, but model 'x' has 32", replace(SHAPE, name="x", num_kv_heads=32))
    refuses(folder, "bf16", replace(SHAPE, dtype_bytes=4))
    refuses(folder, "1 devices, but there are 2", hardware=machine("h100", 2))
    (folder.parent / "meta.yaml").write_text("model: meta-llama/Llama-3.1-8B\n")
    load_tables(folder, SHAPE, BOX)
    refuses(folder, "measured 'meta-llama/Llama-3.1-8B', but the model is 'llama'", replace(SHAPE, name="llama"))


# --- aiconfigurator ---------------------------------------------------------------------------------------------------


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def aiconfigurator(root, attention=True, heads=32, kv_heads=8):
    folder = root / "box_sxm"
    points = [(m, n, k) for m in (1, 64, 4096) for n in (4096, 32768) for k in (4096, 16384)]
    m, n, k = (list(column) for column in zip(*points, strict=True))
    latency = [1e3 * 4 * a * b * c / 9.89e14 + 1e3 * 2 * b * c / 3.35e12 for a, b, c in points]
    parquet(folder / "gemm/vllm/0.9.0/gemm_perf.parquet", gemm_dtype=["fp8"], m=[1], n=[1], k=[1], latency=[1.0])
    parquet(
        folder / "gemm/vllm/0.24.0/gemm_perf.parquet", gemm_dtype=["bfloat16"] * len(m), m=m, n=n, k=k, latency=latency
    )
    if attention:
        for kind, step in (("context", 0), ("generation", 255)):
            points = [(batch, isl) for batch in (1, 4) for isl in ((128, 1024) if not step else (1, 1025))]
            parquet(
                folder / f"attention/vllm/0.24.0/{kind}_attention_perf.parquet",
                batch_size=[batch for batch, _ in points],
                isl=[isl for _, isl in points],
                step=[step] * 4,
                num_heads=[heads] * 4,
                num_key_value_heads=[kv_heads] * 4,
                head_dim=[128] * 4,
                attn_dtype=["bfloat16"] * 4,
                kv_cache_dtype=["bfloat16"] * 4,
                window_size=[0] * 4,
                latency=[0.01 + 1e-5 * batch * isl for batch, isl in points],
            )
    parquet(
        folder / "comm/vllm/0.24.0/custom_allreduce_perf.parquet",
        num_gpus=[2, 2, 4, 4],
        message_size=[1024, 1 << 24] * 2,
        latency=[0.01, 0.2, 0.02, 0.4],
        backend=["vllm_graph"] * 4,
    )
    return folder


def test_aiconfigurator_kernels_add_up_to_the_model(tmp_path):
    tables = load_tables(aiconfigurator(tmp_path), SHAPE, BOX)
    assert tables.unmeasured == ("elementwise",)
    assert "0.24.0" in tables.source
    costs, roofline = TableCosts(SHAPE, BOX, 16, tables), CostModel(SHAPE, BOX, 16)
    gemms_s = 4 * 64 * (SHAPE.num_params - 2 * SHAPE.vocab_size * SHAPE.hidden_size) / 9.89e14
    gemms_s += 2 * (SHAPE.num_params - 2 * SHAPE.vocab_size * SHAPE.hidden_size) / 3.35e12
    small_s = roofline.elementwise_s(64) - LAYERS * 0.01e-3  # attention's tables hold its launches
    assert tables.dense.at(64) == pytest.approx(gemms_s + small_s, rel=0.25)
    assert tables.attention.decode.axes[1].tolist() == [256, 1280]
    assert tables.attention.decode.seconds[1, 0] == pytest.approx(LAYERS * (0.01 + 4e-5) * 1e-3)
    assert costs.recompute_s(0, 1024) == pytest.approx(tables.dense.at(1024) + LAYERS * (0.01 + 1024e-5) * 1e-3)


def test_aiconfigurator_prompts_with_context_are_those_of_as_many_pairs(tmp_path):
    costs = TableCosts(SHAPE, BOX, 16, load_tables(aiconfigurator(tmp_path), SHAPE, BOX))
    dense_s = costs.tables.dense.at(128)
    short_s, long_s = (costs.recompute_s(start, start + 128) - dense_s for start in (0, 512))
    assert short_s < long_s < costs.recompute_s(0, 640) - costs.tables.dense.at(640)


def test_aiconfigurator_collectives_are_of_numbers_and_two_a_layer(tmp_path):
    folder = aiconfigurator(tmp_path, heads=8, kv_heads=2)
    four = load_tables(folder, SHAPE, machine("h100", 4))
    assert "all_reduce" not in four.unmeasured
    more_s = four.dense.at(4096) - load_tables(folder, SHAPE, BOX).dense.at(4096) / 4
    assert more_s == pytest.approx(2 * LAYERS * 0.4e-3, rel=0.35)  # 4,096 tokens x 4,096 numbers


def test_aiconfigurator_without_this_models_heads_says_so(tmp_path):
    folder = aiconfigurator(tmp_path, heads=12, kv_heads=12)
    assert load_tables(folder, SHAPE, BOX).unmeasured == ("prefill", "decode", "elementwise")


def test_aiconfigurator_bad_files_are_named(tmp_path):
    folder = aiconfigurator(tmp_path)
    path = folder / "gemm/vllm/0.24.0/gemm_perf.parquet"
    table = pq.read_table(path).to_pydict()
    table["latency"][2] = float("nan")
    pq.write_table(pa.table(table), path)
    refuses(folder, "gemm_perf.parquet: row 2, column 'latency' is nan, expected a number > 0")
    pq.write_table(pa.table({name: table[name] for name in table if name != "k"}), path)
    refuses(folder, "gemm_perf.parquet: column 'k' is missing; it has gemm_dtype, m, n, latency")


# --- vidur ------------------------------------------------------------------------------------------------------------

KERNELS = ("input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm")
KERNELS += ("mlp_up_proj", "mlp_act", "mlp_down_proj", "add", "emb")


def vidur(root, **changes):
    folder = root / "profiling" / "compute" / "box" / "meta" / "Llama"
    figures = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "vocab_size": 128256} | changes
    times = {f"time_stats.{kernel}.median": [0.01, 0.02, 0.005, 0.01] for kernel in KERNELS}
    columns = times | {name: [value] * 4 for name, value in figures.items()}
    degrees = [1, 1, 2, 2]
    write_csv(
        folder / "mlp.csv", compressed=True, **columns, num_tokens=[1, 64, 1, 64], num_tensor_parallel_workers=degrees
    )
    write_csv(
        root / "profiling" / "network" / "box_dgx" / "all_reduce.csv",
        **{"time_stats.all_reduce.median": [0.1, 0.2]},
        num_workers=[2, 2],
        size=[1024, 1 << 20],
    )
    return folder


def test_vidur_kernels_add_up_to_the_model(tmp_path):
    tables = load_tables(vidur(tmp_path), SHAPE, BOX)
    assert tables.dense.at(64) == pytest.approx((10 * LAYERS + 1) * 0.02e-3)  # add counts twice, emb once
    assert tables.attention.decode is None and tables.head is None
    assert tables.unmeasured == ("attention", "head")
    two = load_tables(vidur(tmp_path), SHAPE, machine("h100", 2))
    sent_s = 2 * LAYERS * (0.1e-3 + 0.1e-3 * (64 * 8192 - 1024) / ((1 << 20) - 1024))
    assert two.dense.at(64) == pytest.approx((10 * LAYERS + 1) * 0.01e-3 + sent_s)


def test_vidur_another_model_or_machine_is_refused(tmp_path):
    folder = vidur(tmp_path)
    refuses(folder, "measured on 1, 2 devices, hardware 'h100' has 4", hardware=machine("h100", 4))
    refuses(folder, "n_embd=4096, model 'x' has 2048", replace(SHAPE, name="x", hidden_size=2048))
    refuses(vidur(tmp_path / "other", n_expanded_embd=11008), "an MLP of 11008")


# --- the real ones ----------------------------------------------------------------------------------------------------

REAL = (
    ("aiconfigurator/h100_sxm", "llama-3-8b", "h100", 1),
    ("aiconfigurator/a100_sxm", "llama-3-8b", "a100-80g", 1),
    ("aiconfigurator/h200_sxm", "llama-2-70b", "h200", 4),
    ("vidur/profiling/compute/a100/meta-llama/Meta-Llama-3-8B", "llama-3-8b", "a100-80g", 1),
    ("llmservingsim/profiler/perf/RTXPRO6000/meta-llama/Llama-3.1-8B/bf16", "llama-3.1-8b", "rtxpro6000", 1),
)


@pytest.mark.parametrize(("path", "model", "hardware", "devices"), REAL, ids=[path for path, *_ in REAL])
def test_published_tables_agree_with_the_shipped_roofline(path, model, hardware, devices):
    folder = Path(os.environ.get("KVARENA_DATA", "none")) / path
    if not folder.is_dir():
        pytest.skip("KVARENA_DATA does not have them")
    shape, box = model_shape(load("model", model)), machine(hardware, devices)
    costs, roofline = TableCosts(shape, box, 16, load_tables(folder, shape, box)), CostModel(shape, box, 16)
    for queries, keys in ((2048, 2048), (512, 512), (1, 1024)):
        lengths, ends = np.array([queries]), np.array([keys])
        assert costs.step_s(lengths, ends, 1) == pytest.approx(roofline.step_s(lengths, ends, 1), rel=0.35)
