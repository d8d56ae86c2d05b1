"""The engine's own time: the share of a decode step outside the model's forward pass.

``python tests/bench/overhead.py``: batch 8 at a context of about 1,000 tokens, on ``tiny`` and on the 8-layer, 512-wide
``peers`` model. Medians over the decode steps of one run.
"""

from __future__ import annotations

import statistics

import torch
from support.serving import serve


def main() -> None:
    """Print the table."""
    print(f"{torch.get_num_threads()} threads, batch 8, decode")
    print(f"{'model':10}{'step ms':>10}{'outside forward ms':>20}{'share':>8}{'steps':>8}")
    for model in ("tiny", "peers"):
        served = serve(
            *("workload=rounds", "workload.limit=8", "workload.turns=1", "workload.prompt_tokens=1000"),
            *("workload.output_tokens=100", f"model={model}", "system=vllm", "memory.device_tokens=16384"),
        )
        steps = [step for step in served.recording.steps if step.decode_tokens == 8 and not step.prefill_tokens]
        outside = statistics.median(step.overhead_s for step in steps)
        whole = statistics.median(step.duration_s for step in steps)
        print(f"{model:10}{1e3 * whole:10.2f}{1e3 * outside:20.3f}{outside / whole:8.1%}{len(steps):8}")


if __name__ == "__main__":
    main()
