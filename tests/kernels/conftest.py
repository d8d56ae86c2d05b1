"""Random paged-attention problems, and the rule by which results are judged."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.kernels.attention_call import AttentionCall
from kvarena.kernels.native import library
from kvarena.kernels.native_attention import native_attention
from kvarena.kernels.reference import reference_attention
from kvarena.kernels.torch_attention import gather_attention

MIXED = ((1, 0), (1, 63), (0, 9), (1, 64), (37, 0), (5, 130), (1, 1100), (70, 90), (0, 0), (2, 511))
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


def make_call(
    segments: Sequence[tuple[int, int]] = MIXED,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    rotary_dim: int = 0,
    lse: bool = True,
    aliased: bool = False,
    spread: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
) -> AttentionCall:
    """``segments`` of (queries, history) over the middle layer of a pool; what no query may see is NaN."""
    rng = torch.Generator().manual_seed(seed)
    pages = [-(-(queries + history) // page_size) for queries, history in segments]
    num_pages = max(1, max(pages, default=1) if aliased else sum(pages)) + 1
    whole = torch.full((num_pages, 3, 2, num_kv_heads, page_size, head_dim), float("nan"), dtype=dtype)
    table = torch.full((len(segments), max(pages, default=0) + 2), -1, dtype=torch.int32)
    order = torch.randperm(num_pages, generator=rng, dtype=torch.int32)
    for i, ((queries, history), count) in enumerate(zip(segments, pages, strict=True)):
        ids = order[:count] if aliased else order[sum(pages[:i]) :][:count]
        table[i, :count] = ids
        at = torch.arange(queries + history)
        data = spread * torch.randn(len(at), 2, num_kv_heads, head_dim, generator=rng)
        whole[ids[at // page_size].long(), 1, :, :, at % page_size] = data.to(dtype)
        if window is not None and queries:
            table[i, : max(0, history + 1 - window) // page_size] = -1
    lengths = torch.tensor([queries for queries, _ in segments], dtype=torch.int32)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])
    query = (spread * torch.randn(int(starts[-1]), num_heads, head_dim, generator=rng)).to(dtype)
    angles = torch.rand(max(sum(s) for s in segments) + 1 if segments else 1, rotary_dim // 2, generator=rng) * 6.3
    rotation = (angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)) if rotary_dim else (None, None)
    return AttentionCall(
        query=query.to(device),
        pool=whole.to(device)[:, 1],
        page_table=table.to(device),
        query_starts=starts.to(device),
        positions=torch.tensor([history for _, history in segments], dtype=torch.int32, device=device),
        out=torch.full_like(query, float("nan"), device=device),
        lse=torch.full(query.shape[:2], float("nan"), device=device) if lse else None,
        scale=head_dim**-0.5,
        window=window,
        softcap=softcap,
        key_cos=None if rotation[0] is None else rotation[0].to(device),
        key_sin=None if rotation[1] is None else rotation[1].to(device),
    )


def copy_call(call: AttentionCall, **changes: Any) -> AttentionCall:
    """The same problem with outputs of its own."""
    fields = {name: getattr(call, name) for name in AttentionCall.__dataclass_fields__}
    fresh = {"out": torch.empty_like(call.out), "lse": None if call.lse is None else torch.empty_like(call.lse)}
    return AttentionCall(**(fields | fresh | changes))


def reference(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Float64 output and log-sum-exp."""
    return reference_attention(
        call.query.cpu(),
        call.pool.cpu(),
        call.page_table.cpu(),
        call.query_starts.cpu(),
        call.positions.cpu(),
        scale=call.scale,
        window=call.window,
        softcap=call.softcap,
        key_cos=None if call.key_cos is None else call.key_cos.cpu(),
        key_sin=None if call.key_sin is None else call.key_sin.cpu(),
    )


def assert_close(call: AttentionCall, *, rounds_keys: bool = False) -> None:
    """The filled ``call`` errs at most twice as much as torch operations of the same precision do.

    ``rounds_keys``: rotated keys go back to the pool's precision before they are multiplied.
    """
    if call.query.shape[0] == 0:
        return
    exact, exact_lse = reference(call)
    baseline = copy_call(call)
    gather_attention(baseline)
    floor = FLOOR[call.out.dtype] * max(1.0, float(exact.abs().max()))
    error, allowed = _error(call.out, exact), 2 * _error(baseline.out, exact) + floor
    assert error <= allowed, f"output errs by {error:.2e}, allowed {allowed:.2e}"
    if call.lse is not None and baseline.lse is not None:
        rounding = torch.finfo(call.pool.dtype).eps if rounds_keys and call.key_cos is not None else 0.0
        floor = max(3e-7, rounding) * max(1.0, float(exact_lse.abs().max()))
        error, allowed = _error(call.lse, exact_lse), 2 * _error(baseline.lse, exact_lse) + floor
        assert error <= allowed, f"log-sum-exp errs by {error:.2e}, allowed {allowed:.2e}"


def _error(tensor: Tensor, exact: Tensor) -> float:
    difference = (tensor.cpu().double() - exact).abs()
    return float("inf") if bool(difference.isnan().any()) else float(difference.max())


def run_native(call: AttentionCall) -> None:
    """The C++ kernel, or a skip."""
    native = library()
    if native is None:
        pytest.skip("no C++ compiler")
    native_attention(native, call)


IMPLEMENTATIONS: dict[str, Callable[[AttentionCall], None]] = {"native": run_native, "gather": gather_attention}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def attend(request: pytest.FixtureRequest) -> Callable[[AttentionCall], None]:
    """Each CPU implementation."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="session")
def native() -> Callable[[AttentionCall], None]:
    """The C++ kernel."""
    return run_native


@pytest.fixture(scope="session")
def problems() -> Any:
    """The functions of this file, which test modules cannot import."""
    return sys.modules[__name__] if __name__ in sys.modules else _Namespace(globals())


class _Namespace:
    def __init__(self, names: dict[str, Any]) -> None:
        self.__dict__.update(names)


@pytest.fixture(scope="session")
def interpret() -> Iterator[Callable[[str, dict[str, Any]], dict[str, Any]]]:
    """Run a Triton kernel under the interpreter, which needs a process of its own: (kernel, tensors) -> tensors."""
    command = [sys.executable, str(Path(__file__).with_name("interpreter.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def run(kernel: str, tensors: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin and process.stdout
            pickle.dump((kernel, tensors), process.stdin)
            process.stdin.flush()
            result: dict[str, Any] = pickle.load(process.stdout)
            return result

        yield run
        assert process.stdin
        process.stdin.close()
