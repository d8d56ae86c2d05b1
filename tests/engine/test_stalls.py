"""Who is charged for waiting for loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvarena.framework.policy import Tier
from kvarena.policies.eviction.lru import LRU
from kvarena.policies.prefetch.holes import RecomputeHoles
from kvarena.policies.scheduling.unified import Unified
from kvarena.policies.writeback.on_evict import OnEvict

sys.path.insert(0, str(Path(__file__).parent))
from toy import Run, ToyWorkload, serve

PAGE_SIZE = 16


def served(prompt_tokens: int, prefetch: RecomputeHoles) -> Run:
    """Conversations whose contexts do not fit beside each other: what is found comes from the host."""
    prompt = list(range(prompt_tokens))
    turns = [[([chat, *prompt], 2), ([chat, 5], 2)] for chat in range(6)]
    return serve(
        ToyWorkload(turns, think_s=3.0, gap_s=0.2),
        num_pages=-(-(prompt_tokens + 10) // PAGE_SIZE),
        page_size=PAGE_SIZE,
        eviction=LRU(),
        prefetch=prefetch,
        scheduling=Unified(),
        writeback=OnEvict(),
        below={Tier.HOST: 40},
    )


@pytest.mark.parametrize("prompt_tokens", [6, 40], ids=["a partial page alone", "whole pages too"])
@pytest.mark.parametrize("prefetch", [RecomputeHoles(), RecomputeHoles(loading="blocking")], ids=["layers", "blocking"])
def test_a_request_is_charged_for_waiting_for_its_loads_and_no_other_is(
    prompt_tokens: int, prefetch: RecomputeHoles
) -> None:
    requests = served(prompt_tokens, prefetch).recording.requests
    loaded = [request for request in requests if request.reused_host]
    assert len(loaded) == 6
    assert all(request.load_stall_s > 0 for request in loaded)
    assert all(request.load_stall_s == 0 for request in requests if not request.reused_host)
