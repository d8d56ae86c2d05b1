"""Every architecture gives Hugging Face's own logits from the paged cache, however its context is cut and mixed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "mistral": {"num_kv_heads": 2, "config": {"sliding_window": 10}},
    "qwen2": {
        "num_kv_heads": 2,
        "config": {"use_sliding_window": True, "sliding_window": 10, "layer_types": SLIDING},
    },
    "qwen3": {"num_kv_heads": 2, "head_dim": 16},
    "opt": {},
    "gpt_neox": {
        "config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    },
    "gemma": {"num_kv_heads": 1, "head_dim": 16},
    "gemma2": {
        "num_kv_heads": 2,
        "config": {"sliding_window": 10, "layer_types": SLIDING, "attn_logit_softcapping": 2.0},
    },
    "gemma3_text": {"num_kv_heads": 2, "head_dim": 16, "config": {"sliding_window": 10, "layer_types": SLIDING}},
}
ROPE: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}
DECOUPLED = {
    **{name: (name, knobs) for name, knobs in ARCHITECTURES.items() if name != "opt"},
    **{name: ("llama", {"num_kv_heads": 2, "config": {"rope_parameters": rope}}) for name, rope in ROPE.items()},
}
CASES = [
    *(pytest.param(name, knobs, False, id=name) for name, knobs in ARCHITECTURES.items()),
    *(pytest.param(name, knobs, True, id=f"{case}-decoupled") for case, (name, knobs) in DECOUPLED.items()),
]


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("architecture", "knobs", "decoupled"), CASES)
class TestLogits:
    def test_whole_prefill(self, rig, segment, architecture, knobs, decoupled):
        r = rig(architecture, decoupled, **knobs)
        ids, table = r.context(37)
        close(r.executor.logits([segment(ids, table, 0, 37)])[0], r.expected(ids)[-1])

    def test_chunks_then_decode(self, rig, segment, architecture, knobs, decoupled):
        r = rig(architecture, decoupled, **knobs)
        ids, table = r.context(40)
        expected = r.expected(ids)
        for start, stop in [(0, 5), (5, 6), (6, 19), (19, 33), *((i, i + 1) for i in range(33, 40))]:
            close(r.executor.logits([segment(ids, table, start, stop)])[0], expected[stop - 1])

    def test_mixed_ragged_batches(self, rig, segment, architecture, knobs, decoupled):
        """Decodes, chunks and whole prefills of several contexts in one batch; some rows are not sampled."""
        r = rig(architecture, decoupled, **knobs)
        (a, ta), (b, tb), (c, tc) = r.context(40), r.context(23), r.context(31)
        ea, eb, ec = r.expected(a), r.expected(b), r.expected(c)
        logits = r.executor.logits([segment(a, ta, 0, 30), segment(b, tb, 0, 9, sample=False), segment(c, tc, 0, 1)])
        close(logits, torch.stack([ea[29], ec[0]]))
        logits = r.executor.logits([segment(c, tc, 1, 30), segment(a, ta, 30, 31), segment(b, tb, 9, 23)])
        close(logits, torch.stack([ec[29], ea[30], eb[22]]))
        logits = r.executor.logits([segment(a, ta, 31, 32), segment(c, tc, 30, 31)])
        close(logits, torch.stack([ea[31], ec[30]]))

    def test_hole_and_new_tokens_in_one_batch(self, rig, segment, architecture, knobs, decoupled):
        """A recomputed hole and the new prompt are two segments of one context; pages outside the hole are kept."""
        r = rig(architecture, decoupled, **knobs)
        ids, table = r.context(40)
        expected = r.expected(ids)
        r.executor.logits([segment(ids, table, 0, 32)])
        r.executor.pool[torch.from_numpy(table[2:5]).long()] = 1e3  # tokens 8 .. 20 are lost
        hole, new = segment(ids, table, 8, 20, sample=False), segment(ids, table, 32, 40)
        close(r.executor.logits([hole, new])[0], expected[39])
        close(r.executor.logits([segment(ids, table, 39, 40, write=False)])[0], expected[39])


@pytest.mark.parametrize(("architecture", "knobs", "decoupled"), CASES)
def test_greedy_tokens_are_those_of_generate(rig, segment, architecture, knobs, decoupled):
    from kvarena.framework.execution.contract import Batch

    r = rig(architecture, decoupled, **knobs)
    ids, table = r.context(21)[0].tolist(), r.table(32)
    known = list(ids)
    for start in [0, *range(21, 31)]:
        known += r.executor.run(Batch([segment(known, table, start, len(known))])).tokens
    assert known[21:] == r.generated(ids, 11)


def test_random_replies_depend_on_the_history(rig):
    """Else a wrong page would go unseen by every test of tokens."""
    r = rig("llama", num_kv_heads=2)
    replies = {tuple(r.generated([first, *range(1, 30)], 4)) for first in range(1, 9)}
    assert len(replies) > 4


def test_the_window_matters(rig):
    """The sliding models above are tested beyond their window: without it they answer differently."""
    r = rig("mistral", **ARCHITECTURES["mistral"])
    wide = rig("mistral", num_kv_heads=2, config={"sliding_window": None})
    ids, _ = r.context(37)
    assert (r.expected(ids)[-1] - wide.expected(ids)[-1]).abs().max() > 1e-2


def test_sdpa_agrees_too(rig, segment):
    r = rig("llama", num_kv_heads=2)
    ids, table = r.context(37)
    close(r.executor.logits([segment(ids, table, 0, 37)])[0], r.expected(ids, "sdpa")[-1])
