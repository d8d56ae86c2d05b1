"""The measures of one predicted token: a policy's run held against the full cache, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .recording import Held, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepMeasures:
    """One predicted token; None where it was not measured.

    Attributes
    ----------
    token: that follows. chosen: the policy's own choice. reference_chosen: the full cache's.
    bits, reference_bits: -log2 of the probability of ``token``.
    kl_nats: KL(full cache || policy) of the two distributions.
    attention_error: of each layer, ||policy - full cache|| / ||full cache|| of the attention's output.
    recall: share of the keys that get most attention under the full cache that the policy still holds.
    held_tokens: mean over planes; kv_bytes, state_bytes: what the context takes.
    """

    token: int
    chosen: int
    bits: float
    reference_chosen: int | None
    reference_bits: float | None
    kl_nats: float | None
    attention_error: tuple[float, ...] | None
    recall: float | None
    context_tokens: int
    held_tokens: float | None
    kv_bytes: float | None
    state_bytes: float | None

    def untold(self) -> StepMeasures:
        """The step without what would say something of a policy that has not had its say yet."""
        bare = replace(self, kl_nats=None, attention_error=None, recall=None)
        return replace(bare, held_tokens=None, kv_bytes=None, state_bytes=None)

    @property
    def agrees(self) -> bool | None:
        """The choice is the full cache's."""
        return None if self.kl_nats is None else self.chosen == self.reference_chosen


def measure(steps: Sequence[Step], tokens: Sequence[int], reference: Sequence[Step] | None) -> list[StepMeasures]:
    """The measures of one reply. ``tokens``: those that followed; ``reference``: the same steps under the full cache.

    Raises
    ------
    ValueError
        If the runs are not of the same tokens.
    """
    wanted = len(tokens)
    if len(steps) != wanted or (reference is not None and len(reference) != wanted):
        told = wanted if reference is None else len(reference)
        raise ValueError(f"{len(steps)} steps for {wanted} tokens, {told} of them under the full cache")
    if not wanted:
        return []
    logs = _log_probabilities(steps)  # float64 [steps, vocab]
    full = None if reference is None else _log_probabilities(reference).to(logs.device)
    divergences = [None] * wanted if full is None else (full.exp() * (full - logs)).sum(-1).clamp(min=0.0).tolist()
    found = []
    for i, (step, token) in enumerate(zip(steps, tokens, strict=True)):
        beside = None if reference is None else reference[i]
        found.append(
            StepMeasures(
                token=int(token),
                chosen=int(logs[i].argmax()),
                bits=-float(logs[i, token]) / math.log(2),
                reference_chosen=None if full is None else int(full[i].argmax()),
                reference_bits=None if full is None else -float(full[i, token]) / math.log(2),
                kl_nats=divergences[i],
                attention_error=_errors(step, beside),
                recall=None if beside is None else recall(beside.top_keys, step.held),
                context_tokens=step.position + 1,
                held_tokens=_held_tokens(step),
                kv_bytes=None if step.held is None else step.held.kv_bytes,
                state_bytes=None if step.held is None else step.held.state_bytes,
            )
        )
    return found


def recall(top_keys: Tensor | None, held: Held | None) -> float | None:
    """Share of ``top_keys`` [L, H, k] among the tokens of each head's plane, mean over layers and heads; None where
    either is not known."""
    if top_keys is None or held is None:
        return None
    if held.positions is None:
        return 1.0
    planes = held.positions.repeat_interleave(top_keys.shape[1] // held.positions.shape[1], dim=1)  # [L, H, n]
    return float((top_keys.unsqueeze(-1) == planes.unsqueeze(-2)).any(-1).double().mean())


def _log_probabilities(steps: Sequence[Step]) -> Tensor:
    import torch

    return torch.stack([step.logits for step in steps]).double().log_softmax(-1)


def _errors(step: Step, reference: Step | None) -> tuple[float, ...] | None:
    if reference is None or step.outputs is None or reference.outputs is None:
        return None
    own, full = step.outputs.double().flatten(1), reference.outputs.double().flatten(1)
    return tuple(((own - full).norm(dim=1) / full.norm(dim=1).clamp(min=1e-30)).tolist())


def _held_tokens(step: Step) -> float | None:
    if step.held is None:
        return None
    if step.held.positions is None:
        return float(step.position + 1)
    return float((step.held.positions >= 0).double().sum(-1).mean())
