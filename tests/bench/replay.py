"""Replays: page accesses per second and core, by policy and semantics, against the goals.

``python tests/bench/replay.py``: the Mooncake conversation trace (``KVARENA_DATA``) in blocks of 512 tokens, else
contexts of a skewed popularity that drifts. User CPU time of the replay alone; the best of ``--rounds``.
"""

from __future__ import annotations

import argparse
import os
import resource
from itertools import accumulate
from pathlib import Path

import numpy as np

from kvarena.framework.policy import Eviction, PageTrace
from kvarena.framework.registry import Registry
from kvarena.framework.replay import is_fast, replay_blocks, replay_prefixes
from kvarena.framework.replay.requests import in_order
from kvarena.framework.replay.trace import Semantics, gather
from kvarena.framework.workloads import make_workload

GOALS = {"lru": 2e6, "fifo": 2e6, **dict.fromkeys(("lfu", "slru", "arc", "s3fifo", "gdsf"), 5e5)}
CAPACITIES = (300, 1000, 10000, 50000)
BLOCK_TOKENS = 512


def mooncake(path: Path, semantics: Semantics) -> PageTrace:
    """The trace as a replay sees it."""
    workload = make_workload("mooncake", {"path": str(path)}, 0, 1, None, True)
    return gather(in_order(workload), semantics, BLOCK_TOKENS).trace


def zipf(accesses: int = 300_000, blocks: int = 180_000) -> PageTrace:
    """Requests of 24 blocks whose popularity is skewed and drifts. As contexts: each block follows its own number less
    one, so that prefixes are shared."""
    random = np.random.default_rng(0)
    contexts = (random.zipf(1.3, accesses // 24) + np.arange(accesses // 24) // 8) % (blocks // 24)
    keys = (contexts[:, None] * 24 + np.arange(24)).ravel()
    numbers: dict[int, int] = {}
    pages = [numbers.setdefault(key, len(numbers)) for key in keys.tolist()]
    requests = len(contexts)
    bounds, tails = list(accumulate([24] * requests, initial=0)), [0] * requests
    times = [float(second) for second in range(requests)]
    return PageTrace(pages, len(numbers), bounds, [24] * requests, tails, times, list(range(requests)))


def speed(policy: Eviction, trace: PageTrace, semantics: str, capacity: int) -> float:
    """Accesses per second of user CPU time."""
    replay = replay_blocks if semantics == "block" else replay_prefixes
    before_s = _user_s()
    replay(policy, trace, capacity, BLOCK_TOKENS)
    return len(trace.pages) / (_user_s() - before_s)


def _indexed_s(trace: PageTrace, semantics: str) -> float:
    before_s = _user_s()
    _ = trace.previous if semantics == "block" else trace.chains
    return _user_s() - before_s


def _user_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="policies without a goal too, by their hooks")
    rounds, everything = parser.parse_args().rounds, parser.parse_args().all
    data = os.environ.get("KVARENA_DATA")
    path = Path(data or "/nowhere") / "mooncake/conversation_trace.jsonl"
    kinds: tuple[Semantics, ...] = ("block", "prefix")
    traces = {kind: mooncake(path, kind) if path.is_file() else zipf() for kind in kinds}
    name = "Mooncake conversation trace" if path.is_file() else "Zipf with drift (KVARENA_DATA is not set)"
    print(f"{name}: {len(traces['block'].pages):,} accesses to {traces['block'].distinct:,} blocks; M accesses/s")
    indexed = [f"{kind} {_indexed_s(trace, kind):.2f} s" for kind, trace in traces.items()]
    print(f"Not counted, for all replays of a trace share it: its index, {', '.join(indexed)}")
    heads = "".join(f"{capacity:>10,}" for capacity in CAPACITIES)
    print(f"{'semantics':11}{'policy':12}{heads}{'goal':>8}  {'':8}form")
    registry = Registry.discover()
    for kind, trace in traces.items():
        for policy in registry.names("eviction"):
            made = [registry.build("eviction", policy, {}) for _ in range(rounds)]
            assert all(isinstance(one, Eviction) for one in made)
            fast = is_fast(made[0], kind)  # type: ignore[arg-type]
            if not (fast or policy in GOALS or everything):
                continue
            tries = range(rounds if fast else 1)
            best = [max(speed(made[i], trace, kind, pages) for i in tries) for pages in CAPACITIES]  # type: ignore[arg-type]
            goal = GOALS.get(policy)
            verdict = "" if goal is None else "met" if min(best) >= goal else "NOT MET"
            shown = "".join(f"{rate / 1e6:10.2f}" for rate in best)
            print(
                f"{kind:11}{policy:12}{shown}{goal / 1e6 if goal else 0:8.1f}  {verdict:8}{'fast' if fast else 'hooks'}"
            )


if __name__ == "__main__":
    main()
