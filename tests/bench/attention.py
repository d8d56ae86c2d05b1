"""Time paged attention side by side with torch's own on dense caches: ``python tests/bench/attention.py``.

Contestants take turns within every round; a figure is the median over rounds of a contestant's time divided by that of
`dense` (SDPA over a preallocated contiguous cache, the practical limit) in the same round. `dense` also shows its time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvarena.kernels.attention_call import AttentionCall
from kvarena.kernels.cache_write import write_pages
from kvarena.kernels.paged_attention import paged_attention
from kvarena.kernels.torch_attention import gather_attention

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """``batch`` segments of ``queries`` new tokens each, after ``history`` cached ones."""

    batch: int
    queries: int
    history: int
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 64
    page_size: int = 16

    def __str__(self) -> str:
        kind = "decode " if self.queries == 1 else "prefill"
        return (
            f"{kind} batch {self.batch}, {self.queries:4d} on {self.history:4d}, "
            f"heads {self.num_heads}/{self.num_kv_heads} x {self.head_dim}, page {self.page_size}"
        )

    @property
    def length(self) -> int:
        """Keys of a segment."""
        return self.history + self.queries


class Contest:
    """The tensors of a case and its contestants, each a step that stores the new keys and values and attends."""

    def __init__(self, case: Case) -> None:
        self.case = case
        pages = -(-case.length // case.page_size)
        # two layers a page, so that pages are apart as in a model
        whole = torch.randn(case.batch * pages, 2, 2, case.num_kv_heads, case.page_size, case.head_dim)
        self.pool = whole[:, 0]
        self.table = torch.randperm(case.batch * pages, dtype=torch.int32).view(case.batch, pages)
        self.starts = torch.arange(case.batch + 1, dtype=torch.int32) * case.queries
        self.positions = torch.full((case.batch,), case.history, dtype=torch.int32)
        at = torch.arange(case.history, case.length)
        self.slots = (self.table[:, at // case.page_size].long() * case.page_size + at % case.page_size).flatten()
        self.query = torch.randn(case.batch * case.queries, case.num_heads, case.head_dim)
        self.key, self.value = torch.randn(2, case.batch * case.queries, case.num_kv_heads, case.head_dim)
        cache = torch.randn(2, case.batch, case.num_kv_heads, case.length, case.head_dim)
        self.dense_key, self.dense_value = cache
        self.mask = None if case.queries == 1 else at[:, None] >= torch.arange(case.length)[None, :]

    def contestants(self) -> dict[str, Step]:
        """Name -> step."""
        return {"dense": self.dense, "paged": self.paged, "gather": self.gather, "cat": self.cat}

    def paged(self) -> Tensor:
        """Ours."""
        write_pages(self.key, self.value, self.pool, self.slots)
        scale = self.case.head_dim**-0.5
        return paged_attention(self.query, self.pool, self.table, self.starts, self.positions, scale=scale)

    def gather(self) -> Tensor:
        """Ours without a compiler: gather the pages, then SDPA."""
        write_pages(self.key, self.value, self.pool, self.slots)
        call = AttentionCall(
            query=self.query,
            pool=self.pool,
            page_table=self.table,
            query_starts=self.starts,
            positions=self.positions,
            out=torch.empty_like(self.query),
            lse=None,
            scale=self.case.head_dim**-0.5,
            window=None,
            softcap=None,
            key_cos=None,
            key_sin=None,
        )
        gather_attention(call)
        return call.out

    def dense(self) -> Tensor:
        """SDPA over a preallocated cache."""
        self.dense_key[:, :, self.case.history :] = self._by_head(self.key)
        self.dense_value[:, :, self.case.history :] = self._by_head(self.value)
        return self._sdpa(self.dense_key, self.dense_value)

    def cat(self) -> Tensor:
        """Hugging Face's DynamicCache: torch.cat, then SDPA."""
        history = self.case.history
        key = torch.cat([self.dense_key[:, :, :history], self._by_head(self.key)], dim=2)
        value = torch.cat([self.dense_value[:, :, :history], self._by_head(self.value)], dim=2)
        return self._sdpa(key, value)

    def _by_head(self, packed: Tensor) -> Tensor:
        return packed.view(self.case.batch, self.case.queries, -1, self.case.head_dim).transpose(1, 2)

    def _sdpa(self, key: Tensor, value: Tensor) -> Tensor:
        causal = self.case.history == 0
        return scaled_dot_product_attention(
            self._by_head(self.query),
            key,
            value,
            attn_mask=None if causal else self.mask,
            is_causal=causal,
            enable_gqa=self.case.num_heads != self.case.num_kv_heads,
        )


CASES = (
    *(Case(8, 1, 2047, num_kv_heads=kv) for kv in (8, 4, 2)),
    *(Case(8, 1, 511, num_kv_heads=kv) for kv in (8, 2)),
    *(Case(1, 1, 2047, num_kv_heads=kv) for kv in (8, 2)),
    Case(8, 1, 2047, head_dim=128),
    *(Case(1, 256, history) for history in (0, 256, 1280)),
    *(Case(1, 1024, history) for history in (0, 1280)),
    *(Case(1, 512, 1280, num_kv_heads=kv) for kv in (4, 2)),
    Case(8, 64, 512),
)


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Median ratio to `dense` by contestant, and the median time of `dense` in ms under the key ``dense_ms``."""
    steps = Contest(case).contestants()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(t / d for t, d in zip(taken, times["dense"], strict=True))
        for name, taken in times.items()
    }
    return ratios | {"dense_ms": 1e3 * statistics.median(times["dense"])}


def main() -> None:
    """Print one table per number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s), float32{'dense [ms]':>42}{'paged':>9}{'gather':>9}{'cat':>9}   [x dense]")
        for case in (case for case in CASES if arguments.only in str(case)):
            row = measure(case, arguments.rounds)
            print(f"{case!s:58}{row['dense_ms']:9.2f}" + "".join(f"{row[n]:9.2f}" for n in ("paged", "gather", "cat")))


if __name__ == "__main__":
    main()
