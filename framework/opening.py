"""Opening a run's workload, and refusing at the start what can never be served."""

from __future__ import annotations

from copy import copy

from .composition import Parts, refusing
from .execution.contract import ModelShape
from .execution.model_knobs import RandomModel
from .footprint import Footprint, Held, Window
from .policy import CacheShape, Rotation
from .schema import ConfigError
from .task_knobs import ReplayTask
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
    setting = Setting(parts.seed, vocab_size, tokenizer or PieceTokenizer(vocab_size), parts.symbolic)
    return parts.workload.open(setting)


def vocabulary(parts: Parts) -> int:
    """The model's vocabulary, as far as it is known before a model is loaded."""
    known = parts.shape.vocab_size if parts.shape else ANY_VOCABULARY
    return parts.model.vocab_size if isinstance(parts.model, RandomModel) else known


def check_workload(parts: Parts) -> None:
    """Open the workload and check its sizes, as far as both are possible before a model is loaded."""
    with refusing():
        workload = open_workload(parts, vocabulary(parts))
        if isinstance(parts.task, ReplayTask):
            _check_replay(parts, parts.task, workload)
        elif parts.memory.device_tokens is not None and _room_known(parts):
            room = parts.memory.device_tokens // parts.memory.page_size * parts.memory.page_size
            footprint = footprint_of(parts, parts.shape) if parts.shape is not None else None
            check_sizes(parts, workload, Window(room, None, parts.policies.truncation, footprint))


def _room_known(parts: Parts) -> bool:
    """Before a model is loaded."""
    narrows, shares = parts.lossy.narrows, parts.policies.compression.shares
    return not shares and (parts.shape is not None or not narrows)


def _check_replay(parts: Parts, task: ReplayTask, workload: Workload) -> None:
    from .replay.requests import in_order
    from .replay.trace import check_pages

    check_pages(in_order(workload), task.semantics, parts.memory.page_size, parts.memory.device_tokens)


def check_sizes(parts: Parts, workload: Workload, window: Window) -> None:
    """Refuse a closed-loop workload with a request that never fits into ``window``.

    What truncation would drop does not count.

    Under open load (a rate, or a trace's own times) such requests are counted as failed instead.

    Raises
    ------
    ConfigError
        Naming conversation, turn and sizes.
    """
    if getattr(parts.workload, "rate", None) is not None:
        next(iter(workload.conversations()), None)  # what cannot be drawn at all is found now
        return
    for conversation in workload.conversations():
        if any(turn.log is not None or turn.arrival_s is not None for turn in conversation.turns):
            return
        _check_conversation(conversation, len(workload.new_log(conversation)), window)


def _check_conversation(conversation: Conversation, shared: int, window: Window) -> None:
    """``shared``: tokens of the system prompt, which the first turn begins with."""
    held = Held()
    for number, turn in enumerate(conversation.turns):
        needs = window.turn(held, turn.prompt_tokens + (0 if number else shared), turn.output_tokens)
        held = needs.held
        what = f"conversation {conversation.label or conversation.id}, turn {number} grows to"
        if needs.slots > window.room:
            sizes = f"the device tier holds {window.room} (memory.device_tokens, workload.max_context)"
            raise ConfigError(f"{what} {needs.slots} tokens, {sizes}")
        if window.max_tokens is not None and needs.positions > window.max_tokens:
            positions = f"the model has {window.max_tokens} positions (workload.max_context)"
            raise ConfigError(f"{what} {needs.positions} tokens, {positions}")


def footprint_of(parts: Parts, shape: ModelShape) -> Footprint | None:
    """Sizes of contexts under the policies of ``parts``, which need not know the model yet; None if they let go of no
    single tokens."""
    lossy, compression = parts.lossy, parts.policies.compression
    if not lossy.narrows:
        return None
    truncation = copy(lossy.truncation)
    if truncation is not None:
        truncation.bind(cache_shape(shape))
    share = compression.bytes_per_token(shape.kv_bytes_per_token, shape.kv_dtype_bytes) / shape.kv_bytes_per_token
    return Footprint(truncation, compression, share, parts.memory.page_size, parts.policies.scheduling.chunk)


def cache_shape(shape: ModelShape, rotation: Rotation | None = None) -> CacheShape:
    """What a token-level policy is told of the model. ``rotation``: for one that asks for queries."""
    plane_bytes = 2 * shape.head_dim * shape.kv_dtype_bytes
    return CacheShape(shape.num_layers, shape.num_heads, shape.num_kv_heads, plane_bytes, rotation)
