"""Records by hand: a consistent request whose every field can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvarena.framework.metrics import RequestRecord

RequestMaker = Callable[..., RequestRecord]


@pytest.fixture
def make_request() -> RequestMaker:
    """``make_request(number, **fields)``: arrives at 0, scheduled at 1, first token at 2, done at 6, five tokens."""

    def make(number: int = 0, **fields: Any) -> RequestRecord:
        known: dict[str, Any] = {
            "conversation": number, "turn": 0, "arrival_s": 0.0, "prompt_tokens": 10, "history_tokens": 0,
            "reusable_tokens": 0, "output_tokens": 5, "scheduled_s": 1.0, "first_token_s": 2.0, "completion_s": 6.0,
        }  # fmt: skip
        return RequestRecord(number, **(known | fields))

    return make


@pytest.fixture
def run_info() -> dict[str, Any]:
    """What the run section of a summary is made of."""
    return {
        "id": "r1", "started": "2026-11-20T00:00:00Z", "version": "0.1.0", "git_commit": None, "seed": 3,
        "backend": "simulated", "system": "vllm", "workload": "chat", "model": "tiny", "hardware": "local",
        "status": "ok", "policies": {"eviction": {"name": "lru", "distribution": "kvarena", "version": "0.1.0"}},
        "folder": "not for the summary",
    }  # fmt: skip
