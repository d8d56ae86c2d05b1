"""The measures of a step, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kvarena.framework.execution.contract import Segment
from kvarena.framework.quality.measures import measure, recall
from kvarena.framework.quality.recording import Held, Recording, Rows, Step, Wanted, full_attention
from kvarena.framework.workloads.tokens import IdLog


def step(probabilities: list[float], **given: Any) -> Step:
    known: dict[str, Any] = {"outputs": None, "top_keys": None, "held": None} | given
    return Step(9, torch.tensor(probabilities).log() + 3.0, **known)  # logits are known up to a constant


def test_divergence_and_bits_by_hand() -> None:
    full, policy = step([0.5, 0.25, 0.25]), step([0.25, 0.5, 0.25])
    (found,) = measure([policy], [0], [full])
    assert found.kl_nats == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert (found.bits, found.reference_bits) == (pytest.approx(2), pytest.approx(1))
    assert (found.chosen, found.reference_chosen, found.agrees) == (1, 0, False)
    assert found.context_tokens == 10


def test_the_same_step_differs_in_nothing() -> None:
    outputs = torch.rand(2, 3, 4)
    (found,) = measure([step([0.5, 0.5], outputs=outputs)], [1], [step([0.5, 0.5], outputs=outputs)])
    assert (found.kl_nats, found.attention_error, found.agrees) == (0.0, (0.0, 0.0), True)


def test_the_error_of_each_layer_is_relative() -> None:
    full = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    policy = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]])
    (found,) = measure([step([1.0, 0.0], outputs=policy)], [0], [step([1.0, 0.0], outputs=full)])
    assert found.attention_error == pytest.approx((0.0, 0.5))


def test_without_a_reference_only_bits_are_told() -> None:
    (found,) = measure([step([0.25, 0.75])], [0], None)
    assert found.bits == pytest.approx(2)
    assert (found.kl_nats, found.reference_bits, found.attention_error, found.recall) == (None, None, None, None)


def test_runs_of_different_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="2 steps for 1 tokens"):
        measure([step([1.0]), step([1.0])], [0], None)


def test_recall_looks_at_the_plane_of_each_head() -> None:
    """Two query heads share the one plane of each of two layers; -1 holds nothing."""
    top = torch.tensor([[[0, 5], [5, 7]], [[1, 2], [3, 4]]])
    held = Held(torch.tensor([[[5, 7, -1]], [[1, 2, 3]]]), 0.0, 0.0)
    assert recall(top, held) == pytest.approx((0.5 + 1.0 + 1.0 + 0.5) / 4)
    assert recall(top, Held(None, 0.0, 0.0)) == 1.0
    assert recall(None, held) is None


def segment(request: int, start: int, length: int, sample: bool) -> Segment:
    import numpy as np

    return Segment(request, IdLog(), start, length, np.zeros(1, np.int32), sample=sample)


def test_a_recording_keeps_the_last_row_of_what_is_sampled() -> None:
    heard = Recording(Wanted(attention=True, held=True), holding=lambda one: Held(None, float(one.request), 0.0))
    segments = [segment(4, 0, 3, False), segment(5, 6, 2, True), segment(6, 1, 1, True)]
    out = torch.arange(6.0).reshape(6, 1, 1)
    for layer in (0, 1):
        heard.attended(layer, segments, out, out + 10 * layer)
    heard.chose(segments, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert set(heard.steps) == {5, 6}
    (found,) = heard.steps[5]
    assert found.position == 7
    assert found.logits.tolist() == [1.0, 2.0]
    assert found.outputs is not None
    assert found.outputs.flatten().tolist() == [4.0, 14.0]
    assert found.held == Held(None, 5.0, 0.0)


def test_top_keys_are_those_of_the_last_query() -> None:
    def attention(layer: int, one: Segment, query: Tensor, many: int) -> Tensor:
        assert (query.shape[0], many) == (one.length, 1)
        return torch.tensor([[[0.1, 0.6, 0.3]]])

    heard = Recording(Wanted(top_keys=2), attention=attention)
    segments = [segment(1, 0, 3, True)]
    heard.attended(0, segments, torch.zeros(3, 1, 2), torch.zeros(3, 1, 2))
    heard.chose(segments, torch.zeros(1, 4))
    keys = heard.steps[1][0].top_keys
    assert keys is not None
    assert keys.tolist() == [[[1, 2]]]


def test_rows_of_chunks_are_put_together_and_a_missing_one_is_an_error() -> None:
    first = Rows(0, 0, torch.tensor([[[1.0, 0.0], [0.4, 0.6]]]))
    second = Rows(0, 2, torch.tensor([[[0.2, 0.3, 0.5]]]))
    whole = full_attention([second, first], 4)  # the last token is never a query
    assert whole.shape == (1, 1, 4, 4)
    assert whole[0, 0, 2].tolist() == pytest.approx([0.2, 0.3, 0.5, 0.0])
    assert whole[0, 0, 1].tolist() == pytest.approx([0.4, 0.6, 0.0, 0.0])
    with pytest.raises(ValueError, match="queries of 4 was not seen"):
        full_attention([first], 4)
