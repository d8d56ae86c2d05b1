"""What a run that serves draws and keeps for judging."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from kvarena.framework.execution.contract import Segment
from kvarena.framework.footprint import Window
from kvarena.framework.metrics import RequestRecord
from kvarena.framework.quality import sampling
from kvarena.framework.quality.sampling import Draw, Drawn, Sampler, draw
from kvarena.framework.workloads.conversation import Conversation, Turn
from kvarena.framework.workloads.tokens import IdLog, TokenLog
from kvarena.policies.truncation.none import NoTruncation
from kvarena.policies.truncation.oldest_half import OldestHalf

VOCABULARY = 8
ROOMY = Window(1 << 20, None, NoTruncation())


class Chats:
    """Conversations of turns of ten new tokens and ten of a reply, after ``shared`` common ones."""

    name, barrier, symbolic = "chats", False, False

    def __init__(self, turns: Iterable[int], shared: int = 0, warmup: int = 0) -> None:
        self.turns, self.shared, self.warmup = list(turns), shared, warmup

    def __len__(self) -> int:
        return len(self.turns)

    def conversations(self) -> Iterable[Conversation]:
        turn = Turn(10, 10, prompt_ids=np.arange(10, dtype=np.int32))
        return [Conversation(i, float(i), (turn,) * count) for i, count in enumerate(self.turns)]

    def new_log(self, conversation: Conversation) -> TokenLog:
        return IdLog(np.full(self.shared, 7, np.int32))


def drawn(workload: Chats, share: float, seed: int = 0, window: Window = ROOMY, positions: int = 1 << 20) -> list[int]:
    return [one.conversation.id for one in draw(workload, share, seed, window, positions, 4 * VOCABULARY).drawn]


def test_a_larger_share_holds_a_smaller_one_and_another_seed_draws_others() -> None:
    chats = Chats([2] * 40)
    quarter, half = drawn(chats, 0.25), drawn(chats, 0.5)
    assert (len(quarter), len(half)) == (10, 20)
    assert half[:10] == quarter != list(range(10))
    assert set(quarter) != set(drawn(chats, 0.25, seed=1))
    assert sorted(drawn(chats, 1.0)) == list(range(40))


def test_at_least_one_conversation_is_drawn_rather_one_that_is_no_warm_up() -> None:
    assert len(drawn(Chats([1] * 9), 0.001)) == 1
    assert drawn(Chats([1] * 9, warmup=8), 0.001) == [8]
    assert len(drawn(Chats([1] * 9, warmup=9), 0.001)) == 1
    assert drawn(Chats([]), 1.0) == []


def test_turns_that_the_model_or_the_run_cannot_hold_are_not_drawn() -> None:
    chats = Chats([3, 1], shared=5)
    (one,) = [one for one in draw(chats, 1.0, 0, ROOMY, 50, 1).drawn if not one.conversation.id]
    assert (one.turns, one.output_tokens, one.opening.tolist()) == (2, 20, [7] * 5)
    assert draw(chats, 1.0, 0, ROOMY, 65, 1).tokens == 40
    assert draw(chats, 1.0, 0, Window(45, None, NoTruncation()), 65, 1).tokens == 30
    assert draw(chats, 1.0, 0, Window(45, None, OldestHalf()), 65, 1).tokens == 40
    assert drawn(chats, 1.0, positions=24) == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 4 * VOCABULARY * 35)
    found = draw(Chats([2, 2, 1]), 1.0, 0, ROOMY, 1000, 4 * VOCABULARY)
    assert found.tokens <= 35
    assert (len(found.drawn), found.too_large) == (2, 1)


def record(request: int, conversation: int, turn: int = 0, **known: object) -> RequestRecord:
    return RequestRecord(request, conversation, turn, 0.0, 3, 5 * turn, 0, 2, **known)  # type: ignore[arg-type]


def segment(request: int, sample: bool = True) -> Segment:
    return Segment(request, IdLog(), 0, 1, np.zeros(1, np.int32), sample=sample)


def sampler(tokens: int = 2, dtype: torch.dtype = torch.bfloat16) -> Sampler:
    turn = Turn(3, tokens, prompt_ids=np.zeros(3, np.int32))
    one = Drawn(Conversation(4, 0.0, (turn, turn)), np.zeros(0, np.int32), 1)
    return Sampler(Draw(0.5, (one,), 0), torch.zeros(1, VOCABULARY, dtype=dtype))


def test_only_what_was_drawn_is_kept_row_by_row() -> None:
    heard, served = sampler(), record(11, 4)
    for known in (record(10, 3), served, record(12, 4, turn=1)):
        heard.arrived(known)
    logits = torch.arange(6 * VOCABULARY).reshape(6, VOCABULARY).to(torch.bfloat16)
    heard.chose([segment(10), segment(11, sample=False), segment(12)], logits[:2])
    heard.chose([segment(9, sample=False), segment(10), segment(11)], logits[2:4])
    heard.chose([segment(11)], logits[4:5])
    assert heard.steps(4, 0) is None  # not served yet
    served.completion_s = 1.0
    steps = heard.steps(4, 0)
    assert steps is not None
    assert [step.position for step in steps] == [2, 3]
    assert torch.equal(torch.stack([step.logits for step in steps]), logits[3:5])
    assert heard.steps(4, 1) is None and heard.steps(3, 0) is None


def test_no_more_is_kept_than_there_is_room_for() -> None:
    heard, served = sampler(tokens=2), record(11, 4)
    heard.arrived(served)
    for _ in range(3):
        heard.chose([segment(11)], torch.ones(1, VOCABULARY))
    served.completion_s = 1.0
    steps = heard.steps(4, 0)
    assert steps is not None and len(steps) == 2


@pytest.mark.parametrize("known", [{"warmup": True}, {"status": "failed: too long"}])
def test_warm_up_and_failed_requests_are_not_judged(known: dict[str, object]) -> None:
    heard, served = sampler(), record(11, 4, completion_s=1.0, **known)
    heard.arrived(served)
    heard.chose([segment(11)], torch.ones(1, VOCABULARY))
    assert heard.steps(4, 0) is None
