"""The peers' workload, engine against transformers, side by side: ``python tests/bench/peers.py [--rounds N]``.

12 conversations x 5 turns, 128 new tokens and 32 greedy tokens a turn, a 32 M-parameter Llama with random weights,
float32. Contestants take turns within every round; a figure is the median over rounds of turns per second. The tokens
of all contestants must be the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.serving import configure, serve
from transformers import GenerationConfig
from transformers.utils import logging

from kvarena.framework.composition import prepare
from kvarena.framework.execution.models import load_model
from kvarena.framework.opening import open_workload
from kvarena.framework.run_info import RunInfo

Outputs = dict[tuple[int, int], list[int]]
Contestant = Callable[[], tuple[Outputs, float, float]]
OVERRIDES = ("workload=rounds", "model=peers", "backend=torch", "memory.device_tokens=32768")


@dataclass(frozen=True)
class Peers:
    """The workload as lists of ids, and transformers' own copy of the model."""

    prompts: list[list[list[int]]]
    module: Any
    config: GenerationConfig

    @classmethod
    def make(cls) -> Peers:
        parts = prepare(configure(*OVERRIDES), RunInfo(label="peers"))
        model = load_model(parts.model_knobs, "cpu", parts.seed)
        workload = open_workload(parts, model.shape.vocab_size)
        prompts = [
            [list(map(int, turn.prompt_ids)) for turn in conversation.turns]
            for conversation in workload.conversations()
        ]
        tokens = parts.workload.output_tokens
        config = GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        module = copy.deepcopy(model.module)
        return cls(prompts, module, config)

    def export(self, folder: Path) -> None:
        """Save what another process needs to run the same."""
        folder.mkdir(parents=True, exist_ok=True)
        self.module.set_attn_implementation("sdpa")
        self.module.save_pretrained(folder)
        (folder / "prompts.json").write_text(json.dumps(self.prompts))

    def in_rounds(self, generate: Callable[[list[list[int]]], list[list[int]]]) -> tuple[Outputs, float, float]:
        """All conversations submit their turn together, with their full history."""
        contexts: list[list[int]] = [[] for _ in self.prompts]
        outputs: Outputs = {}
        start_s = time.perf_counter()
        for turn in range(len(self.prompts[0])):
            for context, prompts in zip(contexts, self.prompts, strict=True):
                context += prompts[turn]
            for index, reply in enumerate(generate(contexts)):
                outputs[index, turn] = reply
                contexts[index] += reply
        return outputs, time.perf_counter() - start_s, 0.0

    def stateless(self) -> tuple[Outputs, float, float]:
        """``generate``, one request at a time."""
        self.module.set_attn_implementation("sdpa")

        def generate(contexts: list[list[int]]) -> list[list[int]]:
            replies = []
            for context in contexts:
                ids = torch.tensor([context])
                out = self.module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=self.config)
                replies.append(out[0, len(context) :].tolist())
            return replies

        return self.in_rounds(generate)

    def continuous(self) -> tuple[Outputs, float, float]:
        """``generate_batch``: transformers' continuous batching."""
        self.module.set_attn_implementation("sdpa")

        def generate(contexts: list[list[int]]) -> list[list[int]]:
            results = self.module.generate_batch(
                [list(context) for context in contexts], generation_config=self.config, persistent_manager=True
            )
            in_order = sorted(results.items(), key=lambda item: int(item[0].split("_")[-1]))
            return [result.generated_tokens for _, result in in_order]

        return self.in_rounds(generate)


def ours(*overrides: str) -> Contestant:
    """A system of this project; the third figure is the share of prompt tokens that came from the cache."""

    def run() -> tuple[Outputs, float, float]:
        served = serve(*OVERRIDES, *overrides)
        records = served.recording.requests
        outputs = {(record.conversation, record.turn): record.output_ids for record in records}
        prompt = sum(record.prompt_tokens + record.history_tokens for record in records)
        return outputs, served.wall_s, sum(record.reused_device for record in records) / prompt

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--export", type=Path, metavar="DIR", help="save model and prompts for vllm_peer.py and stop")
    parser.add_argument("--vllm", type=Path, metavar="FILE", help="vllm.json, written by vllm_peer.py just before")
    parser.add_argument("--without", nargs="*", default=[], help="contestants to leave out")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    peers = Peers.make()
    if arguments.export:
        peers.export(arguments.export)
        return
    contestants: dict[str, Contestant] = {
        "kvarena vllm": ours("system=vllm"),
        "kvarena vllm, 6,400 tokens of KV": ours("system=vllm", "memory.device_tokens=6400"),
        "kvarena vllm_stateless": ours("system=vllm_stateless"),
        "transformers continuous batching": peers.continuous,
        "transformers generate, stateless": peers.stateless,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants if name not in arguments.without}
    cached: dict[str, float] = {}
    tokens: dict[str, Outputs] = {}
    for _ in range(arguments.rounds):
        for name, values in rates.items():
            tokens[name], wall_s, cached[name] = contestants[name]()
            values.append(len(tokens[name]) / wall_s)
    reference = rates.get("transformers continuous batching")
    expected = next(iter(reversed(tokens.values())))
    print(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds, medians")
    print(f"{'':36}{'turns/s':>9}{'x continuous batching':>23}{'from cache':>12}{'tokens equal':>14}")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True)) if reference else float("nan")
        equal = sum(tokens[name][key] == expected[key] for key in expected)
        print(
            f"{name:36}{statistics.median(values):9.2f}{ratio:23.2f}{cached[name]:12.3f}"
            f"{f'{equal}/{len(expected)}':>14}"
        )
    for name, figure in json.loads(arguments.vllm.read_text()).items() if arguments.vllm else ():
        replies = {(c, turn): reply for turn, row in enumerate(figure["replies"]) for c, reply in enumerate(row)}
        equal = sum(replies[key] == expected[key] for key in expected)
        print(f"{name:36}{figure['turns_per_s']:9.2f}{'':35}{f'{equal}/{len(expected)}':>14}")


if __name__ == "__main__":
    main()
