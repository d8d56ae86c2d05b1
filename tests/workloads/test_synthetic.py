"""Drawn workloads: the stated means, seeds that hold, and limits that cut without changing what is kept."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from kvarena.framework.workloads import IdLog, StreamLog, make_workload
from kvarena.framework.workloads.synthetic import PRESETS


def chat(symbolic=True, seed=0, vocab_size=500, **knobs):
    return make_workload("synthetic_chat", knobs, seed, vocab_size, None, symbolic)


def sizes(workload):
    return [[(t.prompt_tokens, t.output_tokens) for t in c.turns] for c in workload.conversations()]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_sample_means_are_the_published_ones(preset, seed):
    conversations = list(chat(preset=preset, limit=5000, seed=seed, max_context=None).conversations())
    turns = [turn for c in conversations for turn in c.turns]
    expected = PRESETS[preset]
    assert len(turns) / 5000 == pytest.approx(expected.turns, rel=0.02)
    assert np.mean([t.prompt_tokens for t in turns]) == pytest.approx(expected.prompt_tokens, rel=0.02)
    assert np.mean([t.output_tokens for t in turns]) == pytest.approx(expected.output_tokens, rel=0.02)
    assert np.mean([t.think_s for c in conversations for t in c.turns[1:]]) == pytest.approx(60, rel=0.03)
    assert conversations[-1].start_s == pytest.approx(5000, rel=0.05)


def test_presets_are_pensieves_table_2():
    means = {name: (p.turns, p.prompt_tokens, p.output_tokens) for name, p in PRESETS.items()}
    assert means == {"sharegpt": (5.56, 37.77, 204.58), "ultrachat": (3.86, 51.78, 257.81)}


def test_lengths_and_turns_are_spread():
    conversations = sizes(chat(limit=2000))
    prompts = [p for turns in conversations for p, _ in turns]
    assert np.std(prompts) > np.mean(prompts)
    assert min(map(len, conversations)) == 1 and max(map(len, conversations)) > 20
    assert min(prompts) >= 1


@pytest.mark.parametrize("symbolic", [True, False])
def test_a_conversation_does_not_depend_on_the_limit(symbolic):
    few, many = chat(symbolic, limit=7, rate=2.0), chat(symbolic, limit=1500, rate=2.0)
    assert len(few) == len(list(few.conversations())) == 7 and len(many) == 1500
    for a, b in zip(few.conversations(), islice(many.conversations(), 7), strict=True):
        assert (a.id, a.start_s, len(a.turns)) == (b.id, b.start_s, len(b.turns))
        for s, t in zip(a.turns, b.turns, strict=True):
            assert (s.prompt_tokens, s.output_tokens, s.think_s) == (t.prompt_tokens, t.output_tokens, t.think_s)
            assert symbolic or s.prompt_ids.tolist() == t.prompt_ids.tolist()


def test_seeds_differ_and_iterating_twice_is_the_same():
    workload = chat()
    assert sizes(workload) == sizes(workload) == sizes(chat()) != sizes(chat(seed=1))


def test_a_rate_only_moves_starts_and_think_time_only_scales_pauses():
    slow, fast = chat(rate=1.0, think_time_s=60.0), chat(rate=4.0, think_time_s=30.0)
    assert sizes(slow) == sizes(fast)
    for a, b in zip(slow.conversations(), fast.conversations(), strict=True):
        assert a.start_s == pytest.approx(4 * b.start_s)
        assert a.turns[0].think_s == 0
        assert [t.think_s for t in a.turns] == pytest.approx([2 * t.think_s for t in b.turns])


def test_starts_rise_or_are_zero_and_times_scale():
    starts = [c.start_s for c in chat(rate=3.0).conversations()]
    assert starts == sorted(starts) and starts[0] > 0
    assert [c.start_s for c in chat(rate=3.0, time_scale=2.0).conversations()] == pytest.approx([2 * s for s in starts])
    assert {c.start_s for c in chat(rate=None).conversations()} == {0.0}


def test_a_conversation_ends_before_the_turn_that_would_exceed_max_context():
    shared, limit = 50, 600
    cut = list(chat(limit=300, max_context=limit, system_prompt_tokens=shared).conversations())
    whole = sizes(chat(limit=3000, max_context=None))
    assert [c.id for c in cut] == list(range(300))
    fitting = []
    for turns in whole:
        total, kept = shared, []
        for turn in turns:
            total += sum(turn)
            if total > limit:
                break
            kept.append(turn)
        fitting += [kept] if kept else []
    assert [[(t.prompt_tokens, t.output_tokens) for t in c.turns] for c in cut] == fitting[:300]


@pytest.mark.parametrize(("name", "first"), [("synthetic_chat", 2), ("rounds", 159)])
def test_a_context_that_nothing_fits_is_an_error_not_a_hang(name, first):
    workload = make_workload(name, {"max_context": first, "system_prompt_tokens": 9}, 0, 9, None, True)
    with pytest.raises(ValueError, match=f"max_context is {first}: .*\\(system prompt 9 tokens"):
        list(workload.conversations())


def test_turn_bounds_and_scales():
    turns = sizes(chat(limit=500, min_turns=2, max_turns=4))
    assert {len(t) for t in turns} == {2, 3, 4}
    prompts, outputs = np.mean(
        [pair for t in sizes(chat(limit=2000, input_scale=10, output_scale=0.1)) for pair in t], 0
    )
    assert prompts == pytest.approx(377.7, rel=0.05) and outputs == pytest.approx(20.458, rel=0.05)


def test_symbolic_conversations_share_the_system_prompt_only():
    workload = chat(limit=2, system_prompt_tokens=40)
    logs = [workload.new_log(c) for c in workload.conversations()]
    for log in logs:
        assert isinstance(log, StreamLog) and len(log) == 40
        log.extend(60)
    a, b = (log.page_keys(16, 100).tolist() for log in logs)
    assert [x == y for x, y in zip(a, b, strict=True)] == [True, True, False, False, False, False]
    assert workload.symbolic and all(t.prompt_ids is None for c in workload.conversations() for t in c.turns)


def test_real_conversations_have_ids_of_the_vocabulary():
    workload = chat(symbolic=False, limit=20, system_prompt_tokens=5, vocab_size=7)
    first = None
    for conversation in workload.conversations():
        log = workload.new_log(conversation)
        assert isinstance(log, IdLog) and len(log) == 5
        first = log.ids(0, 5).tolist() if first is None else first
        assert log.ids(0, 5).tolist() == first
        for turn in conversation.turns:
            assert turn.prompt_ids.dtype == np.int32 and len(turn.prompt_ids) == turn.prompt_tokens
            assert turn.prompt_ids.min() >= 0 and turn.prompt_ids.max() < 7
    assert not workload.symbolic
    ids = [c.turns[0].prompt_ids[:4].tolist() for c in chat(symbolic=False, limit=5, min_turns=2).conversations()]
    assert len({tuple(i) for i in ids}) == 5


def test_sizes_are_the_same_with_and_without_ids():
    assert sizes(chat(symbolic=True)) == sizes(chat(symbolic=False))


def test_a_million_conversations_cost_no_memory_until_they_are_asked_for():
    workload = chat(limit=1_000_000)
    assert len(workload) == 1_000_000
    assert [c.id for c in islice(workload.conversations(), 3)] == [0, 1, 2]


def test_rounds_are_equal_and_at_a_barrier():
    workload = make_workload("rounds", {}, 0, 100, None, False)
    conversations = list(workload.conversations())
    assert workload.barrier and not chat().barrier
    assert (len(workload), workload.name) == (12, "rounds")
    assert sizes(workload) == [[(128, 32)] * 5] * 12
    assert {c.start_s for c in conversations} == {0.0}
    assert sum(t.output_tokens for c in conversations for t in c.turns) == 1920
    history = sum(160 * k + 128 for k in range(5)) * 12
    assert history == 26_880  # the prompt tokens of the published comparison


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rate": 0}, "rate is 0.0; it must be > 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"think_time_s": -1}, "think_time_s is -1.0; it must be >= 0"),
        ({"limit": 0}, "limit is 0; it must be >= 1"),
        ({"limit": None}, "must be numbers"),
        ({"time_scale": 0}, "time_scale is 0.0; it must be > 0"),
        ({"max_context": 1}, "max_context is 1; it must be >= 2"),
        ({"warmup": -1}, "warmup is -1; it must be >= 0"),
        ({"min_turns": 3, "max_turns": 2}, "max_turns is 2; it must be >= 3"),
        ({"input_scale": 0}, "input_scale is 0.0; it must be > 0"),
        ({"preset": "sharegtp"}, "did you mean 'sharegpt'"),
        ({"limits": 3}, "workload=synthetic_chat: unknown knob 'limits'.*did you mean 'limit'"),
    ],
)
def test_bad_knobs_are_named(knobs, message):
    with pytest.raises(ValueError, match=message) as error:
        chat(**knobs)
    assert "\n" not in str(error.value)
