"""Random cases for :mod:`lossy_fuzz`: a model, a policy with its budget, a compression, and what happens when; and
policies that note what they see, or repeat what was noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from kvarena.framework.execution.models import load_model
from kvarena.framework.policy import CacheShape, Needs, TokenTruncation
from kvarena.policies.compression.kivi import Kivi
from kvarena.policies.truncation.adakv import AdaKV
from kvarena.policies.truncation.buzz import Buzz
from kvarena.policies.truncation.corm import CORM
from kvarena.policies.truncation.h2o import H2O
from kvarena.policies.truncation.keydiff import KeyDiff
from kvarena.policies.truncation.knorm import KNorm
from kvarena.policies.truncation.pyramidkv import PyramidKV
from kvarena.policies.truncation.random import Random as ByLot
from kvarena.policies.truncation.snapkv import SnapKV
from kvarena.policies.truncation.streaming_llm import StreamingLLM
from kvarena.policies.truncation.tova import TOVA
from kvarena.policies.truncation.window import Window

VOCABULARY, POSITIONS = 53, 512
Stage = str


@dataclass
class Case:
    """One draw. ``plan``: of each round what happens, a list of (context, length, stage), stage ``forget`` for one that
    is forgotten before, ``plain`` for a context that is cached whole."""

    knobs: dict[str, Any]
    page_size: int
    make_policy: Callable[[], TokenTruncation | None]
    kivi: Kivi | None
    plan: list[list[tuple[int, int, Stage]]]
    swaps: int

    @property
    def by_slot(self) -> bool:
        """Keys are rotated by their place in the cache."""
        policy = self.make_policy()
        return policy is not None and policy.positions == "cache"


def draw(rng: Random, names: Sequence[str] = (), ratios: Sequence[float] = (), short: bool = False) -> Case:
    """A case; of the policies ``names`` and budgets ``ratios`` only, if any are given. ``short``: few contexts, few
    turns."""
    kivi = None
    head_dim = rng.choice([8, 10, 16, 24, 40, 64, 80])
    if rng.random() < 0.3:
        head_dim = rng.choice([16, 32, 64])
        bits = rng.choice([2, 4])
        group = rng.choice([8, 16] if bits == 4 else [16])
        kivi = Kivi(bits, group, rng.choice([16, 32]))
    kv_heads, group = rng.choice([(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1), (4, 2)])
    knobs = {
        "num_layers": rng.randint(1, 4),
        "num_heads": kv_heads * group,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "architecture": rng.choice(["llama", "qwen3"]),
    }
    make = draw_policy(rng, names or (*POLICIES, "none") if kivi else names or POLICIES, ratios, kivi is not None)
    if isinstance(make(), KNorm):
        knobs["architecture"] = "llama"  # Qwen3's keys all have the same norm: which one leaves is a matter of rounding
    plan = draw_plan(rng, rng.randint(1, 2 if short else 4), 2 if short else 4)
    return Case(knobs, rng.choice([1, 2, 3, 4, 5, 8, 16]), make, kivi, plan, rng.randint(0, 3))


POLICIES = (
    "h2o",
    "tova",
    "knorm",
    "keydiff",
    "window",
    "random",
    "snapkv",
    "pyramidkv",
    "adakv",
    "corm",
    "buzz",
    "streaming_llm",
)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0)


def draw_policy(
    rng: Random, names: Sequence[str], ratios: Sequence[float], packed: bool
) -> Callable[[], TokenTruncation | None]:
    name = rng.choice(list(names))
    budget: dict[str, Any] = {"between_chunks": rng.random() < 0.4}
    budget["positions"] = "cache" if rng.random() < 0.3 and not packed else "true"
    if name == "corm":
        corm = {"window": rng.randint(1, 12), "recent": rng.randint(0, 8), "threshold": rng.choice([0.3, 1.0])}
        return lambda: CORM(**(budget | corm | {"positions": "true"}))
    if rng.random() < 0.25 and not ratios:
        budget |= {"budget_tokens": rng.randint(6, 60), "budget_ratio": None}
    else:
        budget |= {"budget_tokens": None, "budget_ratio": rng.choice(list(ratios or RATIOS))}
    grouped = budget | {"group": rng.choice(["mean", "max", "sum"])}
    window, kernel = rng.randint(1, 5), rng.choice([1, 3, 5])
    snap = grouped | {"window": window, "kernel": kernel, "pooling": rng.choice(["avg", "max"])}
    floor, beta, variant = rng.choice([0.0, 0.2, 0.5, 1.0]), rng.choice([1, 2, 20]), rng.choice(H2O_VARIANTS)
    ragged = snap | {"positions": "true"}
    makers: dict[str, Callable[[], TokenTruncation | None]] = {
        "none": lambda: None,
        "h2o": lambda: H2O(**grouped, variant=variant),
        "tova": lambda: TOVA(**budget, protects_newest=bool(window % 2)),
        "knorm": lambda: KNorm(**budget),
        "keydiff": lambda: KeyDiff(**budget),
        "window": lambda: Window(**budget),
        "random": lambda: ByLot(**budget, seed=window),
        "snapkv": lambda: SnapKV(**snap),
        "pyramidkv": lambda: PyramidKV(**ragged, beta=beta),
        "adakv": lambda: AdaKV(**ragged, floor_alpha=floor),
        "buzz": lambda: Buzz(**grouped, sink=window % 3, window=window % 4 + 1, stride=kernel + 1),
        "streaming_llm": lambda: StreamingLLM(**budget, start=window % 5),
    }
    return makers[name]


H2O_VARIANTS = ["real_drop", "flexgen", "decayed", "age_normalised"]


def draw_plan(rng: Random, contexts: int, turns: int) -> list[list[tuple[int, int, Stage]]]:
    queues = [draw_turns(rng, turns) for _ in range(contexts)]
    plan = []
    while any(queues):
        ready = [n for n, queue in enumerate(queues) if queue]
        chosen = rng.sample(ready, rng.randint(1, len(ready)))
        plan.append([(n, *queues[n].pop(0)) for n in chosen])
    return plan


def draw_turns(rng: Random, turns: int) -> list[tuple[int, Stage]]:
    """Of one context: chunks, ends of prompts and decoded tokens of a few turns."""
    whole, found, total = rng.random() < 0.15, [], 0
    for _ in range(rng.randint(1, turns)):
        if found and rng.random() < 0.15:
            found.append((0, "forget"))
            lengths = [total + rng.randint(1, 20)] if total < 200 else [rng.randint(1, 40)]
            total = 0
        else:
            lengths = [rng.choice([1, 2, rng.randint(1, 30), rng.randint(20, 70)]) for _ in range(rng.randint(1, 3))]
        found += [(length, "chunk") for length in lengths[:-1]] + [(lengths[-1], "prompt")]
        found += [(1, "decode")] * rng.choice([0, 1, 5, rng.randint(0, 6 * turns)])
        total += sum(lengths) + 25
    return [(length, stage if stage == "forget" or not whole else "plain") for length, stage in found]


def model_of(case: Case, seed: int = 1) -> Any:
    """The random model of a case."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 48, "max_positions": POSITIONS}
    return load_model({"name": "fuzz", "kind": "random"} | sizes | case.knobs, "cpu", seed=seed)


