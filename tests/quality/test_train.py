"""Training of the shipped models, at the size of a smoke test: it learns, repeats itself and survives interruptions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kvarena.framework.execution.lookup_start import start_lookup
from kvarena.framework.execution.model_knobs import RandomModel
from kvarena.framework.execution.trainee import PlainModel, Trainee
from kvarena.framework.quality import train_bytes, train_recall
from kvarena.framework.quality.episodes import episode
from kvarena.framework.quality.text import EXCERPT_BYTES, random_windows, read_book, windows
from kvarena.framework.quality.train import CARD, Batch, Schedule, train
from kvarena.framework.quality.vocabulary import VOCAB_SIZE

SMALL = replace(
    train_recall.MODEL, hidden_size=32, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16
)
STEPS = 12


def repeats(step: int) -> Batch:
    """Rows of 8 tokens and the same again."""
    ids = np.random.default_rng(step).integers(16, 256, (8, 8))
    return Batch(np.concatenate([ids, ids], axis=1), np.repeat([[False, True]], 8, axis=0).repeat(8, axis=1))


def weights(trainee: Trainee) -> list[torch.Tensor]:
    return list(trainee.module.state_dict().values())


def same(one: Trainee, other: Trainee) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def trained(folder: Path, seed: int, steps: int = STEPS) -> Trainee:
    trainee = Trainee(SMALL, seed, lookup=True)
    train(trainee, repeats, Schedule(steps, 3e-3, warmup=2), folder, "test")
    return trainee


def test_training_lowers_the_loss_and_repeats_itself(tmp_path: Path) -> None:
    batch = repeats(10**6)
    before = Trainee(SMALL, 0, lookup=True).step(batch.tokens, batch.wanted, 0.0)
    first, second = trained(tmp_path / "a", 0, 40), trained(tmp_path / "b", 0, 40)
    assert first.step(batch.tokens, batch.wanted, 0.0) < before - 0.1
    second.step(batch.tokens, batch.wanted, 0.0)
    assert same(first, second)


def test_seeds_matter(tmp_path: Path) -> None:
    assert not same(trained(tmp_path / "a", 0, 1), trained(tmp_path / "b", 1, 1))


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    def stopped(step: int) -> Batch:
        if step == 5:
            raise KeyboardInterrupt
        return repeats(step)

    schedule = Schedule(STEPS, 3e-3, warmup=2)
    whole = Trainee(SMALL, 0)
    train(whole, repeats, schedule, tmp_path / "whole", "test")
    with pytest.raises(KeyboardInterrupt):
        train(Trainee(SMALL, 0), stopped, schedule, tmp_path / "cut", "test", pause_every_s=0.0)
    resumed, seen = Trainee(SMALL, 99), []
    train(resumed, lambda step: seen.append(step) or repeats(step), schedule, tmp_path / "cut", "test")  # type: ignore[func-returns-value]
    assert seen == list(range(5, STEPS))
    assert same(resumed, whole)


def test_the_learning_rate_goes_up_stays_and_comes_down() -> None:
    rates = [Schedule(100, 1.0, warmup=10, cooling=0.4).rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert rates[99] == pytest.approx(0.025)
    assert rates[60:] == sorted(rates[60:], reverse=True)


def test_a_start_for_look_ups_looks_one_token_back() -> None:
    module = Trainee(train_recall.MODEL, 0, lookup=True).module
    module.set_attn_implementation("eager")
    ids = torch.from_numpy(repeats(0).tokens)
    with torch.inference_mode():
        back = module(ids, output_attentions=True).attentions[0]
    at = torch.arange(1, 16)
    assert float(back[:, :, at, at - 1].mean()) > 0.5


def test_a_start_for_look_ups_matches_a_token_with_what_followed_it() -> None:
    """Queries of a token fit the keys of what the first layer wrote of that token better than of others."""
    module = Trainee(train_recall.MODEL, 0, lookup=True).module
    first, second = (layer.self_attn for layer in module.get_decoder().layers[:2])
    tokens = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        values = first.v_proj(tokens).view(200, 2, 1, 32).expand(200, 2, 2, 32).flatten(1)
        keys = second.k_proj(first.o_proj(values)).view(200, 2, 1, 32).expand(200, 2, 2, 32).flatten(1)
        scores = second.q_proj(tokens) @ keys.T
    assert (scores.diag()[:, None] > scores).float().mean() > 0.9  # chance: a half


def test_a_start_for_look_ups_needs_biases_and_two_layers() -> None:
    with pytest.raises(ValueError, match="at least two layers with attention_bias"):
        start_lookup(Trainee(replace(SMALL, config={}), 0).module)
    with pytest.raises(ValueError, match="at least two layers"):
        Trainee(replace(SMALL, num_layers=1), 0, lookup=True)


def test_a_saved_model_answers_as_it_did(tmp_path: Path) -> None:
    trainee = trained(tmp_path, 0)
    trainee.save(tmp_path)
    tokens = repeats(1).tokens
    with trainee.judged() as model:
        bits = model.surprise_bits(tokens)
    loaded = PlainModel.load(tmp_path)
    assert np.array_equal(loaded.surprise_bits(tokens), bits)
    assert loaded.predicted(tokens).shape == tokens.shape
    assert bits.shape == (8, 15)
    assert not (tmp_path / "pytorch_model.bin").exists()


# --- the recall model's batches -----------------------------------------------------------------------------------


def test_batches_of_episodes_ask_for_the_replies_only() -> None:
    one = episode("copy", 64, 0)
    for protocol in ("aware", "agnostic"):
        rows = train_recall.batch([one], protocol, 64)
        assert rows.tokens.shape == rows.wanted.shape == (1, 64)
        replies = [token for turn in one.turns(protocol) for token in turn.answer]
        assert rows.tokens[rows.wanted].tolist() == replies


def test_batches_get_longer_and_depend_on_seed_and_step_only() -> None:
    total = sum(stage.steps for stage in train_recall.STAGES)
    lengths = [train_recall.draw(0, step).tokens.shape[1] for step in range(0, total, total // 12)]
    assert max(lengths) > 256
    assert max(lengths[:3]) <= 48
    assert all(length <= train_recall.CONTEXT for length in lengths)
    last, other = (train_recall.draw(seed, total - 1).tokens for seed in (0, 1))
    assert np.array_equal(last, train_recall.draw(0, total - 1).tokens)
    assert last.shape != other.shape or not np.array_equal(last, other)
    assert last.max() < VOCAB_SIZE


def test_accuracy_counts_whole_answers() -> None:
    class Copies(PlainModel):
        def __init__(self, wrong_at: int | None) -> None:
            self.wrong_at = wrong_at

        def predicted(self, tokens: np.ndarray) -> np.ndarray:
            right = np.roll(tokens, -1, axis=1)
            if self.wrong_at is not None:
                right[0, self.wrong_at] = 0
            return right

    at = len(episode("passkey", 64, 0).turns("aware")[0].prompt)  # the reply's second token is predicted here
    assert train_recall.accuracy(Copies(None), "passkey", 64, "aware", 4) == 1.0
    assert train_recall.accuracy(Copies(at), "passkey", 64, "aware", 4) == 0.75
    assert train_recall.accuracy(Copies(0), "passkey", 64, "aware", 4) == 1.0


# --- the byte model's text ----------------------------------------------------------------------------------------


def book(folder: Path, paragraphs: int = 4000) -> Path:
    body = "\r\n\r\n".join(f"Paragraph {number}: call me what you like." for number in range(paragraphs))
    path = folder / "book.txt"
    head, foot = "\ufeffHeader\r\n*** START OF THIS PROJECT X ***\r\n", "\r\n*** END OF THIS PROJECT X ***\r\nLicence"
    path.write_bytes((head + body + foot).encode())
    return path


def test_a_book_is_read_without_its_frame_and_its_end_is_held_out(tmp_path: Path) -> None:
    read = read_book(book(tmp_path))
    assert read.train.startswith(b"Paragraph 0:")
    assert read.held_out.endswith(b"Paragraph 3999: call me what you like.")
    assert b"\r" not in read.train + read.held_out
    assert 0.05 < len(read.held_out) / len(read.train) < 0.08
    assert read.excerpt.startswith(b"Paragraph 37")
    assert len(read.excerpt) <= EXCERPT_BYTES


def test_windows_are_stretches_of_the_text() -> None:
    text = bytes(range(256)) * 3
    assert windows(text, 100).shape == (7, 100)
    assert windows(text, 100)[1, 0] == 100
    some = random_windows(text, 50, 20, np.random.default_rng(0))
    assert some.shape == (20, 50)
    assert all((np.diff(row) % 256 == 1).all() for row in some)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"short", "has 5 bytes, expected")])
def test_a_bad_text_is_one_line_and_status_2(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert train_bytes.main(["--text", str(path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["bytes", "recall"])
def test_a_script_leaves_a_checkpoint_and_its_card(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(SMALL, dtype="float16" if name == "bytes" else "float32")
    for module in (train_bytes, train_recall):
        monkeypatch.setattr(module, "MODEL", small)
    monkeypatch.setattr(train_recall, "EPISODES", 1)
    monkeypatch.setattr(train_recall, "LENGTHS", (32,))
    out = tmp_path / "out"
    given = ["--out", str(out), "--steps", "2", "--threads", str(torch.get_num_threads()), "--seed", "7"]
    if name == "bytes":
        assert train_bytes.main([*given, "--text", str(book(tmp_path))]) == 0
    else:
        assert train_recall.main(given) == 0
    card = json.loads((out / CARD).read_text())
    assert (card["seed"], card["steps"]) == (7, 2)
    assert RandomModel(**card["model"]) == small
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", CARD}
    assert not (out / "paused").exists()
