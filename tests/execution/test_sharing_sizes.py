"""Layers that share K/V where nothing is computed: bytes, pages and times follow from the layers that store."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from omegaconf import OmegaConf

from kvarena.framework.execution.capacity import Room, device_pages, lower_pages
from kvarena.framework.execution.contract import ModelShape
from kvarena.framework.execution.cost import CostModel
from kvarena.framework.execution.hardware import Hardware
from kvarena.framework.execution.simulated import _late_s
from kvarena.framework.execution.transfers import Transfer
from kvarena.framework.memory.moves import Move
from kvarena.framework.policy import Tier
from kvarena.framework.schema import build
from kvarena.framework.sharing import native, shared_shape, simulated_sharing
from kvarena.policies.compression.kvsharer import KVSharer
from kvarena.policies.compression.none import NoCompression

WHOLE = ModelShape("toy", 4, 256, 4, 4, 64, 1000, 4_000_000, 256_000, 2, 8192)
HALF = shared_shape(WHOLE, {1: 0, 3: 2})
FILE = files("kvarena.conf") / "hardware" / "h100.yaml"
HARDWARE = build(Hardware, OmegaConf.to_container(OmegaConf.load(str(FILE))), "hardware=h100")


def test_a_token_takes_the_bytes_of_the_layers_that_store() -> None:
    assert HALF.stored_layers == 2
    assert HALF.kv_bytes_per_token * 2 == WHOLE.kv_bytes_per_token
    assert native(HALF) == WHOLE == shared_shape(WHOLE, {})


def test_the_same_memory_holds_more_tokens() -> None:
    assert device_pages(None, 16, 100, 16_000, 50) == 20
    assert device_pages(175, 16, 100, 16_000, 50) == 20  # 10 native pages
    assert device_pages(160, 16, 100, 16_000, 75) == 13
    assert lower_pages("host", 160, 16, 100, Room(0, 16_000), 50) == 20
    assert lower_pages("disk", None, 16, 100, Room(16_000), 50) == 20
    with pytest.raises(ValueError, match="at most 160 tokens fit"):  # of native K/V, as the knob counts
        device_pages(176, 16, 100, 16_000, 50)


def test_moves_are_cheaper_and_so_is_computing() -> None:
    whole, half = CostModel(WHOLE, HARDWARE, 16), CostModel(HALF, HARDWARE, 16)
    idle_s = HARDWARE.host_link_latency_s
    saved = (whole.load_s(1600, Tier.HOST) - idle_s) / (half.load_s(1600, Tier.HOST) - idle_s)
    assert saved == pytest.approx(2)
    assert 0.8 * whole.recompute_s(0, 500) < half.recompute_s(0, 500) < whole.recompute_s(0, 500)
    assert half.decode_s(8, 8000, 10) < whole.decode_s(8, 8000, 10)


def test_projections_of_half_the_layers_are_spared() -> None:
    """With as many K/V as query heads, K and V are half of the four square matrices of attention."""
    fast = replace(HARDWARE, layer_overhead_s=0.0, gemm_bandwidth_efficiency=1.0, memory_bytes_per_s=1e18)
    shape = replace(WHOLE, num_params=4 * 4 * 256 * 256 + 2 * 256_000)  # no MLP
    whole, half = (CostModel(each, fast)._model_s(1000) for each in (shape, shared_shape(shape, {1: 0, 3: 2})))
    assert half / whole == pytest.approx(3 / 4, rel=1e-3)


def test_a_layer_of_the_pages_is_waited_for_where_it_is_first_read() -> None:
    """Loads arrive at 1 and 4 s; each layer of the model computes for 1 s."""
    slots, keys = np.zeros(1, np.int32), np.zeros(1, np.int64)
    load = Transfer(Move(Tier.HOST, Tier.DEVICE, slots, slots, keys, keys, "swap-in"), 1, 2, 0.0)
    load.end_s, load.layer_ends_s = 4.0, [1.0, 4.0]
    assert [_late_s([load], 0.0, 1.0, np.array(needed)) for needed in ([0, 1], [0, 2], [0, 3])] == [3.0, 2.0, 1.0]


def test_the_policy_says_which() -> None:
    assert simulated_sharing(KVSharer(shared_layers=2), WHOLE) == {2: 1, 3: 1}
    assert simulated_sharing(NoCompression(), WHOLE) == {}
    with pytest.raises(ValueError, match="compression=kvsharer: layer_map has 4: 0, expected layers of the model"):
        simulated_sharing(KVSharer(layer_map={4: 0}), WHOLE)
