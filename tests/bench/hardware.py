"""Fit the efficiencies of a hardware file to measured kernels, and print their errors on kernels that were held out.

    python tests/bench/hardware.py h100 $KVARENA_DATA/aiconfigurator/h100_sxm
    cd $KVARENA_DATA/llmservingsim/profiler/perf/RTXPRO6000/meta-llama/Llama-3.1-8B/bf16
    python .../tests/bench/hardware.py rtxpro6000 tp1

A random half of the kernels (seed 0) is fitted: each efficiency is the median of roofline over measured time, launch
apart, where it alone matters. The other half gives the errors of the whole time, by size. The peaks are those of
conf/hardware/<name>.yaml. Attention: 32 query and 8 KV heads of size 128.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from kvarena.framework.execution.cost import QUERY_KEYS, blend
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.tables.reading import Table, read_csv, read_parquet
from kvarena.framework.schema import build

Floats = NDArray[np.float64]
BYTES = 2
HEAD_DIM, HEADS, KV_HEADS = 128, 32, 8
LARGE_PAIRS = 1 << 23  # query-key pairs of a prompt of 4,096
GEMM_SIZES = ((1, 32), (33, 128), (129, 512), (513, 2047), (2048, 1 << 30))
SHAPES = {"qkv_proj": (6144, 4096), "o_proj": (4096, 4096), "gate_up_proj": (28672, 4096), "down_proj": (4096, 14336)}


@dataclass
class Kernels:
    """Measured times without launches, and the roofline's at the peaks: what computing takes and what reading takes."""

    size: Floats  # tokens of a GEMM, query-key pairs of prompts, keys of a decode batch
    seconds: Floats
    compute_s: Floats
    read_s: Floats
    launch_s: float = 0.0

    def half(self, which: int) -> Kernels:
        picked = np.random.default_rng(0).permutation(len(self.size)) % 2 == which
        return self.where(picked)

    def where(self, mask: NDArray[np.bool_]) -> Kernels:
        kept = (getattr(self, name)[mask] for name in ("size", "seconds", "compute_s", "read_s"))
        return Kernels(*kept, self.launch_s)


