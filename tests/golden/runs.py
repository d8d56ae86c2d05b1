"""The runs whose summaries are kept: every system that ships, on two small traces, in memory that is far too small.

Hardware and model are pinned here, so that better figures in ``conf/hardware`` change nothing. A change that is meant
to change results renews what is kept: ``python tests/golden/runs.py`` (and says in the commit why).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from kvarena.framework.run_info import RunInfo
from kvarena.framework.tasks import run_task

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"

HARDWARE = {
    "devices": 1,
    "memory_bytes": 85899345920,
    "memory_utilization": 0.9,
    "memory_bytes_per_s": 3.35e12,
    "flops_per_s_16bit": 9.89e14,
    "flops_per_s_32bit": 4.945e14,
    "gemm_efficiency": 0.8,
    "gemm_bandwidth_efficiency": 0.8,
    "attention_efficiency": 0.5,
    "attention_bandwidth_efficiency": 0.8,
    "iteration_overhead_s": 5e-4,
    "sequence_overhead_s": 5e-6,
    "layer_overhead_s": 2.5e-5,
    "host_links": 1,
    "host_link_bytes_per_s": 1.5e10,
    "host_link_latency_s": 1e-5,
    "duplex_loss": 0.2,
    "disk_read_bytes_per_s": 3.0e9,
    "disk_write_bytes_per_s": 1.5e9,
    "disk_latency_s": 1e-4,
}
COMMON = (
    *("task=serve", "tracking=none", "backend=simulated", "model=llama-3.1-8b", "hardware=h100", "seed=0"),
    *(f"hardware.{name}={value}" for name, value in HARDWARE.items()),
)
REQUESTS = ("workload=mooncake", f"workload.path={HERE}/traces/requests.jsonl")
CHATS = ("workload=jsonl", f"workload.path={HERE}/traces/chats.jsonl", "workload.warmup=10")
SMALL, TINY = ("memory.device_tokens=16000",), ("memory.device_tokens=2400",)
HOST, HOST_AND_DISK = ("memory.host_tokens=20000",), ("memory.host_tokens=12000", "memory.disk_tokens=40000")
CROWDED = ("memory.device_tokens=1520", "workload.time_scale=0.1", "workload.max_context=1500")  # suspensions
LITTLE_HOST = ("memory.host_tokens=3200", "memory.disk_tokens=6400")

CASES: Mapping[str, tuple[str, ...]] = {
    "vllm_stateless-requests": ("system=vllm_stateless", *REQUESTS, *SMALL),
    "vllm-requests": ("system=vllm", *REQUESTS, *SMALL),
    "vllm_offload-requests": ("system=vllm_offload", *REQUESTS, *SMALL, *HOST_AND_DISK),
    "sglang_hicache-requests": ("system=sglang_hicache", *REQUESTS, *SMALL, *HOST_AND_DISK),
    "pensieve_gpu-requests": ("system=pensieve_gpu", *REQUESTS, *SMALL),
    "pensieve-requests": ("system=pensieve", *REQUESTS, *SMALL, *HOST),
    "cachedattention-requests": ("system=cachedattention", *REQUESTS, *SMALL, *HOST_AND_DISK),
    "vllm-chats": ("system=vllm", *CHATS, *TINY, "scheduling.max_running=12"),
    "vllm_offload-chats": ("system=vllm_offload", *CHATS, *TINY, *LITTLE_HOST),
    "sglang_hicache-chats": ("system=sglang_hicache", *CHATS, *TINY, *LITTLE_HOST),
    "pensieve_gpu-chats": ("system=pensieve_gpu", *CHATS, *TINY),
    "pensieve-chats": ("system=pensieve", *CHATS, *TINY, *LITTLE_HOST),
    "cachedattention-chats": ("system=cachedattention", *CHATS, *TINY, *LITTLE_HOST),
    "prefill_first-chats": ("system=vllm", "scheduling=prefill_first", *CHATS, *TINY),
    "retention-chats": ("system=vllm", "eviction=retention", *CHATS, *TINY),
    "pensieve-crowded": (
        "system=pensieve",
        *CHATS,
        *CROWDED,
        "memory.host_tokens=1600",
        "scheduling.decode_reserve=0.0",
    ),
    "vllm_offload-crowded": ("system=vllm_offload", *CHATS, *CROWDED, "memory.host_tokens=1600"),
    "cachedattention-crowded": ("system=cachedattention", *CHATS, *CROWDED, *LITTLE_HOST, "scheduling.watermark=0.0"),
    "h2o-chats": ("system=h2o", *CHATS, *TINY),
    "kivi-requests": ("system=vllm", "compression=kivi", *REQUESTS, *SMALL),
    "pensieve_h2o-crowded": ("system=pensieve", "truncation=h2o", *CHATS, *CROWDED, *LITTLE_HOST),
    "unstretched-chats": ("system=pensieve", *CHATS, *TINY, *LITTLE_HOST, "backend.max_steps=1"),
}


def run(overrides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run ``kvarena OVERRIDES`` into ``folder``; its summary."""
    with initialize_config_module("kvarena.conf", version_base="1.3"):
        config = compose("config", overrides=[*COMMON, *overrides])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    run_task({str(key): value for key, value in plain.items()}, folder, RunInfo(label=str(plain["system"])))
    summary = json.loads((folder / "summary.json").read_text())
    assert isinstance(summary, dict)
    return summary


def lasting(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of a summary is the same whenever, wherever and from whichever commit it was made."""
    passing = {"id", "started", "version", "git_commit", "overrides", "policies"}
    return {**summary, "run": {key: value for key, value in summary["run"].items() if key not in passing}}


def main() -> None:
    """Renew the summaries of the cases named on the command line, or of all."""
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(lasting(run(CASES[name], Path(folder))), indent=1)
        (EXPECTED / f"{name}.json").write_text(text + "\n")
        print(name)


if __name__ == "__main__":
    main()
