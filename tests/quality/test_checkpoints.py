"""The checkpoints that come with the package: what they score, what their cards say, and how they are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from kvarena.framework.execution.model_knobs import (
    CHECKPOINTS,
    RandomModel,
    ShippedModel,
    model_knobs,
    shipped_checkpoints,
)
from kvarena.framework.execution.models import architecture_config, load_model
from kvarena.framework.execution.shapes import model_shape
from kvarena.framework.execution.trainee import PlainModel
from kvarena.framework.quality import train_bytes, train_recall
from kvarena.framework.quality.episodes import PROTOCOLS, TASKS, Episode, episode
from kvarena.framework.quality.text import EXCERPT
from kvarena.framework.quality.train import read_card
from kvarena.framework.schema import ConfigError

CONF = Path(__file__).parents[2] / "conf/model"
NAMES = ("bytes", "recall")
MODELS = {"bytes": train_bytes.MODEL, "recall": train_recall.MODEL}
STEPS = {
    "bytes": train_bytes.STEPS,
    "recall": sum(stage.steps for stage in train_recall.STAGES),
}
BITS_PER_BYTE = 2.6  # at most, on the excerpt


def option(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


@pytest.fixture(scope="module")
def recall() -> PlainModel:
    return PlainModel.load(CHECKPOINTS / "recall")


def test_both_come_with_the_package() -> None:
    assert shipped_checkpoints() == NAMES
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) < 5 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_config_and_the_script_say(name: str) -> None:
    folder = CHECKPOINTS / name
    card, config = read_card(folder), json.loads((folder / "config.json").read_text())
    model = RandomModel(**card["model"])
    assert model == MODELS[name]
    assert card["steps"] == STEPS[name]
    assert card["script"] == f"kvarena.framework.quality.train_{name}"
    wanted = architecture_config(model).to_dict() | {"dtype": model.dtype, "architectures": ["LlamaForCausalLM"]}
    assert {k: v for k, v in config.items() if k != "transformers_version"} == {
        k: wanted[k] for k in config if k != "transformers_version"
    }
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {
        f"torch.{model.dtype}"
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_full_cache_answers_held_out_episodes(recall: PlainModel, task: str) -> None:
    counts = {64: 64, 200: 48, 512: 16}
    right = [
        train_recall.accuracy(recall, task, length, PROTOCOLS[index % 2], count, first_seed=10**9) * count
        for index, (length, count) in enumerate(counts.items())
    ]
    assert sum(right) / sum(counts.values()) > 0.98


def test_without_the_evidence_nothing_is_answered(recall: PlainModel) -> None:
    rows = train_recall.batch([episode("multi_key", 128, seed) for seed in range(12)], "aware", 128)
    for row, seed in zip(rows.tokens, range(12), strict=True):
        row[list(episode("multi_key", 128, seed).questions[0].evidence)] = 16
    hit = recall.predicted(rows.tokens)[:, :-1] == rows.tokens[:, 1:]
    assert (hit | ~rows.wanted[:, 1:]).all(axis=1).mean() == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_the_evidence_is_enough_and_half_of_the_rest_is_not(recall: PlainModel, task: str) -> None:
    """What a cache keeps is what matters: with the evidence (and the token after it, where the model has noted the last
    value) and nothing else of the context the questions are answered; with half of the rest alone they are not."""
    drawn = [episode(task, 256, 10**9 + seed) for seed in range(10)]
    kept = [{near for asked in one.questions for at in asked.evidence for near in (at, at + 1)} for one in drawn]
    others = [set(range(0, len(one.context), 2)) - keep for one, keep in zip(drawn, kept, strict=True)]
    assert sum(answered(recall, one, keep) for one, keep in zip(drawn, kept, strict=True)) >= 9
    assert sum(answered(recall, one, keep) for one, keep in zip(drawn, others, strict=True)) == 0


def answered(model: PlainModel, one: Episode, kept: set[int]) -> bool:
    """Whether all questions are answered that see only the tokens at ``kept`` of the context."""
    rows = train_recall.batch([one], "agnostic", 256)
    size = len(one.context)
    unseen = np.triu(np.ones((256, 256), np.bool_), 1)
    unseen[size:, [at for at in range(size) if at not in kept]] = True
    mask = torch.zeros(1, 1, 256, 256).masked_fill_(torch.from_numpy(unseen), float("-inf"))
    with torch.inference_mode():
        found = model.module(input_ids=torch.from_numpy(rows.tokens), attention_mask=mask, use_cache=False).logits
    hit = found.argmax(-1).numpy()[:, :-1] == rows.tokens[:, 1:]
    return bool((hit | ~rows.wanted[:, 1:])[:, size:].all())


def test_the_card_of_the_recall_model_holds_what_was_promised() -> None:
    card = read_card(CHECKPOINTS / "recall")
    found = {
        (protocol, task, length): score
        for protocol, tasks in card["scores"].items()
        for task, lengths in tasks.items()
        for length, score in lengths.items()
    }
    assert len(found) == len(PROTOCOLS) * len(TASKS) * len(train_recall.LENGTHS)
    assert min(score for (_, task, _), score in found.items() if task in ("passkey", "multi_key", "associative")) > 0.98
    assert min(found.values()) >= 0.95
    assert max(train_recall.LENGTHS) == card["context"] == card["model"]["max_positions"]


def test_the_byte_model_knows_the_book_it_has_not_seen() -> None:
    excerpt = EXCERPT.read_bytes()
    assert 24 * 1024 < len(excerpt) < 33 * 1024
    assert b"Gutenberg" not in excerpt
    model, card = PlainModel.load(CHECKPOINTS / "bytes"), read_card(CHECKPOINTS / "bytes")
    assert train_bytes.bits_per_byte(model, excerpt[:8192]) < BITS_PER_BYTE
    assert max(card["scores"]["bits_per_byte"], card["scores"]["excerpt_bits_per_byte"]) < BITS_PER_BYTE
    near, _, far = card["scores"]["bits_per_byte_by_position"].values()
    assert far < near  # the context helps


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_loads_by_its_name_and_its_shape_is_known_without(name: str) -> None:
    loaded, shape = load_model(option(name)), model_shape(option(name))
    assert loaded.shape.name == shape.name == name
    assert loaded.shape.num_params == pytest.approx(
        shape.num_params, rel=0.01
    )  # the preset leaves norms and biases out
    assert replace(loaded.shape, num_params=0) == replace(shape, num_params=0)
    assert loaded.eos_token_ids == ()
    assert shape.max_positions == 512


def test_the_byte_models_tokens_are_bytes() -> None:
    tokenizer = load_model(option("bytes")).tokenizer
    assert tokenizer is not None
    for text in ("Call me Ishmael.", "“quoted”\n\n é \t two  spaces ", "\x00\x7f"):
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
    assert load_model(option("recall")).tokenizer is None  # its tokens are no text


def test_half_precision_is_a_knob() -> None:
    assert load_model(option("recall") | {"dtype": "float16"}).shape.dtype_bytes == 2
    assert load_model(option("bytes") | {"dtype": None}).shape.dtype_bytes == 2  # as it was saved


def test_an_unknown_checkpoint_is_one_clear_line() -> None:
    known = "model=mine: checkpoint is 'recal', expected one of bytes, recall; did you mean 'recall'?"
    with pytest.raises(ConfigError, match="^" + known.replace("?", r"\?") + "$"):
        model_knobs({"name": "mine", "kind": "shipped", "checkpoint": "recal"})
    with pytest.raises(ConfigError, match="unknown knob 'path'"):
        model_knobs({"name": "mine", "kind": "shipped", "path": "x"})
    with pytest.raises(ConfigError, match="expected 'random', 'hf' or 'shipped'"):
        model_knobs({"name": "mine", "kind": "shape"})
    assert isinstance(model_knobs(option("recall")), ShippedModel)
