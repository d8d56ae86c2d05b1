"""What the torch executor refuses, remembers and tells where tokens leave contexts, and the moves that it makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from kvarena.framework.execution.contract import Batch, Narrowing, Segment  # noqa: E402
from kvarena.framework.execution.lossy.compacting import compact  # noqa: E402
from kvarena.framework.execution.lossy.contexts import ContextMemory  # noqa: E402
from kvarena.framework.execution.lossy.rows import PoolRows  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.framework.policy import Needs, TokenTruncation  # noqa: E402
from kvarena.framework.workloads.tokens import IdLog  # noqa: E402


class Scripted(TokenTruncation):
    """Keeps what the test says, and shows it the view."""

    name = "scripted"

    def __init__(self, keep: Any = lambda view: None, positions: Any = "true", needs: Needs | None = None) -> None:
        self._keep, self.positions, self._needs = keep, positions, needs or Needs()

    @property
    def needs(self) -> Needs:
        return self._needs

    def keep(self, view: Any) -> Tensor | None:
        return self._keep(view)

    def kept_tokens(self, cached_tokens: int, tokens: int, stage: Any) -> float:
        return cached_tokens


def last(count: int) -> Any:
    return lambda view: view.positions >= view.tokens - count


def model(rig: Any, architecture: str = "llama", **knobs: Any) -> Any:
    return rig(architecture, **({"num_kv_heads": 2} | knobs)).model


def executor(rig: Any, policy: Any, **options: Any) -> TorchExecutor:
    return TorchExecutor(model(rig), 32, 4, truncation=policy, **options)


IDS = np.random.default_rng(0).integers(1, 97, 60).astype(np.int32)


def segment(start: int, length: int, tokens: int, context: int = 1, stage: Any = "prompt") -> Segment:
    log = IdLog(IDS[tokens - length - start :])  # in slots
    narrowing = Narrowing(context, 10 * context, stage, tokens)
    return Segment(0, log, start, length, np.arange(32, dtype=np.int32), sample=True, narrowing=narrowing)


def run(target: TorchExecutor, *segments: Segment) -> dict[int, int]:
    return dict(target.run(Batch(list(segments))).slots)


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "decoupled", "message"),
    [
        ("cache", False, r"positions=cache, which needs backend.decoupled=true \(found false\)"),
        ("true", True, r"positions=true, which needs backend.decoupled=false \(found true\)"),
    ],
)
def test_positions_and_decoupling_must_agree(rig: Any, positions: str, decoupled: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        executor(rig, Scripted(positions=positions), decoupled=decoupled)


def test_cache_positions_need_a_rotary_embedding(rig: Any) -> None:
    policy = Scripted(positions="cache")
    with pytest.raises(ValueError, match="need a model with one rotary embedding; OPTForCausalLM has none"):
        TorchExecutor(rig("opt").model, 32, 4, truncation=policy, decoupled=True)


def test_sliding_windows_are_refused_unless_they_hold_everything(rig: Any) -> None:
    narrow = model(rig, "mistral", config={"sliding_window": 20})
    with pytest.raises(ValueError, match="'test' has layers with a window of 20 tokens"):
        TorchExecutor(narrow, 32, 4, truncation=Scripted())
    TorchExecutor(narrow, 32, 4)
    TorchExecutor(model(rig, "mistral", config={"sliding_window": 256}), 32, 4, truncation=Scripted())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda view: view.positions, r"'scripted' keeps torch.int64 \[3, 2, 9\], expected torch.bool \[3, 2, 9\]"),
        (lambda view: view.positions[0] >= 0, r"keeps torch.bool \[2, 9\], expected torch.bool \[3, 2, 9\]"),
        (lambda view: view.positions < 0, "keeps no token of some plane, expected at least 1 in each"),
    ],
    ids=["dtype", "shape", "empty"],
)
def test_bad_masks(rig: Any, keep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(executor(rig, Scripted(keep)), segment(0, 9, 9))


@pytest.mark.parametrize("name", ["column_sums", "rows"])
def test_attention_that_was_not_asked_for(rig: Any, name: str) -> None:
    target = executor(rig, Scripted(lambda view: getattr(view, name)))
    with pytest.raises(ValueError, match="reads attention that it did not ask for"):
        run(target, segment(0, 9, 9))


def test_a_context_goes_on_where_it_ends(rig: Any) -> None:
    target = executor(rig, Scripted(last(4)))
    with pytest.raises(ValueError, match="context 1 of conversation 10 goes on at slot 3, but 0 of its"):
        run(target, segment(3, 9, 12))
    assert run(target, segment(0, 9, 9)) == {1: 4}
    with pytest.raises(ValueError, match="goes on at slot 9, but 4 of its slots are known"):
        run(target, segment(9, 1, 10))
    assert run(target, segment(4, 1, 10)) == {1: 4}


def test_logits_takes_no_narrowed_contexts(rig: Any) -> None:
    with pytest.raises(ValueError, match="takes no segments of narrowed contexts"):
        executor(rig, Scripted()).logits([segment(0, 9, 9)])


def test_true_positions_end_where_the_model_does(rig: Any) -> None:
    target = TorchExecutor(model(rig, max_positions=12), 32, 4, truncation=Scripted(last(4)))
    run(target, segment(0, 9, 9))
    run(target, segment(4, 3, 12))
    with pytest.raises(ValueError, match="a context of 13 tokens exceeds the model's 12 positions"):
        run(target, segment(4, 1, 13))


def test_cache_positions_go_on_forever(rig: Any) -> None:
    small, policy = model(rig, max_positions=12), Scripted(last(4), "cache")
    target = TorchExecutor(small, 32, 4, truncation=policy, decoupled=True)
    run(target, segment(0, 9, 9))
    for tokens in range(10, 40):
        assert run(target, segment(4, 1, tokens)) == {1: 4}
    with pytest.raises(ValueError, match="a context of 14 tokens exceeds the model's 12 positions"):
        run(target, segment(4, 10, 49))


# --- remembered ---------------------------------------------------------------------------------------------------


def test_forget(rig: Any) -> None:
    target = executor(rig, Scripted(last(4)))
    run(target, segment(0, 9, 9), segment(0, 7, 7, context=2))
    target.forget(1)
    target.forget(77)
    with pytest.raises(ValueError, match="but 0 of its slots are known"):
        run(target, segment(4, 1, 10))
    assert run(target, segment(4, 1, 8, context=2)) == {2: 4}
    assert run(target, segment(0, 9, 9)) == {1: 4}  # begun anew


def test_an_executor_without_lossy_policies_forgets_too(rig: Any) -> None:
    TorchExecutor(model(rig), 4, 4).forget(3)


def test_slots_are_told_only_where_some_were_let_go(rig: Any) -> None:
    keep = [None, None, last(4)]
    target = executor(rig, Scripted(lambda view: None if (k := keep.pop(0)) is None else k(view)))
    assert run(target, segment(0, 5, 5, stage="chunk")) == {}
    assert run(target, segment(5, 4, 9)) == {}
    assert run(target, segment(9, 1, 10)) == {1: 4}


def test_a_mask_that_keeps_all_lets_go_of_nothing(rig: Any) -> None:
    target = executor(rig, Scripted(lambda view: view.positions >= 0))
    assert run(target, segment(0, 5, 5)) == {}


def test_decoding_steps_are_not_watched_where_nobody_asks(rig: Any) -> None:
    found: list[Any] = []

    def keep(view: Any) -> None:
        try:
            found.append(view.column_sums.shape)
        except ValueError as error:
            found.append(str(error))

    target = executor(rig, Scripted(keep, needs=Needs(column_sums=True, decoding=False)))
    run(target, segment(0, 9, 9))
    run(target, segment(9, 1, 10, stage="decode"))
    assert found[0] == (3, 4, 9) and "did not ask for" in found[1]


# --- seen ---------------------------------------------------------------------------------------------------------


def test_keys_and_values_are_the_cached_ones(rig: Any) -> None:
    views: list[Any] = []

    def keep(view: Any) -> Tensor:
        views.append((view.positions, view.keys(), view.values()))
        return last(5)(view)

    target, plain = executor(rig, Scripted(keep)), TorchExecutor(model(rig), 32, 4)
    run(target, segment(0, 9, 9))
    run(target, segment(5, 1, 10))
    whole = segment(0, 10, 10)
    whole.narrowing = None
    plain.run(Batch([whole]))
    for positions, keys, values in views:
        for kind, seen in enumerate((keys, values)):
            exact = plain.pool[:, :, kind].permute(1, 2, 0, 3, 4).flatten(2, 3)  # [L, G, tokens, head_dim]
            exact = exact.gather(2, positions[..., None].expand_as(seen))
            if positions.shape[-1] == 9:
                torch.testing.assert_close(seen, exact)
            else:  # the newest token computed after the cut differs behind the first layer
                old = positions < 9
                torch.testing.assert_close(seen[old], exact[old])
                torch.testing.assert_close(seen[0], exact[0])


def test_grouping(rig: Any) -> None:
    found: dict[str, Any] = {}

    def keep(view: Any) -> None:
        found["per_head"] = view.column_sums
        found.update({how: view.grouped(view.column_sums, how) for how in ("mean", "max", "sum")})
        found["rows"] = (view.rows, view.grouped(view.rows, "max"))
        with pytest.raises(ValueError, match="grouping is 'least', expected mean, max or sum"):
            view.grouped(view.column_sums, "least")

    run(executor(rig, Scripted(keep, needs=Needs(True, 3))), segment(0, 9, 9))
    first, second = found["per_head"][:, 0::2], found["per_head"][:, 1::2]  # neighbouring heads share one
    torch.testing.assert_close(found["sum"], first + second)
    torch.testing.assert_close(found["mean"], (first + second) / 2)
    torch.testing.assert_close(found["max"], torch.maximum(first, second))
    rows, grouped = found["rows"]
    assert rows.shape == (3, 4, 3, 9)
    torch.testing.assert_close(grouped, torch.maximum(rows[:, 0::2], rows[:, 1::2]))


def test_the_future_is_what_later_queries_give_to_what_is_kept(rig: Any) -> None:
    full = torch.rand(3, 4, 20, 20).tril()
    seen: list[Any] = []

    def keep(view: Any) -> Tensor:
        seen.append((view.tokens, view.positions, view.future()))
        return last(6)(view)

    target = executor(rig, Scripted(keep))
    target.futures = lambda conversation: full if conversation == 10 else None
    run(target, segment(0, 9, 9))
    run(target, segment(6, 1, 10))
    for tokens, positions, future in seen:
        exact = full[:, :, tokens:].sum(2).gather(-1, positions.repeat_interleave(2, dim=1))
        torch.testing.assert_close(future, exact)
    with pytest.raises(ValueError, match="nobody knows the future of conversation 20: only a quality run does"):
        run(target, segment(0, 9, 9, context=2))


class Ear:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def attended(self, layer: int, segments: Any, query: Tensor, out: Tensor) -> None:
        self.heard.append((layer, len(segments), query.shape, out.clone()))

    def chose(self, segments: Any, logits: Tensor) -> None:
        self.heard.append(("chose", len(segments), logits.clone()))


def test_the_listener_hears_every_layer_and_the_logits(rig: Any) -> None:
    target = executor(rig, Scripted(last(4)))
    run(target, segment(0, 9, 9))
    target.listener = ear = Ear()
    ordinary = segment(0, 3, 3)
    ordinary.narrowing, ordinary.table = None, np.arange(20, 32, dtype=np.int32)
    tokens = target.run(Batch([segment(4, 1, 10), ordinary])).tokens
    assert [each[0] for each in ear.heard] == [0, 1, 2, "chose"]
    assert all(each[1] == 2 for each in ear.heard)
    assert all(each[2] == (4, 4, 8) == each[3].shape for each in ear.heard[:3])
    assert ear.heard[-1][2].argmax(-1).tolist() == tokens
    alone = executor(rig, None)
    alone.listener = other = Ear()
    alone.logits([ordinary])
    assert [each[0] for each in other.heard] == [0, 1, 2]
    torch.testing.assert_close(other.heard[2][3], ear.heard[2][3][1:], rtol=1e-5, atol=1e-6)


# --- moved --------------------------------------------------------------------------------------------------------


def filled_pool(pages: int = 5, page_size: int = 4) -> tuple[Tensor, Tensor]:
    """A pool [pages, 3, 2, 2, page_size, 6] of different numbers, and a table of four of its pages."""
    pool = torch.arange(pages * 3 * 2 * 2 * page_size * 6, dtype=torch.float32)
    return pool.view(pages, 3, 2, 2, page_size, 6), torch.tensor([3, 0, 4, 1], dtype=torch.int32)


def tokens_of(pool: Tensor, table: Tensor) -> Tensor:
    """[L, G, slots, 2, head_dim]."""
    return pool[table.long()].permute(1, 3, 0, 4, 2, 5).flatten(2, 3)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("kept", [1, 5, 8, 13])
def test_compacting(kept: int, ascending: bool) -> None:
    pool, table = filled_pool()
    before, untouched = tokens_of(pool, table), pool[2].clone()
    score = torch.rand(3, 2, 13, generator=torch.Generator().manual_seed(kept))
    keep = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, score.topk(kept).indices, True)
    rows = PoolRows.of(pool)
    columns = compact(rows, table, keep, kept, ascending)
    after = tokens_of(pool, table)
    torch.testing.assert_close(after[:, :, :kept], before.gather(2, columns[..., None, None].expand(-1, -1, -1, 2, 6)))
    assert torch.equal(columns.sort(dim=-1).values, keep.nonzero()[:, 2].view(3, 2, kept))
    assert torch.equal(pool[2], untouched) and torch.equal(after[:, :, kept:13], before[:, :, kept:13])
    if ascending:
        assert torch.equal(columns, columns.sort(dim=-1).values)
    else:  # who can stays
        stay = keep[:, :, :kept]
        assert torch.equal(columns[stay], torch.arange(kept).expand_as(columns)[stay])


def test_nothing_moves_that_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(PoolRows, "move", lambda self, moves: moved.append(moves.shape[1]))
    pool, table = filled_pool()
    keep = torch.ones(3, 2, 13, dtype=torch.bool)
    keep[..., 12] = False
    compact(PoolRows.of(pool), table, keep, 12, False)
    compact(PoolRows.of(pool), table, keep, 12, True)
    assert moved == []
    keep = torch.ones(3, 2, 13, dtype=torch.bool)
    keep[..., 10] = False
    compact(PoolRows.of(pool), table, keep, 12, False)
    compact(PoolRows.of(pool), table, keep, 12, True)
    assert moved == [6, 12]


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize(("first", "stop"), [(0, 13), (4, 13), (5, 6), (0, 16), (8, 8)])
def test_reading_slots(first: int, stop: int, layer: int | None) -> None:
    pool, table = filled_pool()
    exact = tokens_of(pool, table)[:, :, first:stop]
    exact = exact if layer is None else exact[layer]
    rows = PoolRows.of(pool)
    assert torch.equal(rows.read(table, first, stop, False, layer), exact[..., 0, :])
    assert torch.equal(rows.read(table, first, stop, True, layer), exact[..., 1, :])


def test_state_goes_with_its_tokens() -> None:
    memory = ContextMemory.empty(2, 2, torch.device("cpu"))
    memory.extend(5, 5)
    place = memory.positions.float()
    memory.state = {
        "plane": place.clone(),
        "head": place.repeat_interleave(2, dim=1).clone(),
        "deep": torch.stack((place, place + 100), dim=2),
        "flag": place % 2 == 1,
    }
    memory.extend(7, 2)
    assert memory.columns == 7 and torch.equal(memory.positions[1, 0], torch.arange(7))
    assert all(not held[..., 5:].any() for held in memory.state.values())
    columns = torch.tensor([[[6, 1, 3], [0, 1, 2]], [[4, 3, 2], [2, 2, 1]]])
    memory.take(columns)
    assert torch.equal(memory.positions, columns)
    kept = torch.where(columns < 5, columns, 0).float()
    assert torch.equal(memory.state["plane"], kept)
    assert torch.equal(memory.state["head"], kept.repeat_interleave(2, dim=1))
    assert torch.equal(memory.state["deep"][:, :, 0], kept)
    assert torch.equal(memory.state["deep"][:, :, 1], torch.where(columns < 5, columns + 100.0, 0.0))
    assert torch.equal(memory.state["flag"], kept % 2 == 1)
