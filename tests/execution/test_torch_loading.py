"""Models from knobs, directories and the llama2.c checkpoint; what cannot run is refused in one line."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from kvarena.framework.execution.models import load_model  # noqa: E402
from kvarena.framework.execution.torch_executor import TorchExecutor  # noqa: E402

CONF = Path(__file__).parents[2] / "conf" / "model"
TINY = {
    "name": "test",
    "kind": "random",
    "architecture": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_positions": 128,
}


@pytest.fixture
def saved(tmp_path) -> Path:
    """A tiny model and a word tokenizer, as ``save_pretrained`` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    load_model(TINY, "cpu", seed=3).module.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"<s>": 0, "once": 5, "upon": 6, "<unk>": 7}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


class TestRandom:
    def test_the_seed_decides_the_weights(self):
        a, b, c = (load_model(TINY, "cpu", seed=s).module.state_dict() for s in (1, 1, 2))
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])

    def test_the_callers_random_state_is_kept(self):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        load_model(TINY, "cpu", seed=1)
        assert torch.equal(torch.rand(1), expected)

    def test_shape(self):
        shape = load_model(TINY, "cpu", seed=0).shape
        assert (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (2, 4, 2, 8)
        assert shape.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4
        layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32
        assert (shape.num_params, shape.embedding_params) == (2 * layer + 2 * 97 * 32 + 32, 97 * 32)
        assert (shape.name, shape.vocab_size, shape.max_positions, shape.dtype_bytes) == ("test", 97, 128, 4)

    def test_tied_embeddings_are_multiplied_too(self):
        shape = load_model(TINY | {"tied_embeddings": True}, "cpu", seed=0).shape
        assert shape.embedding_params == 0

    def test_no_tokenizer(self):
        assert load_model(TINY, "cpu", seed=0).tokenizer is None


@pytest.mark.parametrize(("name", "params", "kv_bytes"), [("tiny", 5.0e6, 4096), ("peers", 32e6, 16384)])
def test_presets(name, params, kv_bytes):
    shape = load_model(yaml.safe_load((CONF / f"{name}.yaml").read_text()), "cpu", seed=0).shape
    assert shape.name == name
    assert shape.num_params == pytest.approx(params, rel=0.01)
    assert shape.kv_bytes_per_token == kv_bytes
    assert shape.max_positions >= 4096


class TestDirectory:
    def test_weights_and_tokenizer(self, saved):
        loaded, original = load_model({"name": "hf", "kind": "hf", "path": str(saved)}), load_model(TINY, "cpu", seed=3)
        for key, weight in original.module.state_dict().items():
            assert torch.equal(loaded.module.state_dict()[key], weight), key
        assert loaded.tokenizer is not None
        assert loaded.tokenizer.encode("once upon once") == [5, 6, 5]  # no <s> before it
        assert loaded.shape.name == saved.name

    def test_it_runs(self, saved, segment):
        loaded = load_model({"name": "hf", "kind": "hf", "path": str(saved), "dtype": "float32"})
        logits = TorchExecutor(loaded, 4, 4).logits([segment([1, 2, 3], np.zeros(1, np.int32), 0, 3)])
        assert logits.shape == (1, 97)

    def test_dtype(self, saved):
        assert load_model({"name": "hf", "kind": "hf", "path": str(saved), "dtype": "bfloat16"}).shape.dtype_bytes == 2

    def test_without_a_tokenizer(self, saved):
        for file in saved.glob("tokenizer*"):
            file.unlink()
        assert load_model({"name": "hf", "kind": "hf", "path": str(saved)}).tokenizer is None


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class TestRefused:
    @pytest.mark.parametrize(
        ("knobs", "message"),
        [
            ({"kind": "hf"}, "model.path must be given"),
            ({"kind": "hf", "path": "/no/such/model"}, "'/no/such/model' does not exist"),
            ({"kind": "other"}, "'other', expected 'random', 'hf' or 'shipped'"),
            ({"kind": "random", "architecture": "lama"}, "'lama', which transformers does not know"),
            ({"kind": "random", "hiden_size": 3}, "unknown knob 'hiden_size'"),
            ({"kind": "random", "num_heads": 7}, "expected a multiple of num_heads = 7"),
            ({"kind": "random", "num_kv_heads": 3}, "expected a divisor of num_heads = 8"),
            ({"kind": "random", "config": {"sliding": 3}}, "'sliding', which LlamaConfig does not know"),
        ],
    )
    def test_knobs(self, knobs, message):
        with pytest.raises(ValueError) as error:
            load_model({"name": "test"} | knobs)
        assert message in one_line(error)

    def test_a_directory_without_weights(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError) as error:
            load_model({"name": "hf", "kind": "hf", "path": str(tmp_path)})
        assert "holds no weights" in one_line(error)

    def test_a_directory_without_config(self, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(ValueError) as error:
            load_model({"name": "hf", "kind": "hf", "path": str(tmp_path)})
        assert "no readable config" in one_line(error)

    def test_broken_weights(self, saved):
        (saved / "model.safetensors").write_bytes(b"\x00" * 100)
        with pytest.raises(ValueError) as error:
            load_model({"name": "hf", "kind": "hf", "path": str(saved)})
        assert "cannot be loaded" in one_line(error)

    def test_a_bad_device(self):
        with pytest.raises(ValueError) as error:
            load_model(TINY, "gpuu")
        assert "backend.device is 'gpuu'" in one_line(error)

    @pytest.mark.parametrize("architecture", ["falcon", "bloom", "gptj"])
    def test_models_without_the_attention_interface(self, architecture):
        with pytest.raises(ValueError) as error:
            load_model(TINY | {"name": architecture, "architecture": architecture})
        assert f"'{architecture}' does not use transformers' attention interface" in one_line(error)

    def test_rotary_scaling_that_depends_on_the_batch(self):
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        with pytest.raises(ValueError) as error:
            load_model(TINY | {"config": {"rope_parameters": rope}})
        assert "'dynamic' rotary scaling" in one_line(error)

    def test_attention_with_more_than_scores(self):
        with pytest.raises(ValueError) as error:
            load_model(TINY | {"architecture": "gpt_oss"})
        assert "does not implement" in one_line(error)


# --- a trained model ----------------------------------------------------------------------------------------------


def _stories_folder() -> Path:
    folder = Path(os.environ.get("KVARENA_DATA", "")) / "weights_stories260K"
    if not os.environ.get("KVARENA_DATA") or not folder.is_dir():
        pytest.skip("KVARENA_DATA/weights_stories260K is not there")
    return folder


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama2.c rotates neighbouring pairs, transformers halves: reorder the rows of each head."""
    dim = weight.shape[0] // heads
    return weight.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _save_stories(folder: Path, target: Path) -> None:
    """Write the llama2.c checkpoint as a Hugging Face Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", raw[:28])
    data, at = np.frombuffer(raw, np.float32, offset=28), 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return data[at - int(np.prod(shape)) : at].reshape(shape)

    kv_dim = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": take(vocab, dim)}
    tensors = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for i in range(layers):
        for name, weight in tensors.items():
            state[f"model.layers.{i}.{name}.weight"] = weight[i]
        for name, count in (("q_proj", heads), ("k_proj", kv_heads)):
            key = f"model.layers.{i}.self_attn.{name}.weight"
            state[key] = _half_split(state[key], count)
    state["model.norm.weight"] = take(dim)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    model.tie_weights()
    model.save_pretrained(target)


def _pieces(path: Path) -> list[bytes]:
    """llama2.c's tokenizer file: int32 longest, then (float32 score, int32 length, bytes) each."""
    raw, at, pieces = path.read_bytes(), 4, []
    while at < len(raw):
        (size,) = struct.unpack("i", raw[at + 4 : at + 8])
        pieces.append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    return pieces


def _text(pieces: list[bytes], ids: list[int]) -> str:
    joined = b"".join(bytes([int(p[3:5], 16)]) if p.startswith(b"<0x") else p for p in (pieces[i] for i in ids))
    return joined.decode().strip()


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_trained_model_tells_the_documented_story(tmp_path, segment, decoupled):
    folder = _stories_folder()
    _save_stories(folder, tmp_path)
    document = (folder / "UPSTREAM_stories260K.md").read_text()
    story = document.split("-t 0.0\n")[1].split("\n```")[0]
    model = load_model({"name": "hf", "kind": "hf", "path": str(tmp_path)})
    executor = TorchExecutor(model, 20, 16, decoupled=decoupled)
    known, table = [1], np.arange(20, dtype=np.int32)[::-1].copy()
    for _ in range(256):
        known.append(int(executor.logits([segment(known, table, len(known) - 1, len(known))]).argmax()))
    told = _text(_pieces(folder / "tok512.bin"), known[1:])
    assert told.startswith(story[:-1])
