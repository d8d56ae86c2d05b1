"""Layers that use an earlier layer's K/V: as Hugging Face's own model with those K/V put in their place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvarena.framework.execution.contract import Batch  # noqa: E402
from kvarena.framework.execution.fingerprint import page_format  # noqa: E402
from kvarena.framework.execution.layer_probe import TorchLayerProbe  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402
from kvarena.policies.compression.kivi import Kivi  # noqa: E402
from kvarena.policies.compression.kvsharer import KVSharer  # noqa: E402

LLAMA = {"num_kv_heads": 2}
FULL, SLIDING = "full_attention", "sliding_attention"
CASES: dict[str, tuple[str, dict[str, Any], dict[int, int], bool]] = {
    "llama": ("llama", LLAMA, {1: 0}, False),
    "llama, decoupled": ("llama", LLAMA, {1: 0}, True),
    "llama, two": ("llama", LLAMA, {2: 0, 1: 0}, False),
    "llama, last": ("llama", LLAMA, {2: 1}, True),
    "qwen3": ("qwen3", {"num_kv_heads": 2, "head_dim": 16}, {2: 0}, False),
    "opt": ("opt", {}, {1: 0}, False),
    "mistral": ("mistral", LLAMA | {"config": {"sliding_window": 10}}, {2: 1}, False),
    "phi3": ("phi3", LLAMA, {1: 0}, False),  # Q, K and V in one matrix
    "gemma3": (
        *("gemma3_text", {"num_kv_heads": 2, "head_dim": 16, "config": {"layer_types": [SLIDING, FULL, SLIDING]}}),
        *({2: 0}, True),
    ),
}
CASES["gemma3"][1]["config"]["sliding_window"] = 10


class Reference:
    """Hugging Face's model, eager attention, in which layers get the K/V projections of others by hooks."""

    def __init__(self, module: Any, sharing: Mapping[int, int]) -> None:
        self.module = copy.deepcopy(module)
        self.module.set_attn_implementation("eager")
        self.kept: dict[tuple[int, str], Any] = {}
        for attention in self.module.modules():
            layer = getattr(attention, "layer_idx", None)
            for name in self._names(attention) if layer is not None else ():
                self._hook(getattr(attention, name), layer, sharing.get(layer, layer), name, attention)

    @staticmethod
    def _names(attention: Any) -> list[str]:
        """What K and V are the last to pass before they are rotated."""
        if hasattr(attention, "qkv_proj"):
            return ["qkv_proj"]
        return ["k_norm" if hasattr(attention, "k_norm") else "k_proj", "v_proj"] * hasattr(attention, "k_proj")

    def _hook(self, projection: Any, layer: int, source: int, name: str, attention: Any) -> None:
        def replace(module: Any, given: Any, out: Any) -> Any:
            queries = attention.config.num_attention_heads * attention.head_dim if name == "qkv_proj" else 0
            if source == layer:
                self.kept[layer, name] = out[..., queries:]
                return out
            return torch.cat((out[..., :queries], self.kept[source, name]), dim=-1)

        projection.register_forward_hook(replace)

    def logits(self, ids: Sequence[int]) -> Any:
        with torch.inference_mode():
            return self.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def hidden(self, ids: np.ndarray) -> Any:
        with torch.inference_mode():
            return self.module.get_decoder()(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.fixture(params=CASES)
def shared(request: Any, rig: Any) -> Iterator[tuple[Any, Reference]]:
    architecture, knobs, sharing, decoupled = CASES[request.param]
    made = rig(architecture, **knobs)
    made.executor = TorchExecutor(made.model, 96, 4, decoupled=decoupled, sharing=sharing)
    yield made, Reference(made.model.module, sharing)


def test_prefill_chunks_and_decode(shared: Any, segment: Any) -> None:
    rig, reference = shared
    ids, table = rig.context(40)
    expected = reference.logits(ids)
    assert (rig.expected(ids)[-1] - expected[-1]).abs().max() > 0.1, "sharing changes nothing here"
    for start, stop in [(0, 5), (5, 6), (6, 19), (19, 33), *((i, i + 1) for i in range(33, 40))]:
        close(rig.executor.logits([segment(ids, table, start, stop)])[0], expected[stop - 1])
    close(rig.executor.logits([segment(ids, rig.table(40), 0, 40)])[0], expected[-1])


def test_ragged_batches(shared: Any, segment: Any) -> None:
    rig, reference = shared
    (a, ta), (b, tb), (c, tc) = rig.context(40), rig.context(23), rig.context(31)
    ea, eb, ec = (reference.logits(ids) for ids in (a, b, c))
    run = rig.executor.logits
    close(
        run([segment(a, ta, 0, 30), segment(b, tb, 0, 9, sample=False), segment(c, tc, 0, 1)]),
        torch.stack([ea[29], ec[0]]),
    )
    close(
        run([segment(c, tc, 1, 30), segment(a, ta, 30, 31), segment(b, tb, 9, 23)]),
        torch.stack([ec[29], ea[30], eb[22]]),
    )
    close(run([segment(a, ta, 31, 32), segment(c, tc, 30, 31)]), torch.stack([ea[31], ec[30]]))


def test_the_pages_hold_the_other_layers_only(shared: Any) -> None:
    rig, _ = shared
    executor, whole = rig.executor, rig.model.shape
    assert executor.pool.shape[1] == executor.shape.stored_layers < whole.num_layers
    assert executor.pool.numel() * executor.pool.element_size() == 96 * 4 * executor.shape.kv_bytes_per_token
    assert executor.shape.kv_bytes_per_token * 3 == whole.kv_bytes_per_token * executor.shape.stored_layers


@pytest.mark.parametrize("decoupled", [False, True])
def test_an_empty_map_is_the_model_itself_to_the_last_bit(rig: Any, segment: Any, decoupled: bool) -> None:
    plain = rig("llama", decoupled, **LLAMA)
    sharing = KVSharer(layer_map={}).sharing(3)
    other = TorchExecutor(plain.model, 96, 4, decoupled=decoupled, sharing=sharing)
    ids, table = plain.context(30)
    for start, stop in [(0, 20), (20, 29), (29, 30)]:
        part = [segment(ids, table, start, stop)]
        assert torch.equal(plain.executor.logits(part), other.logits(part))
    assert torch.equal(plain.executor.pool, other.pool)


def test_k_and_v_of_a_layer_that_shares_are_not_computed(rig: Any, segment: Any) -> None:
    plain = rig("llama", **LLAMA)
    ids, table = plain.context(12)
    expected = TorchExecutor(plain.model, 96, 4, sharing={1: 0}).logits([segment(ids, table, 0, 12)])
    attention = plain.model.module.model.layers[1].self_attn
    attention.k_proj.weight.fill_(float("nan"))
    attention.v_proj.weight.fill_(float("nan"))
    assert torch.equal(TorchExecutor(plain.model, 96, 4, sharing={1: 0}).logits([segment(ids, table, 0, 12)]), expected)
    assert type(attention.k_proj) is torch.nn.Linear  # the model's own is left alone


def test_a_listener_hears_of_every_layer_of_the_model(rig: Any, segment: Any) -> None:
    class Heard:
        layers: list[int] = []  # noqa: RUF012

        def attended(self, layer: int, *others: Any) -> None:
            self.layers.append(layer)

        def chose(self, *others: Any) -> None: ...

    plain = rig("llama", **LLAMA)
    executor = TorchExecutor(plain.model, 96, 4, sharing={1: 0})
    executor.listener = Heard()
    executor.run(Batch([segment(*plain.context(9), 0, 9)]))
    assert Heard.layers == [0, 1, 2]


def test_pages_of_other_maps_are_of_another_format(rig: Any) -> None:
    plain = rig("llama", **LLAMA)
    maps: list[dict[int, int]] = [{}, {1: 0}, {2: 0}, {2: 1}]
    shapes = [TorchExecutor(plain.model, 4, 4, sharing=sharing).shape for sharing in maps]
    found = [
        page_format(plain.model.module, shape, 4, "float32", True, sharing)
        for shape, sharing in zip(shapes, maps, strict=True)
    ]
    assert len(set(found)) == 4
    assert found[0] == page_format(plain.model.module, plain.model.shape, 4, "float32", True)


def test_what_cannot_share_is_refused(rig: Any) -> None:
    mixed = rig("gemma3_text", num_kv_heads=2, head_dim=16, config=CASES["gemma3"][1]["config"]).model
    with pytest.raises(ValueError, match="layer 1 looks back over the whole context and layer 0 10 tokens"):
        TorchExecutor(mixed, 4, 4, sharing={1: 0})
    plain = rig("llama", **LLAMA).model
    with pytest.raises(ValueError, match="3: 0, expected layers of the model: 0 to 2"):
        TorchExecutor(plain, 4, 4, sharing={3: 0})
    with pytest.raises(ValueError, match="compression is 'kivi', but layers share K/V"):
        TorchExecutor(plain, 4, 4, sharing={1: 0}, compression=Kivi())


class TestProbe:
    IDS = np.random.default_rng(0).integers(0, 97, (3, 17))

    @pytest.mark.parametrize("case", ["llama, two", "qwen3", "mistral", "opt", "phi3", "gemma3"])
    def test_hidden_states_are_those_of_the_model(self, rig: Any, case: str) -> None:
        architecture, knobs, sharing, _ = CASES[case]
        model = rig(architecture, **knobs).model
        probe = TorchLayerProbe(model)
        for pairs in ({}, sharing):
            close(torch.from_numpy(probe.last_hidden(self.IDS, pairs)), Reference(model.module, pairs).hidden(self.IDS))

    def test_the_mean_cache_is_that_of_the_model(self, rig: Any) -> None:
        model = rig("llama", **LLAMA).model
        found = TorchLayerProbe(model).mean_cache(self.IDS)
        with torch.inference_mode():
            cache = Reference(model.module, {}).module(input_ids=torch.from_numpy(self.IDS)).past_key_values
        for layer in range(3):
            for part, stored in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):  # [S, G, T, D]
                close(torch.from_numpy(found[layer, part]), stored.mean(dim=0).transpose(0, 1).flatten())

    def test_a_model_without_a_tokenizer_reads_no_text(self, rig: Any) -> None:
        with pytest.raises(ValueError, match="no tokenizer"):
            TorchLayerProbe(rig("llama").model).encode("text")


@pytest.mark.parametrize(("idle", "expected"), [(3, {3: 1}), (2, {2: 1})])
def test_the_search_finds_the_pair_that_a_model_was_built_for(rig: Any, idle: int, expected: dict[int, int]) -> None:
    """Layers 1 and 3 have large K/V, so that pairs with them are the most different; what ``idle`` attends to has no
    effect, so that it alone can share without harm."""
    model = rig("llama", num_layers=4, **LLAMA).model
    for layer, size in enumerate([1.0, 3.0, 1.0, 3.0]):
        attention = model.module.model.layers[layer].self_attn
        attention.k_proj.weight.mul_(size)
        attention.v_proj.weight.mul_(size)
    model.module.model.layers[idle].self_attn.o_proj.weight.zero_()
    for wanted in (1, 3):
        policy = KVSharer(shared_layers=wanted, similarity=0.99, sequences=4, tokens=24)
        assert policy.sharing(4, TorchLayerProbe(model)) == expected
