"""Random models, policies, budgets and conversations against a dense computation in float64."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_cases import Case, Repeating, draw, model_of  # noqa: E402
from lossy_fuzz import Driver, Trace  # noqa: E402

from kvarena.policies.compression.kivi import Kivi  # noqa: E402
from kvarena.policies.truncation.streaming_llm import StreamingLLM  # noqa: E402

RAGGED = ("adakv", "pyramidkv", "corm")
FEW = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 1 << 32)


def drawn(seed: int, names: tuple[str, ...] = (), ratios: tuple[float, ...] = ()) -> Case:
    return draw(Random(seed), names, ratios, short=True)


def checked(case: Case) -> tuple[Driver, Trace]:
    """Every step's attention and logits, the statistics that policies see, kept sets, slots and stored K/V."""
    driver = Driver(case, model_of(case))
    return driver, driver.drive()


@FEW
@given(SEEDS)
def test_any_policy_gives_what_masked_keys_give(seed: int) -> None:
    driver, trace = checked(case := drawn(seed))
    if case.make_policy() is None:
        return
    assert driver.noting is not None
    log = Repeating(trace.decided, driver.noting.positions)  # decisions, replayed
    again = Driver(case, driver.model, checks=False, policy=log).drive()
    assert again.logits.keys() == trace.logits.keys()
    assert all(torch.equal(again.logits[step], logits) for step, logits in trace.logits.items())


@FEW
@given(SEEDS)
def test_planes_of_different_length_at_large_budgets(seed: int) -> None:
    checked(drawn(seed, RAGGED, (0.6, 0.65, 0.7, 0.75, 0.8)))


@FEW
@given(SEEDS)
def test_no_decision_uses_a_later_token(seed: int) -> None:
    case = drawn(seed)
    own = [length for batch in case.plan for n, length, _ in batch if n == 0]
    if any(stage == "forget" for batch in case.plan for _, _, stage in batch) or len(own) < 2:
        return
    model, known = model_of(case), sum(own[: len(own) // 2])
    one, other = (Driver(case, model, checks=False, late=late).drive() for late in (None, known))
    for place, kept in one.kept.items():
        assert place[0] != 100 or place[1] > known or torch.equal(kept, other.kept[place])
    for (n, step), logits in one.logits.items():
        if n == 0:
            assert torch.equal(logits, other.logits[n, step]) == (step < len(own) // 2)


@FEW
@given(SEEDS)
def test_a_row_of_a_batch_is_the_context_alone(seed: int) -> None:
    """The same tokens stay; the last bits of logits differ, since a product of matrices of other heights adds up in
    another order, and a number may be rounded to another code of a compression."""
    case = drawn(seed)
    model = model_of(case)
    batched, alone = (Driver(case, model, checks=False, only=only).drive() for only in (None, 0))
    assert alone.kept == {} or alone.kept.keys() == {place for place in batched.kept if place[0] == 100}
    if case.kivi is None:
        assert all(torch.equal(kept, batched.kept[place]) for place, kept in alone.kept.items())
        for step, logits in alone.logits.items():
            torch.testing.assert_close(logits, batched.logits[step], rtol=1e-4, atol=1e-5)


def test_keys_are_rounded_once_after_tokens_have_left() -> None:
    """A cut leaves 8 rounded keys of 32: the blocks that are rounded next are those that are packed."""
    knobs = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 64, "architecture": "llama"}
    plan = [[(0, 49, "prompt")], [(0, 15, "chunk")], [(0, 64, "prompt")], [(0, 1, "decode")]]

    def policy() -> StreamingLLM:
        return StreamingLLM(positions="true", budget_tokens=None, budget_ratio=0.7)

    _, trace = checked(Case(knobs, 16, policy, Kivi(2, 16, 16), plan, 0))
    assert trace.cuts > 1
    assert trace.fronts > 1
