"""vLLM's CPU build on the peers' workload; run by an interpreter that has vLLM and not kvarena.

``python vllm_peer.py FOLDER``: FOLDER holds the saved model and ``prompts.json`` ([conversation][turn] -> ids), as
``peers.py --export`` writes them. Writes ``vllm.json``: turns per second and the tokens of each turn.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")  # by default one core is kept free
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main(folder: Path, output_tokens: int = 32) -> None:
    """Serve all conversations in rounds, with their full history, and write the figures."""
    from vllm import LLM, SamplingParams

    prompts = json.loads((folder / "prompts.json").read_text())
    sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
    figures = {}
    for name, options in {
        "vLLM eager + prefix cache": {"enable_prefix_caching": True},
        "vLLM eager, no prefix cache": {"enable_prefix_caching": False},
    }.items():
        llm = LLM(
            str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=2048, **options
        )
        llm.generate([{"prompt_token_ids": [1] * 64}], sampling, use_tqdm=False)
        contexts: list[list[int]] = [[] for _ in prompts]
        replies: list[list[list[int]]] = []
        start_s = time.perf_counter()
        for turn in range(len(prompts[0])):
            for context, conversation in zip(contexts, prompts, strict=True):
                context += conversation[turn]
            inputs = [{"prompt_token_ids": list(context)} for context in contexts]
            outputs = llm.generate(inputs, sampling, use_tqdm=False)
            replies.append([list(output.outputs[0].token_ids) for output in outputs])
            for context, reply in zip(contexts, replies[-1], strict=True):
                context += reply
        turns = len(prompts) * len(prompts[0])
        figures[name] = {"turns_per_s": turns / (time.perf_counter() - start_s), "replies": replies}
        del llm
    (folder / "vllm.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
