"""Column sums and rows of the probabilities against a dense float64 softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.kernels import attention_statistics as door
from kvarena.kernels import torch_statistics
from kvarena.kernels.attention_call import AttentionCall
from kvarena.kernels.attention_statistics import AttentionStatistics, attention_statistics
from kvarena.kernels.native import library
from kvarena.kernels.paged_attention import paged_attention

DECODES = ((1, 0), (1, 63), (1, 64), (1, 200))
OPTIONS = ("scale", "window", "softcap", "key_cos", "key_sin")


@pytest.fixture(params=["native", "gather"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each CPU implementation."""
    if request.param == "gather":
        monkeypatch.setattr(door, "library", lambda: None)
    elif library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def statistics(
    call: AttentionCall, column_sums: bool = True, rows: int = 5, log_sum_exp: bool = False, **changes: Any
) -> AttentionStatistics:
    names = ("query", "pool", "page_table", "query_starts", "positions", *OPTIONS)
    fields = {name: getattr(call, name) for name in names} | changes
    return attention_statistics(**fields, column_sums=column_sums, rows=rows, log_sum_exp=log_sum_exp)


def probabilities(call: AttentionCall, segment: int) -> Tensor:
    """Float64 [num_heads, queries, keys] of one segment, spelled out."""
    first, last = call.query_starts[segment].item(), call.query_starts[segment + 1].item()
    position, page_size = int(call.positions[segment]), call.pool.shape[3]
    key_at, query_at = torch.arange(position + last - first), torch.arange(position, position + last - first)
    seen = key_at[None] <= query_at[:, None]
    if call.window is not None:
        seen &= key_at[None] > query_at[:, None] - call.window
    read = seen.any(dim=0)
    keys = torch.zeros(len(key_at), *call.pool.shape[2::2], dtype=torch.float64)
    pages = call.page_table[segment, key_at[read] // page_size].long()
    keys[read] = call.pool[pages, 0, :, key_at[read] % page_size].double()
    if call.key_cos is not None and call.key_sin is not None:
        half = call.key_cos.shape[1] // 2
        cos, sin = call.key_cos[: len(keys), None, :half].double(), call.key_sin[: len(keys), None, :half].double()
        low, high = keys[..., :half].clone(), keys[..., half : 2 * half].clone()
        keys[..., :half], keys[..., half : 2 * half] = low * cos - high * sin, high * cos + low * sin
    keys = keys.repeat_interleave(call.group_size, dim=1)
    scores = call.scale * torch.einsum("qhd,khd->hqk", call.query[first:last].double(), keys)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)


def check(call: AttentionCall, rows: int = 5) -> None:
    found = statistics(call, rows=rows)
    assert found.column_sums is not None and found.rows is not None
    assert found.column_sums.dtype == found.rows.dtype == torch.float32
    longest = int(call.query_starts.diff().max())
    assert found.rows.shape == (*found.column_sums.shape[:2], min(rows, longest), found.column_sums.shape[2])
    for segment, (sums, last) in enumerate(zip(found.column_sums, found.rows, strict=True)):
        exact = probabilities(call, segment)
        _, queries, keys = exact.shape
        height = min(rows, queries)
        blank = last.shape[1] - height
        torch.testing.assert_close(sums[:, :keys].double(), exact.sum(dim=1), rtol=2e-5, atol=2e-6 * max(1, queries))
        torch.testing.assert_close(last[:, blank:, :keys].double(), exact[:, queries - height :], rtol=2e-5, atol=2e-6)
        assert not sums[:, keys:].any() and not last[:, :, keys:].any() and not last[:, :blank].any()


