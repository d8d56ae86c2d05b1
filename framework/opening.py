"""Opening a run's workload, and refusing at the start what can never be served."""

from __future__ import annotations

from dataclasses import dataclass

from .composition import Parts, refusing
from .execution.model_knobs import RandomModel
from .policy import Truncation
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
        elif parts.memory.device_tokens is not None:
            check_sizes(parts, workload, parts.memory.device_tokens // parts.memory.page_size)


def _check_replay(parts: Parts, task: ReplayTask, workload: Workload) -> None:
    from .replay.requests import in_order
    from .replay.trace import check_pages

    check_pages(in_order(workload), task.semantics, parts.memory.page_size, parts.memory.device_tokens)


def check_sizes(parts: Parts, workload: Workload, num_pages: int, max_tokens: int | None = None) -> None:
    """Refuse a closed-loop workload with a request that ``num_pages`` or the model's ``max_tokens`` never hold.

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
    window = Window(num_pages * parts.memory.page_size, max_tokens, parts.policies.truncation)
    for conversation in workload.conversations():
        if any(turn.log is not None or turn.arrival_s is not None for turn in conversation.turns):
            return
        _check_conversation(conversation, len(workload.new_log(conversation)), window)


@dataclass(frozen=True, slots=True)
class Window:
    """How long a context may be: ``room`` tokens on the device, ``max_tokens`` positions of the model."""

    room: int
    max_tokens: int | None
    truncation: Truncation

    def kept(self, history: int, needed: int) -> int:
        """What is left of ``needed`` tokens, ``history`` of them old, once the oldest are dropped."""
        limit = self.room if self.max_tokens is None else min(self.room, self.max_tokens)
        return needed if needed <= limit else needed - self.truncation.first_kept(history, needed, limit)


def _check_conversation(conversation: Conversation, tokens: int, window: Window) -> None:
    for number, turn in enumerate(conversation.turns):
        tokens = window.kept(tokens, tokens + turn.prompt_tokens + turn.output_tokens)
        what = f"conversation {conversation.label or conversation.id}, turn {number} grows to {tokens} tokens"
        if tokens > window.room:
            sizes = f"the device tier holds {window.room} (memory.device_tokens, workload.max_context)"
            raise ConfigError(f"{what}, {sizes}")
        if window.max_tokens is not None and tokens > window.max_tokens:
            raise ConfigError(f"{what}, the model has {window.max_tokens} positions (workload.max_context)")
