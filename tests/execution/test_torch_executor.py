"""The executor's contract: what it writes, what it returns, what it refuses, and the costs it measures."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvarena.framework.execution.contract import Batch  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.framework.policy import Tier  # noqa: E402


@pytest.fixture
def llama(rig):
    return rig("llama", num_kv_heads=2)


def test_write_false_leaves_every_page_untouched(llama, segment):
    ids, table = llama.context(20)
    llama.executor.logits([segment(ids, table, 0, 20)])
    before = llama.executor.pool.clone()
    again = llama.executor.logits([segment(ids, table, 19, 20, write=False)])
    assert torch.equal(llama.executor.pool, before)
    torch.testing.assert_close(again[0], llama.expected(ids)[-1], rtol=1e-4, atol=2e-5)


def test_only_its_own_pages_are_written(llama, segment):
    ids, table = llama.context(10)  # 2 1/2 pages of 4
    llama.executor.logits([segment(ids, table, 0, 10)])
    written = llama.executor.pool.abs().sum(dim=(1, 2, 3, 5)) > 0  # [num_pages, page_size]
    expected = torch.zeros_like(written)
    expected[torch.from_numpy(table[:2]).long()] = True
    expected[int(table[2]), :2] = True
    assert torch.equal(written, expected)


def test_tokens_are_the_models_own_whatever_is_forced(llama, segment):
    ids, table = llama.context(12)
    best = int(llama.expected(ids)[-1].argmax())
    segments = [segment(ids, table, 0, 12, forced=(best + 1) % 97)]
    result = llama.executor.run(Batch(segments))
    assert result.tokens == [best]
    assert result.duration_s >= result.forward_s == llama.executor.forward_s > 0


def test_a_batch_without_samples_still_writes(llama, segment):
    ids, table = llama.context(12)
    assert llama.executor.run(Batch([segment(ids, table, 0, 11, sample=False)])).tokens == []
    torch.testing.assert_close(
        llama.executor.logits([segment(ids, table, 11, 12)])[0], llama.expected(ids)[-1], rtol=1e-4, atol=2e-5
    )


def test_an_empty_batch_is_a_no_op(llama):
    assert llama.executor.run(Batch([])).tokens == []


def test_executors_share_weights_and_leave_the_module_alone(llama):
    other = TorchExecutor(llama.model, 8, 4, decoupled=True)
    ids = llama.context(9)[0]
    weights = {w.data_ptr() for w in llama.model.module.parameters()}
    assert {w.data_ptr() for w in other._module.parameters()} <= weights
    assert llama.model.module.model.rotary_emb.inv_freq is not None
    assert llama.expected(ids).shape == (9, 97)


def test_dtype_converts_a_copy(llama, segment):
    half = TorchExecutor(llama.model, 8, 4, dtype="bfloat16")
    assert half.pool.dtype == torch.bfloat16
    assert half.shape.kv_bytes_per_token == llama.model.shape.kv_bytes_per_token // 2
    assert llama.model.module.dtype == torch.float32
    ids, table = llama.context(12)[0], np.arange(3, dtype=np.int32)
    logits = half.logits([segment(ids, table, 0, 12)])[0].float()
    assert (logits - llama.expected(ids)[-1]).abs().max() < 0.2


def test_large_layers_are_packed_without_changing_the_logits(rig, segment):
    from kvarena.framework.execution.host_tuning import PackedLinear

    r = rig("llama", hidden_size=64, intermediate_size=96, vocab_size=8192, num_layers=1)
    packed = [m for m in r.executor._module.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 1  # the LM head
    ids, table = r.context(30)
    torch.testing.assert_close(
        r.executor.logits([segment(ids, table, 0, 30)])[0], r.expected(ids)[-1], rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "at least 1 token"),
        ({"start": 250, "length": 12, "table": np.arange(80, dtype=np.int32)}, "exceeds the model's 256 positions"),
        ({"length": 13}, "cannot hold 13 tokens"),
        ({"table": np.array([0, 1, 96], dtype=np.int32)}, "the pool has 0 .. 95"),
    ],
)
def test_bad_segments_are_refused(llama, segment, change, message):
    ids = np.ones(300, dtype=np.int32)
    given = {"start": 0, "length": 12, "table": np.arange(3, dtype=np.int32)} | change
    bad = segment(ids, given["table"], given["start"], given["start"] + given["length"])
    with pytest.raises(ValueError, match=message):
        llama.executor.run(Batch([bad]))


def test_bad_arguments_are_refused(llama, segment):
    with pytest.raises(ValueError, match="0 pages"):
        TorchExecutor(llama.model, 0, 4)
    with pytest.raises(ValueError, match="threads is 0"):
        TorchExecutor(llama.model, 4, 4, threads=0)
    with pytest.raises(ValueError, match="takes .* bytes"):
        TorchExecutor(llama.model, 2**40, 4)
    with pytest.raises(ValueError, match=r"batch\.steps is 2"):
        llama.executor.run(Batch([segment([1], np.zeros(1, np.int32), 0, 1)], steps=2))


def test_positions_of_a_model_without_rotation_cannot_be_decoupled(rig):
    with pytest.raises(ValueError, match="OPTForCausalLM has none"):
        rig("opt", decoupled=True)


def test_a_model_with_unrotated_layers_cannot_be_decoupled(rig):
    with pytest.raises(ValueError, match="change the logits"):
        rig("smollm3", decoupled=True, num_kv_heads=2, config={"no_rope_layers": [1, 0, 1]})


def test_one_step_at_a_time(llama, segment):
    assert llama.executor.max_steps == 1
    assert llama.executor.duration_until(Batch([segment([1], np.zeros(1, np.int32), 0, 1)]), 0.0) == 1


class TestCosts:
    def test_recompute_grows_and_leaves_the_pool_alone(self, llama):
        before = llama.executor.pool.clone()
        costs = llama.executor.costs
        assert costs.recompute_s(0, 0) == 0.0
        assert 0 < costs.recompute_s(0, 16) <= costs.recompute_s(0, 128) <= costs.recompute_s(64, 192) < 10
        assert torch.equal(llama.executor.pool, before)

    def test_load_by_tier(self, llama):
        costs = llama.executor.costs
        assert costs.load_s(100, Tier.DEVICE) == 0.0
        assert 0 < costs.load_s(100, Tier.HOST) < costs.load_s(200, Tier.HOST)
        assert costs.load_s(100, Tier.DISK) == math.inf

    def test_measured_once(self, llama):
        costs = llama.executor.costs
        assert costs.recompute_s(0, 100) == costs.recompute_s(0, 100)
        assert llama.executor.costs is costs


def test_warming_up_leaves_the_pool_as_it_is(llama):
    executor = TorchExecutor(llama.model, 8, 4)
    executor.warm_up()
    assert not executor.pool.any()
