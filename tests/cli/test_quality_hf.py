"""``task=quality`` on a folder that Hugging Face's ``save_pretrained`` wrote, with a tokenizer that adds BOS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from kvarena.framework.quality.text import EXCERPT

pytestmark = pytest.mark.e2e
Run = Callable[..., tuple[int, str, str]]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "initializer_range": 0.3,
}  # fmt: skip
GIVEN = ("task=quality", "model=hf", "tracking=none", "memory.device_tokens=8192")


def tokenizer() -> Any:
    """Byte-level BPE of 400 ids, trained on the excerpt; a text begins with <s>."""
    from transformers import PreTrainedTokenizerFast  # here: it takes seconds, and the fast tests read this file too

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([EXCERPT.read_text()], trainer)
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>")


def save(folder: Path, module: Any, ends: int | list[int]) -> None:
    from transformers import GenerationConfig

    module.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=ends)
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its replies end at once: what is likeliest anywhere, or half of all ids, ends one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = tmp_path_factory.mktemp("hf") / "llama"
    torch.manual_seed(0)
    save(folder, LlamaForCausalLM(LlamaConfig(vocab_size=400, **SIZES)), list(range(1, 400, 2)))
    return folder


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sliding window."""
    from transformers import MistralConfig, MistralForCausalLM

    folder: Path = tmp_path_factory.mktemp("hf") / "mistral"
    save(folder, MistralForCausalLM(MistralConfig(vocab_size=400, sliding_window=64, **SIZES)), 1)
    return folder


def longbench(path: Path, **given: Any) -> str:
    """A file of three rows as LongBench publishes them."""
    text = EXCERPT.read_text()
    known = {
        "input": "Who is the captain?",
        "answers": ["Ahab"],
        "length": 100,
        "dataset": "hotpotqa",
        "language": "en",
    }
    rows = [
        {**known, "context": text[600 * i : 600 * (i + 1)], "all_classes": None, "_id": str(i), **given}
        for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def results(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (run,) = (tmp_path / "runs/default").iterdir()
    return json.loads((run / "summary.json").read_text()), pq.read_table(run / "quality.parquet").to_pylist()


def test_a_saved_model_is_asked_sentences_text_and_files(kvarena: Run, tmp_path: Path, llama: Path) -> None:
    given = ("task.episodes=1", "task.lengths=[400]", "task.tasks=[passkey,multi_turn,perplexity]", "system=h2o")
    file = longbench(tmp_path / "hotpotqa.jsonl")
    status, out, err = kvarena(*GIVEN, *given, f"model.path={llama}", f"task.files=[{file}]", "task.answer_tokens=24")
    assert status == 0, err
    summary, rows = results(tmp_path)
    (point,) = summary["quality"]["points"]
    assert list(point["tasks"]) == ["passkey", "multi_turn", "perplexity", "hotpotqa"]
    told = {task: figures["metric"] for task, figures in point["tasks"].items()}
    assert told == {"passkey": None, "multi_turn": None, "perplexity": None, "hotpotqa": "F1"}
    assert point["tasks"]["hotpotqa"]["accuracy"]["n"] == 3
    assert point["tasks"]["perplexity"]["bits_per_byte"]["mean"] > 0
    assert "F1" in out
    replies: dict[int, list[int]] = {}
    for row in rows:
        if row["task"] == "hotpotqa":
            replies.setdefault(row["episode"], []).append(row["token"])
    for reply in replies.values():  # what follows the end of a reply is not in the rows
        assert not any(token % 2 for token in reply[:-1])
        assert reply[-1] % 2 or len(reply) == 24
    assert min(map(len, replies.values())) < 24


def test_what_the_model_cannot_do_is_said_before_anything_runs(
    kvarena: Run, tmp_path: Path, llama: Path, mistral: Path
) -> None:
    long = longbench(tmp_path / "long.jsonl", context="so " * 2000)
    for words, given in (
        ("layers with a window of 64 tokens", ("system=h2o", f"model.path={mistral}")),
        ("task.file_tokens=", (f"task.files=[{long}]", f"model.path={llama}")),
    ):
        status, out, err = kvarena(*GIVEN, *given)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]