def newest(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        sys.exit(f"{folder}: there is no {pattern}")
    return found[-1]


def gemms(folder: Path, hardware: Hardware) -> Kernels:
    if (folder / "dense.csv").is_file():
        table = read_csv(folder / "dense.csv", ("layer", "tokens", "time_us"))
        parts = [table.where("layer", layer) for layer in SHAPES]
        m = np.concatenate([part.numbers("tokens") for part in parts])
        seconds = np.concatenate([part.numbers("time_us") for part in parts]) * 1e-6
        n, k = (np.repeat([size[i] for size in SHAPES.values()], [len(part) for part in parts]) for i in (0, 1))
    else:
        table = read_parquet(newest(folder, "gemm/vllm/*/gemm_perf.parquet"), ("gemm_dtype", "m", "n", "k", "latency"))
        table = table.where("gemm_dtype", "bfloat16")
        launch_s = table.numbers("latency").min() * 1e-3
        n, k = table.numbers("n"), table.numbers("k")
        table = table.keep((n >= 2048) & (n <= 65536) & (k >= 2048) & (k <= 16384))
        m, n, k = (table.numbers(name) for name in ("m", "n", "k"))
        seconds = table.numbers("latency") * 1e-3 - launch_s
    read_s = (n * k + m * (n + k)) * BYTES / hardware.memory_bytes_per_s
    return Kernels(m, seconds, 2 * m * n * k / hardware.flops_per_s_16bit, read_s)


def attention(folder: Path, hardware: Hardware) -> tuple[Kernels, Kernels]:
    """Prompts, and decode batches."""
    if (path := next(iter(folder.glob("attention.csv*")), None)) is not None:
        table = read_csv(path, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
        prompts = table.where("n_decode", 0)
        decodes = table.where("prefill_chunk", 0)
        queries, context = prompts.numbers("prefill_chunk"), prompts.numbers("kv_prefill")
        seconds, pairs = prompts.numbers("time_us") * 1e-6, queries * (context + (queries + 1) / 2)
        ran = decodes.numbers("time_us") * 1e-6
        return (
            _prompts(np.ones(len(queries)), queries, pairs, seconds, hardware),
            _decodes(decodes.numbers("n_decode"), decodes.numbers("kv_decode"), ran, hardware),
        )
    prompts = _heads(newest(folder, "attention/vllm/*/context_attention_perf.parquet"))
    decodes = _heads(newest(folder, "attention/vllm/*/generation_attention_perf.parquet"))
    keys = decodes.numbers("isl") + decodes.numbers("step")
    batch, queries = prompts.numbers("batch_size"), prompts.numbers("isl")
    pairs = queries * (queries + 1) / 2
    return (
        _prompts(batch, queries, pairs, prompts.numbers("latency") * 1e-3, hardware),
        _decodes(decodes.numbers("batch_size"), keys, decodes.numbers("latency") * 1e-3, hardware),
    )


def _prompts(batch: Floats, queries: Floats, pairs: Floats, seconds: Floats, hardware: Hardware) -> Kernels:
    keys = pairs / queries + (queries - 1) / 2
    return _attention(batch * pairs, seconds, batch * (pairs + QUERY_KEYS * queries), batch * keys, hardware)


def _heads(path: Path) -> Table:
    names = (
        "batch_size",
        "isl",
        "step",
        "num_heads",
        "num_key_value_heads",
        "head_dim",
        "attn_dtype",
        "kv_cache_dtype",
    )
    table = read_parquet(path, (*names, "latency"), optional=("window_size",))
    wanted = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
    wanted |= {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    for name, value in (wanted | ({"window_size": 0} if "window_size" in table.columns else {})).items():
        table = table.where(name, value)
    return table


def _decodes(batch: Floats, keys: Floats, seconds: Floats, hardware: Hardware) -> Kernels:
    return _attention(batch * keys, seconds, batch * keys, batch * keys, hardware)


def _attention(size: Floats, seconds: Floats, pairs: Floats, keys: Floats, hardware: Hardware) -> Kernels:
    read_s = 2 * keys * KV_HEADS * HEAD_DIM * BYTES / hardware.memory_bytes_per_s
    launch_s = float(seconds.min())
    compute_s = 4 * pairs * HEADS * HEAD_DIM / hardware.flops_per_s_16bit
    return Kernels(size, np.maximum(seconds - launch_s, 1e-9), compute_s, read_s, launch_s)


def errors(name: str, kernels: Kernels, predicted_s: Floats) -> None:
    ratio = (predicted_s + kernels.launch_s) / (kernels.seconds + kernels.launch_s) - 1
    if len(ratio):
        print(
            f"  {name:34} {len(ratio):6} kernels   median {np.median(ratio):+6.1%}"
            f"   mean |error| {np.mean(np.abs(ratio)):5.1%}   p90 {np.percentile(np.abs(ratio), 90):5.1%}"
        )


def fit_gemms(kernels: Kernels) -> None:
    seen, held = kernels.half(0), kernels.half(1)
    large, small = seen.where(seen.size >= seen.size.max() / 2), seen.where(seen.size <= 32)
    if (seen.size >= 2048).sum() > 20:
        large = seen.where(seen.size >= 2048)
    compute = float(np.median(large.compute_s / large.seconds))
    reading = float(np.median(small.read_s / small.seconds))
    print(f"gemm_efficiency: {compute:.2f}\ngemm_bandwidth_efficiency: {reading:.2f}")
    for least, most in GEMM_SIZES:
        part = held.where((held.size >= least) & (held.size <= most))
        errors(
            f"GEMM, {least} .. {min(most, 32768)} rows", part, blend(part.compute_s / compute, part.read_s / reading)
        )


def fit_attention(prompts: Kernels, decodes: Kernels) -> None:
    seen = decodes.half(0)
    large = seen.where(seen.size * 2 * KV_HEADS * HEAD_DIM * BYTES >= 5e8)
    reading = float(np.median(large.read_s / large.seconds))
    seen = prompts.half(0)
    large = seen.where(seen.size >= LARGE_PAIRS)
    compute = float(np.median(large.compute_s / large.seconds))
    print(f"attention_efficiency: {compute:.2f}\nattention_bandwidth_efficiency: {reading:.2f}")
    held = prompts.half(1)
    for least, most in ((0, 1 << 20), (1 << 20, LARGE_PAIRS), (LARGE_PAIRS, 1 << 60)):
        part = held.where((held.size >= least) & (held.size < most))
        name = f"prefill attention, {least / 1e6:.1f} M .. pairs"
        errors(name, part, np.maximum(part.compute_s / compute, part.read_s / reading))
    held = decodes.half(1)
    for least, most in ((0, 1 << 15), (1 << 15, 1 << 18), (1 << 18, 1 << 60)):
        part = held.where((held.size >= least) & (held.size < most))
        errors(f"decode attention, {least:,} .. keys", part, part.read_s / reading)


def main() -> None:
    """Print the fitted figures of one hardware file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hardware", help="its file in conf/hardware gives the peaks")
    parser.add_argument("folder", type=Path, help="aiconfigurator's folder of the GPU, or LLMServingSim's tp1")
    arguments = parser.parse_args()
    text = files("kvarena.conf").joinpath("hardware", f"{arguments.hardware}.yaml").read_text(encoding="utf-8")
    hardware = build(Hardware, yaml.safe_load(text), arguments.hardware)
    print(f"{hardware.name}: fitted on one half of {arguments.folder.name}, errors on the other")
    fit_gemms(gemms(arguments.folder, hardware))
    fit_attention(*attention(arguments.folder, hardware))


if __name__ == "__main__":
    main()
