"""Paged attention on a CPU against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvarena.kernels.attention_call import AttentionCall
from kvarena.kernels.paged_attention import paged_attention

Attend = Callable[[AttentionCall], None]


def check(attend: Attend, problems: Any, call: AttentionCall) -> None:
    call.check()
    attend(call)
    problems.assert_close(call)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (5, 1), (6, 3), (98, 1)], ids=str)
@pytest.mark.parametrize("page_size", [1, 5, 16, 512])
def test_heads_and_pages(attend: Attend, problems: Any, heads: tuple[int, int], page_size: int) -> None:
    segments = problems.MIXED if heads[0] < 98 else ((3, 70), (1, 600))
    call = problems.make_call(segments, num_heads=heads[0], num_kv_heads=heads[1], page_size=page_size)
    check(attend, problems, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [1, 20, 32, 64, 80, 128, 256])
def test_head_dims_and_dtypes(attend: Attend, problems: Any, head_dim: int, dtype: torch.dtype) -> None:
    check(
        attend, problems, problems.make_call(((1, 40), (70, 9), (1, 600)), head_dim=head_dim, dtype=dtype, page_size=7)
    )


FEATURES = [
    {"window": 1},
    {"window": 50},
    {"window": 600, "softcap": 30.0},
    {"softcap": 0.7},
    {"rotary_dim": 32},
    {"rotary_dim": 12, "window": 33, "softcap": 5.0},
    {"lse": False},
    {"lse": False, "window": 64},
    {"aliased": True},
    {"spread": 12.0},
]


@pytest.mark.parametrize("features", FEATURES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_features(attend: Attend, problems: Any, features: dict[str, Any], dtype: torch.dtype) -> None:
    check(attend, problems, problems.make_call(dtype=dtype, **features))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    segments=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), max_size=6),
    kv=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.integers(1, 40),
    page_size=st.integers(1, 70),
    window=st.none() | st.integers(1, 150),
    rotated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_ragged_batch(
    native: Attend, problems: Any, segments: list[tuple[int, int]], kv: int, group: int, head_dim: int, **rest: Any
) -> None:
    rotary_dim = head_dim // 2 * 2 if rest.pop("rotated") else 0
    call = problems.make_call(
        segments, num_heads=kv * group, num_kv_heads=kv, head_dim=head_dim, rotary_dim=rotary_dim, **rest
    )
    check(native, problems, call)


@pytest.mark.parametrize("features", [{}, {"window": 70}, {"dtype": torch.bfloat16}], ids=str)
def test_a_row_is_the_same_bits_however_it_is_batched(native: Attend, problems: Any, features: dict[str, Any]) -> None:
    whole = problems.make_call([(700, 0)], num_heads=6, num_kv_heads=2, **features)
    native(whole)
    first = 0
    for length in (1, 1, 62, 300, 30, 305, 1):
        part = problems.copy_call(
            whole,
            query=whole.query[first : first + length],
            query_starts=torch.tensor([0, length], dtype=torch.int32),
            positions=torch.tensor([first], dtype=torch.int32),
            out=torch.empty_like(whole.out[:length]),
            lse=torch.empty_like(whole.lse[:length]),
        )
        native(part)
        assert torch.equal(part.out, whole.out[first : first + length])
        assert torch.equal(part.lse, whole.lse[first : first + length])
        first += length
    assert first == 700


def test_threads_and_splits_do_not_change_the_bits(native: Attend, problems: Any) -> None:
    call = problems.make_call([(1, 5000), (3, 1200), (1, 10)], num_heads=2, num_kv_heads=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = problems.copy_call(call)
            native(again)
            results.append(again.out)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    problems.assert_close(problems.copy_call(call, out=results[0], lse=None))


def test_strided_query_and_out(problems: Any) -> None:
    call = problems.make_call(((3, 20), (1, 5)))
    fused = torch.cat([call.query, call.query + 1], dim=1)
    target = torch.zeros(4, 9, 32)
    result, lse = paged_attention(
        fused[:, :4],
        call.pool,
        call.page_table,
        call.query_starts,
        call.positions,
        scale=call.scale,
        return_lse=True,
        out=target[:, 2:6],
    )
    assert result.data_ptr() == target[:, 2:6].data_ptr()
    assert not target[:, :2].any() and not target[:, 6:].any()
    problems.assert_close(problems.copy_call(call, out=result, lse=lse))


def test_no_tokens_is_a_no_op(problems: Any) -> None:
    call = problems.make_call(((0, 5), (0, 0)))
    arguments = (call.query, call.pool, call.page_table, call.query_starts, call.positions)
    assert paged_attention(*arguments, scale=1.0).shape == (0, 4, 32)


def arguments_of(call: AttentionCall) -> dict[str, Any]:
    names = ("query", "pool", "page_table", "query_starts", "positions", "scale")
    return {name: getattr(call, name) for name in names}


BAD = [
    ("query", lambda a: a["query"][0], r"query has shape \(4, 32\): expected \(\*, \*, \*\)"),
    ("query", lambda a: a["query"][:, :3], r"query has 3 heads: expected a multiple of the pool's 2 KV heads"),
    ("query", lambda a: a["query"].double(), r"query has dtype torch.float64: expected torch.float32 or"),
    ("query", lambda a: a["query"].transpose(1, 2).contiguous().transpose(1, 2), "query has stride 4 in its last"),
    ("pool", lambda a: a["pool"].half(), r"pool has dtype torch.float16: expected torch.float32"),
    ("pool", lambda a: a["pool"][..., :31], r"pool has shape .*: expected \(\*, 2, \*, \*, 32\)"),
    ("pool", lambda a: a["pool"].to("meta"), "pool is on meta: expected cpu"),
    ("page_table", lambda a: a["page_table"].long(), "page_table has dtype torch.int64: expected torch.int32"),
    ("page_table", lambda a: a["page_table"][:1], r"page_table has shape .*: expected \(2, \*\)"),
    ("page_table", lambda a: a["page_table"][:, ::2], "page_table has stride 2 in its last dimension: expected 1"),
    ("page_table", lambda a: a["page_table"] - 1, r"page_table\[\d\] is .*: expected pages in 0..3"),
    ("page_table", lambda a: a["page_table"] + 3, r"page_table\[\d\] is .*: expected pages in 0..3"),
    ("query_starts", lambda a: a["query_starts"] + 1, r"query_starts is \[1, 4, 5\]: expected to rise from 0 to 4"),
    ("query_starts", lambda a: a["query_starts"][:2], r"query_starts has shape \(2,\): expected \(3\)"),
    ("positions", lambda a: a["positions"] - 6, r"positions\[1\] is -1: expected 0 or more"),
    ("positions", lambda a: a["positions"] + 60, r"positions\[0\] is 80: expected 0 or more, and KV length 83 <= 64"),
    ("scale", lambda a: 0.0, "scale is 0.0: expected above 0"),
    ("window", lambda a: 0, "window is 0: expected at least 1 or None"),
    ("softcap", lambda a: -1.0, "softcap is -1.0: expected above 0 or None"),
    ("key_cos", lambda a: torch.ones(99, 8), "key_cos and key_sin: expected both or neither"),
    ("out", lambda a: torch.empty(3, 4, 32), r"out has shape \(3, 4, 32\): expected \(4, 4, 32\)"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD)])
def test_bad_arguments(problems: Any, name: str, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    arguments = arguments_of(problems.make_call(((3, 20), (1, 5))))
    arguments[name] = change(arguments)
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((99, 7), "rotary_dim 7: expected an even"),
        ((99, 34), r"in 2..32"),
        ((22, 8), "has 22 positions: expected at least 23"),
    ],
)
def test_bad_rotation(problems: Any, shape: tuple[int, int], message: str) -> None:
    arguments = arguments_of(problems.make_call(((3, 20), (1, 5))))
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments, key_cos=torch.ones(shape), key_sin=torch.ones(shape))
