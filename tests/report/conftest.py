"""Run folders made by the real recorder and summary from invented but consistent records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvarena.framework.metrics import RequestRecord, RunRecorder, StepRecord, TransferRecord, summarize, write_summary

RunMaker = Callable[..., Path]


def _requests(seed: int, speed: float, hit: float, count: int) -> list[RequestRecord]:
    rng = np.random.default_rng(seed)
    records, now_s = [], 0.0
    for request in range(count):
        now_s += rng.exponential(0.5)
        turn, output = int(rng.integers(0, 6)), int(rng.integers(2, 40))
        reusable = turn * 150
        reused = int(hit * reusable)
        ttft_s = (0.02 + (reusable - reused) * 4e-4) / speed * float(rng.lognormal(0, 0.3))
        first_s = now_s + ttft_s
        times = [(first_s, 1), (first_s + 0.01 * (output - 1), output - 1)]
        records.append(
            RequestRecord(
                request, request // 6, turn, now_s, 40, reusable, reusable, output,
                scheduled_s=now_s + ttft_s / 10, first_token_s=first_s, completion_s=times[-1][0],
                reused_device=reused // 2, reused_host=reused - reused // 2, recomputed=reusable - reused,
                reusable_pages=reusable // 16, reused_pages=int(hit * (reusable // 16)), token_times=times,
            )
        )  # fmt: skip
    return records


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """``make_run(system, seed=0, speed=1.0, hit=0.5, count=60, folder=None, **run_info)`` -> the run's folder."""
    return _maker(tmp_path)


@pytest.fixture(scope="module")
def make_shared_run(tmp_path_factory: pytest.TempPathFactory) -> RunMaker:
    """``make_run`` for runs that all tests of a module look at."""
    return _maker(tmp_path_factory.mktemp("runs"))


def _maker(tmp_path: Path) -> RunMaker:
    def make(
        system: str, seed: int = 0, speed: float = 1.0, hit: float = 0.5, count: int = 60, folder: str = "", **info: Any
    ) -> Path:
        where = tmp_path / (folder or f"{system}-{seed}")
        known: dict[str, Any] = {
            "id": where.name, "started": "2026-11-20T00:00:00Z", "version": "0.1.0", "git_commit": "abcdef0123456789",
            "seed": seed, "backend": "torch", "system": system, "workload": "synthetic_chat", "model": "tiny",
            "hardware": "local", "status": "ok",
            "policies": {"eviction": {"name": "lru", "distribution": "kvarena", "version": "0.1.0"}},
        }  # fmt: skip
        with RunRecorder(where) as recorder:
            for record in _requests(seed, speed, hit, count):
                recorder.request(record)
                recorder.step(StepRecord(record.arrival_s, 0.02, 1, 40, 3, 0, 4, 1, 100))
                recorder.transfer(
                    TransferRecord(record.arrival_s, record.arrival_s + 0.01, "host->device", 2, 4, 99, "load")
                )
        write_summary(where, summarize(recorder.requests, recorder.steps, recorder.transfers, known | info))
        return where

    return make
