"""The Triton kernels on a GPU, bfloat16 and pools past 2^31 elements included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvarena.kernels.cache_write import write_pages
from kvarena.kernels.paged_attention import paged_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("features", [{}, {"window": 50, "softcap": 30.0}, {"rotary_dim": 32}], ids=str)
def test_attention(
    problems: Any, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, features: dict[str, Any]
) -> None:
    call = problems.make_call(
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, dtype=dtype, device="cuda", **features
    )
    out, lse = paged_attention(
        call.query,
        call.pool,
        call.page_table,
        call.query_starts,
        call.positions,
        scale=call.scale,
        return_lse=True,
        window=call.window,
        softcap=call.softcap,
        key_cos=call.key_cos,
        key_sin=call.key_sin,
    )
    problems.assert_close(problems.copy_call(call, out=out, lse=lse), rounds_keys=True)


def test_far_page() -> None:
    pages = (1 << 31) // (2 * 8 * 16 * 128) + 8
    if torch.cuda.mem_get_info()[0] < 5 * 2**30:
        pytest.skip("needs 5 GiB of free GPU memory")
    pool = torch.empty(pages, 2, 8, 16, 128, dtype=torch.float16, device="cuda")
    key, value = torch.randn(2, 1, 8, 128, device="cuda").half()
    write_pages(key, value, pool, torch.tensor([(pages - 1) * 16], device="cuda"))
    index = torch.tensor([0, 1, pages - 1], dtype=torch.int32, device="cuda")
    out = paged_attention(key, pool, index[2:, None], index[:2], index[:1], scale=1.0)
    assert torch.equal(out, value)
