"""Train the byte-level text model: ``python -m kvarena.framework.quality.train_bytes --text BOOK --out DIR``.

The model's tokens are the bytes of UTF-8 text. It learns from one public-domain book without its last sixteenth, and is
judged by bits per byte on that. The shipped one is of Moby Dick (Project Gutenberg 2701).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..execution.model_knobs import RandomModel
from .text import Book, random_windows, read_book, windows
from .train import Batch, Schedule, arguments, set_threads, train, write_card

if TYPE_CHECKING:
    from ..execution.trainee import PlainModel

CONTEXT = 512
EXCERPT_SOURCE = (
    "held_out.txt: the beginning of the held-out part of the text named here, which is in the public domain"
)
ROWS = 8  # windows in a batch
STEPS = 650
MODEL = RandomModel(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=CONTEXT,
    tied_embeddings=True,
    dtype="float16",
)


def draw(book: Book, seed: int, step: int) -> Batch:
    """The batch of a step: windows from anywhere in the training part."""
    tokens = random_windows(book.train, CONTEXT, ROWS, np.random.default_rng([seed, step]))
    wanted = np.ones(tokens.shape, np.bool_)
    wanted[:, 0] = False
    return Batch(tokens, wanted)


def bits_per_byte(model: PlainModel, text: bytes, length: int = CONTEXT) -> float:
    """Mean -log2 p of the bytes of ``text``, read in windows of ``length`` of which the first byte is given."""
    bits = [model.surprise_bits(row[None]) for row in windows(text, length)]
    return float(np.mean(bits))


def scores(model: PlainModel, book: Book) -> dict[str, Any]:
    """Bits per byte on the held-out part, on the excerpt of it, and by the place in the window."""
    surprise = np.concatenate([model.surprise_bits(row[None]) for row in windows(book.held_out, CONTEXT)])
    places = {"1-64": slice(0, 64), "65-256": slice(64, 256), "257-511": slice(256, None)}
    return {
        "held_out_bytes": len(book.held_out),
        "bits_per_byte": round(float(surprise.mean()), 4),
        "bits_per_byte_by_position": {name: round(float(surprise[:, at].mean()), 4) for name, at in places.items()},
        "excerpt_bits_per_byte": round(bits_per_byte(model, book.excerpt), 4),
    }


def write_tokenizer(folder: Path) -> None:
    """A Hugging Face tokenizer whose ids are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MODEL.max_positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(known, indent=2) + "\n")


def _byte_characters() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte: its own, or the next one from 256 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) if byte in own else chr(256 + others.index(byte)) for byte in range(256)]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge and write the checkpoint; the exit status."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, required=True, help="a plain-text book of at least 64 KiB")
    given = parser.parse_args(argv)
    try:
        book = read_book(given.text)
    except ValueError as error:
        print(f"train_bytes: {error}", file=sys.stderr)
        return 2
    from ..execution.trainee import Trainee

    set_threads(given.threads)
    trainee = Trainee(MODEL, given.seed)
    schedule = Schedule(STEPS if given.steps is None else given.steps, rate=3e-3)
    outcome = train(trainee, lambda step: draw(book, given.seed, step), schedule, given.out, "bytes")
    trainee.save(given.out)
    write_tokenizer(given.out)
    (given.out / "held_out.txt").write_bytes(book.excerpt)
    with trainee.judged() as model:
        about = {"text": given.text.name, "context": CONTEXT, "scores": scores(model, book), "excerpt": EXCERPT_SOURCE}
    write_card(given.out, "kvarena.framework.quality.train_bytes", given, MODEL, outcome, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