@pytest.mark.parametrize("segments", [None, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("page_size", [1, 5, 16, 512])
def test_heads_and_pages(problems: Any, segments: Any, heads: tuple[int, int], page_size: int) -> None:
    call = problems.make_call(
        segments or problems.MIXED, num_heads=heads[0], num_kv_heads=heads[1], page_size=page_size
    )
    check(call)


FEATURES: list[dict[str, Any]] = [
    {"window": 1},
    {"window": 50},
    {"softcap": 0.7},
    {"rotary_dim": 32},
    {"rotary_dim": 12, "window": 33, "softcap": 5.0},
    {"aliased": True},
    {"spread": 3.0},
    {"dtype": torch.float16},
    {"dtype": torch.bfloat16, "rotary_dim": 32},
]


@pytest.mark.parametrize("segments", [None, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_features(problems: Any, segments: Any, features: dict[str, Any]) -> None:
    check(problems.make_call(segments or problems.MIXED, **features))


@pytest.mark.parametrize("segments", [None, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("elements", [1, 700, 20_000])
def test_blocks_change_nothing(problems: Any, segments: Any, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_statistics, "BLOCK_ELEMENTS", elements)
    check(problems.make_call(segments or ((90, 30), (1, 64), (0, 9), (40, 0)), window=70))


def test_blocks_bound_what_is_held_at_once(problems: Any, monkeypatch: pytest.MonkeyPatch, implementation: str) -> None:
    if implementation == "native":
        pytest.skip("its blocks are a constant of the C++ source")
    sizes = []
    softmax = torch_statistics.dense_probabilities

    def watched(*args: Any) -> Tensor:
        sizes.append((found := softmax(*args)).numel())
        return found

    monkeypatch.setattr(torch_statistics, "BLOCK_ELEMENTS", 10_000)
    monkeypatch.setattr(torch_statistics, "dense_probabilities", watched)
    statistics(problems.make_call(((300, 50),)), rows=0)
    assert len(sizes) > 30 and max(sizes) <= 10_000
    sizes.clear()
    statistics(problems.make_call([(1, 99)] * 64))
    assert len(sizes) > 30 and max(sizes) <= 10_000


def test_long_contexts(problems: Any) -> None:
    """Longer than one block of the C++ kernel."""
    check(problems.make_call(((700, 900), (1, 2000)), num_heads=8, head_dim=16), rows=3)


def test_they_are_the_probabilities_of_paged_attention(problems: Any) -> None:
    call = problems.make_call(DECODES, page_size=64, num_heads=4, num_kv_heads=4)
    rows = statistics(call, rows=1).rows
    names = ("query", "pool", "page_table", "query_starts", "positions", "scale")
    attended = paged_attention(**{name: getattr(call, name) for name in names})
    values = call.pool[call.page_table.clamp(min=0).long(), 1].transpose(1, 2).flatten(2, 3)[:, :, : rows.shape[-1]]
    torch.testing.assert_close((rows @ values.nan_to_num())[:, :, 0], attended, rtol=1e-4, atol=1e-5)


def test_layers_are_segments(problems: Any) -> None:
    call = problems.make_call(((1, 20), (1, 45)), page_size=16)
    rng = torch.Generator().manual_seed(3)
    pool = torch.randn(call.pool.shape[0], 3, *call.pool.shape[1:], generator=rng)
    query = torch.randn(2, 3, *call.query.shape[1:], generator=rng)
    layers = torch.arange(3, dtype=torch.int32)
    together = statistics(
        call,
        query=query.flatten(0, 1),
        pool=pool.flatten(0, 1),
        page_table=(call.page_table[:, None] * 3 + layers[:, None]).flatten(0, 1),
        query_starts=torch.arange(7, dtype=torch.int32),
        positions=call.positions.repeat_interleave(3),
    )
    for layer in range(3):
        alone = statistics(call, pool=pool[:, layer], query=query[:, layer])
        torch.testing.assert_close(together.column_sums[layer::3], alone.column_sums)
        torch.testing.assert_close(together.rows[layer::3], alone.rows)


@pytest.mark.parametrize("segments", [None, DECODES, ((700, 900), (0, 3), (64, 0))], ids=["mixed", "decodes", "long"])
@pytest.mark.parametrize("features", [{}, *FEATURES], ids=str)
@pytest.mark.parametrize("others", [{"column_sums": False, "rows": 0}, {"rows": 3}], ids=str)
def test_log_sum_exps_are_those_of_paged_attention(problems: Any, segments: Any, features: Any, others: Any) -> None:
    call = problems.make_call(segments or problems.MIXED, **features)
    found = statistics(call, **others, log_sum_exp=True).log_sum_exp
    names = ("query", "pool", "page_table", "query_starts", "positions", *OPTIONS)
    _, exact = paged_attention(**{name: getattr(call, name) for name in names}, return_lse=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=2e-5, atol=2e-5)


def test_only_what_is_wanted(problems: Any) -> None:
    call = problems.make_call(((3, 9), (1, 2)))
    found = statistics(call, column_sums=False, rows=0)
    assert found.column_sums is None and found.rows is None and found.log_sum_exp is None
    assert statistics(call, column_sums=True, rows=0).rows is None
    assert statistics(call, column_sums=False, rows=2).column_sums is None


@pytest.mark.parametrize("segments", [(), ((0, 4), (0, 0))], ids=str)
def test_no_queries(problems: Any, segments: Any) -> None:
    found = statistics(problems.make_call(segments))
    assert found.column_sums.shape == (len(segments), 4, 0) and found.rows.shape == (len(segments), 4, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows is -1: expected 0 or more"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"window": 0}, "window is 0"),
        ({"positions": torch.tensor([9, -1], dtype=torch.int32)}, r"positions\[1\] is -1"),
        ({"positions": torch.tensor([900, 2], dtype=torch.int32)}, "KV length 903"),
        ({"query_starts": torch.tensor([0, 3, 9], dtype=torch.int32)}, "expected to rise from 0 to 4"),
        ({"page_table": torch.full((2, 4), 77, dtype=torch.int32)}, r"page_table\[0\] is \[77\]"),
        ({"page_table": torch.full((2, 4), -1, dtype=torch.int32)}, r"page_table\[0\] is \[-1\]"),
        ({"key_cos": torch.ones(5, 8), "key_sin": torch.ones(5, 8)}, "key_cos has 5 positions: expected at least 12"),
    ],
    ids=str,
)
def test_refused(problems: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics(problems.make_call(((3, 9), (1, 2))), **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("segments", [None, DECODES], ids=["mixed", "decodes"])
def test_on_a_gpu(problems: Any, segments: Any, features: dict[str, Any]) -> None:
    here, there = (problems.make_call(segments or problems.MIXED, device=d, **features) for d in ("cpu", "cuda"))
    expected, found = statistics(here), statistics(there)
    torch.testing.assert_close(found.column_sums.cpu(), expected.column_sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.rows.cpu(), expected.rows, rtol=1e-4, atol=1e-4)
