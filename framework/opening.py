"""Opening a run's workload, and refusing at the start what can never be served."""

from __future__ import annotations

from .composition import Parts, refusing
from .execution.model_knobs import RandomModel
from .schema import ConfigError
from .workloads.common import Setting
from .workloads.conversation import Conversation, Workload
from .workloads.tokenizer import PieceTokenizer, Tokenizer

ANY_VOCABULARY = 1 << 30


def open_workload(parts: Parts, vocab_size: int, tokenizer: Tokenizer | None = None) -> Workload:
    """The workload of ``parts`` for a model with this vocabulary; reads its files.

    Raises
    ------
    ConfigError
        If a file is missing or malformed, or the workload cannot serve a model.
    """
    setting = Setting(parts.seed, vocab_size, tokenizer or PieceTokenizer(vocab_size), parts.simulated)
    return parts.workload.open(setting)


def check_workload(parts: Parts) -> None:
    """Open the workload and check its sizes, as far as both are possible before a model is loaded."""
    known = parts.shape.vocab_size if parts.shape else ANY_VOCABULARY
    vocab_size = parts.model.vocab_size if isinstance(parts.model, RandomModel) else known
    with refusing():
        workload = open_workload(parts, vocab_size)
        if parts.memory.device_tokens is not None:
            check_sizes(parts, workload, parts.memory.device_tokens // parts.memory.page_size)


def check_sizes(parts: Parts, workload: Workload, num_pages: int, max_tokens: int | None = None) -> None:
    """Refuse a closed-loop workload with a request that ``num_pages`` or the model's ``max_tokens`` can never hold.

    Under open load (a rate, or a trace's own times) such requests are counted as failed instead.

    Raises
    ------
    ConfigError
        Naming conversation, turn and sizes.
    """
    if getattr(parts.workload, "rate", None) is not None:
        next(iter(workload.conversations()), None)  # what cannot be drawn at all is found now
        return
    room = num_pages * parts.memory.page_size
    for conversation in workload.conversations():
        if any(turn.log is not None or turn.arrival_s is not None for turn in conversation.turns):
            return
        _check_conversation(conversation, len(workload.new_log(conversation)), room, max_tokens)


def _check_conversation(conversation: Conversation, tokens: int, room: int, max_tokens: int | None) -> None:
    for number, turn in enumerate(conversation.turns):
        tokens += turn.prompt_tokens + turn.output_tokens
        what = f"conversation {conversation.label or conversation.id}, turn {number} grows to {tokens} tokens"
        if tokens > room:
            raise ConfigError(f"{what}, the device tier holds {room} (memory.device_tokens, workload.max_context)")
        if max_tokens is not None and tokens > max_tokens:
            raise ConfigError(f"{what}, the model has {max_tokens} positions (workload.max_context)")
