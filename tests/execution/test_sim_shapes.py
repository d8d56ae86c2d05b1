"""Shape presets against published parameter counts and K/V sizes."""

from importlib.resources import files

import pytest
from omegaconf import OmegaConf

from kvarena.framework.execution.shapes import ShapePreset, model_shape
from kvarena.framework.schema import ConfigError

# Parameters of the released checkpoints.
PUBLISHED_PARAMS = {
    "opt-13b": 12_853_473_280,
    "opt-66b": 65.7e9,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-3-8b": 8_190_735_360,
    "falcon-40b": 41.3e9,
}
# CachedAttention (2.5 MB, 0.78 MB, 0.31 MB, 0.12 MB) and Pensieve, in KiB per token.
PUBLISHED_KV_KIB = {
    "llama-1-65b": 2560,
    "llama-2-13b": 800,
    "llama-2-70b": 320,
    "falcon-40b": 120,
    "opt-13b": 800,
    "opt-66b": 2304,
    "llama-2-13b-gqa10": 200,
}


def preset(name):
    return OmegaConf.to_container(OmegaConf.load(str(files("kvarena.conf") / "model" / f"{name}.yaml")))


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_parameters_match_the_published_count_within_a_tenth_of_a_percent(name):
    shape = model_shape(preset(name))
    assert shape.name == name
    assert shape.num_params == pytest.approx(PUBLISHED_PARAMS[name], rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED_KV_KIB)
def test_kv_bytes_match_the_papers(name):
    assert model_shape(preset(name)).kv_bytes_per_token == PUBLISHED_KV_KIB[name] * 1024


@pytest.mark.parametrize(
    ("name", "params", "kv_kib"), [("tiny", 4 * (2 * 256 * 384 + 3 * 256 * 1024), 4), ("peers", 0, 16)]
)
def test_the_random_models_have_shapes_too(name, params, kv_kib):
    knobs = preset(name)
    shape = model_shape(knobs)
    assert shape.name == name and shape.dtype_bytes == 4
    assert shape.embedding_params == knobs["vocab_size"] * knobs["hidden_size"]
    assert shape.kv_bytes_per_token == kv_kib * 1024
    assert not params or shape.num_params == params + 2 * shape.embedding_params


def test_a_random_opt_has_learned_positions_and_no_gate():
    knobs = preset("tiny") | {"architecture": "opt", "tied_embeddings": True, "num_kv_heads": None, "head_dim": None}
    shape = model_shape(knobs)
    assert shape.embedding_params == (8192 + 2) * 256
    assert shape.num_params == 4 * (4 * 256**2 + 2 * 256 * 1024) + (2048 + 8194) * 256
    assert (shape.num_kv_heads, shape.head_dim) == (8, 32)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (preset("tiny") | {"architecture": "gemma3_text"}, "model=tiny: .*gemma3_text"),
        (preset("tiny") | {"config": {"sliding_window": 64}}, "model=tiny: .*sliding_window"),
        (preset("hf"), "model=hf: the simulated backend cannot tell its shape"),
        (preset("tiny") | {"kind": "other"}, "kind is 'other'"),
    ],
)
def test_models_of_unknown_shape_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        model_shape(knobs)


def test_fewer_kv_heads_only_shrink_the_kv_projections():
    full, grouped = model_shape(preset("llama-2-13b")), model_shape(preset("llama-2-13b-gqa10"))
    assert full.num_params - grouped.num_params == 40 * 2 * 5120 * 30 * 128
    assert full.kv_bytes_per_token == 4 * grouped.kv_bytes_per_token


@pytest.mark.parametrize("name", [*PUBLISHED_PARAMS, "llama-2-13b-gqa10"])
def test_every_preset_lists_every_knob(name):
    assert set(preset(name)) == set(ShapePreset.__dataclass_fields__)


def test_tied_embeddings_are_multiplied_and_untied_ones_only_looked_up():
    knobs = preset("llama-2-7b")
    untied, tied = model_shape(knobs), model_shape(knobs | {"tied_embeddings": True})
    assert untied.embedding_params == 32000 * 4096 and tied.embedding_params == 0
    assert untied.num_params - tied.num_params == 32000 * 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be >= 1"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=32"),
        ({"hidden_sise": 1}, "unknown knob 'hidden_sise'"),
        ({"dtype": "float63"}, "float63"),
    ],
)
def test_bad_knobs_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        model_shape(preset("llama-2-7b") | change)
