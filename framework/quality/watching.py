"""The one place that looks into the torch executor: who listens, what a context holds, what attention queries gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np

from ..choices import Lossy
from ..execution.contract import Executor, Segment
from ..policy.scored import POSITION_BYTES
from ..workloads.tokens import IdLog
from .recording import Held, Recording

if TYPE_CHECKING:
    from torch import Tensor

    from ..execution.attention import AttentionOptions
    from ..execution.listening import Listener
    from ..execution.torch_executor import TorchExecutor


@contextmanager
def listening(executor: Executor, listener: Listener) -> Iterator[None]:
    """Within it ``listener`` hears of every batch of ``executor``, which is a ``TorchExecutor``."""
    torch_executor = cast("TorchExecutor", executor)
    torch_executor.listener = listener
    try:
        yield
    finally:
        torch_executor.listener = None


def probe(executor: Executor) -> Tensor:
    """The logits [1, vocab_size] of some token, of the device and the dtype that those of a run have. Writes no K/V."""
    log, table = IdLog(np.zeros(1, np.int32)), np.zeros(1, np.int32)
    return cast("TorchExecutor", executor).logits([Segment(-1, log, 0, 1, table, write=False, sample=True)])


@contextmanager
def watch(executor: Executor, recording: Recording | None) -> Iterator[None]:
    """Within it ``recording`` hears of every batch of ``executor``, which is a ``TorchExecutor``."""
    if recording is None:
        yield
        return
    torch_executor = cast("TorchExecutor", executor)
    recording.holding = lambda segment: holding(torch_executor, segment)
    asked = torch_executor.attention_options() if recording.wanted.top_keys or recording.wanted.rows else []
    recording.attention = lambda layer, segment, query, many: attention(
        torch_executor, asked[layer], layer, segment, query, many
    )
    with listening(executor, recording):
        yield


def holding(executor: TorchExecutor, segment: Segment) -> Held:
    """What the context of ``segment`` holds while its last token's query runs: what was kept, and its own tokens."""
    import torch

    kv_bytes = executor.shape.kv_bytes_per_token
    tokens = segment.position + segment.length
    memory = None if segment.narrowing is None else executor.memory(segment.narrowing.context)
    if memory is None:
        return Held(None, float(tokens * kv_bytes), 0.0)
    planes = memory.positions.shape[:2]
    own = torch.arange(segment.position, tokens).expand(*planes, segment.length)
    positions = torch.cat([memory.positions.cpu(), own], dim=-1)
    slots = memory.slots(executor.pool.shape[4]) + segment.length
    places = POSITION_BYTES * int((memory.positions >= 0).sum())
    state = sum(held.numel() * held.element_size() for held in memory.state.values())
    return Held(positions, float(slots * kv_bytes), float(places + state))


def attention(
    executor: TorchExecutor, options: AttentionOptions, layer: int, segment: Segment, query: Tensor, many: int
) -> Tensor:
    """The probabilities of the last ``many`` of a whole context's queries ``query`` [length, H, head_dim] in ``layer``,
    which asks for ``options``: float32 [H, many, keys]; keys are cached as they are attended to."""
    import torch

    from ...kernels.attention_statistics import attention_statistics

    end, page_size = segment.start + segment.length, executor.pool.shape[4]
    device = executor.pool.device
    table = torch.from_numpy(np.ascontiguousarray(segment.table[: -(-end // page_size)])).to(device)
    found = attention_statistics(
        query,
        executor.pool[:, executor.stored.places[layer]],
        table[None],
        torch.tensor([0, segment.length], dtype=torch.int32, device=device),
        torch.tensor([segment.start], dtype=torch.int32, device=device),
        scale=options.scale,
        window=options.window,
        softcap=options.softcap,
        rows=many,
    )
    assert found.rows is not None
    return found.rows[0, :, -many:].cpu()


def check_layers(executor: Executor, lossy: Lossy) -> None:
    """Refuse a model on whose layers the policies ``lossy`` cannot work.

    Raises
    ------
    ValueError
        Naming the model.
    """
    from ..execution.lossy.side import check_windows

    if lossy.narrows:
        torch_executor = cast("TorchExecutor", executor)
        check_windows(torch_executor.shape, [each.window for each in torch_executor.attention_options()])


def foresee(executor: Executor, attention: Mapping[int, Tensor]) -> None:
    """Tell ``executor`` the full cache's ``attention`` [L, H, tokens, tokens] of each conversation, for an oracle."""
    cast("TorchExecutor", executor).futures = dict(attention).get