# --- what a policy sees and keeps ---------------------------------------------------------------------------------


class Noting(TokenTruncation):
    """Does what ``inner`` does, and notes all that it sees; None: keeps everything."""

    name = "noting"

    def __init__(self, inner: TokenTruncation | None) -> None:
        self.inner = inner
        self.positions = "true" if inner is None else inner.positions
        self.seen: dict[int, dict[str, Any]] = {}

    @property
    def needs(self) -> Needs:
        return Needs() if self.inner is None else self.inner.needs

    def bind(self, shape: CacheShape) -> None:
        if self.inner is not None:
            self.inner.bind(shape)

    def observe(self, view: Any) -> None:
        place = view.state.get("place", torch.zeros_like(view.positions, dtype=torch.float32))
        view.state["place"] = torch.where((place == 0) & (view.positions >= 0), view.positions + 1.0, place)
        seen = {"positions": view.positions.clone(), "place": view.state["place"].clone(), "keep": None}
        watched = self.needs.decoding or view.stage != "decode"
        if self.needs.column_sums and watched:
            seen["column_sums"] = view.column_sums.clone()
        if self.needs.rows and watched:
            seen["rows"] = view.rows.clone()
        seen["keys"], seen["values"] = view.keys(), view.values()
        self.seen[view.conversation] = seen
        if self.inner is not None:
            self.inner.observe(view)

    def keep(self, view: Any) -> Tensor | None:
        keep = None if self.inner is None else self.inner.keep(view)
        self.seen[view.conversation]["keep"] = keep
        return keep

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return cached_tokens


class Repeating(TokenTruncation):
    """Keeps what a log says: by conversation and tokens the places, bool [L, G, tokens], that stayed."""

    name = "repeating"

    def __init__(self, log: dict[tuple[int, int], Tensor], positions: Any) -> None:
        self._log, self.positions = log, positions

    def keep(self, view: Any) -> Tensor | None:
        found = self._log.get((view.conversation, view.tokens))
        if found is None:
            return None
        return found.gather(-1, view.positions.clamp(min=0)) & (view.positions >= 0)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return cached_tokens
